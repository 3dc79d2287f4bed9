"""Steps carried out: on meta tensors to plan a script, on weights to run it. One walk serves both, so a plan cannot drift from a run."""

from __future__ import annotations

import hashlib
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from suture.frontends.archive import load_graph, save_graph
from suture.frontends.arrays import load_arrays
from suture.frontends.script.ast import (
    Apply,
    Binary,
    Build,
    Close,
    Cost,
    Export,
    Expression,
    GraphSource,
    Let,
    Measure,
    Model,
    Negation,
    Quantity,
    Save,
    Script,
    Show,
    Span,
)
from suture.frontends.script.diagnostics import CheckFailed, check_failed, located
from suture.frontends.script.models import build_graph, file_hash
from suture.frontends.script.outside import Backends, Listener
from suture.frontends.script.report import Outcome, Report, Status, quantity, view
from suture.frontends.script.resolve import MEASURES, measures_in, resolve
from suture.frontends.script.scope import ORIGINAL
from suture.frontends.script.staging import Staging, staging
from suture.frontends.script.steps import Step
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Stats
from suture.passes.probes import bind_probes, draw_probes

ESTIMATED = "estimated"
"""How a pass begins a note, on tensors without data, when the sizes it leaves depend on the weights."""

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def interpret(script: Script, backends: Backends, *, planned: bool, listener: Listener | None = None) -> Report:
    """Carry a script out.

    :param planned: on shapes alone: no weights are read, nothing is written, and failing checks are collected in the report
    :raises ScriptError: at the first statement that is broken, and, in a run, the first check that fails; then nothing was written
    """
    exporters = {suffix: exporter.options for suffix, exporter in backends.exporters.items()}
    steps = resolve(script, exporters, backends.builder.options)
    with staging() as stage:
        return _Interpreter(script, backends, planned, listener or Listener(), stage).run(steps)


