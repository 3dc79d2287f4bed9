"""Index notation: what a line of it parses to, and what it says of given shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import suture.ir.operators  # noqa: F401
from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Join, Product, Role, instantiate, letters_of, parse_signature
from suture.ir.operator import OPERATORS
from suture.ir.sizes import symbol


def instance(
    notation: str, *shapes: Any, stars: dict[str, int] | None = None, broadcast: str = "", **sizes: Any
) -> Instance:
    return instantiate(
        parse_signature(notation), shapes, Binding(dict(stars or {}), sizes), broadcast=frozenset(broadcast)
    )


def fault(notation: str, *shapes: Any, **options: Any) -> SutureError:
    with pytest.raises(SutureError) as caught:
        instance(notation, *shapes, **options)
    return caught.value


# parsing


def test_every_operators_notation_prints_and_parses_back() -> None:
    for operator in OPERATORS.values():
        assert parse_signature(str(operator.signature)) == operator.signature, operator.name


def test_a_line_parses_to_operands_results_and_lookups() -> None:
    signature = parse_signature("w[v, *d], i[*b]? -> y[*b, ~*d] (w at i)")
    assert [spec.name for spec in signature.operands] == ["w", "i"]
    assert [spec.optional for spec in signature.operands] == [False, True]
    assert signature.lookups == (("w", "i"),)
    assert [(d.term, d.mark, d.star) for d in signature.results[0].dims] == [("b", "", True), ("d", "~", True)]


def test_products_bind_tighter_than_concatenations() -> None:
    (operand,) = parse_signature("x[a*b|c, 1, !h'] -> y[]").operands
    assert operand.dims[0].term == Join((Product(("a", "b")), "c"))
    assert operand.dims[1].term == 1
    assert (operand.dims[2].term, operand.dims[2].mark) == ("h'", "!")


@pytest.mark.parametrize(
    "text",
    [
        "x[a]",
        "x -> y[a]",
        "x[a, 2] -> y[a]",
        "x[a-b] -> y[a]",
        "x[a -> y[a]",
        "x[a] y[b] -> z[a]",
        "x[a] -> y[a] (x of y)",
        "x[a*] -> y[a]",
    ],
)
def test_what_is_no_notation_does_not_parse(text: str) -> None:
    with pytest.raises(SutureError) as caught:
        parse_signature(text)
    assert caught.value.code is Code.NOTATION
    assert caught.value.remedy


# shapes


def test_stars_take_what_is_left() -> None:
    made = instance("x[*b, i], w[o, i] -> y[*b, o]", (2, 5, 3), (4, 3))
    assert made.output_shapes() == ((2, 5, 4),)
    assert made.inputs == (("b0", "b1", "i"), ("o", "i"))


def test_a_star_may_be_empty() -> None:
    assert instance("x[*b, i], w[o, i] -> y[*b, o]", (3,), (4, 3)).output_shapes() == ((4,),)


def test_attributes_fix_stars_that_shapes_leave_open() -> None:
    made = instance("x[*a, d, *b] -> y[*a, *b]", (2, 3, 4, 5), stars={"a": 1, "b": 2})
    assert made.output_shapes() == ((2, 4, 5),)


def test_a_product_gives_the_letter_that_is_left() -> None:
    made = instance("x[n, g*i], k[g*o, i] -> y[n, g*o]", (2, 12), (8, 3), g=4)
    assert (made.sizes["i"], made.sizes["o"]) == (3, 2)
    assert made.output_shapes() == ((2, 8),)


def test_a_concatenation_gives_the_part_that_is_left() -> None:
    made = instance("x[p|q|r] -> y[q]", (10,), p=2, r=3)
    assert made.output_shapes() == ((5,),)


def test_an_absent_operand_binds_nothing() -> None:
    assert instance("x[i], c[i]? -> y[i]", (3,), None).inputs == (("i",), None)
    assert instance("x[i], c[i]? -> y[i]", (3,)).inputs == (("i",), None)


def test_symbolic_sizes_pass_through() -> None:
    batch, length = symbol("batch"), symbol("length")
    made = instance("x[*b, g*i], w[o, i] -> y[*b, g*o]", (batch, length, length * 6), (4, length), g=6)
    assert made.output_shapes() == ((batch, length, 24),)


@given(st.lists(st.integers(0, 4), max_size=4), st.data())
def test_broadcasting_is_torchs(shape: list[int], data: st.DataObject) -> None:
    """Any two shapes: the same result as torch, or an error where torch has one."""
    keep = data.draw(st.integers(0, len(shape)))
    other = [data.draw(st.sampled_from((size, size, 1, 3))) for size in shape[keep:]]
    if data.draw(st.booleans()):
        shape = [data.draw(st.sampled_from((size, 1))) for size in shape]
    one, two = data.draw(st.permutations([tuple(shape), tuple(other)]))
    try:
        expected = tuple(torch.broadcast_shapes(one, two))
    except RuntimeError:
        assert fault("x[*d], z[*d] -> y[*d]", one, two, broadcast="d").code is Code.SHAPE
        return
    made = instance("x[*d], z[*d] -> y[*d]", one, two, broadcast="d")
    assert made.output_shapes() == (expected,)
    for dims, actual in zip(made.inputs, (one, two), strict=True):
        assert dims is not None
        assert tuple(made.size(term) for term in dims) == actual


@pytest.mark.parametrize(("one", "two"), [((0,), (1,)), ((1,), (0,)), ((2, 0), (1, 1)), ((1,), (3, 0))])
def test_an_empty_dimension_is_not_one_that_repeats(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    made = instance("x[*d], z[*d] -> y[*d]", one, two, broadcast="d")
    assert made.output_shapes() == (tuple(torch.broadcast_shapes(one, two)),)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_products_and_concatenations_solve_for_any_one_letter(factors: list[int], data: st.DataObject) -> None:
    letters = [f"f{k}" for k in range(len(factors))]
    left_out = data.draw(st.integers(0, len(factors) - 1))
    given_sizes = {letter: size for k, (letter, size) in enumerate(zip(letters, factors, strict=True)) if k != left_out}
    whole = 1
    for size in factors:
        whole *= size
    notation = f"x[{'*'.join(letters)}] -> y[{', '.join(letters)}]"
    assert instance(notation, (whole,), **given_sizes).output_shapes() == (tuple(factors),)
    notation = f"x[{'|'.join(letters)}] -> y[{', '.join(letters)}]"
    assert instance(notation, (sum(factors),), **given_sizes).output_shapes() == (tuple(factors),)


@given(st.integers(1, 60), st.integers(2, 9))
def test_a_product_that_does_not_divide_is_an_error(whole: int, factor: int) -> None:
    assume(whole % factor)
    error = fault("x[g*i] -> y[i]", (whole,), g=factor)
    assert error.code is Code.SHAPE
    assert f"g={factor}" in error.remedy


# roles


def test_letters_that_go_away_are_contracted_and_marks_say_more() -> None:
    made = instance("x[n, i, !h, ~s], w[v, i], t[n] -> y[n, h, s] (w at t)", (2, 3, 4, 5), (6, 3), (2,))
    assert made.roles == {
        "n": Role.FREE, "i": Role.CONTRACTED, "h": Role.ORDERED, "s": Role.MIXED, "v": Role.LOOKUP,
    }  # fmt: skip


def test_letters_of_a_term_come_in_order() -> None:
    assert list(letters_of(Join((Product(("a", "b")), 1, "c")))) == ["a", "b", "c"]


# errors


@pytest.mark.parametrize(
    ("notation", "shapes", "words"),
    [
        ("x[a], z[a] -> y[a]", ((2,), (3,)), "has 3 where a is 2"),
        ("x[a] -> y[a]", ((2, 3),), "1 dimensions would be right"),
        ("x[a] -> y[a]", ((2,), (3,)), "at most 1"),
        ("x[a], z[b] -> y[a]", ((2,),), "z is missing|operand z"),
        ("x[*b, i, j] -> y[*b]", ((2,),), "at least 2 dimensions"),
        ("x[a, 1] -> y[a]", ((2, 3),), "1 would be right"),
        ("x[a] -> y[a, b]", ((2,),), "letter b"),
        ("x[a], z[b], k[a|b|c] -> y[c]", ((2,), (3,), (4,)), "does not split"),
        ("x[a], z[b], k[a*b] -> y[a]", ((2,), (3,), (7,)), "has 7 where a\\*b is 6"),
    ],
)
def test_errors_name_the_operand_the_size_and_what_would_fit(notation: str, shapes: Any, words: str) -> None:
    with pytest.raises(SutureError, match=words) as caught:
        instance(notation, *shapes)
    assert caught.value.code is Code.SHAPE
