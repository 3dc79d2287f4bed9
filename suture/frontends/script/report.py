"""What came of a script: one outcome per statement, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from suture.frontends.script.diagnostics import ScriptError
from suture.ir.graph import Graph, Stats

Status = Literal["done", "not applicable", "holds", "fails", "planned"]


@dataclass(frozen=True)
class Outcome:
    """What a statement did: `planned` is what only a run can tell."""

    line: int
    statement: str
    kind: str  # model, let, check, export, build, save, show, or the name of a pass
    status: Status
    name: str = ""  # the model it is about
    contract: str = ""
    before: Stats | None = None
    after: Stats | None = None
    notes: tuple[str, ...] = ()
    deviation: float | None = None
    measured: float | None = None
    bound: float | None = None
    shown: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines: absent fields left out."""
        plain: dict[str, Any] = {
            "line": self.line,
            "statement": self.statement,
            "kind": self.kind,
            "status": self.status,
            "name": self.name,
            "contract": self.contract,
            "before": stats_json(self.before),
            "after": stats_json(self.after),
            "notes": list(self.notes),
            "deviation": self.deviation,
            "measured": self.measured,
            "bound": self.bound,
            "shown": self.shown,
            "seconds": round(self.seconds, 3),
        }
        return {key: value for key, value in plain.items() if value not in (None, "", [])}


@dataclass(frozen=True)
class Report:
    """A script's outcomes, the graphs its names hold at the end, and the files it wrote."""

    file: str
    planned: bool
    outcomes: tuple[Outcome, ...]
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    failures: tuple[ScriptError, ...] = ()  # checks that do not hold, when planned; a run raises the first

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "script": self.file,
            "planned": self.planned,
            "ok": self.ok,
            "statements": [outcome.as_json() for outcome in self.outcomes],
            "files": [str(path) for path in self.files],
        }


def stats_json(stats: Stats | None) -> dict[str, int] | None:
    """A graph's counts by the names that scripts use."""
    if stats is None:
        return None
    return {"params": stats.parameters, "macs": stats.macs, "bytes": stats.bytes, "nodes": stats.nodes}


def view(graph: Graph, what: str) -> str:
    """A graph's statistics, axes, regions or text."""
    if what == "text":
        return str(graph)
    if what == "axes":
        return str(graph.axes())
    if what == "regions":
        from suture.ir.regions.outline import outline

        return str(outline(graph))
    stats = graph.stats()
    lines = [str(stats), *(f"{count:6} {name}" for name, count in stats.operators.items())]
    return "\n".join(lines)


def quantity(value: float) -> str:
    """A number as a person reads it: exact up to 9999, else with a suffix."""
    if value != value or abs(value) == float("inf"):
        return str(value)
    if abs(value) < 10_000:
        return f"{value:g}"
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:g}"
