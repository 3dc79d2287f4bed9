"""The command-line application: its help, its shared options, its exit statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suture.cli.guard import EXIT_CODES
from suture.cli.sources import MODEL_HELP
from suture.frontends.script.parser import SUFFIX as SCRIPT_SUFFIX

EPILOG = "Exit status: " + "; ".join(f"{code}: {text}" for code, text in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="suture",
    help="Operate on trained networks: trace, prune, fold, prove what each operation did, export.\n\n" + EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Trace = Annotated[bool, typer.Option("--traceback", help="Print the traceback of what a model's own code raised.")]
Inputs = Annotated[str, typer.Option("--input", help='What a callable is traced with: "f32[batch, 3, 224, 224]".')]
Weights = Annotated[Path | None, typer.Option("--weights", help="A weights file for a callable's module.")]
Args = Annotated[str, typer.Option("--args", help='Arguments of a callable, as in a script: "10, width=0.5".')]
ScriptPath = Annotated[Path, typer.Argument(metavar="SCRIPT", help=f"A *{SCRIPT_SUFFIX} file.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]


def _version(wanted: bool) -> None:
    if wanted:
        from suture import __version__

        print(f"suture {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
