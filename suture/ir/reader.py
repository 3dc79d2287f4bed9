"""The words of graph text: names, strings, types, sizes, attribute values. `suture.ir.parser` puts them together."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NoReturn

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.sizes import Dim, parse_size
from suture.ir.types import DTYPES, Attribute, TensorType

_PLAIN = re.compile(r"[\w.]+")
_SPACE = re.compile(r"(?:\s+|#[^\n]*)*+")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
WORD = re.compile(r"[A-Za-z_]\w*")
_TYPE = re.compile(r"(\w+)\[([^\]]*)\]")
_NUMBER = re.compile(r"[+-]?(?:(?P<integer>\d+)(?![\w.])|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf\b|nan\b)")
_CONSTANTS: dict[str, Attribute] = {"true": True, "false": False, "none": None, **DTYPES}
_BRACKET = re.compile(r"[()\n]")
DIGITS = re.compile(r"\d+")
_KEY = re.compile(r'([\w.]+|"(?:[^"\\\n]|\\.)*") *= *')


class Reader:
    """Reads from left to right, once; every method begins where the last one stopped."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.at = 0
        self.file = file

    def place(self, position: int) -> str:
        """The file, line and column of a position."""
        line = self.text.count("\n", 0, position) + 1
        return f"{self.file}:{line}:{position - self.text.rfind(chr(10), 0, position)}"

    def fail(self, expected: str, position: int | None = None) -> NoReturn:
        """Say what was expected here, and what stands here."""
        position = self.at if position is None else position
        rest = self.text[position : position + 40]
        found = f"found {rest.split(chr(10))[0]!r}" if rest.strip() else "the text ends"
        raise SutureError(Code.TEXT, found, where=self.place(position), remedy=f"expected {expected}")

    def space(self) -> int:
        """Skip white space and comments; returns where the next word begins."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at

    def peek(self, mark: str) -> bool:
        """Whether the mark comes next."""
        return self.text.startswith(mark, self.space())

    def accept(self, mark: str) -> bool:
        """Take the mark if it comes next."""
        if not self.peek(mark):
            return False
        self.at += len(mark)
        return True

    def expect(self, mark: str) -> None:
        """Take the mark, which must come next."""
        if not self.accept(mark):
            self.fail(f"'{mark}'")

    def read(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        """Take what matches the pattern, which must come next."""
        match = pattern.match(self.text, self.space())
        if match is None:
            self.fail(expected)
        self.at = match.end()
        return match

    def word(self) -> str:
        """The word that comes next, without taking it; empty if there is none."""
        match = WORD.match(self.text, self.space())
        return match[0] if match else ""

    def accept_word(self, word: str) -> bool:
        """Take the whole word if it comes next."""
        if self.word() != word:
            return False
        self.at += len(word)
        return True

    def name(self, what: str) -> str:
        """Take a name, plain or in quotes."""
        if self.peek('"'):
            return self.string()
        return self.read(_PLAIN, what)[0]

    def key(self) -> str | None:
        """The name in front of `=`; None, and nothing taken, if that is not what comes next."""
        match = _KEY.match(self.text, self.space())
        if match is None:
            return None
        self.at = match.end()
        return str(json.loads(match[1])) if match[1].startswith('"') else match[1]

    def string(self) -> str:
        """Take a string in quotes."""
        start = self.space()
        try:
            found: str = json.loads(self.read(_STRING, "a string in quotes")[0])
        except ValueError:
            self.fail("a string with JSON's escapes", start)
        return found

    def json(self) -> Any:
        """Take a JSON object."""
        start = self.space()
        try:
            found, self.at = json.JSONDecoder().raw_decode(self.text, start)
        except ValueError:
            self.fail("a JSON object", start)
        if not isinstance(found, dict):
            self.fail("a JSON object", start)
        return found

    def type(self) -> TensorType:
        """Take a type."""
        start = self.space()
        match = self.read(_TYPE, "a type such as f32[batch, 3]")
        try:
            return _read_type(match[1], match[2])
        except SutureError as error:
            raise SutureError(Code.TEXT, error.what, where=self.place(start), remedy=error.remedy) from None

    def attribute(self) -> Attribute:
        """Take an attribute's value."""
        if self.accept("("):
            items: list[Attribute] = []
            while not self.peek(")"):
                items.append(self.attribute())
                if not self.accept(","):
                    break
            self.expect(")")
            return tuple(items)
        if self.peek('"'):
            return self.string()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            return int(number[0]) if number["integer"] else float(number[0])
        start, word = self.at, self.word()
        self.at += len(word)
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word == "size":
            return self.size()
        if word == "complex":
            self.expect("(")
            real = float(self.read(_NUMBER, "a number")[0])
            self.expect(",")
            imaginary = float(self.read(_NUMBER, "a number")[0])
            self.expect(")")
            return complex(real, imaginary)
        self.at = start
        self.fail("a number, a string, true, false, none, a dtype, size(...), a graph or a tuple")

    def size(self) -> Dim:
        """Take a symbolic size in parentheses."""
        self.expect("(")
        start, depth = self.at, 1
        for match in _BRACKET.finditer(self.text, start):
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            if not depth or match[0] == "\n":
                self.at = match.end()
                break
        if depth:
            self.fail("a size and ')'", start)
        try:
            return parse_size(self.text[start : self.at - 1])
        except SutureError as error:
            raise SutureError(Code.TEXT, error.what, where=self.place(start), remedy=error.remedy) from None


@lru_cache(maxsize=16384)
def _read_type(dtype: str, body: str) -> TensorType:
    if dtype not in DTYPES:
        raise SutureError(Code.TEXT, f"{dtype!r} is no element type", remedy=nearest(dtype, DTYPES, what="type"))
    return TensorType(DTYPES[dtype], tuple(map(parse_size, _split(body))))


def _split(body: str) -> list[str]:
    """Cut at the commas that no parenthesis encloses."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(body):
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append(body[start:position])
            start = position + 1
    return [*parts, body[start:]] if body.strip() else []
