"""Tuning: of several ways to write the same graph for ONNX Runtime, the one that runs fastest here.

Two kinds of things can be otherwise: which patterns are fused, and which of several emissions an operator gets. Starting from what is usual for the
profile, one thing is changed at a time, the file is held against the evaluator and measured in turns with the best so far. A change stays if it is
faster beyond the noise, or has fewer nodes and is not slower.
"""

from __future__ import annotations

import tempfile
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from suture import passes
from suture.backends.onnx.export import export_onnx
from suture.backends.onnx.profile import Choices, Profile, ProfileName, find_profile
from suture.drivers.exporting import prepare
from suture.drivers.tuning_cache import key_of, read_entry, write_entry
from suture.drivers.tuning_measure import Candidate, compare_times
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.contract import dtype_tolerance
from suture.passes.fusion.fuse import kinds_for
from suture.passes.probes import bind_probes, draw_probes

_FUSIONS = ("attention", "projection", "rotary", "residual", "gelu", "skip_norm")
_ROUNDS = 2  # over all changes; what pays only after others did is found in the second
_SLACK = 10.0  # kernels round otherwise than the evaluator, in many places


@dataclass(frozen=True)
class Variant:
    """One way to write a graph: the kinds of fusions that are taken, and the choices that differ from the profile's."""

    kinds: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One change that was tried, and what came of it."""

    change: str
    nodes: int
    milliseconds: float
    verdict: str

    def __str__(self) -> str:
        return f"{self.change:<28} {self.nodes:>6} {self.milliseconds:>10.3f}  {self.verdict}"


@dataclass(frozen=True)
class Tuned:
    """A graph fused as measured fastest, with the choices to export it by, and the table of what was tried."""

    graph: Graph
    profile: ProfileName
    opset: int
    kinds: tuple[str, ...]
    choices: Mapping[str, str]
    table: tuple[Row, ...]

    def export(self, path: str | Path, **options: Any) -> Path:
        """Write the graph as it was tuned. Further options are those of `export_onnx`."""
        return export_onnx(
            self.graph, path, opset=self.opset, profile=self.profile, choices=dict(self.choices), **options
        )

    def __str__(self) -> str:
        head = f"{'change':<28} {'nodes':>6} {'ms':>10}  verdict"
        return "\n".join([head, *map(str, self.table)])


def tune(
    graph: Graph,
    inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
    *,
    profile: ProfileName = "onnxruntime",
    opset: int = 21,
    threads: int = 1,
    budget: float = 60.0,
    cached: bool = True,
) -> Tuned:
    """Choose by measurement what is fused and how operators are written.

    :param inputs: what to run the model on, in order or by name; probes of the sizes seen when it was traced if absent
    :param threads: how many threads ONNX Runtime may use; with one the processor's time is measured, else the clock's
    :param budget: seconds after which no further change is tried
    :param cached: whether what was measured before on this machine counts, and is kept
    :raises SutureError: PROBE, if the inputs do not fit; PROFILE or ONNX_EXPORT, if the graph cannot be written at all; OPTION, for a number of
        threads or a budget that is none
    """
    if threads < 1 or budget < 0:
        raise SutureError(Code.OPTION, f"threads={threads}, budget={budget}", remedy="1 thread and 0 seconds, or more")
    probes = draw_probes(graph) if inputs is None else bind_probes(graph, inputs)
    search = _Search(graph, probes, find_profile(profile), profile, opset, threads, budget)
    shapes = [list(probe.shape) for probe in probes]
    key = key_of(graph, {"profile": profile, "opset": opset, "threads": threads, "shapes": shapes}) if cached else ""
    known = search.from_entry(read_entry(key)) if cached else None
    if known is not None:
        return known
    tuned = search.run()
    if cached:
        rows = [[row.change, row.nodes, row.milliseconds, row.verdict] for row in tuned.table]
        write_entry(key, {"kinds": list(tuned.kinds), "choices": dict(tuned.choices), "table": rows})
    return tuned


class _Search:
    """Coordinate descent over variants of one graph."""

    def __init__(
        self,
        graph: Graph,
        probes: Sequence[torch.Tensor],
        profile: Profile,
        name: ProfileName,
        opset: int,
        threads: int,
        budget: float,
    ) -> None:
        self.prepared = prepare(graph)
        self.probes, self.profile, self.name, self.opset, self.threads = probes, profile, name, opset, threads
        self.target = "onnxruntime" if profile.contrib else "portable"
        with torch.no_grad():
            self.expected = evaluate(graph, probes)
        self.allowed = _SLACK * dtype_tolerance(graph)
        self.until = time.monotonic() + budget
        self.spent = False

    def run(self) -> Tuned:
        """Try every change, again and again while one pays."""
        rows: list[Row] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            best = Variant(kinds_for(self.target))
            held = self._candidate(best, path)
            off = held.deviation_from(self.expected)
            self.allowed = max(self.allowed, 4 * off if off < float("inf") else 0.0)
            rows.append(Row("as usual", held.nodes, held.sample(1), f"deviation {off:.1e}"))
            seen, improved = {held.digest}, True
            for _ in range(_ROUNDS):
                if not improved or self.spent:
                    break
                improved = False
                for change, variant in self._changes(best):
                    if time.monotonic() > self.until:
                        self.spent = True
                        rows.append(Row(change, 0, 0.0, "not tried: the time is up"))
                        break
                    row, found = self._try(change, variant, held, seen, path)
                    rows += [row] if row is not None else []
                    if found is not None:
                        best, held, improved = variant, found, True
        return self._tuned(best, tuple(rows))

    def from_entry(self, entry: Mapping[str, Any] | None) -> Tuned | None:
        """What was kept, if it can be read, written, and computes what it should."""
        try:
            assert entry is not None
            variant = Variant(tuple(map(str, entry["kinds"])), {str(k): str(v) for k, v in entry["choices"].items()})
            rows = tuple(Row(str(a), int(b), float(c), str(d)) for a, b, c, d in entry["table"])
            with tempfile.TemporaryDirectory() as folder:
                found = self._candidate(variant, Path(folder) / "candidate.onnx")
                return self._tuned(variant, rows) if found.deviation_from(self.expected) <= self.allowed else None
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError, SutureError):
            return None

    def _tuned(self, variant: Variant, rows: tuple[Row, ...]) -> Tuned:
        return Tuned(self._fused(variant), self.name, self.opset, variant.kinds, dict(variant.choices), rows)

    def _fused(self, variant: Variant) -> Graph:
        kinds = kinds_for(self.target)
        return passes.fuse(
            self.prepared, target=self.target, include=tuple(k for k in variant.kinds if k not in kinds),
            exclude=tuple(k for k in kinds if k not in variant.kinds), probes=self.probes, check=False,
        )  # fmt: skip

    def _candidate(self, variant: Variant, path: Path) -> Candidate:
        export_onnx(self._fused(variant), path, opset=self.opset, profile=self.name, choices=dict(variant.choices))
        return Candidate(path, self.probes, self.threads)

    def _changes(self, best: Variant) -> Iterator[tuple[str, Variant]]:
        """The variants that differ in one thing from the best."""
        for kind in _FUSIONS:
            if kind in best.kinds:
                yield f"without {kind}", replace(best, kinds=tuple(k for k in best.kinds if k != kind))
            elif kind != "projection" or "attention" in best.kinds:
                yield (
                    f"with {kind}",
                    replace(best, kinds=kinds_for(self.target, (*best.kinds, kind), self._left(best, kind))),
                )
        hints = typing.get_type_hints(Choices)
        for name in hints:
            current = best.choices.get(name, getattr(self.profile.choices, name))
            for value in typing.get_args(hints[name]):
                if name != "fused" and value != current and (value != "contrib" or self.profile.contrib):
                    yield f"{name}={value}", replace(best, choices={**best.choices, name: value})

    def _left(self, best: Variant, kind: str) -> tuple[str, ...]:
        return tuple(k for k in kinds_for(self.target) if k not in best.kinds and k != kind)

    def _try(
        self, change: str, variant: Variant, held: Candidate, seen: set[str], path: Path
    ) -> tuple[Row | None, Candidate | None]:
        """Measure one variant against the best; None where it says the same as one before."""
        try:
            candidate = self._candidate(variant, path)
        except SutureError as error:
            return Row(change, 0, 0.0, f"cannot be written: {error.what}"), None
        if candidate.digest in seen:
            return None, None
        seen.add(candidate.digest)
        off = candidate.deviation_from(self.expected)
        if not off <= self.allowed:
            return Row(change, candidate.nodes, 0.0, f"wrong: deviation {off:.1e}"), None
        timing = compare_times(held, candidate)
        fewer = candidate.nodes < held.nodes
        taken = timing.faster or (fewer and not timing.slower)
        why = "faster" if timing.faster else "slower" if timing.slower else "fewer nodes" if fewer else "no faster"
        share = timing.gain / timing.before if timing.before else 0.0
        verdict = (
            f"{'taken' if taken else 'left'}: {why} ({share:+.1%}, noise {timing.noise / max(timing.before, 1e-9):.1%})"
        )
        return Row(change, candidate.nodes, timing.after, verdict), candidate if taken else None
