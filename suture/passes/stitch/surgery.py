"""The pass `stitch`: several anchors become one graph that can be set to any route through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.stitch.adapters import Adapter, random_solution
from suture.passes.stitch.anchor import Anchor, find_anchor, same_interface
from suture.passes.stitch.calibration import LayerKey, Shared, adapter_at, adapters_of, device_of, fit_layers
from suture.passes.stitch.lanes import build_lanes
from suture.passes.stitch.least_squares import Solution
from suture.passes.stitch.positions import Windows
from suture.passes.stitch.sites import STITCH, layer_name
from suture.passes.stitch.space import Direction, StitchSpace, stitch_space

Initialise = Literal["least_squares", "random"]


@register(contract=Contract.STRUCTURAL)
def stitch(
    graph: Graph,
    notes: Notes,
    *,
    others: tuple[Graph, ...],
    data: Mapping[str, torch.Tensor] | None = None,
    at: tuple[str, ...] | None = None,
    kernel: int = 2,
    stride: int = 1,
    skipped_stages: tuple[int, ...] = (-1,),
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    stitches: int | None = None,
    two_way: bool = False,
    initialise: Initialise = "least_squares",
    shared: Shared = "joint",
    rank: int | None = None,
    update_rank: int | None = None,
    seed: int = 0,
) -> Graph:
    """Stitch anchors into one graph whose input `stitch` chooses the route at run time (SN-Net, SN-Netv2).

    The graph shares the anchors' tensors, under `anchors.0`, `anchors.1`, ..., from the cheapest anchor to the dearest. Route 0 is the cheapest
    anchor itself, and so on; then come the stitches. Setting `stitch` to a number runs that route alone.

    :param others: the other anchors, of the same inputs and outputs
    :param data: calibration inputs by name, for the least squares (in a script: an .npz or .safetensors file that holds them)
    :param at: module paths of the anchors' blocks, as patterns ("blocks.*"); found by themselves if absent
    :param kernel: the number of neighbouring blocks that share a stitching layer, in anchors of equal depth
    :param stride: how far apart such windows start
    :param skipped_stages: stages of staged anchors in which nothing is stitched, negative ones from the end
    :param direction: routes lead to dearer anchors (fast_to_slow), to cheaper ones (slow_to_fast), or both
    :param nearest: only neighbours in cost are stitched
    :param stitches: how many stitches a route may have; 1 with nearest, any number without, if absent
    :param two_way: the routes of SN-Netv2 through two anchors: there, back, and there and back again
    :param initialise: stitching layers by least squares on the data, or at random
    :param shared: a layer of several positions is fitted on all of them jointly, or is the mean of their solutions
    :param rank: the largest rank of the stitching layers; full if absent
    :param update_rank: freeze the stitching layers and train an update of this rank beside each; none if absent
    :param seed: the key of random numbers
    """
    anchors = sorted_anchors([graph, *others], at, notes)
    space = space_of(
        anchors, Windows(kernel, stride, skipped_stages), direction=direction, nearest=nearest, stitches=stitches, two_way=two_way
    )  # fmt: skip
    adapters = adapters_of(anchors, space)
    if _is_planned(anchors):
        notes.note("estimated: the weights decide the stitching layers")
        solutions = {key: _unknown(adapter, rank) for key, adapter in adapters.items()}
    elif initialise == "random":
        solutions = {
            key: random_solution(adapter, seed, layer_name(*key), rank=rank) for key, adapter in adapters.items()
        }
    else:
        if data is None:
            raise SutureError(
                Code.CALIBRATION, "least squares has no calibration data", where=graph.name,
                remedy="give data, or initialise=random",
            )  # fmt: skip
        _require_known(graph, data)
        solutions = fit_layers(anchors, space, adapters, data, rank=rank, shared=shared, face=graph)
    device = device_of(graph)
    layers = {
        key: adapter.layer(solutions[key], update_rank=update_rank, seed=seed, name=layer_name(*key), device=device)
        for key, adapter in adapters.items()
    }
    result = build_lanes(anchors, space, layers, graph)
    result.source, result.history = graph.source, graph.history
    _report(space, solutions, notes)
    notes.gains_input(STITCH)
    return result


def _require_known(graph: Graph, data: Mapping[str, torch.Tensor]) -> None:
    """:raises SutureError: INPUT, if the data name an input that the graph does not have"""
    names = [value.name for value in graph.inputs]
    for name in data:
        if name not in names:
            raise SutureError(
                Code.INPUT, f"the calibration data name {name!r}, which is no input", where=graph.name,
                remedy=nearest(name, names, what="input"),
            )  # fmt: skip


def _is_planned(anchors: Sequence[Anchor]) -> bool:
    """Whether the anchors hold shapes only."""
    return any(parameter.data.is_meta for anchor in anchors for parameter in anchor.graph.parameters.values())


def _unknown(adapter: Adapter, rank: int | None) -> Solution:
    """A solution of which only the shapes are known."""
    solution = random_solution(adapter, 0, "", rank=rank)
    factors = None if solution.factors is None else (solution.factors[0].to("meta"), solution.factors[1].to("meta"))
    return Solution(solution.weight.to("meta"), solution.bias.to("meta"), float("nan"), factors=factors)


def sorted_anchors(graphs: Sequence[Graph], at: Sequence[str] | None, notes: Notes) -> list[Anchor]:
    """The graphs as anchors, from the cheapest to the dearest.

    :raises SutureError: STITCH, if they differ in what they take or return, or one has no blocks
    """
    if len(graphs) < 2:
        raise SutureError(Code.STITCH, "one anchor gives no stitch", remedy="give another one")
    same_interface(graphs)
    anchors = [find_anchor(graph, _patterns_for(graph, at)) for graph in graphs]
    ordered = sorted(anchors, key=lambda anchor: sum((anchor.costs.stem, *anchor.costs.blocks, anchor.costs.head)))
    for k, anchor in enumerate(ordered):
        notes.note(
            f"anchors.{k} is {anchor.graph.name}: {anchor.depth} blocks, {anchor.paths[0]} to {anchor.paths[-1]}"
        )
    return ordered


def _patterns_for(graph: Graph, at: Sequence[str] | None) -> Sequence[str] | None:
    """Of patterns for anchors of several families, those that match something here; all, if none does, so that the error names them."""
    if at is None:
        return None
    import fnmatch

    from suture.ir.regions import module_tree

    paths = [tree.path for tree in module_tree(graph).walk()]
    fitting = [pattern for pattern in at if any(fnmatch.fnmatchcase(path, pattern) for path in paths)]
    return fitting or at


def space_of(
    anchors: Sequence[Anchor],
    windows: Windows,
    *,
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    stitches: int | None = None,
    two_way: bool = False,
) -> StitchSpace:
    """The routes through these anchors. Anchors of different numbers of stages (a staged and a plain one) are stitched as if they had one each."""
    depths: list[tuple[int, ...]] = [anchor.stages for anchor in anchors]
    if len({len(stages) for stages in depths}) > 1:
        depths = [(anchor.depth,) for anchor in anchors]
    space = stitch_space(depths, windows, direction=direction, nearest=nearest, stitches=stitches, two_way=two_way)
    return space.separate(lambda pair, place: adapter_at(anchors, pair, place))


def _report(space: StitchSpace, solutions: Mapping[LayerKey, Solution], notes: Notes) -> None:
    anchors = sum(route.is_anchor for route in space.routes)
    notes.note(f"{len(space)} routes: {anchors} anchors and {len(space) - anchors} stitches by {len(solutions)} layers")
    for key, solution in solutions.items():
        if solution.residual == solution.residual:
            notes.note(f"{layer_name(*key)}: relative residual {solution.residual:.3f}")
        if solution.reason:
            notes.note(f"{layer_name(*key)}: regularised by {solution.ridge:g} of the mean square, {solution.reason}")
