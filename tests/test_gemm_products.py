"""The collective product of two matrices: what it means, what is refused, and its register tiles on a CPU."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernel_prints import check, fast, needs_compiler

from suture.codegen.cpp.micro import direct_left, direct_right
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.cuda.printer import print_cuda
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Kernel, MultiplyAccumulate, Name, walk
from suture.ir.kernel_text import parse_kernel, print_kernel
from suture.ir.kernel_verify import verify_kernel

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")


def kernel_of(
    left: str = "a[row * 12 + i, k]",
    right: str = "b[k, column * 32 + j]",
    *,
    arguments: str = "m: size, n: size, d: size, a: f32[m, d], b: f32[d, n], y: f32[m, n]",
    high: int = 12,
    wide: int = 32,
    depth: str = "d",
    sign: str = "=",
    dtype: str = "f32",
) -> Kernel:
    """A product over blocks of `high` x `wide`."""
    lanes = 16 if wide < 32 else 32
    each = wide // lanes
    clear = ""
    if sign == "+=":
        clear = f"  each t < {lanes}:\n    for r in 0 .. {high}:\n      for c in 0 .. {each}:\n        sum[r, c] = {dtype}(1.0)\n"
    text = (
        f"kernel product({arguments})\n  grid row < (m + {high - 1}) // {high}\n  grid column < (n + {wide - 1}) // {wide}\n"
        f"  thread sum: {dtype}[{high}, {each}]\n{clear}"
        f"  sum {sign} {left} @ {right} for i < min({high}, m - row * {high}), j < min({wide}, n - column * {wide}), k < {depth} "
        f"over {lanes} across {lanes}\n"
        f"  each t < {lanes}:\n    for r in 0 .. min({high}, m - row * {high}):\n      for c in 0 .. {each}:\n"
        f"        let at = column * {wide} + c * {lanes} + t\n        if at < n:\n          y[row * {high} + r, at] = sum[r, c]\n"
    )
    kernel = parse_kernel(text)
    verify_kernel(kernel)
    assert parse_kernel(print_kernel(kernel)) == kernel
    return kernel


def product_of(kernel: Kernel) -> MultiplyAccumulate:
    return next(each for each in walk(kernel.body) if isinstance(each, MultiplyAccumulate))


def agree(kernel: Kernel, tensors: list[torch.Tensor], expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    """The fast print and the checking one, in both orders, compute what torch does."""
    result = tensors[-1]
    torch.testing.assert_close(_after(kernel, fast(kernel), tensors), expected, rtol=tolerance, atol=tolerance)
    for backwards in (False, True):
        result.fill_(float("nan"))
        assert check(kernel, tensors, backwards=backwards) == ""
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def _after(kernel: Kernel, function: object, tensors: list[torch.Tensor]) -> torch.Tensor:
    tensors[-1].fill_(float("nan"))
    assert callable(function)
    function(*tensors)
    return tensors[-1]


_SIZES = {"m": st.integers(0, 40), "n": st.integers(0, 70), "d": st.integers(0, 300)}


@needs_compiler
@pytest.mark.parametrize(("high", "wide"), [(12, 32), (1, 32), (5, 16), (30, 32), (7, 64), (8, 96)])
@settings(max_examples=12, deadline=None)
@given(**_SIZES)
@example(m=13, n=33, d=129)
def test_tiles_of_any_height_and_width(high: int, wide: int, m: int, n: int, d: int) -> None:
    a, b, y = torch.randn(m, d), torch.randn(d, n), torch.empty(m, n)
    kernel = kernel_of(f"a[row * {high} + i, k]", f"b[k, column * {wide} + j]", high=high, wide=wide)
    assert "k_product<" in print_cpp(kernel)
    agree(kernel, [a, b, y], a @ b, 2e-4)


@needs_compiler
@settings(max_examples=10, deadline=None)
@given(**_SIZES)
def test_a_product_is_added_to_what_is_there(m: int, n: int, d: int) -> None:
    a, b, y = torch.randn(m, d), torch.randn(d, n), torch.empty(m, n)
    agree(kernel_of(sign="+="), [a, b, y], 1 + a @ b, 2e-4)


@needs_compiler
@settings(max_examples=8, deadline=None)
@given(**_SIZES)
def test_double_precision(m: int, n: int, d: int) -> None:
    a, b, y = (torch.randn(*shape, dtype=torch.float64) for shape in ((m, d), (d, n), (m, n)))
    arguments = "m: size, n: size, d: size, a: f64[m, d], b: f64[d, n], y: f64[m, n]"
    agree(kernel_of(arguments=arguments, dtype="f64"), [a, b, y], a @ b, 1e-11)


_OPERANDS = {
    "elements of a row far apart": ("a[k, row * 12 + i]", "b[k, column * 32 + j]", "a: f32[d, m], b: f32[d, n]", lambda a, b: a.t() @ b),
    "columns far apart": ("a[row * 12 + i, k]", "b[column * 32 + j, k]", "a: f32[m, d], b: f32[n, d]", lambda a, b: a @ b.t()),
    "both turned": ("a[k, row * 12 + i]", "b[column * 32 + j, k]", "a: f32[d, m], b: f32[n, d]", lambda a, b: a.t() @ b.t()),
    "rows backwards": ("a[m - 1 - (row * 12 + i), k]", "b[k, column * 32 + j]", "a: f32[m, d], b: f32[d, n]", lambda a, b: a.flip(0) @ b),
    "a function of the elements": (
        "exp(a[row * 12 + i, k] * f32(0.1))", "(b[k, column * 32 + j] + f32(1.0))", "a: f32[m, d], b: f32[d, n]",
        lambda a, b: (a * 0.1).exp() @ (b + 1),
    ),
    "zero where a condition on the row fails": (
        "(a[row * 12 + i, k] if 2 <= row * 12 + i else f32(0.0))", "b[k, column * 32 + j]", "a: f32[m, d], b: f32[d, n]",
        lambda a, b: torch.cat([0 * a[:2], a[2:]]) @ b,
    ),
    "zero where a condition on the element fails": (
        "(a[row * 12 + i, k] if k <= row * 12 + i else f32(0.0))", "b[k, column * 32 + j]", "a: f32[m, d], b: f32[d, n]",
        lambda a, b: a.tril() @ b,
    ),
    "every row's neighbour": (
        "(a[row * 12 + i - 1, k] if 1 <= row * 12 + i else f32(0.0))", "b[k, column * 32 + j]", "a: f32[m, d], b: f32[d, n]",
        lambda a, b: a.roll(1, 0).index_fill(0, torch.arange(min(1, len(a))), 0.0) @ b,
    ),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", _OPERANDS)
@settings(max_examples=8, deadline=None)
@given(**_SIZES)
@example(m=25, n=40, d=300)
def test_matrices_are_functions_of_their_indices(name: str, m: int, n: int, d: int) -> None:
    left, right, arguments, expected = _OPERANDS[name]
    kernel = kernel_of(left, right, arguments=f"m: size, n: size, d: size, {arguments}, y: f32[m, n]")
    sizes = {"m": m, "n": n, "d": d}
    shapes = [[sizes[x] for x in part.split("]")[0].split(", ")] for part in arguments.split("f32[")[1:]]
    a, b = (torch.randn(*shape) for shape in shapes)
    agree(kernel, [a, b, torch.empty(m, n)], expected(a, b), 1e-3)


@needs_compiler
def test_a_condition_on_the_row_reads_zeros_however_deep_the_sum() -> None:
    left = "(a[row * 12 + i, k] if 2 <= row * 12 + i else f32(0.0))"
    kernel = kernel_of(left)
    assert "k_zeros" in print_cpp(kernel).split('extern "C"')[1]
    a, b = torch.randn(14, 2500), torch.randn(2500, 32)
    agree(kernel, [a, b, torch.empty(14, 32)], torch.cat([0 * a[:2], a[2:]]) @ b, 1e-3)


@needs_compiler
@settings(max_examples=8, deadline=None)
@given(**_SIZES, seed=st.integers(0, 9))
def test_rows_that_are_looked_up(m: int, n: int, d: int, seed: int) -> None:
    torch.manual_seed(seed)
    arguments = "m: size, n: size, d: size, s: size, a: f32[s, d], which: i64[m] below s, b: f32[d, n], y: f32[m, n]"
    kernel = kernel_of("a[which[row * 12 + i], k]", arguments=arguments)
    assert direct_left(product_of(kernel)) is not None
    a, which, b = torch.randn(9, d), torch.randint(0, 9, (m,)), torch.randn(d, n)
    agree(kernel, [a, which, b, torch.empty(m, n)], a[which] @ b, 2e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("casts", [True, False])
@settings(max_examples=8, deadline=None)
@given(**_SIZES)
def test_right_matrices_are_converted_as_they_come(dtype: torch.dtype, casts: bool, m: int, n: int, d: int) -> None:
    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "i8"}[dtype]
    arguments = f"m: size, n: size, d: size, a: f32[m, d], b: {name}[d, n], y: f32[m, n]"
    right = "b[k, column * 32 + j]"
    kernel = kernel_of(right=f"cast(f32, {right})" if casts else right, arguments=arguments)
    assert direct_right(product_of(kernel)) is not None
    a = torch.randn(m, d)
    b = torch.randint(-128, 128, (d, n), dtype=torch.int8) if dtype == torch.int8 else torch.randn(d, n).to(dtype)
    agree(kernel, [a, b, torch.empty(m, n)], a @ b.float(), 1e-3 if dtype != torch.int8 else 2e-2)


@needs_compiler
def test_every_half_is_converted_to_what_it_is() -> None:
    half = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16).reshape(-1, 32)
    arguments = "m: size, n: size, d: size, a: f32[m, d], b: f16[d, n], y: f32[m, n]"
    kernel = fast(kernel_of(arguments=arguments))
    for row in (
        half[0],
        half[31],
        half[992],
        half[1000],
        half[1024],
        half[-1],
    ):  # subnormal, infinite, not a number, of both signs
        y = torch.empty(1, 32)
        kernel(torch.ones(1, 1), row[None].contiguous(), y)
        torch.testing.assert_close(y[0], row.float(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_a_hint_where_sums_go_changes_nothing_else() -> None:
    hints = "across 32 towards y[row * 12 + i, column * 32 + j] towards a[(row + 1) * 12 + i, 0]\n"
    text = print_kernel(kernel_of()).replace("across 32\n", hints)
    kernel = parse_kernel(text)
    verify_kernel(kernel)
    assert print_kernel(kernel) == text
    assert print_cpp(kernel).split('extern "C"')[1].count("__builtin_prefetch") == 2 + 1
    a, b = torch.randn(37, 20), torch.randn(20, 50)
    agree(kernel, [a, b, torch.empty(37, 50)], a @ b)
    product = replace(product_of(kernel), towards=(kernel.arguments[2][Name("other"), Name("j")],))
    with pytest.raises(SutureError, match="is not known"):
        verify_kernel(replace(kernel, body=(product, *kernel.body[1:])))


@needs_compiler
def test_sums_are_the_same_bit_for_bit_every_time() -> None:
    kernel = fast(kernel_of())
    a, b = torch.randn(37, 200), torch.randn(200, 50)
    first, second = torch.empty(37, 50), torch.empty(37, 50)
    kernel(a, b, first)
    kernel(a, b, second)
    assert torch.equal(first, second)


def test_what_is_read_where_it_lies() -> None:
    assert direct_left(product_of(kernel_of())) is not None
    assert direct_right(product_of(kernel_of())) is not None
    turned = kernel_of(
        arguments="m: size, n: size, d: size, a: f32[m, d], b: f32[n, d], y: f32[m, n]", right="b[column * 32 + j, k]"
    )
    assert direct_right(product_of(turned)) is None
    assert direct_left(product_of(kernel_of("exp(a[row * 12 + i, k])"))) is None


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("a[row * 12 + i, k]", "a[row * 12 + i, k + 1]", "may be beyond d"),
        ("b[k, column * 32 + j]", "b[k, column * 32 + j + 1]", "may be beyond n"),
        ("i < min(12, m - row * 12)", "i < 12", "may be beyond m"),
        ("a[row * 12 + i, k]", "a[row * 12 + i, j]", "depends on j; the left matrix"),
        ("b[k, column * 32 + j]", "b[i, column * 32 + j]", "depends on i; the left matrix"),
        ("k < d over", "k < i over", "there is no .i. here"),
        ("over 32 across 32", "over 32 across 12", "12 lanes side by side do not divide 32"),
        ("sum = a", "sum += a", "reads sum before anything wrote it"),
        ("for i < min(12, m - row * 12), j <", "for i < min(12, m - row * 12), column <", "there is no .j. here"),
        ("a[row * 12 + i, k]", "y[row * 12 + i, k]", "may be"),
        ("a[row * 12 + i, k]", "sum[i, k]", "which every lane has its own of"),
    ],
)
def test_products_that_are_wrong_are_refused(old: str, new: str, what: str) -> None:
    text = print_kernel(kernel_of())
    assert old in text
    with pytest.raises(SutureError, match=what) as caught:
        verify_kernel(parse_kernel(text.replace(old, new, 1)))
    assert caught.value.code in (Code.KERNEL, Code.TEXT)


@pytest.mark.parametrize(("name", "taken"), [("row", "row"), ("column", "k"), ("inner", "sum")])
def test_variables_of_a_product_hide_nothing(name: str, taken: str) -> None:
    kernel = kernel_of()
    body = tuple(
        replace(each, **{name: Name(taken)}) if isinstance(each, MultiplyAccumulate) else each for each in kernel.body
    )
    with pytest.raises(SutureError, match="hides another"):
        verify_kernel(replace(kernel, body=body))


def test_a_product_reads_nothing_that_another_block_may_be_writing() -> None:
    text = print_kernel(
        kernel_of(arguments="m: size, n: size, d: size, a: f32[m, n], b: f32[n, n], y: f32[m, n]", depth="n")
    )
    with pytest.raises(SutureError, match="which another lane may be writing"):
        verify_kernel(parse_kernel(text.replace("sum = a[", "sum = y[")))


def test_products_need_three_ends() -> None:
    text = print_kernel(kernel_of())
    with pytest.raises(SutureError, match="rows, columns and the length of the sums were expected") as caught:
        parse_kernel(text.replace(", k < d over", " over"))
    assert caught.value.code is Code.TEXT


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_cuda_compiles(architecture: str, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(print_cuda(kernel_of()), encoding="utf-8")
    done = subprocess.run(
        ["nvcc", f"-arch={architecture}", "-cubin", str(source), "-o", f"{source}bin"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
