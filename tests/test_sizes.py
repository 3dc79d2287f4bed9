"""Sizes against Python's integers: whatever is built from sizes evaluates to what the same formula gives on numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from suture.ir.errors import Code, SutureError
from suture.ir.sizes import (
    Dim,
    Size,
    evaluate_size,
    exact_quotient,
    floor_divide,
    maximum,
    minimum,
    modulo,
    parse_size,
    product,
    substitute,
    symbol,
    symbols_of,
)

NAMES = ("batch", "h", "w")
b, h, w = map(symbol, NAMES)
BINDINGS = st.fixed_dictionaries({name: st.integers(0, 40) for name in NAMES})


@dataclass(frozen=True)
class Formula:
    """A size, and the same formula over numbers."""

    size: Dim
    number: Callable[[dict[str, int]], int]

    def __repr__(self) -> str:
        return str(self.size)


def _both(operation: Callable[[Dim, Dim], Dim]) -> Callable[[tuple[Formula, Formula]], Formula]:
    def join(pair: tuple[Formula, Formula]) -> Formula:
        one, other = pair
        return Formula(
            operation(one.size, other.size), lambda it: evaluate_size(operation(one.number(it), other.number(it)), {})
        )

    return join


LEAVES = st.one_of(
    st.integers(-5, 12).map(lambda n: Formula(n, lambda it: n)),
    st.sampled_from(NAMES).map(lambda name: Formula(symbol(name), lambda it: it[name])),
)
RING: tuple[Callable[[Dim, Dim], Dim], ...] = (lambda x, z: x + z, lambda x, z: x - z, lambda x, z: x * z)


def formulas(*operations: Callable[[Dim, Dim], Dim], size: int = 8) -> st.SearchStrategy[Formula]:
    return st.recursive(
        LEAVES, lambda inner: st.one_of([st.tuples(inner, inner).map(_both(op)) for op in operations]), max_leaves=size
    )


POLYNOMIALS = formulas(*RING)


def divided(x: Dim, z: Dim) -> Dim:
    """Floor division by a positive number, by number or size."""
    return floor_divide(x, z * z + 1)


def rest(x: Dim, z: Dim) -> Dim:
    return modulo(x, z * z + 1)


ANY = formulas(*RING, divided, rest, maximum, minimum, size=5)


@given(POLYNOMIALS, BINDINGS)
def test_polynomials_evaluate_as_integers_do(formula: Formula, numbers: dict[str, int]) -> None:
    assert evaluate_size(formula.size, numbers) == formula.number(numbers)


@given(ANY, BINDINGS)
def test_division_remainder_and_extremes_evaluate_as_integers_do(formula: Formula, numbers: dict[str, int]) -> None:
    assert evaluate_size(formula.size, numbers) == formula.number(numbers)


@given(ANY)
def test_print_parses_back(formula: Formula) -> None:
    assert parse_size(str(formula.size)) == formula.size


@given(POLYNOMIALS, POLYNOMIALS, POLYNOMIALS)
def test_equal_polynomials_are_equal_however_they_were_built(x: Formula, y: Formula, z: Formula) -> None:
    a, c, d = x.size, y.size, z.size
    assert (a + c) * d == d * a + c * d
    assert a - c == -1 * (c - a)
    assert (a + c) - c == a
    assert hash((a + c) * d) == hash(a * d + d * c)


@given(POLYNOMIALS, POLYNOMIALS)
def test_exact_quotient_undoes_a_product(x: Formula, z: Formula) -> None:
    assume(z.size != 0)
    assert exact_quotient(x.size * z.size, z.size) == x.size


@given(POLYNOMIALS, POLYNOMIALS, BINDINGS)
def test_exact_quotient_is_a_factor_or_none(x: Formula, z: Formula, numbers: dict[str, int]) -> None:
    quotient = exact_quotient(x.size, z.size)
    if quotient is not None:
        assert quotient * z.size == x.size
        assert evaluate_size(quotient, numbers) * z.number(numbers) == x.number(numbers)


@given(POLYNOMIALS, st.integers(1, 9), BINDINGS)
def test_floor_and_remainder_belong_together(x: Formula, n: int, numbers: dict[str, int]) -> None:
    floor, over = floor_divide(x.size, n), modulo(x.size, n)
    assert evaluate_size(floor * n + over, numbers) == x.number(numbers)


@given(ANY, POLYNOMIALS, BINDINGS)
def test_substitution_is_evaluation_with_the_substituted_number(
    x: Formula, z: Formula, numbers: dict[str, int]
) -> None:
    replaced = substitute(x.size, {"h": z.size})
    assert evaluate_size(replaced, numbers) == x.number({**numbers, "h": z.number(numbers)})


@given(ANY)
def test_symbols_are_those_that_print(formula: Formula) -> None:
    words = "".join(c if c.isidentifier() else " " for c in str(formula.size)).split()
    assert set(symbols_of(formula.size)) == set(words) & set(NAMES)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (b * 12, "12*batch"),
        (b * h + w - 1, "batch*h + w - 1"),
        (-b + 3, "-batch + 3"),
        (b - b, "0"),
        ((b + 1) * 2, "2*batch + 2"),
        (h // 2, "(h // 2)"),
        ((h * 4 + 2) // 2, "2*h + 1"),
        ((h + 1) % 2, "((h + 1) % 2)"),
        ((h * 6) % 3, "0"),
        (maximum(h, w), "max(h, w)"),
        (maximum(h + 1, h), "h + 1"),
        (minimum(h + 1, h), "h"),
        (b * (h // 2), "(h // 2)*batch"),
        (product([b, 2, h]), "2*batch*h"),
        (product([]), "1"),
        (3 - b, "-batch + 3"),
        (-b, "-batch"),
        (7 // (b + 1), "(7 // (batch + 1))"),
        (7 % b, "(7 % batch)"),
    ],
)
def test_spelling(size: Dim, text: str) -> None:
    assert str(size) == text
    assert parse_size(text) == size


def test_a_size_is_no_plain_number() -> None:
    assert isinstance(b * 2, Size)
    assert b * 0 == 0
    assert (b + 2) - b == 2
    assert repr(b * 2) == "Size('2*batch')"


@pytest.mark.parametrize(
    "text", ["", "1.5", "a +", "a b", "f(x)", "max(a)", "a / b", "[a]", "a.b", "'a'", "True", "a ** 2", "a if b else c"]
)
def test_what_is_no_size_does_not_parse(text: str) -> None:
    with pytest.raises(SutureError) as caught:
        parse_size(text)
    assert caught.value.code is Code.SIZE


def test_a_symbol_without_a_number_is_named() -> None:
    with pytest.raises(SutureError, match="h is not known") as caught:
        evaluate_size(b * h, {"batch": 2})
    assert caught.value.code is Code.SIZE


@pytest.mark.parametrize("size", [h // w, h % w])
def test_division_by_a_size_that_is_zero_is_a_users_error(size: Dim) -> None:
    with pytest.raises(SutureError) as caught:
        evaluate_size(size, {"h": 3, "w": 0})
    assert caught.value.code is Code.SIZE


@pytest.mark.parametrize("name", ["", "two words", "1st", "a-b"])
def test_names_of_sizes_are_identifiers(name: str) -> None:
    with pytest.raises(SutureError) as caught:
        symbol(name)
    assert caught.value.code is Code.SIZE


@pytest.mark.parametrize("name", ["max", "min", "class", "None"])
def test_names_that_could_not_be_read_back_are_refused(name: str) -> None:
    with pytest.raises(SutureError) as caught:
        symbol(name)
    assert caught.value.code is Code.SIZE
