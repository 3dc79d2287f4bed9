"""Errors that point at a place in a script: `file:line:column`, the source line, a caret."""

from __future__ import annotations

from suture.frontends.script.ast import Script, Span
from suture.ir.errors import Code, ContractError, SutureError

_WIDEST_LINE = 160


class ScriptError(SutureError):
    """A user's error with a place in a script: `str()` is one line, `excerpt` the source line with a caret below."""

    def __init__(self, code: Code, what: str, *, file: str, source: str, span: Span, remedy: str = "") -> None:
        super().__init__(code, what, where=f"{file}:{span.line}:{span.column}", remedy=remedy)
        self.span = span
        self.excerpt = excerpt(source, span)


class CheckFailed(ScriptError):
    """A check of a script that does not hold, or a pass that broke its contract: the script is sound, the result is not."""


def check_failed(script: Script, span: Span, what: str, asked: str) -> CheckFailed:
    """A check that does not hold."""
    return CheckFailed(Code.SCRIPT_CHECK, what, file=script.file, source=script.source, span=span, remedy=asked)


def script_error(code: Code, what: str, script: Script, span: Span, remedy: str = "") -> ScriptError:
    """An error at a place of a parsed script."""
    return ScriptError(code, what, file=script.file, source=script.source, span=span, remedy=remedy)


def located(error: SutureError, script: Script, span: Span) -> ScriptError:
    """An error from elsewhere (a pass, a file), told at the place of the script that led to it."""
    if isinstance(error, ScriptError):
        return error
    what = f"{error.where}: {error.what}" if error.where else error.what
    kind = CheckFailed if isinstance(error, ContractError) else ScriptError
    return kind(error.code, what, file=script.file, source=script.source, span=span, remedy=error.remedy)


def excerpt(source: str, span: Span) -> str:
    """The source line with carets under the stretch; a very long line is cut around it."""
    lines = source.splitlines() or [""]
    line = lines[min(span.line, len(lines)) - 1].expandtabs(1)
    start = span.column - 1
    width = span.end_column - span.column if span.end_line == span.line else len(line) - start
    if len(line) > _WIDEST_LINE:
        first = max(0, start - _WIDEST_LINE // 2)
        line, start = line[first : first + _WIDEST_LINE], start - first
    width = max(1, min(width, len(line) - start))
    margin = f"{span.line} | "
    return f"{margin}{line}\n{' ' * (len(margin) + start)}{'^' * width}"
