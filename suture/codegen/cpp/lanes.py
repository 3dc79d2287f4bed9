"""What the fast C++ print sees in the statements of lanes: how they stride, which of them do anything, what they add up."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.kernel import (
    INDEX,
    Apply,
    Branch,
    Expression,
    Let,
    Literal,
    Name,
    Scope,
    Statement,
    Store,
    Update,
    parts,
)

TOGETHER = 4
"""Turns of a loop that adds up which are taken at once."""


def strided(stop: Expression, lane: str, lanes: int) -> Expression | None:
    """How many elements lanes stride over, where a loop's end says so: `(elements - lane + lanes - 1) // lanes`, or less.

    The lanes that take turn j are then those below `elements - j * lanes`.
    """
    match stop:
        case Apply("min", (inner, Literal())):
            return strided(inner, lane, lanes)
        case Apply("//", (Apply("+", (Apply("-", (elements, Name(name))), Literal(before))), Literal(by))):
            return elements if name == lane and by == lanes and before == lanes - 1 else None
    return None


def first_lanes(run: Sequence[Statement], lane: str) -> tuple[int, Sequence[Statement]] | None:
    """How many of the lanes do something, where it is few, and what."""
    match run:
        case [Branch(Apply("<", (Name(name), Literal(few))), body, ())] if name == lane and few <= 4:
            return int(few), body
    return None


def adds_up(body: Sequence[Statement]) -> bool:
    """Whether all that a loop does is a little for lanes' own sums or extremes."""
    plain = all(isinstance(each, Let | Store | Update) for each in body)
    adds = any(isinstance(each, Update) and each.buffer.scope is Scope.THREAD and not each.index for each in body)
    return plain and adds and len(body) <= TOGETHER * 4


def is_place(value: Expression) -> bool:
    """Whether a value is an index that costs an addition or two."""
    return value.dtype == INDEX and all(
        isinstance(part, Literal | Name) or (isinstance(part, Apply) and part.function in ("+", "-", "*"))
        for part in parts(value)
    )
