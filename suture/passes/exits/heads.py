"""Inference modules and gates: what an exit computes from the stream it hangs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.regions import Region, between, cuts, stacks
from suture.ir.splice import extract, graft
from suture.passes.counter import counter_uniform
from suture.passes.exits.sites import PREFIX

STATISTICS = 3  # of the logits: the largest probability, the margin, the entropy


@dataclass(frozen=True)
class OwnHead:
    """The model's own head: what it computes from the stream behind its last block."""

    region: Region
    piece: Graph

    @classmethod
    def of(cls, graph: Graph, result: Value) -> OwnHead | None:
        """The head of a model that has blocks; None if it has none, or something else crosses into the head."""
        chain = cuts(graph)
        ends = [stack.exit for stack in stacks(graph) if stack.exit in chain and stack.exit is not result]
        if not ends or result not in chain:
            return None
        try:
            region = between(graph, max(ends, key=chain.index), result)
        except SutureError as error:
            if error.code is not Code.CUT:
                raise
            return None
        return cls(region, extract(region, "head"))

    def fits(self, stream: Value) -> bool:
        """Whether the head takes such a stream."""
        return self.region.entry.type == stream.type


def copied_head(graph: Graph, head: OwnHead, stream: Value, number: int) -> Value:
    """The logits by a copy of the model's own head, with parameters of its own."""
    prefix = f"{PREFIX}.{number}.head"
    operands = [stream, *head.region.ambient]
    (logits,) = graft(
        graph, head.piece, operands, rename=lambda name: f"{prefix}.{name}" if name else prefix, share=False
    )
    return logits


def pooled_head(graph: Graph, stream: Value, feature: int, classes: int, number: int, seed: int) -> Value:
    """The logits by a linear layer on the features, averaged over everything else but the batch."""
    path = f"{PREFIX}.{number}.head"
    width = stream.shape[feature]
    if not isinstance(width, int):
        raise SutureError(
            Code.EXIT, f"the features of {stream} are {width} in number", where=path, remedy="a fixed number is needed"
        )
    others = tuple(dim for dim in range(1, stream.rank) if dim != feature)
    pooled = graph.add("mean", [stream], {"dims": others}, path=path).output if others else stream
    bound = 1 / math.sqrt(width)
    meta = any(parameter.data.is_meta for parameter in graph.parameters.values())
    weight = _uniform(seed, f"{path}.weight", (classes, width), bound, stream.dtype, meta=meta)
    bias = _uniform(seed, f"{path}.bias", (classes,), bound, stream.dtype, meta=meta)
    operands = [pooled, graph.add_parameter(f"{path}.weight", weight), graph.add_parameter(f"{path}.bias", bias)]
    return graph.add("linear", operands, path=path).output


def add_gate(graph: Graph, logits: Value, number: int) -> Value:
    """The gate of an exit: a linear function of how sure the logits are, through a sigmoid; one number per sample.

    The statistics are the largest probability, its margin before the second, and the entropy as a share of the largest possible (ICLR 2024, section
    on the gating mechanism). At first the gate grows with the former two and falls with the last, all with weight one.
    """
    path = f"{PREFIX}.{number}.gate"
    classes = logits.shape[1]
    assert isinstance(classes, int)
    shape = (logits.shape[0], 1)
    probabilities = graph.add("softmax", [logits], {"dim": 1}, path=path).output
    logarithms = graph.add("log_softmax", [logits], {"dim": 1}, path=path).output
    top = graph.add("topk", [probabilities], {"k": 2, "dim": 1}, path=path).outputs[0]
    first, second = graph.add("split", [top], {"dim": 1}, shapes=[shape, shape], path=path).outputs
    margin = graph.add("sub", [first, second], path=path).output
    terms = graph.add("mul", [probabilities, logarithms], path=path).output
    total = graph.add("sum", [terms], {"dims": (1,), "keepdim": True}, path=path).output
    entropy = graph.add("mul", [total], {"scalar": -1 / math.log(classes)}, path=path).output
    statistics = graph.add("concat", [first, margin, entropy], {"dim": 1}, path=path).output
    weight, bias = _gate_parameters(graph, path, logits.dtype)
    score = graph.add("linear", [statistics, weight, bias], path=path).output
    flat = graph.add("reshape", [score], shapes=[shape[:1]], path=path).output
    return graph.add("sigmoid", [flat], path=path).output


def _gate_parameters(graph: Graph, path: str, dtype: torch.dtype) -> tuple[Parameter, Parameter]:
    meta = any(parameter.data.is_meta for parameter in graph.parameters.values())
    device = "meta" if meta else None
    weight = torch.tensor([[1.0, 1.0, -1.0]], dtype=dtype, device=device)
    bias = torch.zeros(1, dtype=dtype, device=device)
    return graph.add_parameter(f"{path}.weight", weight), graph.add_parameter(f"{path}.bias", bias)


def _uniform(
    seed: int, name: str, shape: Sequence[int], bound: float, dtype: torch.dtype, *, meta: bool
) -> torch.Tensor:
    if meta:
        return torch.empty(tuple(shape), dtype=dtype, device="meta")
    drawn = counter_uniform(seed, name, math.prod(shape)).reshape(tuple(shape))
    return ((2 * drawn - 1) * bound).to(dtype)
