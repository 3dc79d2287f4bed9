"""Stitching layers: the graph that takes the stream of one anchor to the stream of another.

A linear map of the channels (a 1x1 convolution where channels come first), a resampling of positions where they differ, and an order of the two that
costs less. Its parameters are `weight` and `bias`; of low rank, `down.weight`, `up.weight` and `up.bias`; with a low-rank update (SN-Netv2, section
3.2) `weight` and `bias` are frozen and `update.down`, `update.up` are trained: y = W x + b + B A x / r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.passes.counter import counter_uniform
from suture.passes.stitch.interface import Interface, align
from suture.passes.stitch.least_squares import Solution


@dataclass(frozen=True)
class Adapter:
    """What lies between two interfaces."""

    source: Interface
    target: Interface

    def __post_init__(self) -> None:
        """:raises SutureError: STITCH, if the element types differ or no resampling leads from one to the other"""
        if self.source.type.dtype != self.target.type.dtype:
            raise SutureError(
                Code.STITCH, f"a stitch from {self.source.type} to {self.target.type}", remedy="cast one of the anchors"
            )
        self.resampling()

    def resampling(self) -> Graph | None:
        """The part without channels: source positions to target positions; None where they line up."""
        if self.source.lines_up(self.target):
            return None
        graph = Graph("resampling")
        value = graph.add_input("stream", self.source.type)
        graph.set_outputs([align(graph, value, self.source, self.target)])
        return graph

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A source's features at the target's positions, [rows, channels]: what the linear map is fitted on.

        Resampling and a linear map of channels commute, so the rows are the same whichever comes first in the layer.
        """
        graph = self.resampling()
        aligned = tensor if graph is None else evaluate(graph, [tensor])[0]
        return self._resampled.rows(aligned)

    @property
    def _resampled(self) -> Interface:
        """The target's layout with the source's channels."""
        return Interface(
            self.target.type, self.target.layout, self.target.grid, self.target.extra, self.source.channels
        )

    @property
    def _mapped(self) -> Interface:
        """The source's layout with the target's channels."""
        dim = 1 if self.source.layout == "channels_first" else -1
        shape = list(self.source.type.shape)
        shape[dim] = self.target.channels
        type_ = type(self.source.type)(self.source.type.dtype, tuple(shape))
        return Interface(type_, self.source.layout, self.source.grid, self.source.extra, self.target.channels)

    def layer(
        self,
        solution: Solution,
        *,
        update_rank: int | None = None,
        seed: int = 0,
        name: str = "stitch",
        prefix: str = "",
        device: torch.device | None = None,
    ) -> Graph:
        """The stitching layer with the weights of a solution, as a graph of one input.

        :param update_rank: the rank of a trainable update beside the frozen solution; none if absent
        :param seed: the key of the update's random half
        :param name: the graph's name, which keys the random numbers as well
        :param prefix: put before the parameters' names, as `stitch.`
        :param device: where its tensors are made; the CPU if absent
        :raises SutureError: RANK, if the update's rank is none or beyond the matrix
        """
        graph = Graph(name)
        value = graph.add_input("stream", self.source.type)
        weights = _Weights(graph, solution, self.target.type.dtype, torch.device(device or "cpu"), prefix)
        if update_rank is not None:
            weights.add_update(update_rank, seed, name)
        if _larger(self.target, self.source):
            value = weights.apply(value, self.source.layout)
            value = align(graph, value, self._mapped, self.target)
        else:
            value = align(graph, value, self.source, self.target)
            value = weights.apply(value, self.target.layout)
        graph.set_outputs([value])
        return graph


def _larger(a: Interface, b: Interface) -> bool:
    first, second = a.positions, b.positions
    return isinstance(first, int) and isinstance(second, int) and first > second


def random_solution(adapter: Adapter, seed: int, name: str, *, rank: int | None = None) -> Solution:
    """Random weights, uniform with variance 1 / (3 inputs), and a zero bias: what a fresh `torch.nn.Linear` has, keyed by seed and name.

    :raises SutureError: RANK, if the rank is none or beyond the matrix
    """
    inputs, outputs = adapter.source.channels, adapter.target.channels
    weight = _uniform(seed, f"{name}.weight", outputs, inputs)
    bias = torch.zeros(outputs, dtype=torch.float64)
    if rank is None:
        return Solution(weight, bias, float("nan"))
    _check_rank(rank, outputs, inputs)
    up, down = _uniform(seed, f"{name}.up", outputs, rank), _uniform(seed, f"{name}.down", rank, inputs)
    return Solution(up @ down, bias, float("nan"), factors=(up, down))


def _uniform(seed: int, name: str, outputs: int, inputs: int) -> torch.Tensor:
    draws = counter_uniform(seed, name, outputs * inputs).reshape(outputs, inputs)
    return (2 * draws - 1) / math.sqrt(inputs)


def _check_rank(rank: int, outputs: int, inputs: int) -> None:
    if not 1 <= rank <= min(inputs, outputs):
        raise SutureError(
            Code.RANK, f"rank {rank} of a {outputs} x {inputs} stitching layer",
            remedy=f"1 to {min(inputs, outputs)} would be right",
        )  # fmt: skip


class _Weights:
    """The parameters of one stitching layer, and how they are applied."""

    def __init__(self, graph: Graph, solution: Solution, dtype: torch.dtype, device: torch.device, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.solution = solution
        self.dtype = dtype
        self.device = device
        self.update: tuple[torch.Tensor, torch.Tensor] | None = None

    def add_update(self, rank: int, seed: int, name: str) -> None:
        outputs, inputs = self.solution.weight.shape
        _check_rank(rank, outputs, inputs)
        down = _uniform(seed, f"{name}.update.down", rank, inputs)
        self.update = (torch.zeros(outputs, rank, dtype=torch.float64), down)

    def apply(self, value: Value, layout: str) -> Value:
        frozen = self.update is not None
        if self.solution.factors is not None and not frozen:
            up, down = self.solution.factors
            inner = self._map(value, layout, "down.weight", down)
            return self._map(inner, layout, "up.weight", up, "up.bias")
        result = self._map(value, layout, "weight", self.solution.weight, "bias", trained=not frozen)
        if self.update is not None:
            up, down = self.update
            inner = self._map(value, layout, "update.down", down)
            scaled = self.graph.add("mul", [inner, None], {"scalar": 1 / len(down)}).output
            result = self.graph.add("add", [result, self._map(scaled, layout, "update.up", up)]).output
        return result

    def _map(
        self,
        value: Value,
        layout: str,
        name: str,
        weight: torch.Tensor,
        bias: str | None = None,
        *,
        trained: bool = True,
    ) -> Value:
        shaped = weight.to(self.device, self.dtype).contiguous()
        spatial = value.rank - 2
        if layout == "channels_first":
            shaped = shaped.reshape(*shaped.shape, *[1] * spatial)
        operands: list[Value | None] = [
            value,
            self.graph.add_parameter(self.prefix + name, shaped, requires_grad=trained),
        ]
        if bias is not None:
            data = self.solution.bias.to(self.device, self.dtype).contiguous()
            operands.append(self.graph.add_parameter(self.prefix + bias, data, requires_grad=trained))
        else:
            operands.append(None)
        if layout != "channels_first":
            return self.graph.add("linear", operands).output
        ones, zeros = (1,) * spatial, (0,) * spatial
        return self.graph.add("conv", operands, {"stride": ones, "padding": zeros, "dilation": ones}).output
