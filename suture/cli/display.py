"""What people see: tables of outcomes, progress, summaries."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from suture.frontends.script.outside import Listener
from suture.frontends.script.report import Outcome, quantity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from suture.frontends.script.steps import Step
    from suture.ir.graph import Stats
    from suture.passes.registry import Pass

_PLAIN_WIDTH = 140
_NOTES_SHOWN = 6
_NARROWEST_STATEMENT = 30
_OUTCOME = 3  # the column of the outcome
_STYLES = {"done": "green", "holds": "green", "fails": "bold red", "not applicable": "yellow", "planned": "cyan"}


def console(*, error: bool = False) -> Console:
    """A console that does not wrap at 80 columns when it writes to a file."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False, soft_wrap=False)


class Watcher(Listener):
    """Follows a script: shows the statement under way, and keeps the outcomes for when the script breaks."""

    def __init__(self, progress: Progress | None) -> None:
        self.outcomes: list[Outcome] = []
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, step: Step, index: int, total: int) -> None:
        """Show the statement."""
        if self._progress is None:
            return
        text = step.text if len(step.text) <= 60 else step.text[:57] + "..."
        if self._task is None:
            self._task = self._progress.add_task("", total=total)
        self._progress.update(self._task, completed=index, description=_plain(text))

    def end(self, outcome: Outcome) -> None:
        """Keep the outcome."""
        self.outcomes.append(outcome)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1)


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """A progress bar on standard error, gone at the end; none if quiet or if nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield Watcher(None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(error=True), transient=True) as progress:
        yield Watcher(progress)


@contextmanager
def working(text: str, *, quiet: bool) -> Iterator[None]:
    """A spinner with the time elapsed, for one long step."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console(error=True),
        transient=True,
    ) as progress:
        progress.add_task(_plain(text), total=None)
        yield


def print_outcomes(outcomes: Sequence[Outcome], *, planned: bool) -> None:
    """The table of a script: a row a statement, its notes below over the whole width."""
    from rich.text import Text

    if not outcomes:
        return
    titles = ["params", "MACs", "bytes", "outcome", *([] if planned else ["time"])]
    cells = [_cells(outcome, planned) for outcome in outcomes]
    widths = [max(len(row[k]) for row in [titles, *cells]) for k in range(len(titles))]
    margin = max(len("line"), len(str(outcomes[-1].line))) + 2
    out = console()
    room = max(_NARROWEST_STATEMENT, out.width - margin - sum(widths) - 2 * len(widths))
    room = min(room, max(len(outcome.statement) for outcome in outcomes))
    out.print(
        Text(f"{'line':>{margin - 2}}  {'statement':<{room}}  {_aligned(titles, widths)}", style="bold"), soft_wrap=True
    )
    for outcome, row in zip(outcomes, cells, strict=True):
        first, *rest = textwrap.wrap(outcome.statement, room, subsequent_indent="    ") or [""]
        line = Text(f"{outcome.line:>{margin - 2}}  {first:<{room}}  {_aligned(row, widths)}")
        place = margin + room + 2 + sum(widths[:_OUTCOME]) + 2 * _OUTCOME
        line.stylize(_STYLES[outcome.status], place, place + len(outcome.status))
        out.print(line, soft_wrap=True)
        for text in rest:
            out.print(Text(" " * margin + text), soft_wrap=True)
        for text in _notes(outcome):
            for part in textwrap.wrap(text, max(_NARROWEST_STATEMENT, out.width - margin - 4), subsequent_indent="  "):
                out.print(Text(f"{' ' * margin}    {part}", style="dim"), soft_wrap=True)
        if outcome.shown:
            print("\n" + textwrap.indent(outcome.shown.rstrip(), " " * margin) + "\n")


def _cells(outcome: Outcome, planned: bool) -> list[str]:
    counts = [_change(outcome.before, outcome.after, field) for field in ("parameters", "macs", "bytes")]
    contract = f", {contract_words(outcome)}" if outcome.contract and outcome.status == "done" else ""
    return [*counts, outcome.status + contract, *([] if planned else [f"{outcome.seconds:.1f} s"])]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells flush right but for the outcome."""
    padded = [
        cell.ljust(w) if k == _OUTCOME else cell.rjust(w) for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _notes(outcome: Outcome) -> list[str]:
    left_out = len(outcome.notes) - _NOTES_SHOWN
    return [*outcome.notes[:_NOTES_SHOWN], *([f"... and {left_out} more"] if left_out > 0 else [])]


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> None:
    """A plain table; columns are flush right but for those in `left`."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    console().print(table)


def print_pass(entry: Pass) -> None:
    """A pass with its contract, what it does, and its options."""
    import inspect

    from suture.passes.options import describe

    out = console()
    out.print(f"[bold]{entry.name}[/bold]  {entry.contract.value}")
    text = inspect.getdoc(entry.function) or entry.summary
    out.print(_plain(text.split(":param")[0].split(":returns")[0].split(":raises")[0].strip()))
    rows = []
    for option in entry.options:
        default = "required" if option.required else _default(option.default)
        rows.append([option.name, describe(option.type), default, option.doc])
    if rows:
        out.print()
        print_rows(["option", "takes", "default", ""], rows, left=(0, 1, 2, 3))


def contract_words(outcome: Outcome) -> str:
    """`exact`, or `approximate, off by 0.031`."""
    if outcome.deviation is None:
        return outcome.contract
    return f"{outcome.contract}, off by {outcome.deviation:.2g}"


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return getattr(value, "__name__", None) or str(value)


def _change(before: Stats | None, after: Stats | None, field: str) -> str:
    if after is None:
        return ""
    new = quantity(getattr(after, field))
    if before is None:
        return new
    old = quantity(getattr(before, field))
    return new if old == new else f"{old} → {new}"


def _plain(text: str) -> str:
    """Text with Rich's markup signs escaped."""
    from rich.markup import escape

    return escape(text)


def stats_rows(stats: Stats) -> Mapping[str, str]:
    """A graph's counts for a table."""
    return {
        "nodes": f"{stats.nodes:,}",
        "parameters": f"{stats.parameters:,}",
        "bytes": f"{stats.bytes:,}",
        "MACs": f"{stats.macs:,}",
        "MACs, symbolic": str(stats.symbolic_macs),
    }


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(content, indent=2))
