"""A plan: which indices of which axes stay. Plans are data: they print, save as JSON, and replay on another checkpoint of the same architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.ir.algebra import Atom
from suture.ir.axes import AxisInfo, AxisTable
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.files import replacing
from suture.ir.graph import Graph
from suture.passes.cut import cut
from suture.passes.exactness import Correction, Verdict, constant_values, judge


@dataclass(frozen=True)
class Cut:
    """One axis, and the indices of it that stay, ascending."""

    axis: str
    size: int
    keep: tuple[int, ...]
    kind: str = "feature"
    verdict: str = ""

    def __str__(self) -> str:
        return f"{self.axis} ({self.kind}): {self.size} -> {len(self.keep)}, {self.verdict}"


@dataclass(frozen=True)
class Plan:
    """Cuts to make together, in the order of the graph's parameters."""

    cuts: tuple[Cut, ...]

    def __str__(self) -> str:
        return "\n".join(str(item) for item in self.cuts) if self.cuts else "nothing to cut"

    def to_json(self) -> str:
        """The plan as JSON."""
        rows = [
            {"axis": c.axis, "size": c.size, "keep": list(c.keep), "kind": c.kind, "verdict": c.verdict}
            for c in self.cuts
        ]
        return json.dumps({"format": "suture-plan 1", "cuts": rows}, indent=1)

    @staticmethod
    def from_json(text: str, where: str = "plan") -> Plan:
        """Read what `to_json` wrote.

        :raises SutureError: PLAN, if it is not a plan
        """
        try:
            data: Any = json.loads(text)
            if data["format"] != "suture-plan 1":
                raise ValueError
            rows = data["cuts"]
            return Plan(
                tuple(Cut(r["axis"], int(r["size"]), tuple(map(int, r["keep"])), r["kind"], r["verdict"]) for r in rows)
            )
        except (ValueError, KeyError, TypeError):
            raise SutureError(
                Code.PLAN, "this is no plan", where=where, remedy="a plan is what Plan.to_json writes"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically.

        :raises SutureError: WRITE, if the file cannot be written
        """
        with replacing(path) as draft:
            draft.write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from a file.

        :raises SutureError: FILE or PLAN, if it cannot be read or is no plan
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SutureError(
                Code.FILE,
                f"the plan cannot be read: {error}",
                where=str(path),
                remedy="give a file that Plan.save wrote",
            ) from None
        return Plan.from_json(text, str(path))


@dataclass
class Resolved:
    """A plan on one graph: the atoms it means, what stays of each, and what has to be corrected."""

    table: AxisTable
    keep: dict[Atom, tuple[int, ...]]
    verdicts: dict[Atom, Verdict]

    @property
    def corrections(self) -> list[Correction]:
        """The corrections of all cuts."""
        return [correction for verdict in self.verdicts.values() for correction in verdict.corrections]


def resolve_plan(graph: Graph, plan: Plan, table: AxisTable | None = None) -> Resolved:
    """Find the atoms that a plan names.

    :raises SutureError: PLAN, if an axis does not exist, is pinned, or has another size
    """
    table = table or graph.axes()
    names = {info.name: info for info in table.infos.values()}
    weights = constant_values(table)
    keep: dict[Atom, tuple[int, ...]] = {}
    verdicts: dict[Atom, Verdict] = {}
    for item in plan.cuts:
        info = names.get(item.axis) or table.find(item.axis)
        if info is None:
            raise SutureError(
                Code.PLAN, f"the graph has no axis {item.axis}", remedy=nearest(item.axis, names, what="axis")
            )
        _require_fit(item, info)
        keep[info.atom] = item.keep
        verdicts[info.atom] = judge(table, info, weights)
    return Resolved(table, keep, verdicts)


def apply_plan(graph: Graph, plan: Plan, resolved: Resolved | None = None) -> Graph:
    """The graph after all cuts of a plan.

    :raises SutureError: PLAN, if the plan does not fit the graph
    """
    found = resolved or resolve_plan(graph, plan)
    return cut(graph, found.table, found.keep, found.corrections)


def make_plan(table: AxisTable, keep: Mapping[Atom, Sequence[int]], verdicts: Mapping[Atom, Verdict]) -> Plan:
    """A plan from atoms."""
    cuts = []
    for atom, indices in keep.items():
        info, size = table.infos[atom], atom.size
        assert isinstance(size, int)
        cuts.append(Cut(info.name, size, tuple(indices), info.kind, str(verdicts[atom])))
    return Plan(tuple(cuts))


def _require_fit(item: Cut, info: AxisInfo) -> None:
    if info.pin is not None:
        raise SutureError(Code.PLAN, f"axis {item.axis} is pinned: {info.pin}", remedy="leave it out of the plan")
    if info.size != item.size:
        raise SutureError(
            Code.PLAN,
            f"axis {item.axis} has {info.size} indices, the plan was made for {item.size}",
            remedy="replay it on the architecture it was made for",
        )
    ascending = all(a < b for a, b in zip(item.keep, item.keep[1:], strict=False))
    if not item.keep or not ascending or item.keep[0] < 0 or item.keep[-1] >= item.size:
        raise SutureError(
            Code.PLAN,
            f"the indices kept of {item.axis} do not ascend within 0..{item.size - 1}",
            remedy="list each index that stays once",
        )
