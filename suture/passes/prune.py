"""Structured pruning: remove the least important indices of axes.

Channels, attention heads, head widths, feed-forward and residual widths are all atoms of the axis algebra, so one pass prunes them and
never needs to be told how many heads there are. Each cut comes with its verdict (`suture.passes.exactness`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from suture.ir.algebra import Atom
from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes import importance
from suture.passes.contract import Contract
from suture.passes.exactness import Verdict, constant_values, judge
from suture.passes.growth.width.plan_widening import holds_widening
from suture.passes.growth.width.widen import replay_widening
from suture.passes.plan import Plan, Resolved, apply_plan, make_plan
from suture.passes.registry import Notes, register
from suture.passes.sites import Kind, matching, require_count, select

By = Literal["l1", "l2", "random", "activation"]


@register(contract=Contract.APPROXIMATE)
def prune(
    graph: Graph,
    notes: Notes,
    *,
    keep: float = 0.5,
    at: tuple[str, ...] | None = None,
    operator: tuple[str, ...] | None = None,
    kind: tuple[Kind, ...] | None = None,
    exclude: tuple[str, ...] = (),
    expect: int | str | None = None,
    by: By | Callable[[AxisInfo, AxisTable], torch.Tensor] = "l2",
    scope: Literal["uniform", "global"] = "uniform",
    round: int = 1,
    inexact: Literal["cut", "leave"] = "cut",
    every: bool = False,
    data: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Graph:
    """Remove the least important indices of axes.

    :param keep: the share of each axis that stays (of all axes together with scope global), above 0 and at most 1
    :param at: module paths whose outputs are pruned, as patterns ("layer*.*.conv[12]"); all if absent
    :param operator: operators whose outputs are pruned ("linear", "conv", ...); all if absent
    :param kind: kinds of axes: feature, head, head_width, group; all if absent
    :param exclude: module paths whose axes stay as they are, as patterns
    :param expect: how many axes this should select: a number, or a bound such as ">=3"
    :param by: the criterion: l1 or l2 norm of the weights, random, activation (needs data), or a function of an axis and the table
    :param scope: uniform keeps the same share of every axis; global ranks all indices together
    :param round: the number kept is a multiple of this
    :param inexact: whether to cut or to leave the axes whose cut is only approximate
    :param every: cut every atom of a product (heads and their width), not only the outermost
    :param data: calibration inputs by name (in a script: an .npz or .safetensors file that holds them)
    :param seed: the key of random scores
    """
    table = graph.axes()
    keep_indices, verdicts = _decide(
        graph, table, notes, keep=keep, at=at, operator=operator, kind=kind, exclude=exclude, expect=expect, by=by, scope=scope,
        multiple=round, inexact=inexact, every=every, data=data, seed=seed,
    )  # fmt: skip
    if not keep_indices:
        notes.not_applicable("no axis is left to cut" if notes.texts else "the graph has no free axis")
        return graph
    plan = make_plan(table, keep_indices, verdicts)
    for item in plan.cuts:
        notes.note(str(item))
    return apply_plan(graph, plan, Resolved(table, keep_indices, verdicts))


@register(contract=Contract.APPROXIMATE)
def replay(graph: Graph, notes: Notes, *, plan: Path | Plan) -> Graph:
    """Apply a saved plan, of cuts or of widenings, to a graph of the same architecture.

    :param plan: the plan, or the file that holds it
    """
    if isinstance(plan, Path) and holds_widening(plan):
        return replay_widening(graph, notes, plan.read_text(encoding="utf-8"), str(plan))
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    if not loaded.cuts:
        notes.not_applicable("the plan is empty")
        return graph
    for item in loaded.cuts:
        notes.note(str(item))
    return apply_plan(graph, loaded)


def plan_prune(
    graph: Graph,
    *,
    keep: float = 0.5,
    at: Sequence[str] | None = None,
    operator: Sequence[str] | None = None,
    kind: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    expect: int | str | None = None,
    by: str | importance.Criterion = "l2",
    scope: str = "uniform",
    round: int = 1,
    inexact: str = "cut",
    every: bool = False,
    data: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Plan:
    """What `prune` would cut, as a plan. The options are those of `prune`."""
    table = graph.axes()
    found, verdicts = _decide(
        graph, table, Notes(), keep=keep, at=at, operator=operator, kind=kind, exclude=exclude, expect=expect, by=by, scope=scope,
        multiple=round, inexact=inexact, every=every, data=data, seed=seed,
    )  # fmt: skip
    return make_plan(table, found, verdicts)


def _decide(
    graph: Graph,
    table: AxisTable,
    notes: Notes,
    *,
    keep: float,
    at: Sequence[str] | None,
    operator: Sequence[str] | None,
    kind: Sequence[str] | None,
    exclude: Sequence[str],
    expect: int | str | None,
    by: str | importance.Criterion,
    scope: str,
    multiple: int,
    inexact: str,
    every: bool,
    data: Mapping[str, torch.Tensor] | None,
    seed: int,
) -> tuple[dict[Atom, tuple[int, ...]], dict[Atom, Verdict]]:
    if not 0 < keep <= 1:
        raise SutureError(
            Code.KEEP,
            f"keep={keep:g} leaves {'nothing' if keep <= 0 else 'more than there is'}",
            remedy="a share above 0 and at most 1 would be right",
        )
    if multiple < 1:
        raise SutureError(Code.KEEP, f"round={multiple} is no multiple", remedy="1 or more would be right")
    matched = matching(table, at, operator, kind)
    sites = select(table, matched, exclude, every, notes)
    weights = constant_values(table)
    verdicts = {info.atom: judge(table, info, weights) for info in sites}
    if inexact == "leave":
        for info in sites:
            if verdicts[info.atom].level == "approximate":
                notes.note(f"{info.name} left alone, {verdicts[info.atom]}")
        sites = [info for info in sites if verdicts[info.atom].level != "approximate"]
    require_count(expect, len(sites), at)
    meta = any(parameter.data.device.type == "meta" for parameter in graph.parameters.values())
    scores = _first(sites) if meta else _scores(graph, table, sites, by, data, seed)
    if meta and scope == "global":
        notes.note(
            "estimated: the weights decide how a global scope divides the cut; here every axis gives the same share"
        )
    counts = _counts(sites, scores, keep, "uniform" if meta else scope, multiple)
    chosen: dict[Atom, tuple[int, ...]] = {}
    for info in sites:
        count = counts[info.atom]
        if count == info.size:
            notes.note(f"{info.name} left alone: all of its {info.size} stay")
            continue
        order = torch.sort(scores[info.atom], descending=True, stable=True).indices[:count]
        chosen[info.atom] = tuple(sorted(order.tolist()))
    return chosen, {atom: verdicts[atom] for atom in chosen}


def _scores(
    graph: Graph,
    table: AxisTable,
    sites: Sequence[AxisInfo],
    by: str | importance.Criterion,
    data: Mapping[str, torch.Tensor] | None,
    seed: int,
) -> dict[Atom, torch.Tensor]:
    criterion: importance.Criterion
    if callable(by):
        criterion = by
    elif by == "activation":
        if data is None:
            raise SutureError(Code.CRITERION, "the criterion activation has no calibration inputs", remedy="give data")
        criterion = importance.activation(table, [data])
    elif by == "random":
        criterion = importance.random(seed)
    else:
        criterion = importance.magnitude({"l1": 1, "l2": 2}[by])
    return {info.atom: importance.checked(criterion, info, table) for info in sites}


def _first(sites: Sequence[AxisInfo]) -> dict[Atom, torch.Tensor]:
    """Without weights, the first indices stay."""
    return {info.atom: -torch.arange(_size(info), dtype=torch.float64) for info in sites}


def _counts(
    sites: Sequence[AxisInfo], scores: Mapping[Atom, torch.Tensor], keep: float, scope: str, multiple: int
) -> dict[Atom, int]:
    """How many indices of each axis stay.

    :raises SutureError: KEEP, if nothing of an axis would be left
    """
    if scope == "global":
        shares = _global_shares(sites, scores, keep)
    else:
        shares = {info.atom: keep * _size(info) for info in sites}
    counts = {}
    for info in sites:
        size, share = _size(info), shares[info.atom]
        count = int(share / multiple + 0.5) * multiple
        if scope == "global" or multiple > 1:
            count = max(count, min(multiple, size))
        if count < 1:
            raise SutureError(
                Code.KEEP,
                f"keep={keep:g} leaves nothing of {info.name}, which has {size}",
                remedy=f"keep at least {0.5 / size:.3g}, or exclude it",
            )
        counts[info.atom] = min(count, size)
    return counts


def _global_shares(sites: Sequence[AxisInfo], scores: Mapping[Atom, torch.Tensor], keep: float) -> dict[Atom, float]:
    """Rank the indices of all axes together, each axis's scores relative to their mean; a tenth of each axis stays at least."""
    if not sites:
        return {}
    relative = [
        scores[info.atom] / scores[info.atom].mean().clamp_min(torch.finfo(torch.float64).tiny) for info in sites
    ]
    ranked = torch.cat(relative)
    count = max(1, int(keep * len(ranked) + 0.5))
    order = torch.sort(ranked, descending=True, stable=True).indices[:count]
    stays = torch.zeros(len(ranked), dtype=torch.bool)
    stays[order] = True
    parts = torch.split(stays, [_size(info) for info in sites])
    return {info.atom: max(float(part.sum()), 0.1 * _size(info)) for info, part in zip(sites, parts, strict=True)}


def _size(info: AxisInfo) -> int:
    size = info.size
    assert isinstance(size, int)
    return size


__all__ = ["plan_prune", "prune", "replay"]
