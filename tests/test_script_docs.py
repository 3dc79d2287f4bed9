"""The language reference stays true: its examples parse in their canonical layout, and it names everything there is."""

from __future__ import annotations

import re
from pathlib import Path

from suture.cli import app
from suture.cli.guard import EXIT_CODES
from suture.frontends.script.format import format_source
from suture.frontends.script.pass_options import COMMON
from suture.frontends.script.resolve import CLOSENESS, MEASURES, VIEWS
from suture.ir.types import DTYPES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "script.md").read_text()
COMMANDS = (ROOT / "docs" / "cli.md").read_text()


def test_scripts_in_the_documentation_are_canonical() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    scripts = [
        block for page in pages for block in re.findall(r"```\w*\n(suture 1\n.*?)```", page.read_text(), re.DOTALL)
    ]
    assert scripts
    for source in scripts:
        assert format_source(source) == source


def test_example_scripts_are_canonical() -> None:
    for path in (ROOT / "examples").glob("**/*.suture"):
        assert format_source(path.read_text(), str(path)) == path.read_text()


def test_the_reference_names_everything_there_is() -> None:
    for word in [*CLOSENESS, *VIEWS, *DTYPES, *(f"net.{name}" for name in MEASURES), *(f"`{name} " for name in COMMON)]:
        assert word in TEXT


def test_the_command_line_reference_names_every_command_and_status() -> None:
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        assert f"| `suture {name} " in COMMANDS
    for status, meaning in EXIT_CODES.items():
        assert f"| {status} | {meaning} |" in COMMANDS
