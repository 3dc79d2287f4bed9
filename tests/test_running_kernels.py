"""Running sums and products as kernels: what torch computes, along any dimension, in any type, with what stands before and behind them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest
import torch
from test_attention_kernels import run_checked
from torch import Tensor

import suture
from suture.backends.compiled import compile_program
from suture.codegen.program import lower
from suture.ir.kernel_text import parse_kernel
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)

TEXT = """\
graph g(%x: f32[n, m, 5], %i: i64[n, m], %b: bool[m, n], %h: bf16[m, 3], %v: f64[n], %o: f32[1, m]) {
  %a: f32[n, m, 5] = cumsum(%x) dim=1
  %c: f32[n, m, 5] = cumsum(%x) dim=-1
  %d: f32[m, n, 5] = permute(%x) dims=(1, 0, 2)
  %e: f32[m, n, 5] = cumsum(%d) dim=0
  %f: f32[m, n, 5] = mul(%e, _) scalar=0.5
  %j: i64[n, m] = cumsum(%i) dim=0
  %k: i64[m, n] = cumsum(%b) dim=1
  %l: bf16[m, 3] = cumsum(%h) dim=0
  %p: f64[n] = cumsum(%v) dim=0
  %q: f32[n, 5] = prod(%x) dims=(1,) keepdim=false
  %r: f32[n, 5] = exp(%q)
  %s: i64[1, m] = prod(%i) dims=(0,) keepdim=true
  %t: f32[1, m] = cumsum(%o) dim=0
  %u: f32[n, m] = prod(%x) dims=(-1,) keepdim=false
  return %a as a, %c as c, %f as f, %j as j, %k as k, %l as l, %p as p, %r as r, %s as s, %t as t, %u as u
}
"""


def _inputs(n: int, m: int) -> list[Tensor]:
    return [
        torch.randn(n, m, 5), torch.randint(-2, 3, (n, m)), torch.rand(m, n) < 0.5, torch.randn(m, 3).to(torch.bfloat16),
        torch.randn(n, dtype=torch.float64), torch.randn(1, m),
    ]  # fmt: skip


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1.6e-2 if one.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_they_compute_what_torch_does() -> None:
    graph = parse_graph(TEXT)
    program = lower(graph)
    assert not program.left and len(program.kernels) == len(graph.outputs)
    assert all(parse_kernel(str(kernel)) == kernel for kernel in program.kernels)
    compiled = compile_program(program)
    torch.manual_seed(0)
    for n, m in ((3, 70), (1, 1), (65, 2), (0, 4), (4, 0)):
        inputs = _inputs(n, m)
        _same(compiled(*inputs), evaluate(graph, inputs))


@pytest.mark.parametrize("backwards", [False, True])
def test_lanes_do_not_meet(backwards: bool) -> None:
    graph = parse_graph(
        "graph g(%x: f32[n, m, 3]) {\n  %a: f32[n, m, 3] = cumsum(%x) dim=1\n  %b: f32[n, 3] = prod(%x) dims=(1,) keepdim=false\n"
        "  return %a as a, %b as b\n}\n"
    )
    inputs = [torch.randn(2, 7, 3)]
    _same(run_checked(lower(graph), inputs, backwards=backwards), evaluate(graph, inputs))


def test_a_long_sum_keeps_its_last_places() -> None:
    graph = parse_graph("graph g(%x: f32[n]) {\n  %a: f32[n] = cumsum(%x) dim=0\n  return %a as a\n}\n")
    x = torch.full((100000,), 0.1)
    wide = x.double().cumsum(0)
    error = (suture.compile(graph)(x).double() - wide).abs() / wide
    assert error.max() < 1e-7
    assert "the GPU's library scans" in str(lower(graph, "cuda").left.values())
    assert not lower(graph, "cuda", alone=True).left
