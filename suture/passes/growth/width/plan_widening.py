"""Planning a widening: the maps of every axis, and the verdict on each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from suture.ir.algebra import Atom, resolve
from suture.ir.axes import AxisInfo, AxisTable, Place
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Value
from suture.passes.axis_map import AxisMap
from suture.passes.axis_walk import Uses, uses_of
from suture.passes.exactness import Verdict, constant_values
from suture.passes.growth.width.duplication import Duplication
from suture.passes.growth.width.padding import Fill, Padding, pad
from suture.passes.growth.width.widening import FORMAT, Recipe, WideningPlan
from suture.passes.growth.width.widths import copies, equal_multiplicity, shares_of
from suture.passes.linear_maps import Gather, Pad

_FILLS: Mapping[str, Fill] = {"zero": 0.0, "mean": "mean", "random": "noise"}


def plan_widening(
    table: AxisTable,
    targets: Mapping[AxisInfo, int],
    recipe: Recipe,
    *,
    inexact: Literal["widen", "leave"] = "widen",
) -> tuple[WideningPlan, list[str]]:
    """Plan the widening of some axes; with it, what is said of those left alone.

    :raises SutureError: GROWTH, if `alpha` leaves a copy nothing, or what is masked is not random
    """
    if recipe.mask and recipe.method != "random":
        raise SutureError(
            Code.GROWTH, f"a mask over the method {recipe.method}", remedy="only random parts need one: method='random'"
        )
    left: list[str] = []
    weights = constant_values(table)
    while True:
        plan = WideningPlan(table, recipe, donors=next_layers(table.graph) if recipe.method == "aki" else {})
        if recipe.method in ("split", "aki"):
            _split(plan, targets, weights)
            if recipe.method == "aki":
                for verdict in plan.verdicts.values():
                    verdict.blame.insert(0, "the new rows are those of the next layer")
        else:
            _pad(plan, targets, weights, _FILLS[recipe.method])
        refused = [atom for atom, verdict in plan.verdicts.items() if verdict.level == "approximate"]
        if inexact == "widen" or not refused:
            return plan, left
        # what is left alone may have kept another axis's copies even: judge the rest again
        left += [f"{table.infos[atom].name} left alone, {plan.verdicts[atom]}" for atom in refused]
        targets = {info: size for info, size in targets.items() if info.atom not in refused}


def _split(plan: WideningPlan, targets: Mapping[AxisInfo, int], weights: set[Value]) -> None:
    table, counts = plan.table, dict[Atom, torch.Tensor]()
    reads: dict[Atom, frozenset[Place]] = {}
    for info, after in targets.items():
        before = _fixed(info.atom)
        index = copies(before, after)
        counts[info.atom] = torch.bincount(index, minlength=before)
        plan.maps[info.atom] = AxisMap(
            Gather(index), Gather(index, shares_of(index, before, plan.recipe.split, plan.recipe.alpha))
        )
    plan.reads = reads

    def multiplicity(node: Node, letter: str) -> int | None:
        return equal_multiplicity(resolve(table.letters[node][letter]), counts)

    for info in targets:
        uses = uses_of(table, info, weights)
        reads[info.atom] = uses.reads - uses.writes
        shares = plan.maps[info.atom].read
        assert isinstance(shares, Gather) and shares.scale is not None
        even = bool((shares.scale == shares.scale[0]).all())
        walk = Duplication(table, info, weights, uses, multiplicity, even=even)
        plan.verdicts[info.atom] = Verdict(walk.corrections, walk.blame)


def _pad(plan: WideningPlan, targets: Mapping[AxisInfo, int], weights: set[Value], fill: Fill) -> None:
    reads = {}
    for info, after in targets.items():
        uses = uses_of(plan.table, info, weights)
        walk = pad(plan.table, info, weights, uses, fill, masked=plan.recipe.mask)
        plan.masks += walk.masks
        plan.maps[info.atom] = _padding_map(info, after, uses, walk)
        reads[info.atom] = uses.reads - uses.writes
        plan.verdicts[info.atom] = Verdict(walk.corrections, walk.blame)
        for place in walk.saddles:
            plan.remarks.append(f"{info.name}: {place} multiplies zero by zero, where no gradient reaches the new part")
    plan.reads = reads


def _padding_map(info: AxisInfo, after: int, uses: Uses, walk: Padding) -> AxisMap:
    before = _fixed(info.atom)

    def padded(fill: Fill) -> Pad:
        return Pad(before, after - before, fill)

    special = {place: padded(walk.filling(place)) for place in (*uses.reads, *uses.writes)}
    return AxisMap(padded(walk.fill), padded("noise"), special)


def next_layers(graph: Graph) -> dict[str, str]:
    """For the parameters of every block of a stack, the same parameters of the next block (Chen et al. 2022, section 3.3)."""
    from suture.ir.regions import correspondence, stacks

    found: dict[str, str] = {}
    for stack in stacks(graph):
        for block, following in zip(stack.blocks, stack.blocks[1:], strict=False):
            for own, other in correspondence(block, following).parameters.items():
                if own.role == "parameter" and own.shape == other.shape:
                    found.setdefault(own.name, other.name)
    return found


def load_widening(table: AxisTable, text: str, where: str = "plan") -> WideningPlan:
    """The plan that `WideningPlan.to_json` wrote, on another checkpoint of the same architecture.

    :raises SutureError: PLAN, if the text is no such plan, or an axis does not exist, is pinned, or has another size
    """
    try:
        data: Any = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError
        recipe = Recipe(**data["recipe"])
        rows = [(str(row["axis"]), int(row["before"]), int(row["after"])) for row in data["widenings"]]
    except (ValueError, KeyError, TypeError):
        raise SutureError(
            Code.PLAN, "this is no plan of widenings", where=where, remedy="a plan is what WideningPlan.to_json writes"
        ) from None
    names = {info.name: info for info in table.infos.values()}
    targets = {}
    for axis, before, after in rows:
        info = names.get(axis)
        if info is None:
            raise SutureError(Code.PLAN, f"the graph has no axis {axis}", remedy=nearest(axis, names, what="axis"))
        if info.pin is not None or info.size != before or after <= before:
            what = f"is pinned: {info.pin}" if info.pin is not None else f"has {info.size} indices"
            raise SutureError(
                Code.PLAN, f"axis {axis} {what}, the plan takes it from {before} to {after}",
                remedy="replay it on the architecture it was made for",
            )  # fmt: skip
        targets[info] = after
    return plan_widening(table, targets, recipe)[0]


def holds_widening(path: Path) -> bool:
    """Whether a file holds a plan of widenings; False for one that cannot be read, which its reader says."""
    try:
        return FORMAT in path.read_text(encoding="utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        return False


def _fixed(atom: Atom) -> int:
    assert isinstance(atom.size, int)
    return atom.size


__all__ = ["holds_widening", "load_widening", "next_layers", "plan_widening"]
