"""What Lark says about a text that does not parse, as one line a person can act on."""

from __future__ import annotations

from collections.abc import Iterable

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from suture.frontends.script.ast import Span
from suture.frontends.script.diagnostics import ScriptError
from suture.ir.errors import Code, nearest

KEYWORDS = ("suture", "model", "let", "check", "export", "build", "save", "show")
"""Words that begin a statement; any other first word is a pass."""

_WORDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": 'a "text"',
    "COMPARISON": "a comparison such as <=",
    "_END": "the end of the statement",
    "$END": "the end of the script",
    "PLUS": "'+'",
    "MINUS": "'-'",
    "STAR": "'*'",
    "SLASH": "'/'",
    "EQUAL": "'='",
    "COMMA": "','",
    "COLON": "':'",
    "DOT": "'.'",
    "TILDE": "'~'",
    "LSQB": "'['",
    "RIGHT_BRACKET": "']'",
    "LPAR": "'('",
    "RPAR": "')'",
}


def explain(error: UnexpectedInput, source: str, file: str) -> ScriptError:
    """The error at its place, with what was found and what was expected."""
    if isinstance(error, UnexpectedCharacters):
        return _explain_character(error, source, file)
    assert isinstance(error, UnexpectedToken)
    token = error.token
    expected = _terminals(error.accepts or error.expected)
    if not token or token.type in ("$END", "_END"):
        return _explain_end(expected, source, file, token.end_line or 1, token.end_column or 1)
    line, column = token.line or 1, token.column or 1
    span = Span(line, column, token.end_line or line, token.end_column or column + len(token))
    what = f"unexpected {_found(str(token))}"
    remedy = _expected(expected)
    if column > 1 and not source.split("\n")[line - 1][: column - 1].strip():
        remedy += "; a statement starts in column 1, an indented line continues the one above"
    return ScriptError(
        Code.SCRIPT_SYNTAX,
        what,
        file=file,
        source=source,
        span=span,
        remedy=_spelling(source, span, expected, str(token)) or remedy,
    )


def _explain_character(error: UnexpectedCharacters, source: str, file: str) -> ScriptError:
    line, column = error.line, error.column
    span = Span(line, column, line, column + 1)
    text = source.split("\n")[line - 1][column - 1 :]
    if text.startswith('"'):
        what, remedy = (
            "a text that does not end on its line",
            'close it with "; inside a text, a backslash is written \\\\ and a quote \\"',
        )
    elif text[:1].isdigit():
        what, remedy = (
            f"{_found(text.split()[0])} is neither a number nor a name",
            "a number is written 8, 0.5, 5e-2, 1_000 or 2.1G",
        )
    else:
        what = f"unexpected character {text[:1]!r}"
        remedy = _expected(_terminals(error.allowed or ()))
        if text[:1] in "'`“”":
            remedy = 'texts stand in double quotes: "..."'
    return ScriptError(Code.SCRIPT_SYNTAX, what, file=file, source=source, span=span, remedy=remedy)


def _explain_end(expected: list[str], source: str, file: str, line: int, column: int) -> ScriptError:
    span = Span(line, column, line, column + 1)
    if "SUTURE" in expected:
        span, what = Span(1, 1, 1, 2), "the script is empty"
    elif source.split("\n")[line:] and "".join(source.split("\n")[line:]).strip():
        what = "the statement ends too early"
    else:
        what = "the script ends in the middle of a statement"
    return ScriptError(
        Code.SCRIPT_SYNTAX,
        what,
        file=file,
        source=source,
        span=span,
        remedy=_spelling(source, span, expected, "") or _expected(expected),
    )


def _spelling(source: str, span: Span, expected: list[str], found: str) -> str:
    """A remedy if a word of the language is misspelt: the one found, or the one that begins the statement."""
    wanted = {word.lower() for word in expected if word.isalpha() and word not in _WORDS}
    if found and wanted:
        near = nearest(found, wanted)
        if near.startswith("the nearest"):
            return near
    lines = source.split("\n")
    first = span.line
    while first > 1 and (not lines[first - 1] or lines[first - 1][0] in " \t#"):
        first -= 1
    opening = lines[first - 1].split()[:1]
    if opening and opening[0] not in KEYWORDS and (first, 1) != (span.line, span.column):
        near = nearest(opening[0], KEYWORDS)
        if near.startswith("the nearest"):
            return f"the statement begins with {opening[0]!r}, {near}"
    return ""


def _terminals(names: Iterable[str]) -> list[str]:
    return sorted(set(names) - {"NEWLINE", "COMMENT", "BLANK"})


def _expected(terminals: list[str]) -> str:
    if "NAME" in terminals and "LET" in terminals:  # where an option may stand, any word may
        terminals = [name for name in terminals if name in _WORDS or name in ("WHERE", "AND")]
    words = [_WORDS.get(name) or f"'{name.lower()}'" for name in terminals]
    if terminals == ["SUTURE"]:
        words = ["'suture 1', which begins every script"]
    if not words:
        return "no text can follow here"
    if len(words) == 1:
        return f"expected {words[0]}"
    return f"expected {', '.join(words[:-1])} or {words[-1]}"


def _found(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
