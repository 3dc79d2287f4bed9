"""How a command ends: every exception becomes an exit status and, for a user's error, one line."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer

from suture.ir.errors import Code, ContractError, SutureError

OK = 0
CHECK_FAILED = 1
BAD_INPUT = 2
OUR_BUG = 70
INTERRUPTED = 130

EXIT_CODES = {
    OK: "done, and every check held",
    CHECK_FAILED: "a check does not hold, or a pass broke its contract; nothing was written",
    BAD_INPUT: "the input is at fault: one line says what, where, and what would be right",
    OUR_BUG: "an error in Suture itself, with a traceback",
    INTERRUPTED: "interrupted; old files are whole",
}

F = TypeVar("F", bound=Callable[..., Any])


def guarded(command: F) -> F:
    """Wrap a command: exit with the status that its exception stands for. A parameter `json` says who reads the message."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with _without_logs(not kwargs.get("traceback_")):
                return command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            stopped = SutureError(Code.INTERRUPTED, "interrupted", remedy="files are as they were; run it again")
            report_error(stopped, machine=bool(kwargs.get("json")))
            raise typer.Exit(INTERRUPTED) from None
        except SutureError as error:
            report_error(error, machine=bool(kwargs.get("json")), trace=bool(kwargs.get("traceback_")))
            raise typer.Exit(CHECK_FAILED if is_failed_check(error) else BAD_INPUT) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough
                raise
            _report_bug()
        except Exception:
            _report_bug()

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def _without_logs(silent: bool) -> Iterator[None]:
    """Keep what libraries log off the screen: torch logs pages about an export that fails, and the error has one line."""
    before = logging.root.manager.disable
    if silent:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def is_failed_check(error: SutureError) -> bool:
    """Whether the input was sound but the result is not."""
    from suture.frontends.script.diagnostics import CheckFailed

    return isinstance(error, CheckFailed | ContractError)


def report_error(error: SutureError, *, machine: bool, trace: bool = False, more: dict[str, Any] | None = None) -> None:
    """Print a user's error: one line, and the place in the script if it has one; or JSON on standard output."""
    if machine:
        print(json.dumps({"ok": False, **(more or {}), "error": error_json(error)}, indent=2))
        return
    if trace and error.__cause__ is not None:
        traceback.print_exception(error.__cause__)
    print(f"error: {error}", file=sys.stderr)
    excerpt = getattr(error, "excerpt", "")
    if excerpt:
        print(excerpt, file=sys.stderr)


def error_json(error: SutureError) -> dict[str, Any]:
    """An error for machines."""
    fields: dict[str, Any] = {
        "code": error.code.value,
        "kind": error.code.name,
        "what": error.what,
        "where": error.where,
    }
    fields["remedy"] = error.remedy
    span = getattr(error, "span", None)
    return fields | ({"line": span.line, "column": span.column} if span is not None else {})


def usage_error(what: str, remedy: str) -> SutureError:
    """An error in how the command line was used."""
    return SutureError(Code.USAGE, what, remedy=remedy)


def _report_bug() -> None:
    traceback.print_exc()
    print("this is an error in Suture itself: please report it with the lines above", file=sys.stderr)
    raise typer.Exit(OUR_BUG) from None
