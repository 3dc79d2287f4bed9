"""`package.module:callable` -> the callable, found in the script's folder and its parents as well as where Python looks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suture.ir.errors import Code, SutureError, nearest

_found: dict[str, str] = {}
"""Top-level modules imported from a script's folder -> the file; another script's module of that name replaces them."""


def import_callable(name: str, folder: Path) -> Any:
    """Import what `package.module:attribute` names; the attribute may be dotted.

    :param folder: the script's folder
    :raises SutureError: SCRIPT_MODEL, if there is no such module or attribute, or importing it fails
    """
    module_name, _, attribute = name.partition(":")
    with importable(folder):
        module = _import(module_name, folder)
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [item for item in vars(found) if not item.startswith("_")] if hasattr(found, "__dict__") else []
            what = f"{module_name} has no attribute {attribute!r}"
            raise SutureError(Code.SCRIPT_MODEL, what, remedy=nearest(part, public, what="attribute"))
        found = getattr(found, part)
    if not callable(found):
        what = f"{name} is a {type(found).__name__}"
        raise SutureError(Code.SCRIPT_MODEL, what, remedy="name a callable that returns a module")
    return found


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let imports find the modules of a script's folder and of its parents up to the current directory."""
    added = [str(item) for item in search_folders(folder)]
    before = list(sys.path)
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = [item for item in sys.path if item not in added or item in before]


def search_folders(folder: Path) -> list[Path]:
    """The script's folder, then its parents up to the current directory if that is one of them, else the directory too."""
    folder, current = folder.resolve(), Path.cwd()
    parents = [folder, *folder.parents]
    if current in parents:
        return parents[: parents.index(current) + 1]
    return [folder, current]


def describe_exception(error: BaseException) -> str:
    """An exception of someone else's code in one line: its type, what it says, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace is not None else ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}{place}"


def _import(name: str, folder: Path) -> Any:
    top = name.partition(".")[0]
    _forget_others(top, folder)
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise _no_module(name, error.name, folder) from None
        raise SutureError(
            Code.SCRIPT_MODEL, f"importing {name} raised {describe_exception(error)}", remedy="install what it needs"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a module does when imported, SystemExit included, is its user's to see
        what = f"importing {name} raised {describe_exception(error)}"
        raise SutureError(Code.SCRIPT_MODEL, what, remedy="run it by itself to see where") from error
    finally:  # a package stays imported even if its module was not found
        origin = getattr(sys.modules.get(top), "__file__", None)
        if top not in before and origin and any(path in Path(origin).parents for path in search_folders(folder)):
            _found[top] = origin
    return module


def _forget_others(top: str, folder: Path) -> None:
    """Drop a module that an earlier script's folder provided if this script's folder provides another of that name."""
    if top not in _found:
        return
    spec = importlib.machinery.PathFinder.find_spec(top, [str(item) for item in search_folders(folder)])
    if spec is not None and spec.origin == _found[top]:
        return
    for name in [item for item in sys.modules if item == top or item.startswith(top + ".")]:
        del sys.modules[name]
    del _found[top]


def _no_module(name: str, missing: str, folder: Path) -> SutureError:
    package = Path(*missing.split(".")[:-1])
    near = []
    for base in search_folders(folder):
        place = base / package
        if place.is_dir():
            near += [item.stem for item in place.iterdir() if item.suffix == ".py" or (item / "__init__.py").is_file()]
    what = f"there is no module {missing!r}" + (f" (for {name})" if name != missing else "")
    return SutureError(Code.SCRIPT_MODEL, what, remedy=nearest(missing.rpartition(".")[2], near, what="module"))
