"""Expressions with something else in the places of their names: what a loop's variable is in one turn, what a `let` stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from suture.ir.kernel import Apply, Expression, Literal, Load, Name


def put(expression: Expression, names: Mapping[str, Expression]) -> Expression:
    """An expression with what names stand for in their place."""
    return mapped(expression, lambda name: names.get(name.name, name))


def renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    """An expression with other names."""
    return mapped(expression, lambda name: replace(name, name=names.get(name.name, name.name)))


def swapped(expression: Expression, name: str, other: Expression) -> Expression:
    """An expression with something else in a name's place."""
    return mapped(expression, lambda found: other if found.name == name else found)


def at_lane(expression: Expression, lane: Name, first: int) -> Expression:
    """An index at one lane."""
    return swapped(expression, lane.name, Literal(first))


def shortest(expression: Expression, lets: Mapping[str, Expression], varying: set[str]) -> Expression:
    """What differs from lane to lane written out; what is one number by its name."""
    return mapped(expression, lambda name: lets[name.name] if name.name in lets and name.name in varying else name)


def mapped(expression: Expression, change: Callable[[Name], Expression]) -> Expression:
    """An expression with each of its names changed."""
    match expression:
        case Name():
            return change(expression)
        case Load(index=index):
            return replace(expression, index=tuple(mapped(at, change) for at in index))
        case Apply(operands=operands):
            return replace(expression, operands=tuple(mapped(each, change) for each in operands))
    return expression


def only_inside(expression: Expression, name: str) -> bool:
    """Whether a name stands in look-ups alone."""
    match expression:
        case Name(found):
            return found != name
        case Apply(operands=operands):
            return all(only_inside(each, name) for each in operands)
    return True
