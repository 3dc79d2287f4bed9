"""Kernels print, and the print parses back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import EXAMPLES, SOFTMAX, Example

from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Apply, Expression, Literal, Name, apply, cast
from suture.ir.kernel_text import _Parser, parse_kernel, print_expression, print_kernel


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_text_and_kernel_say_the_same(example: Example) -> None:
    kernel = parse_kernel(example.text)
    assert print_kernel(kernel) == example.text
    assert parse_kernel(str(kernel)) == kernel


_F32, _I64 = torch.float32, torch.int64
_SIZES = [Name("a"), Name("b")]
_NUMBERS = [Name("x", _F32), Name("y", _F32)]


def _expressions(dtype: torch.dtype) -> st.SearchStrategy[Expression]:
    names = st.sampled_from(_SIZES if dtype == _I64 else _NUMBERS)
    number = st.integers(-9, 9) if dtype == _I64 else st.floats(width=32)
    leaves: st.SearchStrategy[Expression] = st.one_of(names, number.map(lambda value: Literal(value, dtype)))
    infix = ["+", "-", "*", "//", "%"] if dtype == _I64 else ["+", "-", "*", "/"]

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        pairs = st.tuples(st.sampled_from([*infix, "min", "max"]), inner, inner)
        condition = st.tuples(st.sampled_from(["<", "<=", "==", "!="]), inner, inner)
        return st.one_of(
            pairs.map(lambda item: apply(*item)),
            inner.map(lambda value: apply("neg", value)),
            st.tuples(condition.map(lambda item: apply(*item)), inner, inner).map(lambda item: apply("select", *item)),
        )

    return st.recursive(leaves, grow, max_leaves=12)


@settings(max_examples=300)
@given(st.one_of(_expressions(_I64), _expressions(_F32)))
def test_any_expression_parses_back(expression: Expression) -> None:
    parser = _Parser([(1, "")])
    parser.names = {name.name: name for name in (*_SIZES, *_NUMBERS)}
    again = parser.expression(print_expression(expression))
    assert repr(again) == repr(expression)  # NaN equals itself in print only


def test_truth_values_nest() -> None:
    a, b = Name("a"), Name("b")
    nested = apply("and", apply("or", a < b, b < a), apply("and", a <= b, apply("not", b < 3)))
    assert print_expression(nested) == "(a < b or b < a) and (a <= b and invert(b < 3))"
    assert print_expression(cast(Name("x", torch.bfloat16), torch.float32)) == "cast(f32, x)"
    assert isinstance(cast(a, torch.int32), Apply)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("kernel softmax_rows(", "kernal softmax_rows(", "was expected"),
        ("x: f32[n, m]", "x: f33[n, m]", "'f33' is no element type"),
        ("part = f32(-inf)", "part = f32(minus)", "no number"),
        ("part = f32(-inf)", "part == f32(-inf)", "is no statement"),
        ("part = f32(-inf)", "parts = f32(-inf)", "there is no buffer 'parts'"),
        ("x[row, j * 64 + t]\n  top", "x[row, j ** 64 + t]\n  top", "is no expression"),
        ("x[row, j * 64 + t]\n  top", "x[row, q * 64 + t]\n  top", "there is no 'q' here"),
        ("each t < 64:", "every t < 64:", "starts no statement with a body"),
        ("    part = f32(-inf)", "       part = f32(-inf)", "too far in or out"),
    ],
)
def test_text_that_does_not_parse_says_where(old: str, new: str, what: str) -> None:
    with pytest.raises(SutureError, match=what) as caught:
        parse_kernel(SOFTMAX.text.replace(old, new, 1))
    assert caught.value.code is Code.TEXT
    assert "line " in caught.value.where
