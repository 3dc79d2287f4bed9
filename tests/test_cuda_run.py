"""Printed CUDA runs: on a GPU with `--device cuda`, else thread by thread on the stand-in, in both orders of threads, and agrees with torch."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from cuda_kernels import DEEP, PRODUCTS, TENSOR_BF16
from cuda_stand_in import compile_stand_in, device, devices, state
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import COPIES, EXAMPLES, GEMM, NEIGHBOURS, NORM, SCATTER, SHORT_ROWS, SOFTMAX, Example

from suture.codegen.cuda.compile import Module
from suture.codegen.cuda.printer import STATIC_SHARED, launch_threads, print_cuda, shared_bytes
from suture.codegen.prelude import PRELUDE
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Kernel
from suture.ir.kernel_text import parse_kernel
from suture.ir.kernel_verify import verify_kernel

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def body(kernel: Kernel) -> str:
    """The printed function without what stands before it."""
    return print_cuda(kernel)[len(PRELUDE) :].split('extern "C"')[1]


def agree(example: Example, n: int, m: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = parse_kernel(example.text)
    tensors = example.make(n, m, k)
    expected = example.expected(*[tensor.clone() for tensor in tensors])
    for gpu in devices():
        given_ = [tensor.clone().to(gpu.place) for tensor in tensors]
        gpu.load([kernel])[kernel.name](*given_)
        torch.testing.assert_close(given_[-1].cpu(), expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("example", [each for each in EXAMPLES if each is not COPIES], ids=lambda example: example.name)
@settings(max_examples=10, deadline=None)
@given(n=st.integers(0, 40), m=st.integers(0, 140), k=st.integers(0, 50), seed=st.integers(0, 9))
def test_kernels_compute_what_torch_does(example: Example, n: int, m: int, k: int, seed: int) -> None:
    agree(example, n, m, k, seed)


@needs_compiler
@pytest.mark.parametrize("example", PRODUCTS, ids=lambda example: example.name)
@settings(max_examples=8, deadline=None)
@given(m=st.integers(0, 140), n=st.integers(0, 140), k=st.integers(0, 70), eight=st.booleans(), seed=st.integers(0, 9))
def test_products_of_tiles_at_sizes_that_fill_vectors_and_that_do_not(
    example: Example, m: int, n: int, k: int, eight: bool, seed: int
) -> None:
    agree(example, m, n // 8 * 8 if eight else n, k // 8 * 8 if eight else k, seed)


def test_short_floats_go_to_tensor_cores_and_others_do_not() -> None:
    for example in PRODUCTS:
        kernel = parse_kernel(example.text)
        verify_kernel(kernel)
        assert ("mma.sync" in print_cuda(kernel)) == (example not in (DEEP, PRODUCTS[2]))
        assert "mma.sync" not in print_cuda(kernel, tensor_cores=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sum[r, s] = f32(0.0)", "sum[r, s] = f32(1.0)"),  # something else than zero
        ("p < 32", "p < 24"),  # no whole number of instructions
        ("over 128 across 32", "over 128 across 64"),
        ("i < 64, j", "i < min(64, m), j"),  # rows that have no element
        ("left[i, p] @", "(left[i, p] if i < 9 else bf16(0.0)) @"),
        ("    left = copy", "    each u < 128:\n      sum[0, 0] += f32(1.0)\n    left = copy"),
    ],
)
def test_what_tensor_cores_cannot_do_stays_in_registers(before: str, after: str) -> None:
    assert before in TENSOR_BF16.text
    kernel = parse_kernel(TENSOR_BF16.text.replace(before, after))
    assert "mma.sync" not in print_cuda(kernel)


@needs_compiler
def test_an_older_gpu_multiplies_short_floats_in_registers() -> None:
    kernel = parse_kernel(TENSOR_BF16.text)
    torch.manual_seed(0)
    a, b, c = TENSOR_BF16.make(30, 24, 40)
    gpu = device(architecture=75)
    gpu.load([kernel])[kernel.name](a, b, c)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("example", [NEIGHBOURS, GEMM, TENSOR_BF16, SOFTMAX], ids=lambda example: example.name)
def test_without_its_barriers_a_kernel_is_wrong_in_one_order(example: Example) -> None:
    def without(source: str, architecture: int) -> Module:
        prelude, text = source[: len(PRELUDE)], source[len(PRELUDE) :]
        return compile_stand_in(prelude + text.replace("__syncthreads();", ""), architecture)

    torch.manual_seed(0)
    kernel = parse_kernel(example.text)
    tensors = example.make(70, 140, 40)
    expected = example.expected(*tensors)
    wrong = []
    for backwards in (False, True):
        received = [tensor.clone() for tensor in tensors]
        device(backwards=backwards, compile=without).load([kernel])[kernel.name](*received)
        wrong.append(not torch.allclose(received[-1], expected, rtol=1e-3, atol=1e-3))
    assert any(wrong)


@needs_compiler
def test_threads_that_wait_at_different_barriers_are_found() -> None:
    def uneven(source: str, architecture: int) -> Module:
        return compile_stand_in(
            source.replace("  __syncthreads();", "if (threadIdx.x < 8) __syncthreads();"), architecture
        )

    kernel = parse_kernel(NEIGHBOURS.text)
    fn = device(compile=uneven).load([kernel])[kernel.name]
    with pytest.raises(SutureError, match="unspecified launch failure"):
        fn(*NEIGHBOURS.make(2, 0, 0))


def test_barriers_stand_where_lanes_share_memory_and_nowhere_else() -> None:
    assert body(parse_kernel(NEIGHBOURS.text)).count("__syncthreads") == 1
    assert body(parse_kernel(SCATTER.text)).count("__syncthreads") == 0
    assert body(parse_kernel(SHORT_ROWS.text)).count("__syncthreads") == 0
    # two copies touch different tiles: one barrier before the product, one before the next turn's copies
    assert body(parse_kernel(GEMM.text)).count("__syncthreads") == 2
    assert launch_threads(parse_kernel(NORM.text)) == 64


_RELAY = """\
kernel relay(n: size, x: f32[n, 64], y: f32[n, 64])
  grid row < n
  shared a: f32[64]
  shared b: f32[64]
{middle}
  each t < 64:
    y[row, t] = b[63 - t]
