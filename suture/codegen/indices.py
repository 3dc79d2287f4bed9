"""Index arithmetic: sizes as expressions, and digits of a number that are known where its parts are.

An index is kept as a polynomial where that makes it shorter: what a product of dimensions was made of comes apart again without a division, as
long as the parts are seen to be smaller than what they are digits of.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence

from suture.ir.kernel import INDEX, Apply, Expression, Literal, Load, Name, apply, cast, parts
from suture.ir.kernel_ranges import Ranges
from suture.ir.sizes import Dim, Size, exact_quotient, parse_size

_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}


class Indices:
    """Arithmetic over the variables of one kernel."""

    def __init__(self) -> None:
        self.ranges = Ranges()

    def bind(self, name: str, start: Expression, stop: Expression) -> None:
        """A variable runs from `start` to below `stop`."""
        self.ranges.bind(name, start, stop)

    def add_size(self, name: str) -> None:
        """A name that is never negative."""
        self.ranges.sizes |= {name}

    def dim(self, index: Expression) -> Dim:
        """An index as a polynomial."""
        return self.ranges.dim(index)

    def expression(self, dim: Dim) -> Expression:
        """A polynomial as an expression."""
        if isinstance(dim, int):
            return Literal(dim)
        elements = {name: cast(found, INDEX) for found, name in self.ranges.elements.items()}
        total: Expression | None = None
        for monomial, coefficient in dim.terms:
            term: Expression | None = None
            for factor in monomial:
                made = _parsed(factor, elements)
                term = made if term is None else term * made
            size = abs(coefficient)
            part = Literal(size) if term is None else (term if size == 1 else term * size)
            if total is None:
                total = part if coefficient > 0 else Literal(0) - part
            else:
                total = total + part if coefficient > 0 else total - part
        assert total is not None
        return total

    def short(self, index: Expression) -> Expression:
        """The same number, in canonical form, quotients put back together with their remainders."""
        if isinstance(index, Literal | Name | Load):
            return index
        return self.expression(_recombined(self.dim(index)))

    def horner(self, digits: Sequence[Expression], sizes: Sequence[Dim | Expression]) -> Expression:
        """The number whose digits, outermost first, count what the sizes say."""
        total: Expression = Literal(0)
        for digit, size in zip(digits, sizes, strict=True):
            total = total * (self.expression(size) if isinstance(size, int | Size) else size) + digit
        return self.short(total)

    def digits(self, index: Expression, sizes: Sequence[Dim | Expression]) -> list[Expression]:
        """The digits of a number that is below the product of the sizes, outermost first."""
        found: list[Expression] = []
        rest = index
        for position in range(len(sizes) - 1, 0, -1):
            rest, digit = self.divide(rest, sizes[position])
            found.append(digit)
        return [rest, *reversed(found)] if sizes else []

    def divide(self, index: Expression, by: Dim | Expression) -> tuple[Expression, Expression]:
        """Quotient and remainder of a number that is not negative; without a division where the parts say both."""
        divisor = by if isinstance(by, int | Size) else self.dim(by)
        if divisor == 1:
            return index, Literal(0)
        number = _recombined(self.dim(index))
        whole: Dim = 0
        rest: Dim = 0
        for monomial, coefficient in number.terms if isinstance(number, Size) else (((), number),):
            term: Dim = coefficient
            for factor in monomial:
                term = term * parse_size(factor)
            quotient = exact_quotient(term, divisor)
            if quotient is not None:
                whole = whole + quotient
            else:
                rest = rest + term
        if self.is_below(rest, divisor):
            return self.expression(whole), self.expression(rest)
        made, size = self.expression(number), self.expression(divisor)
        match made, size:
            case Apply("//", (inner, Literal(int(once)))), Literal(int(again)) if once > 0 and again > 0:
                return inner // Literal(
                    once * again
                ), made % size  # seen to be in range where two divisions would not be
        return made // size, made % size

    def is_below(self, number: Dim, limit: Dim) -> bool:
        """Whether `0 <= number < limit` is seen."""
        return self.ranges.never_negative(number) and self.ranges.never_negative(limit - 1 - number)

    def is_inside(self, index: Expression, size: Expression) -> bool:
        """Whether an index is seen to lie in a dimension."""
        return self.is_below(self.dim(index), self.dim(size))


def clamped(index: Expression, size: Expression) -> Expression:
    """The index, or the nearest one inside."""
    return apply("max", apply("min", index, size - 1), Literal(0))


def stride_of(index: Expression, name: str) -> Expression | None:
    """What an index grows by when the variable grows by one; None where it is not linear in it."""
    match index:
        case Literal():
            return Literal(0)
        case Name(found):
            return Literal(int(found == name))
        case Apply("+" | "-" as sign, (left, right)):
            a, b = stride_of(left, name), stride_of(right, name)
            if a is None or b is None:
                return None
            return a + b if sign == "+" else a - b
        case Apply("*", (left, right)):
            a, b = stride_of(left, name), stride_of(right, name)
            if a is None or b is None or (a != Literal(0) and b != Literal(0)):
                return None
            return a * right + left * b if b != Literal(0) else a * right
    mentions = any(isinstance(part, Name) and part.name == name for part in parts(index))
    return None if mentions else Literal(0)


def _recombined(dim: Dim) -> Dim:
    """`c s (x // s) + c (x % s)` is `c x`."""
    if not isinstance(dim, Size):
        return dim
    for monomial, coefficient in dim.terms:
        for factor in monomial:
            if factor.isidentifier() or " % " not in factor:
                continue
            tree = ast.parse(factor, mode="eval").body
            if not (isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mod)):
                continue
            x, s = parse_size(ast.unparse(tree.left)), parse_size(ast.unparse(tree.right))
            rest: Dim = coefficient
            others = list(monomial)
            others.remove(factor)
            for other in others:
                rest = rest * parse_size(other)
            whole = x // s
            if not isinstance(whole, Size):
                continue
            lacking = dim - rest * parse_size(factor) - rest * s * whole
            if _terms(lacking) < _terms(dim) - 1:
                return _recombined(lacking + rest * x)
    return dim


def _terms(dim: Dim) -> int:
    return len(dim.terms) if isinstance(dim, Size) else int(dim != 0)


def _parsed(text: str, elements: Mapping[str, Expression]) -> Expression:
    """A factor of a polynomial as an expression."""
    return _built(ast.parse(text, mode="eval").body, elements)


def _built(tree: ast.expr, elements: Mapping[str, Expression]) -> Expression:
    match tree:
        case ast.Constant(value=int(value)):
            return Literal(value)
        case ast.Name(id=name):
            return elements.get(name) or Name(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return Literal(0) - _built(operand, elements)
        case ast.BinOp(left=left, op=sign, right=right) if not isinstance(sign, ast.Pow):
            a, b = _built(left, elements), _built(right, elements)
            made: Expression = {
                "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
            }[_SIGNS[type(sign)]](a, b)  # fmt: skip
            return made
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            base = _built(left, elements)
            made = base
            for _ in range(power - 1):
                made = made * base
            return made
        case ast.Call(func=ast.Name(id=name), args=[left, right]):
            return apply(name, _built(left, elements), _built(right, elements))
    raise AssertionError(f"{ast.dump(tree)} is no size")
