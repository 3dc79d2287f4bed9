"""Which integers of a kernel fit in 32 bits, by the ranges of fixed loops and lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from suture.ir.kernel import INDEX, Apply, Expression, Literal, Name

Interval: TypeAlias = tuple[int, int]
_LIMIT = 1 << 30  # a bit to spare: sums of two still fit


def interval(expression: Expression, known: Mapping[str, Interval]) -> Interval | None:
    """The least and the greatest value of an index; None if they are not known, or might not fit in 32 bits.

    :param known: the ranges of names
    """
    found = _interval(expression, known)
    return found if found is not None and max(map(abs, found)) < _LIMIT else None


def _interval(expression: Expression, known: Mapping[str, Interval]) -> Interval | None:
    match expression:
        case Literal(value, dtype) if dtype == INDEX:
            return int(value), int(value)
        case Name(name):
            return known.get(name)
        case Apply(function, (left, right), dtype) if dtype == INDEX:
            first, second = interval(left, known), interval(right, known)
            return None if first is None or second is None else _combined(function, first, second)
    return None


def _combined(function: str, a: Interval, b: Interval) -> Interval | None:
    match function:
        case "+":
            return a[0] + b[0], a[1] + b[1]
        case "-":
            return a[0] - b[1], a[1] - b[0]
        case "*":
            corners = [x * y for x in a for y in b]
            return min(corners), max(corners)
        case "//" if b[0] == b[1] > 0:
            return a[0] // b[0], a[1] // b[0]
        case "%" if b[0] == b[1] > 0:
            return 0, b[0] - 1
        case "min":
            return min(a[0], b[0]), min(a[1], b[1])
        case "max":
            return max(a[0], b[0]), max(a[1], b[1])
    return None