"""
_FIRST = "  each t < 64:\n    a[t] = x[row, t]\n"


@needs_compiler
@pytest.mark.parametrize(
    ("middle", "barriers"),
    [
        (_FIRST + "  each t < 64:\n    b[t] = a[63 - t]", 2),
        (_FIRST + "  each t < 64:\n    b[t] = x[row, t]", 1),
        (_FIRST + "  for k in 0 .. 3:\n    each t < 64:\n      b[t] = a[63 - t]\n    each t < 64:\n      a[t] = b[63 - t]", 4),
        (_FIRST + "  if row < 2:\n    each t < 64:\n      b[t] = a[63 - t]\n  else:\n    each t < 64:\n      b[t] = a[t // 2]", 3),
        (_FIRST + "  for k in 0 .. row:\n    each t < 64:\n      a[t] = x[row, t] + f32(1.0)\n  each t < 64:\n    b[t] = a[63 - t]", 4),
    ],
    ids=["relay", "apart", "loop", "branch", "loop without turns"],
)  # fmt: skip
def test_barriers_stand_between_what_meets(middle: str, barriers: int) -> None:
    kernel = parse_kernel(_RELAY.format(middle=middle))
    verify_kernel(kernel)
    assert body(kernel).count("__syncthreads") <= barriers
    results = []
    for backwards in (False, True):
        x, y = torch.arange(256.0).reshape(4, 64), torch.zeros(4, 64)
        device(backwards=backwards).load([kernel])["relay"](x, y)
        assert y.isfinite().all()
        results.append(y)
    assert torch.equal(*results)


def test_much_shared_memory_is_given_at_the_launch() -> None:
    kernel = parse_kernel(DEEP.text)
    assert shared_bytes(kernel) == 65536 > STATIC_SHARED
    assert "extern __shared__" in print_cuda(kernel)
    assert "extern __shared__" not in print_cuda(parse_kernel(PRODUCTS[2].text))


@needs_compiler
def test_the_launch_asks_for_it() -> None:
    kernel = parse_kernel(DEEP.text)
    device().load([kernel])[kernel.name](*DEEP.make(4, 4, 4))
    assert (state().shared, state().threads, state().blocks) == (65536, 256, 1)


@needs_compiler
def test_results_are_the_same_bit_for_bit_every_time() -> None:
    torch.manual_seed(0)
    for example in (SOFTMAX, NORM, SHORT_ROWS):
        kernel = parse_kernel(example.text)
        tensors = example.make(9, 70, 0)
        results = []
        for gpu in [*devices(), *devices()]:
            received = [tensor.clone().to(gpu.place) for tensor in tensors]
            gpu.load([kernel])[kernel.name](*received)
            results.append(received[-1].cpu())
        assert all(torch.equal(results[0], each) for each in results)


def test_a_gpu_keeps_no_private_copies_and_adds_no_short_numbers_atomically() -> None:
    with pytest.raises(SutureError, match="keeps no private copies of y") as caught:
        print_cuda(parse_kernel(COPIES.text))
    assert caught.value.code is Code.KERNEL
    short = SCATTER.text.replace("x: f32", "x: i8").replace("y: f32", "y: i8")
    with pytest.raises(SutureError, match="no atomic operation for the elements of y") as caught:
        print_cuda(parse_kernel(short))
    assert caught.value.code is Code.KERNEL


@needs_compiler
@pytest.mark.parametrize("dtype", ["i64", "i32", "f64"])
@pytest.mark.parametrize("operation", ["+", "max", "min"])
def test_scatters_of_every_number_that_a_gpu_meets_in(dtype: str, operation: str) -> None:
    text = SCATTER.text.replace("x: f32", f"x: {dtype}").replace("y: f32", f"y: {dtype}").replace("+=", f"{operation}=")
    kernel = parse_kernel(text)
    torch.manual_seed(0)
    kind = {"i64": torch.int64, "i32": torch.int32, "f64": torch.float64}[dtype]
    x, target = torch.randint(-50, 50, (60, 5)).to(kind), torch.randint(0, 7, (60,))
    how = {"+": "sum", "max": "amax", "min": "amin"}[operation]
    expected = torch.zeros(7, 5, dtype=kind).scatter_reduce(0, target[:, None].expand(60, 5), x, how)
    for gpu in devices():
        y = torch.zeros(7, 5, dtype=kind, device=gpu.place)
        gpu.load([kernel])[kernel.name](x.to(gpu.place), target.to(gpu.place), y)
        assert torch.equal(y.cpu(), expected)


def test_small_indices_are_counted_in_32_bits_and_large_ones_in_64() -> None:
    text = body(parse_kernel(TENSOR_BF16.text))
    assert "const int t = threadIdx.x" in text
    assert re.search(r"const k_i64 y = ", text)
    large = parse_kernel(
        "kernel far(n: size, x: f32[n, 100000, 100000])\n  grid row < n\n  each t < 64:\n    for j in 0 .. 30000:\n"
        "      x[row, t * 1000 + j, t * 100 + 3] = f32(0.0)\n"
    )
    verify_kernel(large)
    printed = body(large)
    assert "(((row * 100000 + ((t * 1000) + j)) * 100000 + ((t * 100) + 3)))" in printed.replace("[", "(").replace(
        "]", ")"
    )
    wide = parse_kernel(
        "kernel wide(n: size, x: f32[n], y: f32[n])\n  grid row < n\n  each t < 64:\n    for j in 0 .. 900000:\n"
        "      if t * 900000 * 64 + j < n:\n        y[row] = x[t * 900000 * 64 + j]\n"
    )
    assert "((k_i64)(t * 900000) * 64)" in body(wide)


@pytest.mark.gpu
def test_the_stream_is_torchs() -> None:
    (gpu,) = devices()
    kernel = parse_kernel(NEIGHBOURS.text)
    fn = gpu.load([kernel])["neighbours"]
    x, y = torch.randn(1000, 64, device=gpu.place), torch.zeros(1000, 64, device=gpu.place)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x.mul_(2)
        fn(x, y)
    side.synchronize()
    torch.testing.assert_close(y, 2 * x.roll(-1, 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn(x, y)
    x.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    assert (y == 6).all()
