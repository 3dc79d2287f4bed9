"""Attention in other words: written with einsums, whatever the order of their letters; heads that share a key head, with one query each."""

from __future__ import annotations

import shutil

import pytest
import torch

from suture.backends.compiled import compile_program
from suture.codegen.program import lower
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph

SEVERAL = """\
graph g(%q: f32[b, l, 4, 8], %k: f32[b, s, 4, 8], %v: f32[b, s, 4, 6], %m: f32[l, s],
        %x: f32[b, l, 2, 3, 8], %y: f32[b, s, 2, 8], %z: f32[b, 2, s, 8], %p: f32[5, 8], %w: bool[b, 4, l, s]) {
  %a: f32[b, 4, l, s] = einsum(%q, %k) equation="blhd,bshd->bhls"
  %b: f32[b, 4, l, s] = mul(%a, _) scalar=0.3
  %c: f32[b, 4, l, s] = add(%b, %m)
  %d: f32[b, 4, l, s] = softmax(%c) dim=-1
  %e: f32[b, l, 4, 6] = einsum(%d, %v) equation="bhls,bshe->blhe"

  %f: f32[b, 2, 3, l, s] = einsum(%y, %x) equation="bsgd,blgrd->bgrls"
  %h: f32[b, 2, 3, l, s] = div(%f, _) scalar=3.0
  %i: f32[b, 2, 3, l, s] = add(%h, %m)
  %j: f32[b, 2, 3, l, s] = softmax(%i) dim=-1
  %n: f32[l, b, 8, 2, 3] = einsum(%j, %z) equation="agrmn,agne->maegr"

  %o: f32[b, 4, l, s] = einsum(%k, %q) equation="bshd,blhd->bhls"
  %r: f32[b, 4, l, s] = where(%w, %o, _) on_false=-1e+38
  %t: f32[b, 4, l, s] = softmax(%r) dim=-1
  %u: f32[b, 4, l, 6] = einsum(%t, %v) equation="bhls,bshe->bhle"

  %aa: f32[5, 5] = einsum(%p, %p) equation="ld,sd->ls"
  %ab: f32[5, 5] = softmax(%aa) dim=1
  %ac: f32[5, 8] = einsum(%ab, %p) equation="ls,se->le"
  return %e as e, %n as n, %u as u, %ac as ac
}
"""


def one(first: str, second: str, softmax: int = -1) -> Graph:
    """Two einsums around a softmax, over dimensions of size 4."""
    terms = [*first.split("->")[0].split(","), second.split("->")[0].split(",")[1]]
    shapes = ["f32[" + ", ".join("4" for _ in term) + "]" for term in terms]
    scores, result = (f"f32[{', '.join('4' for _ in each.split('->')[1])}]" for each in (first, second))
    return parse_graph(
        f"graph g(%q: {shapes[0]}, %k: {shapes[1]}, %v: {shapes[2]}) {{\n"
        f'  %a: {scores} = einsum(%q, %k) equation="{first}"\n'
        f"  %b: {scores} = softmax(%a) dim={softmax}\n"
        f'  %c: {result} = einsum(%b, %v) equation="{second}"\n  return %c as c\n}}\n'
    )


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine")
def test_einsums_around_a_softmax_are_one_attention() -> None:
    graph = parse_graph(SEVERAL)
    program = lower(graph)
    kernels = [step.kernel.name.rpartition("_")[0] for step in program.steps if isinstance(step, KernelStep)]
    assert kernels.count("attention") == 4 and "gemm" not in kernels
    compiled = compile_program(program)
    torch.manual_seed(0)
    for b, n, s in ((2, 5, 7), (1, 1, 1), (3, 21, 18)):
        shapes = ((b, n, 4, 8), (b, s, 4, 8), (b, s, 4, 6), (n, s), (b, n, 2, 3, 8), (b, s, 2, 8), (b, 2, s, 8), (5, 8))
        inputs = [*(torch.randn(shape) for shape in shapes), torch.rand(b, 4, n, s) < 0.7]
        wide = [each.double() if each.is_floating_point() else each for each in inputs]
        for found, wanted in zip(compiled(*inputs), evaluate(graph, wide), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "dim"),
    [
        ("blhd,bshd->bhls", "bhls,bshe->blhe", 2),  # a softmax over the queries
        ("blhd,bshd->bhls", "bhls,bhse->bhs", -1),  # the keys stay
        ("blhd,bshd->bshl", "bshl,bshe->blhe", -1),  # what the softmax is over is not what is summed
        ("bld,bsd->bls", "bls,se->be", -1),  # the batch of the values is another
        ("bld,bld->bl", "bl,ble->be", -1),  # no queries
        ("rld,sd->rls", "rls,se->rle", -1),  # heads, but nothing that they share a part of
    ],
)
def test_what_is_no_attention_is_left(first: str, second: str, dim: int) -> None:
    assert "attention" not in str(lower(one(first, second, dim)))
    assert "attention" in str(lower(one("lhd,shd->hls", "hls,shd->hld")))


DECODING = """\
graph g(%q: f32[b, 8, 1, 6], %k: f32[b, 2, s, 6], %v: f32[b, 2, s, 5], %m: bool[b, 1, 1, s], %w: f32[8, 1, s], %x: f32[b, 4, 1, 6]) {
  %a: f32[b, 8, 1, 5] = attention(%q, %k, %v) scale=0.4 grouped=true
  %c: f32[b, 8, 1, 5] = attention(%q, %k, %v, %m) scale=0.4 grouped=true
  %d: f32[b, 8, 1, 5] = attention(%q, %k, %v, %w) scale=0.4 grouped=true
  %e: f32[b, 4, 1, 5] = attention(%x, %k, %v) scale=0.4 grouped=true
  return %a as a, %c as c, %d as d, %e as e
}
"""


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine")
def test_queries_of_heads_that_share_a_key_head_read_keys_once() -> None:
    graph = parse_graph(DECODING)
    program = lower(graph)
    shared = [
        step for step in program.steps if isinstance(step, KernelStep) and "attention to [b, 2, 4, 5]" in step.why
    ]
    assert len(shared) == 2, "not where a mask tells heads apart, nor for two queries a key head"
    compiled = compile_program(program)
    torch.manual_seed(0)
    for b, s in ((2, 9), (1, 1), (3, 140)):
        inputs = [torch.randn(b, 8, 1, 6), torch.randn(b, 2, s, 6), torch.randn(b, 2, s, 5)]
        inputs += [torch.rand(b, 1, 1, s) < 0.6, torch.randn(8, 1, s), torch.randn(b, 4, 1, 6)]
        wide = [each.double() if each.is_floating_point() else each for each in inputs]
        for found, wanted in zip(compiled(*inputs), evaluate(graph, wide), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
