"""Source text of a script -> syntax tree, by the grammar in `grammar.lark`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from suture.frontends.script.ast import LANGUAGE_VERSION, Comment, Script, Span
from suture.frontends.script.diagnostics import ScriptError
from suture.ir.errors import Code, SutureError

if TYPE_CHECKING:
    from lark import Lark, Token

SUFFIX = ".suture"
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\["\\])*"|#.*')
LARGEST_SCRIPT = 4_000_000  # bytes; a script is written by people, so a longer file is something else


def read_script(path: str | Path) -> Script:
    """Read and parse a script file.

    :raises SutureError: FILE or SCRIPT_SYNTAX
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if len(data) > LARGEST_SCRIPT:
            raise SutureError(
                Code.FILE,
                f"{len(data)} bytes are no script",
                where=str(path),
                remedy=f"a script has at most {LARGEST_SCRIPT} bytes",
            )
        source = data.decode("utf-8-sig")
    except OSError as error:
        raise SutureError(
            Code.FILE, f"cannot read the script: {error.strerror}", where=str(path), remedy="give the path of a script"
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SutureError(
            Code.SCRIPT_SYNTAX, "the script is not UTF-8 text", where=f"{path}:{line}", remedy="save it as UTF-8"
        ) from None
    return parse(source, str(path))


def parse(source: str, file: str = "<script>") -> Script:
    """Parse a script's text.

    :param source: the text
    :param file: what to call it in errors
    :raises ScriptError: SCRIPT_SYNTAX, with the place, what was found there and what was expected
    """
    from lark.exceptions import UnexpectedInput, VisitError

    from suture.frontends.script.syntax_errors import explain
    from suture.frontends.script.tree import TreeBuilder

    source = source.replace("\r\n", "\n")
    text = source if source.endswith("\n") else source + "\n"
    try:
        tree = _lark().parse(text)
        version, *statements = TreeBuilder(source, file).transform(tree)
    except UnexpectedInput as error:
        raise explain(error, source, file) from None
    except VisitError as error:
        if isinstance(error.orig_exc, RecursionError):
            raise _too_deep(file) from None
        raise error.orig_exc from None
    except RecursionError:
        raise _too_deep(file) from None
    if version.value != LANGUAGE_VERSION or version.text != str(LANGUAGE_VERSION):
        raise ScriptError(
            Code.SCRIPT_SYNTAX,
            f"version {version.text} of the language is not known",
            file=file,
            source=source,
            span=version.span,
            remedy=f"this release reads 'suture {LANGUAGE_VERSION}'",
        )
    return Script(version, tuple(statements), file, source, _comments(source))


def _too_deep(file: str) -> SutureError:
    return SutureError(
        Code.SCRIPT_SYNTAX,
        "an expression is nested too deeply",
        where=file,
        remedy="write it with fewer signs and brackets",
    )


class StatementEnds:
    """Puts an _END where line breaks end a statement: where the next token stands in column 1, or there is none.

    The lexer makes one NEWLINE of all line breaks, blank lines, comments and indentation up to the next token.
    """

    always_accept = ("NEWLINE",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Pass tokens on, line breaks replaced by _ENDs or dropped."""
        from lark import Token

        last = None
        for token in stream:
            if token.type != "NEWLINE":
                last = token
                yield token
            elif last is not None and token.endswith("\n"):
                yield Token("_END", "", None, last.end_line, last.end_column, last.end_line, last.end_column)


@lru_cache(maxsize=1)
def _lark() -> Lark:
    from lark import Lark

    grammar = resources.files(__package__).joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        postlex=StatementEnds(),
        propagate_positions=True,
        maybe_placeholders=True,
        lexer="contextual",
    )


def _comments(source: str) -> tuple[Comment, ...]:
    """Every comment with its place; a `#` inside a string is none."""
    found = []
    for number, line in enumerate(source.split("\n"), start=1):
        for match in _STRING_OR_COMMENT.finditer(line):
            if match[0].startswith("#"):
                found.append(Comment(match[0].rstrip(), number, match.start() + 1, not line[: match.start()].strip()))
    return tuple(found)


def span_of(token: Token) -> Span:
    """Where a token stands."""
    return Span(token.line or 1, token.column or 1, token.end_line or 1, token.end_column or 1)
