"""The site query of surgeries on widths: which axes a pattern of module paths, operators and kinds selects."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of
from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.errors import Code, SutureError, nearest
from suture.passes.registry import Notes

Kind: TypeAlias = Literal["feature", "head", "head_width", "group"]
"""The kinds of axes (`AxisInfo.kind`)."""


def matching(
    table: AxisTable, at: Sequence[str] | None, operator: Sequence[str] | None, kind: Sequence[str] | None
) -> list[AxisInfo]:
    """The axes that the query selects, pinned ones included.

    :raises SutureError: SITE, if nothing matches
    """
    found, paths, operators = [], set(), set()
    for info in table.infos.values():
        if not info.places or info.size == 1 or not info.writers:
            continue
        paths |= {node.path for node in info.writers if node.path}
        operators |= {node.operator.name for node in info.writers}
        fits_operator = operator is None or any(node.operator.name in operator for node in info.writers)
        fits_kind = kind is None or info.kind in kind
        fits_path = at is None or any(_matches(node.path, at) for node in info.writers)
        if fits_operator and fits_kind and fits_path:
            found.append(info)
    for pattern in at or ():
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE,
                f"the pattern {pattern!r} matches no module that writes an axis",
                remedy=nearest(pattern, paths, what="module"),
            )
    for name in operator or ():
        if name not in operators:
            raise SutureError(
                Code.SITE, f"no operator {name!r} writes an axis", remedy=nearest(name, operators, what="operator")
            )
    return found


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def select(
    table: AxisTable, matched: Sequence[AxisInfo], exclude: Sequence[str], every: bool, notes: Notes
) -> list[AxisInfo]:
    """Those of the axes that may change: neither pinned nor excluded and, unless `every`, the outermost of a product. The notes say why not."""
    free = []
    for info in matched:
        if info.pin is not None:
            notes.note(f"{info.name} left alone, pinned: {info.pin}")
        elif any(_matches(node.path, exclude) for node in (*info.writers, *info.readers)):
            notes.note(f"{info.name} left alone: excluded")
        else:
            free.append(info)
    if every:
        return free
    held = _held_by_another(table, {info.atom for info in free})
    for info in free:
        if info.atom in held:
            notes.note(f"{info.name} left alone: its dimension changes along {table.infos[held[info.atom]].name}")
    return [info for info in free if info.atom not in held]


def _held_by_another(table: AxisTable, candidates: set[Atom]) -> dict[Atom, Atom]:
    """Of the candidates that share a product, all but the outermost, each with the one that changes in its stead."""
    taken: set[Atom] = set()
    dropped: dict[Atom, Atom] = {}
    for parameter in table.graph.parameters.values():
        for dim in range(parameter.rank):
            for group in _products(table.axis(parameter, dim)):
                members = [
                    atom for atom in dict.fromkeys(atoms_of(group)) if atom in candidates and atom not in dropped
                ]
                if not members:
                    continue
                leader = next((atom for atom in members if atom in taken), members[0])
                taken.add(leader)
                if isinstance(group, Times):
                    dropped.update({atom: leader for atom in members if atom is not leader and atom not in taken})
    return dropped


def _products(axis: Axis) -> list[Axis]:
    match axis:
        case Chain(parts):
            return [group for part in parts for group in _products(part)]
        case _:
            return [axis]


def require_count(expect: int | str | None, count: int, at: Sequence[str] | None) -> None:
    """Hold the number of selected axes against what the user expects.

    :raises SutureError: SITE, if it is another
    """
    if expect is None:
        return
    match = re.fullmatch(r"\s*(>=|<=|>|<|==)?\s*(\d+)\s*", str(expect))
    if match is None:
        raise SutureError(
            Code.SITE, f"expect={expect!r} is no count", remedy="write a number, or a bound such as '>=3'"
        )
    bound = int(match[2])
    holds = {">=": count >= bound, "<=": count <= bound, ">": count > bound, "<": count < bound}.get(
        match[1] or "==", count == bound
    )
    if not holds:
        where = f" by {', '.join(map(repr, at))}" if at else ""
        raise SutureError(
            Code.SITE, f"{count} axes are selected{where}, {expect} expected", remedy="mend the pattern or the count"
        )
