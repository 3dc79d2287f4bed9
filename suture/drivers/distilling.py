"""Distillation of a large model into an instance of a pool, block by block, through linear maps that are learned with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from suture.backends.torch_module import to_torch
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.assembly.instances import Instance, Transformation, points_of
from suture.passes.stitch.adapters import Adapter, random_solution
from suture.passes.stitch.anchor import Anchor, find_anchor
from suture.passes.stitch.calibration import batches, taps
from suture.passes.stitch.least_squares import Moments, solve


@dataclass(frozen=True)
class Distilled:
    """What one batch gives.

    :param outputs: of the instance
    :param teacher: the large model's outputs, without gradient
    :param features: the mean over points of how far the mapped features are from the large model's: mean square over mean square
    """

    outputs: tuple[torch.Tensor, ...]
    teacher: tuple[torch.Tensor, ...]
    features: torch.Tensor


class Distillation(nn.Module):
    """An instance beside its teacher, with a linear map from the features at each of its points to the teacher's.

    `parameters()` are the instance's own, which are its graph's tensors, and the maps'; the teacher is frozen, and is no part of the module.

    :param teacher: the large model
    :param student: the instance
    :param at: module paths of the blocks, as patterns ("blocks.*"); found by themselves if absent
    :param seed: the key of the maps' first values
    :raises SutureError: STITCH, if a model has no blocks, or the positions of the features do not line up; GROWTH, if the instance is deeper
    """

    def __init__(self, teacher: Graph, student: Graph, *, at: Sequence[str] | None = None, seed: int = 0) -> None:
        super().__init__()
        self._anchors = find_anchor(teacher, at), find_anchor(student, at)
        large, small = self._anchors
        self.points = points_of(small.depth, large.depth)
        self.student = to_torch(_tapped(small, range(len(self.points))))
        self._teacher = [
            to_torch(_tapped(large, self.points)).requires_grad_(False)
        ]  # in a list: no part of the module
        self.maps = nn.ModuleList()
        for point, target in enumerate(self.points):
            adapter = Adapter(small.interface(point), large.interface(target))
            if adapter.resampling() is not None:
                raise SutureError(
                    Code.STITCH, f"{adapter.source} does not line up with {adapter.target}", where=student.name,
                    remedy="an instance with the same positions would be right",
                )  # fmt: skip
            first = random_solution(adapter, seed, f"{student.name}.{point}")
            self.maps.append(_linear(first.weight, first.bias, adapter.source.type.dtype))

    def forward(self, *inputs: torch.Tensor) -> Distilled:
        """One batch, given in the order of the graph's inputs."""
        large, small = self._anchors
        count = len(small.graph.outputs)
        with torch.no_grad():
            expected = self._teacher[0](*inputs)
        found = self.student(*inputs)
        losses = []
        for point, target in enumerate(self.points):
            ours = small.interface(point).rows(found[count + point])
            theirs = large.interface(target).rows(expected[count + point])
            losses.append((self.maps[point](ours) - theirs).square().mean() / theirs.square().mean())
        return Distilled(tuple(found[:count]), tuple(expected[:count]), torch.stack(losses).mean())

    def fit(self, data: Mapping[str, torch.Tensor]) -> None:
        """Let the maps be those of least squares on calibration data: where their training starts, or ends.

        :param data: inputs by name
        :raises SutureError: CALIBRATION, if the data do not fit
        """
        large, small = self._anchors
        sums: list[Moments | None] = [None] * len(self.points)
        for inputs in batches(small.graph, data):
            ours, theirs = taps(small.graph, inputs, small.points), taps(large.graph, inputs, large.points)
            for point, target in enumerate(self.points):
                rows = small.interface(point).rows(ours[small.points[point]])
                targets = large.interface(target).rows(theirs[large.points[target]])
                moments, held = Moments.of(rows, targets), sums[point]
                sums[point] = moments if held is None else held + moments
        for layer, total in zip(self.maps, sums, strict=True):
            if total is not None and isinstance(layer, nn.Linear):
                solution = solve(total)
                with torch.no_grad():
                    layer.weight.copy_(solution.weight)
                    layer.bias.copy_(solution.bias)

    def instance(self) -> Instance:
        """The instance with its transformations as they are now."""
        found = [
            Transformation(point, target, layer.weight.detach().clone(), layer.bias.detach().clone())
            for (point, target), layer in zip(enumerate(self.points), self.maps, strict=True)
            if isinstance(layer, nn.Linear)
        ]
        return Instance(self._anchors[1].graph, tuple(found))

    def _apply(self, *args: Any, **kwargs: Any) -> Distillation:
        """The teacher moves with the module."""
        self._teacher[0]._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self


def _tapped(anchor: Anchor, points: Sequence[int]) -> Graph:
    """The anchor's graph, which gives the values at its points after its outputs, called with its inputs in order."""
    graph = anchor.graph.copy()
    twins = dict(zip(anchor.graph.values(), graph.values(), strict=True))
    graph.structure = None
    values = [twins[anchor.points[point]] for point in points]
    graph.set_outputs([*graph.outputs, *values])
    return graph


def _linear(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
