"""Scripts from end to end: the language of `frontends.script` joined to the backends that compare and export."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

from suture.frontends.script.interpret import interpret
from suture.frontends.script.outside import Backends, Exporter, Listener
from suture.frontends.script.parser import read_script
from suture.frontends.script.report import Report


def run(path: str | Path, *, listener: Listener | None = None) -> Report:
    """Run a script. Files are written together, after every check held.

    :param path: the script; relative paths in it start from its folder
    :param listener: is told of every statement
    :raises SutureError: at the first statement that is broken or check that fails; then nothing was written
    """
    return interpret(read_script(path), backends(), planned=False, listener=listener)


def check(path: str | Path, *, listener: Listener | None = None) -> Report:
    """Plan a script from shapes alone: no weights are read, nothing is written.

    :returns: what each statement will do; checks of size that fail are in `failures`
    :raises SutureError: at the first statement that is broken
    """
    return interpret(read_script(path), backends(), planned=True, listener=listener)


def backends() -> Backends:
    """What scripts compare with, export to and build."""
    from suture.backends.compare import compare
    from suture.drivers.building import build, check_build
    from suture.drivers.exporting import export_onnx

    exporters = {".onnx": Exporter(export_onnx, _options(export_onnx))}
    return Backends(compare, exporters, Exporter(build, _options(build), check_build))


def _options(function: typing.Callable[..., object]) -> dict[str, object]:
    """The keyword-only parameters of an exporter with their types: its options in scripts."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {item.name: hints[item.name] for item in parameters if item.kind is item.KEYWORD_ONLY}
