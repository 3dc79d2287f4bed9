"""Commands on scripts: `run`, `check`, `fmt`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suture.cli.application import EPILOG, Json, Quiet, ScriptPath, Trace, app
from suture.cli.display import print_json
from suture.cli.guard import BAD_INPUT, CHECK_FAILED, guarded, is_failed_check, report_error
from suture.ir.errors import SutureError

if TYPE_CHECKING:
    from suture.frontends.script.report import Report


@app.command(epilog=EPILOG)
@guarded
def run(script: ScriptPath, quiet: Quiet = False, json: Json = False, traceback_: Trace = False) -> None:
    """Run a script. Files are written together, after every check held."""
    _script(script, planned=False, quiet=quiet, json=json, trace=traceback_)


@app.command(epilog=EPILOG)
@guarded
def check(script: ScriptPath, quiet: Quiet = False, json: Json = False, traceback_: Trace = False) -> None:
    """Plan a script from shapes alone: reads no weights, writes nothing, prints what each statement will do."""
    _script(script, planned=True, quiet=quiet, json=json, trace=traceback_)


def _script(script: Path, *, planned: bool, quiet: bool, json: bool, trace: bool) -> None:
    from suture import surgery
    from suture.cli.display import print_outcomes, watching

    action = surgery.check if planned else surgery.run
    with watching(quiet=quiet or json) as watcher:
        report, broken = _attempt(lambda: action(script, listener=watcher))
    if broken is not None:
        if not (quiet or json):
            print_outcomes(watcher.outcomes, planned=planned)
        done = {"script": str(script), "planned": planned, "statements": [item.as_json() for item in watcher.outcomes]}
        report_error(broken, machine=json, trace=trace, more=done)
        raise typer.Exit(CHECK_FAILED if is_failed_check(broken) else BAD_INPUT)
    assert report is not None
    if json:
        print_json(report.as_json())
    elif not quiet:
        print_outcomes(report.outcomes, planned=planned)
        for path in report.files:
            print(f"wrote {path}")
    if not json:
        for failure in report.failures:
            report_error(failure, machine=False)
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


def _attempt(action: Callable[[], Report]) -> tuple[Report | None, SutureError | None]:
    """The result or the user's error, so that the progress display has ended before either is printed."""
    try:
        return action(), None
    except SutureError as error:
        return None, error


@app.command(epilog=EPILOG)
@guarded
def fmt(
    scripts: Annotated[
        list[str],
        typer.Argument(metavar="SCRIPT...", help="Scripts; - reads standard input and writes standard output."),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if a script is not in the canonical layout.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Bring scripts into the one canonical layout. Comments stay."""
    from suture.frontends.script.format import format_script, format_source
    from suture.frontends.script.parser import read_script
    from suture.ir.files import replacing

    changed = []
    for name in scripts:
        if name == "-":
            source = sys.stdin.read()
            text = format_source(source, "<stdin>")
            if not check:
                sys.stdout.write(text)
        else:
            script = read_script(name)
            source, text = script.source, format_script(script)
        if text == source:
            continue
        changed.append(name)
        if name != "-" and not check:
            with replacing(name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if not quiet and name != "-":
            print(f"{'would change' if check else 'changed'} {name}")
    if check and changed:
        raise typer.Exit(CHECK_FAILED)
