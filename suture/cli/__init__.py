"""The command line: `suture run`, `check`, `fmt`, `show`, `passes`, `compare`, `export`, `build`."""

from __future__ import annotations

from suture.cli import builds, catalogue, models, scripts  # noqa: F401 (each registers its commands)
from suture.cli.application import app


def main() -> None:
    """The entry point `suture`."""
    app()