class _Interpreter:
    def __init__(self, script: Script, backends: Backends, planned: bool, listener: Listener, stage: Staging) -> None:
        self.script = script
        self.folder = Path(script.file).resolve().parent
        self.backends = backends
        self.planned = planned
        self.listener = listener
        self.stage = stage
        self.graphs: dict[str, Graph] = {}
        self.originals: dict[str, Graph] = {}
        self.counts: dict[int, tuple[Graph, Stats]] = {}
        self.failures: list[CheckFailed] = []
        self.estimated: set[str] = set()  # names whose planned sizes depend on weights that a plan does not read

    def run(self, steps: Sequence[Step]) -> Report:
        outcomes = []
        for index, step in enumerate(steps):
            self.listener.begin(step, index, len(steps))
            start = time.perf_counter()
            try:
                outcome = self.step(step)
            except SutureError as error:
                raise located(error, self.script, step.statement.span) from error
            except ZeroDivisionError:
                raise located(
                    SutureError(Code.SCRIPT_CHECK, "the check divides by zero", remedy="compare products instead"),
                    self.script, step.statement.span,
                ) from None  # fmt: skip
            outcomes.append(replace(outcome, seconds=time.perf_counter() - start))
            self.listener.end(outcomes[-1])
            if outcome.status == "fails" and not self.planned:
                raise self.failures[0]
        files = () if self.planned else self.stage.commit()
        return Report(self.script.file, self.planned, tuple(outcomes), dict(self.graphs), files, tuple(self.failures))

    def step(self, step: Step) -> Outcome:
        statement = step.statement
        blank = Outcome(statement.span.line, step.text, type(statement).__name__.lower(), "done")
        match statement:
            case Model():
                return self.model(statement, step, blank)
            case Let(name, value):
                self.hold(name.text, self.graph(value.text, name.text))
                self.estimated |= {name.text} if value.text in self.estimated else set()
                return replace(blank, name=name.text, after=self.stats(self.graphs[name.text]))
            case Apply():
                return self.apply(statement, step, blank)
            case Close():
                return self.close(statement, step, replace(blank, kind="check"))
            case Cost():
                return self.cost(statement, replace(blank, kind="check"))
            case Export() | Build() | Save():
                return self.write(statement, step, blank)
        return self.show(statement, blank)

    # ------------------------------------------------------------------------------------------------ statements
    def model(self, statement: Model, step: Step, blank: Outcome) -> Outcome:
        source = statement.source
        if isinstance(source, GraphSource):
            assert step.path is not None
            graph = load_graph(step.path, weights=not self.planned)
        else:
            graph = build_graph(source, self.folder, step.path, planned=self.planned)
        if not self.planned:
            graph.source = self.provenance(step)
        self.hold(statement.name.text, graph)
        return replace(blank, name=statement.name.text, after=self.stats(graph))

    def provenance(self, step: Step) -> str:
        """What is stamped into exports: the script and the file by their hashes, and the line."""
        script = hashlib.sha256(self.script.source.encode()).hexdigest()[:32]
        text = f"{Path(self.script.file).name} (sha256 {script}): {step.text}"
        return text + (f" (sha256 {file_hash(step.path)})" if step.path else "")

    def apply(self, statement: Apply, step: Step, blank: Outcome) -> Outcome:
        assert step.operation is not None
        name = statement.target.text
        before = self.graphs[name]
        options = dict(step.options)
        for option, others in step.graphs.items():
            found = tuple(self.graph(other, name) for other in others)
            options[option] = found[0] if len(found) == 1 else found
        if self.planned:
            options["check"] = False
        else:
            options |= {option: named_arrays(before, path) for option, path in step.arrays.items()}
            if step.probes is not None:
                options["probes"] = load_arrays(step.probes)
        after = step.operation.call(before, **options)
        record = after.history[-1]
        if step.spelled:  # what was done is kept as it was written: a tensor or a function says nothing in an export
            record = replace(record, options={**record.options, **step.spelled})
            after.history = (*after.history[:-1], record)
        self.graphs[name] = after
        if self.planned and any(note.startswith(ESTIMATED) for note in record.notes):
            self.estimated.add(name)
        status: Status = "not applicable" if record.outcome == "not applicable" else "done"
        return replace(
            blank, kind=step.operation.name, name=name, status=status, contract=record.contract, notes=record.notes,
            deviation=record.deviation, before=self.stats(before), after=self.stats(after), bound=options.get("within"),
        )  # fmt: skip

    def close(self, statement: Close, step: Step, blank: Outcome) -> Outcome:
        left = self.graph(statement.left.text, statement.right.text)
        right = self.graph(statement.right.text, statement.left.text)
        limit = float(statement.bound.value)
        name = statement.right.text if statement.left.text == ORIGINAL else statement.left.text
        blank = replace(blank, name=name, bound=limit)
        if self.planned:
            return replace(blank, status="planned", notes=("closeness is measured when the script runs",))
        inputs = draw_probes(right) if step.probes is None else bind_probes(right, load_arrays(step.probes))
        outputs = self.backends.compare(right, left, inputs).outputs
        measure = statement.measure.text if statement.measure else "absolute"
        field = {"absolute": "max_abs", "relative": "relative", "cosine": "cosine"}[measure]
        found = [float(getattr(output, field)) for output in outputs]
        distances = [1.0 - value for value in found] if measure == "cosine" else found
        worst = float("nan") if any(value != value for value in distances) else max(distances, default=0.0)
        where = "on the given probes" if step.probes else "on random probes"
        words = {
            "absolute": "the largest difference",
            "relative": "the largest relative difference",
            "cosine": "1 - cosine",
        }
        return self.judged(
            blank,
            statement.span,
            worst <= limit,
            worst,
            f"{words[measure]} {where} is {worst:.3g}",
            f"at most {limit:g} was asked for",
        )

    def cost(self, statement: Cost, blank: Outcome) -> Outcome:
        names = [m.name.text for m in (*measures_in(statement.left), *measures_in(statement.right))]
        about = next((name for name in names if name != ORIGINAL), "")
        left, right = (self.value(side, about) for side in (statement.left, statement.right))
        holds = _COMPARISONS[statement.comparison](left, right)
        what = f"the left side is {quantity(left)}, the right {quantity(right)}"
        blank = replace(blank, name=about, bound=right)
        if not holds and self.estimated & set(names):
            return replace(blank, status="planned", measured=left, notes=(f"{what}, by an estimate: the run decides",))
        return self.judged(blank, statement.span, holds, left, what, f"{statement.comparison} was asked for")

    def judged(self, blank: Outcome, span: Span, holds: bool, measured: float, what: str, asked: str) -> Outcome:
        if not holds:
            self.failures.append(check_failed(self.script, span, f"the check does not hold: {what}", asked))
        return replace(blank, status="holds" if holds else "fails", measured=measured, notes=(what,))

    def write(self, statement: Export | Build | Save, step: Step, blank: Outcome) -> Outcome:
        assert step.path is not None
        graph = self.graph(statement.name.text, "")
        blank = replace(blank, name=statement.name.text, after=self.stats(graph))
        builder = self.backends.builder
        if self.planned:
            if isinstance(statement, Build) and builder.check is not None:
                builder.check(graph, **step.options)
            return replace(blank, status="planned", notes=(f"{step.path.name} is written when the script runs",))
        path = self.stage.path_for(step.path)
        try:
            if isinstance(statement, Save):
                save_graph(graph, path)
            elif isinstance(statement, Build):
                builder.write(graph, path, **step.options)
            else:
                self.backends.exporters[step.path.suffix].write(graph, path, **step.options)
        except OSError as error:
            what = f"cannot write {step.path.name}: {error.strerror or error}"
            raise SutureError(Code.WRITE, what, remedy="check space and permissions") from None
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        return replace(blank, notes=(f"{step.path.name}: {quantity(size)} bytes",))

    def show(self, statement: Show, blank: Outcome) -> Outcome:
        graph = self.graph(statement.name.text, "")
        return replace(
            blank, name=statement.name.text, shown=view(graph, statement.view.text if statement.view else "stats")
        )

    # --------------------------------------------------------------------------------------------------- names
    def hold(self, name: str, graph: Graph) -> None:
        self.graphs[name] = self.originals[name] = graph

    def graph(self, name: str, beside: str) -> Graph:
        """What a name holds; `original` is what the name beside it first held, or else the script's only model."""
        if name != ORIGINAL:
            return self.graphs[name]
        if beside in self.originals:
            return self.originals[beside]
        if len(self.originals) == 1:
            return next(iter(self.originals.values()))
        raise SutureError(
            Code.SCRIPT_NAME, "'original' could be that of several models", remedy="keep one with: let before = net"
        )

    def stats(self, graph: Graph) -> Stats:
        if id(graph) not in self.counts:
            self.counts[id(graph)] = (graph, graph.stats())  # the graph too: its id must stay its own
        return self.counts[id(graph)][1]

    def value(self, expression: Expression, about: str) -> float:
        match expression:
            case Quantity(number):
                return number.value
            case Measure(name, count):
                return int(getattr(self.stats(self.graph(name.text, about)), MEASURES[count.text]))
            case Negation(operand):
                return -self.value(operand, about)
            case Binary(sign, left, right):
                return _ARITHMETIC[sign](self.value(left, about), self.value(right, about))


def named_arrays(graph: Graph, path: Path) -> Mapping[str, torch.Tensor]:
    """A file's arrays by name; unnamed ones take the names of the graph's inputs."""
    arrays = load_arrays(path)
    return (
        arrays if isinstance(arrays, dict) else dict(zip((value.name for value in graph.inputs), arrays, strict=False))
    )
