"""The prints of a kernel run and agree with torch: fast, and checking in both orders."""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import COPIES, EXAMPLES, GEMM, NEIGHBOURS, NORM, SOFTMAX, Example

from suture.codegen.calling import CompiledKernel
from suture.codegen.checking import print_checking
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.runner import build_files
from suture.codegen.toolchain import CHECKED, build, find_compiler
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Kernel
from suture.ir.kernel_text import parse_kernel

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def fast(kernel: Kernel) -> CompiledKernel:
    return CompiledKernel(kernel, getattr(build_files(print_cpp(kernel)), kernel.name))


def check(kernel: Kernel, tensors: list[torch.Tensor], *, backwards: bool, flags: tuple[str, ...] = CHECKED) -> str:
    """Run the checking print; the reason why it stopped, if it did."""
    library = build(print_checking(kernel), flags=flags)
    library.k_message.restype = ctypes.c_char_p
    sizes = CompiledKernel(kernel, getattr(build_files(print_cpp(kernel)), kernel.name)).bind(*tensors)
    function = getattr(library, kernel.name)
    function.argtypes = [ctypes.c_int, *[ctypes.c_int64] * len(kernel.sizes), *[ctypes.c_void_p] * len(tensors)]
    stopped = function(
        int(backwards), *(sizes[each.name] for each in kernel.sizes), *(each.data_ptr() for each in tensors)
    )
    return library.k_message().decode() if stopped else ""


@needs_compiler
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 70), m=st.integers(0, 140), k=st.integers(0, 50), seed=st.integers(0, 9))
def test_prints_compute_what_torch_does(example: Example, n: int, m: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = parse_kernel(example.text)
    tensors = example.make(n, m, k)
    expected = example.expected(*[tensor.clone() for tensor in tensors])
    start = tensors[-1].clone()
    fast(kernel)(*tensors)
    torch.testing.assert_close(tensors[-1], expected, rtol=1e-5, atol=2e-5)
    for backwards in (False, True):
        again = [*tensors[:-1], start.clone()]
        assert check(kernel, again, backwards=backwards) == ""
        torch.testing.assert_close(again[-1], expected, rtol=1e-5, atol=2e-5)


@needs_compiler
def test_a_missing_end_of_region_shows_in_the_checking_print_alone() -> None:
    joined = NEIGHBOURS.text.replace("  each t < 64:\n    y[row", "    y[row")
    kernel = parse_kernel(joined)
    tensors = NEIGHBOURS.make(5, 0, 0)
    expected = NEIGHBOURS.expected(*tensors)
    fast(kernel)(*tensors)
    assert not check(kernel, tensors, backwards=False)
    wrong = (tensors[1] != expected).float().mean()
    assert wrong > 0.9  # all lanes but the last read their neighbour before it wrote


@needs_compiler
def test_an_index_outside_is_named() -> None:
    kernel = parse_kernel(SOFTMAX.text.replace("y[row, j * 64 + t]", "y[row, j * 64 + t + 1]"))
    assert check(kernel, SOFTMAX.make(2, 10, 0), backwards=False) == "index 10 of y, which has 10"


@needs_compiler
@pytest.mark.parametrize("example", [COPIES, SOFTMAX, NORM], ids=lambda example: example.name)
def test_results_are_the_same_bit_for_bit_every_time(example: Example) -> None:
    kernel = fast(parse_kernel(example.text))
    torch.manual_seed(0)
    tensors = example.make(40, 70, 500)
    results = []
    for _ in range(3):
        again = [*tensors[:-1], tensors[-1].clone()]
        kernel(*again)
        results.append(again[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize(
    ("function", "reference", "low", "high"),
    [
        ("exp", torch.exp, -110.0, 95.0),
        ("exp_nonpositive", torch.exp, -110.0, 0.0),
        ("log", torch.log, 0.0, 1e6),
        ("log", torch.log, 0.0, 1e-37),
        ("tanh", torch.tanh, -12.0, 12.0),
        ("erf", torch.special.erf, -6.0, 6.0),
        ("rsqrt", torch.rsqrt, 1e-6, 1e6),
        ("sin", torch.sin, -20.0, 20.0),
        ("floor", torch.floor, -9.0, 9.0),
        ("round", torch.round, -9.0, 9.0),
        ("abs", torch.abs, -9.0, 9.0),
    ],
)
def test_the_prelude_is_right_to_a_few_units_in_the_last_place(
    function: str, reference: object, low: float, high: float
) -> None:
    text = f"kernel each_{function}(n: size, x: f32[n], y: f32[n])\n  grid i < n\n  each t < 1:\n    y[i] = {function}(x[i])\n"
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, 1e-30, 3e38])
    if function == "exp_nonpositive":
        special = special[~(special > 0)]
    special = torch.cat(
        [special, torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32)]
    )  # no numbers, with marks
    x = torch.cat([torch.linspace(low, high, 20001), special])
    y = torch.empty_like(x)
    fast(parse_kernel(text))(x, y)
    assert callable(reference)
    expected = reference(x.double())
    close = expected.float()
    assert torch.equal(close.isnan(), y.isnan())
    ends = close.isinf() | (close.abs() < 1.2e-38)
    assert torch.equal(y[close.isinf()], close[close.isinf()])
    inside = ~ends & ~close.isnan()
    relative = ((y.double() - expected) / expected)[inside].abs().max()
    absolute = (y.double() - expected)[~close.isinf() & ~close.isnan()].abs().max()
    assert relative < 4e-7 or absolute < 2e-7, (float(relative), float(absolute))


@needs_compiler
def test_tensors_that_do_not_fit_are_refused_before_anything_runs() -> None:
    gemm = fast(parse_kernel(GEMM.text))
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.zeros(3, 5)
    for wrong, what in (
        ((a, b), "2 tensors"),
        ((a, b, c.double()), "c is f64"),
        ((a, b.t().contiguous().t(), c), "not contiguous"),
        ((a, torch.randn(3, 5), c), "b has 3 where k is 4"),
        ((a, b, c[0]), "c is f32"),
    ):
        with pytest.raises(SutureError, match=what) as caught:
            gemm(*wrong)
        assert caught.value.code is Code.INPUT
    assert not c.any()


@needs_compiler
def test_a_compiler_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    with pytest.raises(SutureError, match=r"refuses the generated code: .*error") as caught:
        build("this is no C++")
    assert caught.value.code is Code.COMPILER
    assert Path(caught.value.where).read_text(encoding="utf-8") == "this is no C++"


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SutureError, match="install g") as caught:
        find_compiler()
    assert caught.value.code is Code.COMPILER


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("SUTURE_CACHE", str(blocked))
    with pytest.raises(SutureError, match="set SUTURE_CACHE") as caught:
        build("int main() {}")
    assert caught.value.code is Code.WRITE
