"""Sizes of dimensions: integers, or integer polynomials over named symbols such as `batch`.

A `Size` is kept in one canonical form, a sum of monomials, so that equal sizes compare equal: `(batch + 1) * 2 == 2*batch + 2`.
What a polynomial cannot say (`//`, `%`, `max`, `min` that do not simplify) is an opaque factor with a canonical spelling of its own.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from suture.ir.errors import Code, SutureError


@dataclass(frozen=True, slots=True, order=True)
class Opaque:
    """A function of sizes that is no polynomial: `floordiv`, `mod`, `max` or `min` of two sizes."""

    function: str
    left: str
    right: str

    def __str__(self) -> str:
        sign = {"floordiv": "//", "mod": "%"}.get(self.function)
        if sign is None:
            return f"{self.function}({self.left}, {self.right})"
        return f"({_bracket(self.left)} {sign} {_bracket(self.right)})"


Factor: TypeAlias = "str | Opaque"
Monomial: TypeAlias = "tuple[str, ...]"  # spellings of the factors, sorted; a power is a repetition


@dataclass(frozen=True, slots=True)
class Size:
    """A symbolic size: coefficients of monomials, in canonical order; never a plain constant."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _added(self, other)

    def __sub__(self, other: Dim) -> Dim:
        return _added(self, other * -1)

    def __mul__(self, other: Dim) -> Dim:
        return _multiplied(self, other)

    def __neg__(self) -> Dim:
        return self * -1

    def __radd__(self, other: int) -> Dim:
        return self + other

    def __rsub__(self, other: int) -> Dim:
        return (self * -1) + other

    def __rmul__(self, other: int) -> Dim:
        return self * other

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floor_divide(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return modulo(self, other)

    def __rmod__(self, other: int) -> Dim:
        return modulo(other, self)

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            magnitude = abs(coefficient)
            body = "*".join(([str(magnitude)] if magnitude != 1 or not monomial else []) + list(monomial))
            sign = "-" if coefficient < 0 else "+"
            text = (f"-{body}" if sign == "-" else body) if not text else f"{text} {sign} {body}"
        return text

    def __repr__(self) -> str:
        return f"Size({str(self)!r})"


Dim: TypeAlias = int | Size

_FUNCTIONS = frozenset({"max", "min"})


def symbol(name: str) -> Size:
    """A named unknown size."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in _FUNCTIONS:
        raise SutureError(
            Code.SIZE, f"{name!r} is no name for a size", remedy="use a Python identifier such as 'batch'"
        )
    return Size((((name,), 1),))


@lru_cache(maxsize=1 << 16)
def symbols_of(dim: Dim) -> tuple[str, ...]:
    """The names a size depends on, sorted."""
    if isinstance(dim, int):
        return ()
    return tuple(sorted({name for monomial, _ in dim.terms for factor in monomial for name in _names_in(factor)}))


@lru_cache(maxsize=1 << 16)
def _names_in(factor: str) -> frozenset[str]:
    """The names in the spelling of a factor."""
    if factor.isidentifier():
        return frozenset((factor,))
    tree = ast.parse(factor, mode="eval")
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) - _FUNCTIONS


def floor_divide(left: Dim, right: Dim) -> Dim:
    """`left // right`, exact where the division is."""
    _check_divisor(left, right)
    exact = exact_quotient(left, right)
    if exact is not None:
        return exact
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    return _opaque("floordiv", left, right)


def modulo(left: Dim, right: Dim) -> Dim:
    """`left % right`, 0 where the division is exact."""
    _check_divisor(left, right)
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if exact_quotient(left, right) is not None:
        return 0
    return _opaque("mod", left, right)


def _check_divisor(left: Dim, right: Dim) -> None:
    if right == 0:
        raise SutureError(Code.SIZE, f"{left} is divided by zero", remedy="the divisor must be positive")


def maximum(left: Dim, right: Dim) -> Dim:
    """The larger of two sizes."""
    return _extreme("max", left, right)


def minimum(left: Dim, right: Dim) -> Dim:
    """The smaller of two sizes."""
    return _extreme("min", left, right)


def exact_quotient(left: Dim, right: Dim) -> Dim | None:
    """`left / right` if it is a whole polynomial, else None. Polynomial long division by the leading monomial."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right if right and left % right == 0 else None
    if left == right:
        return 1
    if right == 1:
        return left
    remainder, divisor = dict(_terms(left)), _terms(right)
    if not divisor:
        return None
    lead = max(divisor, key=_order)
    quotient: dict[Monomial, int] = {}
    while remainder:
        top = max(remainder, key=_order)
        monomial = _without(top, lead)
        if monomial is None or remainder[top] % divisor[lead]:
            return None
        coefficient = remainder[top] // divisor[lead]
        quotient[monomial] = quotient.get(monomial, 0) + coefficient
        remainder = _sum(remainder, _product({monomial: -coefficient}, divisor))
    return _from_terms(quotient)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def evaluate_size(dim: Dim, symbols: Mapping[str, int]) -> int:
    """The number a size stands for.

    :raises SutureError: SIZE, if a symbol has no value
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        for factor in monomial:
            if factor not in symbols:  # a quotient or an extreme, or there is no number for it
                return _evaluate(str(dim), tuple(sorted(symbols.items())))
            coefficient *= symbols[factor]
        total += coefficient
    return total


def substitute(dim: Dim, symbols: Mapping[str, Dim]) -> Dim:
    """Replace symbols by sizes."""
    return dim if isinstance(dim, int) else _substituted(dim, tuple(symbols.items()))


@lru_cache(maxsize=1 << 16)
def _substituted(dim: Size, symbols: tuple[tuple[str, Dim], ...]) -> Dim:
    names = {name for name, _ in symbols}
    result: Dim = _from_terms({monomial: c for monomial, c in dim.terms if not _mentions(monomial, names)})
    for monomial, coefficient in dim.terms:
        if _mentions(monomial, names):
            result = result + product([coefficient, *(_replaced(factor, symbols) for factor in monomial)])
    return result


def _mentions(monomial: Monomial, names: set[str]) -> bool:
    return any(not names.isdisjoint(symbols_of(parse_size(factor))) for factor in monomial)


@lru_cache(maxsize=1 << 16)
def _replaced(factor: str, symbols: tuple[tuple[str, Dim], ...]) -> Dim:
    return _build(ast.parse(factor, mode="eval").body, dict(symbols), factor)


@lru_cache(maxsize=65536)
def parse_size(text: str) -> Dim:
    """Read what `str` of a size prints.

    :raises SutureError: SIZE, if it is not a sum, product, `//`, `%`, `max` or `min` of names and integers
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise SutureError(Code.SIZE, f"{text!r} is not a size", remedy="write integers, names, + - * // %") from None
    return _build(tree, None, text)


def _build(tree: ast.expr, symbols: Mapping[str, Dim] | None, text: str) -> Dim:
    match tree:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            return symbols[name] if symbols is not None and name in symbols else symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _build(operand, symbols, text) * -1
        case ast.BinOp(left=left, op=operation, right=right):
            a, b = _build(left, symbols, text), _build(right, symbols, text)
            match operation:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return floor_divide(a, b)
                case ast.Mod():
                    return modulo(a, b)
        case ast.Call(func=ast.Name(id=("max" | "min") as function), args=[first, second]):
            return _extreme(function, _build(first, symbols, text), _build(second, symbols, text))
    raise SutureError(Code.SIZE, f"{text!r} is not a size", remedy="write integers, names, + - * // %, max or min")


@lru_cache(maxsize=65536)
def _evaluate(text: str, symbols: tuple[tuple[str, int], ...]) -> int:
    value = _build(ast.parse(text, mode="eval").body, dict(symbols), text)
    if not isinstance(value, int):
        missing = ", ".join(symbols_of(value))
        raise SutureError(
            Code.SIZE, f"the size {text} has no number: {missing} is not known", remedy="give every symbol a value"
        )
    return value


def _extreme(function: str, left: Dim, right: Dim) -> Dim:
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right) if function == "max" else min(left, right)
    difference = left - right
    if isinstance(difference, int):
        larger, smaller = (left, right) if difference >= 0 else (right, left)
        return larger if function == "max" else smaller
    return _opaque(function, *sorted((left, right), key=str))


