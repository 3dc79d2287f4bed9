"""Experts cut out of dense feed-forward layers, with a router that looks ahead.

After Cai et al., "Read-ME" (arXiv 2410.19123): each expert is a subset of a layer's units, and one router, decoupled from the layers, chooses for all
of them at once from the value that enters the first block; so what each position will need is known before the blocks run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.interface import add_interface_output
from suture.ir.splice import extract, replace
from suture.passes.contract import Contract
from suture.passes.cut import cut
from suture.passes.experts.division import ExpertPlan, plan_by_activation, plan_in_order
from suture.passes.experts.feed_forward import FeedForward, inner_axis, inside, without_bias
from suture.passes.experts.mixture import (
    EXPERTS,
    ROUTER,
    Gating,
    add_gates,
    add_mixture,
    below,
    expert_names,
    twin_inputs,
)
from suture.passes.experts.sites import chosen_feeds, router_entry
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def split_experts(
    graph: Graph,
    notes: Notes,
    *,
    experts: int,
    top: int | None = None,
    at: tuple[str, ...] | None = None,
    size: int | None = None,
    weigh: Literal["renormalise", "mask"] = "renormalise",
    router: Literal["shared", "layer"] = "shared",
    start: Literal["zero", "centroids"] = "zero",
    entry: str | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
    domains: tuple[int, ...] | None = None,
    expose: bool = False,
    seed: int = 0,
) -> Graph:
    """Cut feed-forward layers into experts of some of their units each, and let a router choose among them.

    The function is kept if every unit is in one expert and all experts are active alike: all chosen, by a router of zeros or by a mask. What a
    position gets of its chosen experts is their sum, weighted by gates that sum to their number.

    :param experts: how many experts each layer is cut into
    :param top: how many of them each position has; all if absent
    :param at: the modules that hold the layers, as patterns; all feed-forward layers of the graph if absent
    :param size: how many units an expert has, which may then be in several or none; without it every unit goes to one expert
    :param weigh: renormalise gives the chosen experts their probabilities, made to sum to their number; mask gives each 1
    :param router: shared is one router for all layers, ahead of them; layer gives each its own, on what it reads
    :param start: what a router begins as: zeros, or the choice of the nearest centroid of the domains in what it reads (shared only, needs data)
    :param entry: the value that the shared router reads; what enters the first stack if absent
    :param data: calibration inputs, by name; without them experts are of neighbouring units
    :param domains: the domain of each calibration sample, 0 to experts - 1; found by clustering if absent
    :param expose: whether the graph also returns the logits of its routers, to be trained
    :param seed: the key of what clustering draws
    """
    chosen = experts if top is None else top
    gating = Gating(experts, chosen, weigh, float(chosen) if weigh == "renormalise" else 1.0)
    gating.require()
    result = graph.copy()
    feeds = chosen_feeds(result, at, notes)
    if not feeds:
        notes.not_applicable("no feed-forward layer is added to another value")
        return result
    seen = router_entry(result, entry, feeds) if router == "shared" or data is not None else None
    plan = _plan(result, feeds, seen, experts=experts, size=size, data=data, domains=domains, notes=notes, seed=seed)
    whole = all(plan.is_partition(feed.path, feed.units) for feed in feeds)
    before = result.stats()
    shared: Value | None = None
    if router == "shared":
        assert seen is not None
        weight, bias = _router(result, ROUTER, seen, gating, plan if start == "centroids" else None)
        shared, logits = add_gates(result, seen, weight, bias, gating, path=ROUTER)
        _expose(result, logits, ROUTER, notes, expose=expose)
    elif start == "centroids":
        raise SutureError(Code.CALIBRATION, "a router of each layer has no centroids", remedy="let it start as zero")
    for feed in feeds:
        _split(result, feed, plan, gating, shared, notes, expose=expose)
    after = result.stats()
    kept = sum(len(units) for members in plan.members.values() for units in members) / sum(f.units for f in feeds)
    notes.note(
        f"{len(feeds)} layers have {experts} experts, {chosen} for each position, of {kept:.3g} times their units: "
        f"{before.parameters:,} parameters, now {after.parameters:,}"
    )
    _conclude(notes, gating, start, partition=whole)
    return result


def _conclude(notes: Notes, gating: Gating, start: str, *, partition: bool) -> None:
    """Claim exactness where it holds, and say what is in its way where it does not."""
    if not partition:
        notes.note("not exact: not every unit is in exactly one expert")
    elif gating.top < gating.experts:
        notes.note(f"not exact: {gating.top} of {gating.experts} experts are active")
        if start == "zero":
            notes.note("the router is zero: until it is trained every position has the first experts")
    elif gating.weigh != "mask" and start != "zero":
        notes.note("not exact: the gates of the experts differ")
    else:
        notes.claim(Contract.EXACT)


def plan_split(
    graph: Graph,
    *,
    experts: int,
    at: Sequence[str] | None = None,
    size: int | None = None,
    entry: str | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
    domains: Sequence[int] | None = None,
    seed: int = 0,
) -> ExpertPlan:
    """Which units `split_experts` would put into which expert. The options are its own."""
    notes = Notes()
    feeds = chosen_feeds(graph, at, notes)
    seen = router_entry(graph, entry, feeds) if data is not None and feeds else None
    return _plan(graph, feeds, seen, experts=experts, size=size, data=data, domains=domains, notes=notes, seed=seed)


def _plan(
    graph: Graph,
    feeds: Sequence[FeedForward],
    entry: Value | None,
    *,
    experts: int,
    size: int | None,
    data: Mapping[str, torch.Tensor] | None,
    domains: Sequence[int] | None,
    notes: Notes,
    seed: int,
) -> ExpertPlan:
    if data is not None and any(p.data.is_meta for p in graph.parameters.values()):
        notes.note("estimated: the activations decide which units an expert has")
        data = None
    if data is None or entry is None:
        return plan_in_order(feeds, experts, size)
    return plan_by_activation(graph, feeds, entry, data, experts=experts, domains=domains, size=size, seed=seed)


def _router(
    graph: Graph, path: str, x: Value, gating: Gating, plan: ExpertPlan | None
) -> tuple[Parameter, Parameter | None]:
    width = x.shape[-1]
    assert isinstance(width, int)
    if plan is None:
        data = torch.zeros(gating.experts, width, dtype=x.dtype)
        return graph.add_parameter(below(path, "weight"), data.requires_grad_()), None
    if plan.centroids is None:
        raise SutureError(Code.CALIBRATION, "there are no data to find centroids in", remedy="give data")
    # |x - m|^2 = |x|^2 - 2 (m x - |m|^2 / 2): the nearest centroid has the largest logit
    offset = -plan.centroids.square().sum(1) / 2
    weight = graph.add_parameter(below(path, "weight"), plan.centroids.to(x.dtype).requires_grad_())
    return weight, graph.add_parameter(below(path, "bias"), offset.to(x.dtype).requires_grad_())


def _split(
    graph: Graph,
    feed: FeedForward,
    plan: ExpertPlan,
    gating: Gating,
    shared: Value | None,
    notes: Notes,
    *,
    expose: bool,
) -> None:
    region, path = feed.region, feed.path
    x, y = region.entry, region.output
    if shared is None:
        home = below(path, ROUTER)
        weight, bias = _router(graph, home, x, gating, None)
        gates, logits = add_gates(graph, x, weight, bias, gating, path=home)
        _expose(graph, logits, home, notes, expose=expose)
    else:
        gates = _at_positions(graph, shared, x, path)
    mixture = Graph(region.name)
    operands = [*region.inputs, gates]
    *inputs, gate = twin_inputs(mixture, operands)
    experts, held = _experts(feed, plan)
    names = expert_names(path, gating.experts)
    total = add_mixture(mixture, experts, inputs, gate, names, path=below(path, EXPERTS))
    if held is not None:  # once, not once per expert
        bias = mixture.add_parameter(
            held.name, held.data, held.role, aliases=held.aliases, requires_grad=held.requires_grad
        )
        total = mixture.add("add", [total, bias], path=below(path, EXPERTS)).output
    mixture.rename_result(total, y.name)
    mixture.set_outputs([total])
    replace(region, mixture, operands)


def _experts(feed: FeedForward, plan: ExpertPlan) -> tuple[list[Graph], Parameter | None]:
    """The experts of a layer as graphs of their own, without the last bias, and that bias."""
    piece, held = inside(extract(feed.region), feed.path), feed.bias
    without_bias(piece)
    table = piece.axes()
    whole = inner_axis(piece, table)
    assert whole is not None
    experts = [cut(piece, table, {whole.axis.atom: units}) for units in plan.members[feed.path]]
    for expert in experts:
        for parameter in expert.parameters.values():
            parameter.aliases = ()
    return experts, held


def _at_positions(graph: Graph, gates: Value, x: Value, path: str) -> Value:
    """The gates with the leading dimensions of what a layer reads."""
    shape = (*x.shape[:-1], gates.shape[-1])
    return (
        gates
        if gates.shape == shape
        else graph.add("reshape", [gates], shapes=[shape], path=below(path, EXPERTS)).output
    )


def _expose(graph: Graph, logits: Value, path: str, notes: Notes, *, expose: bool) -> None:
    if expose:
        name = below(path, "logits")
        add_interface_output(graph, logits, name)
        notes.gains_output(name)
