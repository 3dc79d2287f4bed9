"""How far apart in memory what expressions name lies, and expressions with others in the places of their names."""

from __future__ import annotations

import torch

from suture.ir.kernel import Apply, Expression, Literal, Load, Name, names_in


def stride_of_load(load: Load, name: str) -> Expression | None:
    """How far apart in memory the elements of neighbouring values of a variable are; None if that varies."""
    total: Expression = Literal(0)
    size: Expression = Literal(1)
    for at, extent in zip(reversed(load.index), reversed(load.buffer.shape), strict=True):
        slope = slope_of(at, name)
        if slope is None:
            return None
        total = total + slope * size
        size = size * extent
    return total


def slope_of(expression: Expression, name: str) -> Expression | None:
    """By how much an integer expression grows with each step of a variable; None if that is not seen to be the same for every step."""
    if name not in names_in(expression):
        return Literal(0)
    match expression:
        case Name():
            return Literal(1)
        case Apply(("+" | "-") as sign, (left, right)):
            first, second = slope_of(left, name), slope_of(right, name)
            if first is None or second is None:
                return None
            return first + second if sign == "+" else first - second
        case Apply("*", (left, right)):
            for side, other in ((left, right), (right, left)):
                slope = slope_of(side, name)
                if slope is not None and name not in names_in(other):
                    return slope * other
    return None


def replaced(expression: Expression, values: dict[str, Expression]) -> Expression:
    """An expression with others in the place of names."""
    match expression:
        case Name(name):
            return values.get(name, expression)
        case Load(buffer, index):
            return Load(buffer, tuple(replaced(part, values) for part in index))
        case Apply(("+" | "-" | "*") as function, (left, right)) if expression.dtype == torch.int64:
            first, second = replaced(left, values), replaced(right, values)
            return {"+": first.__add__, "-": first.__sub__, "*": first.__mul__}[function](second)
        case Apply(function, operands, dtype):
            return Apply(function, tuple(replaced(part, values) for part in operands), dtype)
    return expression