def _opaque(function: str, left: Dim, right: Dim) -> Size:
    return Size((((str(Opaque(function, str(left), str(right))),), 1),))


def _bracket(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() or (text[0] == "(" and _closes(text)) else f"({text})"


def _closes(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position == len(text) - 1
    return False


@lru_cache(maxsize=1 << 15)
def _added(a: Dim, b: Dim) -> Dim:
    return _from_terms(_sum(_terms(a), _terms(b)))


@lru_cache(maxsize=1 << 15)
def _multiplied(a: Dim, b: Dim) -> Dim:
    return _from_terms(_product(_terms(a), _terms(b)))


def _terms(dim: Dim) -> dict[Monomial, int]:
    if isinstance(dim, Size):
        return dict(dim.terms)
    return {(): dim} if dim else {}


def _from_terms(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: c for monomial, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Size(tuple(sorted(kept.items(), key=lambda item: _order(item[0]), reverse=True)))


def _sum(a: Mapping[Monomial, int], b: Mapping[Monomial, int]) -> dict[Monomial, int]:
    result = dict(a)
    for monomial, coefficient in b.items():
        result[monomial] = result.get(monomial, 0) + coefficient
    return {monomial: c for monomial, c in result.items() if c}


def _product(a: Mapping[Monomial, int], b: Mapping[Monomial, int]) -> dict[Monomial, int]:
    result: dict[Monomial, int] = {}
    for m, c in a.items():
        for n, d in b.items():
            key = tuple(sorted(m + n))
            result[key] = result.get(key, 0) + c * d
    return {monomial: c for monomial, c in result.items() if c}


def _order(monomial: Monomial) -> tuple[int, Monomial]:
    return (len(monomial), monomial)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for factor in divisor:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)
