"""A pool of small instances of one large model, and what joins them (Learngene Pool, Shi et al. 2024).

One large model is distilled into several small ones, of fewer blocks and narrower. Each instance learns, for every point between its blocks, a
linear map from its own features to the large model's. Two such maps give the stitching layer from one instance to another: through the large
model's features and back. The distillation itself is `suture.drivers.distilling.Distillation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter
from suture.ir.regions import stack_at
from suture.ir.splice import arrange
from suture.passes.prune import prune
from suture.passes.stitch.configurations import configurations
from suture.passes.stitch.positions import Position
from suture.passes.stitch.sites import lane_name, layer_name
from suture.passes.stitch.space import Pair


@dataclass(frozen=True)
class Transformation:
    """A linear map from an instance's features to the large model's: y = weight x + bias.

    :param point: how many of the instance's blocks are before it
    :param target: how many of the large model's blocks are before the features that it leads to
    :param weight: [features of the large model, features of the instance]
    """

    point: int
    target: int
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Instance:
    """A model of the pool with its transformations, one for each point between its blocks; none for the large model itself."""

    graph: Graph
    transformations: tuple[Transformation, ...] = ()


def instances(
    graph: Graph, *, depths: Sequence[int], widths: Sequence[float], at: str | None = None, round: int = 1
) -> tuple[Graph, ...]:
    """Small models cut out of a large one, one of each depth and width, from the cheapest on.

    Blocks are taken evenly; of every axis that is free the largest indices by their norm stay. They are where the distillation starts.

    :param depths: how many blocks
    :param widths: the share of every free axis that stays: 1 leaves widths as they are
    :param at: the stack, by its module path; the stack of most parameters if absent
    :param round: the number of indices kept is a multiple of this
    :raises SutureError: GROWTH, if there are not as many blocks; KEEP, if a share is none; SITE or REGION, if there is no such stack
    """
    length = len(stack_at(graph, at))
    made = []
    for depth in depths:
        chosen = evenly(depth, length)
        for width in widths:
            part = graph.copy()
            arrange(stack_at(part, at), chosen)
            for parameter in part.parameters.values():
                trains = parameter.data.requires_grad
                parameter.assign(parameter.data.detach().clone().requires_grad_(trains))
            narrow = prune(part, keep=width, round=round, check=False) if width != 1 else part
            narrow.name = f"{graph.name}_{depth}x{width:g}"
            made.append(narrow)
    return tuple(sorted(made, key=lambda item: item.stats().macs))


def evenly(count: int, length: int) -> list[int]:
    """So many of `length` blocks, evenly spread; the last one is always among them.

    :raises SutureError: GROWTH, if there are not as many
    """
    if not 1 <= count <= length:
        raise SutureError(
            Code.GROWTH, f"{count} of {length} blocks cannot be taken", remedy=f"1 to {length} would be right"
        )
    return [-(-(k + 1) * length // count) - 1 for k in range(count)]


def points_of(depth: int, length: int) -> list[int]:
    """For each point of an instance of so many blocks, the point of the large model: as many of its blocks, in proportion, are before it."""
    return [0, *(block + 1 for block in evenly(depth, length))]


def joined(front: Transformation | None, back: Transformation | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight and bias that lead from one instance's features to another's: to the large model's by the first map, and back by the pseudoinverse
    of the second.

    :param front: None if the front is the large model itself
    :param back: None if the back is
    """
    known = front or back
    if known is None:
        raise SutureError(Code.STITCH, "the large model needs no stitch to itself", remedy="join an instance to it")
    size = len(known.bias)
    eye, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    weight, bias = (front.weight.double(), front.bias.double()) if front is not None else (eye, zero)
    if back is None:
        return weight, bias
    inverse = torch.linalg.pinv(back.weight.double())
    return inverse @ weight, inverse @ (bias - back.bias.double())


def initialise_stitches(supernet: Graph, pool: Sequence[Instance]) -> Graph:
    """A supernet whose stitching layers come from the transformations that its anchors have learned.

    A layer of several positions gets the mean of their maps.

    :param supernet: what the pass `stitch` made of the graphs of the pool
    :param pool: the instances, in any order, the large model among them if it is stitched
    :raises SutureError: STITCH, if an anchor is none of the pool, or a stitching layer has no single matrix
    """
    result = supernet.copy()
    anchors = _anchors(supernet, pool)
    for (pair, number), places in _layers(supernet).items():
        maps = [
            joined(_transformation(anchors[pair[0]], place.exit + 1), _transformation(anchors[pair[1]], place.entry))
            for place in places
        ]
        name = layer_name(pair, number)
        _assign(result, f"{name}.weight", torch.stack([weight for weight, _ in maps]).mean(0))
        _assign(result, f"{name}.bias", torch.stack([bias for _, bias in maps]).mean(0))
    return result


def _layers(supernet: Graph) -> Mapping[tuple[Pair, int], list[Position]]:
    found: dict[tuple[Pair, int], dict[Position, None]] = {}
    for item in configurations(supernet):
        for pair, place in item.route.stitches:
            found.setdefault((pair, place.layer), {})[place] = None
    return {key: list(places) for key, places in found.items()}


def _anchors(supernet: Graph, pool: Sequence[Instance]) -> dict[int, Instance]:
    """The instance that each anchor is: they share their tensors."""
    count = 1 + max(hop.anchor for item in configurations(supernet) for hop in item.route.hops)
    found: dict[int, Instance] = {}
    for number in range(count):
        head = lane_name(number) + "."
        held = {id(p.data) for name, p in supernet.parameters.items() if name.startswith(head)}
        match = [item for item in pool if any(id(p.data) in held for p in item.graph.parameters.values())]
        if len(match) != 1:
            raise SutureError(
                Code.STITCH, f"{lane_name(number)} is {len(match)} of the instances", where=supernet.name,
                remedy="give the instances whose graphs were stitched",
            )  # fmt: skip
        found[number] = match[0]
    return found


def _transformation(instance: Instance, point: int) -> Transformation | None:
    if not instance.transformations:
        return None
    found = next((item for item in instance.transformations if item.point == point), None)
    if found is None:
        raise SutureError(
            Code.STITCH, f"no transformation leads from behind {point} blocks", where=instance.graph.name,
            remedy="distil all points, with the blocks that are stitched",
        )  # fmt: skip
    return found


def _assign(graph: Graph, name: str, data: torch.Tensor) -> None:
    parameter = graph.parameters.get(name)
    if not isinstance(parameter, Parameter) or parameter.data.numel() != data.numel():
        raise SutureError(
            Code.STITCH, f"there is no {name} of {data.numel()} elements", where=graph.name,
            remedy="stitch without rank, the anchors as they were distilled",
        )  # fmt: skip
    trains = parameter.data.requires_grad
    parameter.assign(data.to(parameter.data).reshape(parameter.data.shape).contiguous().requires_grad_(trains))
