"""Growing in width: features, channels, heads and residual streams become wider, and the plan says whether the function stays.

Which axes grow is the site query of pruning; how, is a linear map on their atoms (`suture.passes.axis_map`): copies (`duplication`) or
entries that nothing sees at first (`padding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.growth.width.plan_widening import load_widening, plan_widening
from suture.passes.growth.width.widening import Method, Recipe, WideningPlan
from suture.passes.growth.width.widths import require_target, target_size
from suture.passes.registry import Notes, register
from suture.passes.sites import Kind, matching, require_count, select


@register(contract=Contract.APPROXIMATE)
def widen(
    graph: Graph,
    notes: Notes,
    *,
    to: int | None = None,
    factor: float | None = None,
    at: tuple[str, ...] | None = None,
    operator: tuple[str, ...] | None = None,
    kind: tuple[Kind, ...] | None = None,
    exclude: tuple[str, ...] = (),
    expect: int | str | None = None,
    method: Method = "split",
    split: Literal["even", "uneven"] = "even",
    alpha: float = 0.75,
    mask: bool = False,
    inexact: Literal["widen", "leave"] = "widen",
    every: bool = False,
    seed: int = 0,
) -> Graph:
    """Make axes wider, keeping the function where the plan says so.

    :param to: the new size of every selected axis; give this or factor
    :param factor: the new size over the old one
    :param at: module paths whose outputs are widened, as patterns ("layers.*.mlp.fc1"); all if absent
    :param operator: operators whose outputs are widened ("linear", "conv", ...); all if absent
    :param kind: kinds of axes: feature, head, head_width, group; all if absent
    :param exclude: module paths whose axes stay as they are, as patterns
    :param expect: how many axes this should select: a number, or a bound such as ">=3"
    :param method: split copies old indices and shares what reads them; aki is split with the copies' rows from the next layer; zero, mean and
        random add new indices that nothing sees at first: zeros, the mean of the old ones (under layer norm), or noise read by zeros
    :param split: whether the copies get even shares, or uneven ones, which lets them learn different things
    :param alpha: the first copy's share when uneven
    :param mask: put random parts behind a mask, the buffer `growth_mask`, that training opens from 0 to 1 (and `unmask` removes)
    :param inexact: whether to widen or to leave the axes whose widening changes the function
    :param every: widen every atom of a product (heads and their width), not only the outermost
    :param seed: the key of noise in new entries
    """
    plan = _decide(
        graph, notes, to=to, factor=factor, at=at, operator=operator, kind=kind, exclude=exclude, expect=expect, method=method,
        split=split, alpha=alpha, mask=mask, inexact=inexact, every=every, seed=seed,
    )  # fmt: skip
    return make_wider(graph, notes, plan)


def plan_widen(
    graph: Graph,
    *,
    to: int | None = None,
    factor: float | None = None,
    at: Sequence[str] | None = None,
    operator: Sequence[str] | None = None,
    kind: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    expect: int | str | None = None,
    method: Method = "split",
    split: Literal["even", "uneven"] = "even",
    alpha: float = 0.75,
    mask: bool = False,
    inexact: Literal["widen", "leave"] = "widen",
    every: bool = False,
    seed: int = 0,
) -> WideningPlan:
    """What `widen` would do, as a plan. The options are those of `widen`."""
    return _decide(
        graph, Notes(), to=to, factor=factor, at=at, operator=operator, kind=kind, exclude=exclude, expect=expect, method=method,
        split=split, alpha=alpha, mask=mask, inexact=inexact, every=every, seed=seed,
    )  # fmt: skip


def make_wider(graph: Graph, notes: Notes, plan: WideningPlan) -> Graph:
    """Apply a plan as a pass does: its lines are noted, and the function's verdict is claimed."""
    if not plan.maps:
        notes.not_applicable("no axis is left to widen" if notes.texts else "the graph has no free axis")
        return graph
    for item in plan.widenings:
        notes.note(str(item))
    for remark in plan.remarks:
        notes.note(remark)
    if plan.exact:
        notes.claim(Contract.EXACT)
    return plan.apply()


def replay_widening(graph: Graph, notes: Notes, text: str, where: str = "plan") -> Graph:
    """Make the widenings of a saved plan on another checkpoint.

    :raises SutureError: PLAN, if it is no plan, or does not fit the graph
    """
    return make_wider(graph, notes, load_widening(graph.axes(), text, where))


def _decide(
    graph: Graph,
    notes: Notes,
    *,
    to: int | None,
    factor: float | None,
    at: Sequence[str] | None,
    operator: Sequence[str] | None,
    kind: Sequence[str] | None,
    exclude: Sequence[str],
    expect: int | str | None,
    method: Method,
    split: Literal["even", "uneven"],
    alpha: float,
    mask: bool,
    inexact: Literal["widen", "leave"],
    every: bool,
    seed: int,
) -> WideningPlan:
    require_target(to, factor)
    table = graph.axes()
    sites = select(table, matching(table, at, operator, kind), exclude, every, notes)
    require_count(expect, len(sites), at)
    targets = {}
    for info in sites:
        size = target_size(info, to, factor)
        if size == info.size:
            notes.note(f"{info.name} left alone: it has {size} already")
        else:
            targets[info] = size
    plan, left = plan_widening(table, targets, Recipe(method, split, alpha, mask, seed), inexact=inexact)
    for text in left:
        notes.note(text)
    return plan


__all__ = ["make_wider", "plan_widen", "replay_widening", "widen"]
