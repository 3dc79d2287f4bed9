"""Attention as a kernel: it computes what torch does in float64, whatever the lengths, masks, heads, types and views."""

from __future__ import annotations

import copy
import functools
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernel_prints import check, fast, needs_compiler
from torch import Tensor

import suture
from suture.backends.compiled import CompiledGraph, compile_program
from suture.codegen.calling import _number
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.cuda.printer import print_cuda
from suture.codegen.program import Program, lower
from suture.codegen.schedule import AttentionSchedule
from suture.codegen.step import KernelStep
from suture.ir.graph import Value
from suture.ir.kernel import MultiplyAccumulate, walk
from suture.ir.kernel_text import parse_kernel
from suture.ir.semantics import bind_symbols, evaluate
from suture.ir.sizes import evaluate_size
from suture.ir.text import parse_graph
from suture.ir.types import DTYPES

_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_SMALL = AttentionSchedule(queries=16, keys=8, lanes=16, across=16)
_GPU = AttentionSchedule(queries=16, keys=16, lanes=32, across=8, staged=True)


def attention(
    dtype: str, d: int = 8, e: int = 8, attributes: str = "", mask: str = "", heads: tuple[int, int] = (2, 2)
) -> str:
    """A graph of one attention over any batch and lengths."""
    given = f", %m: {mask}" if mask else ""
    return (
        f"graph g(%q: {dtype}[b, {heads[0]}, l, {d}], %k: {dtype}[b, {heads[1]}, s, {d}], %v: {dtype}[b, {heads[1]}, s, {e}]{given}) {{\n"
        f"  %y: {dtype}[b, {heads[0]}, l, {e}] = attention(%q, %k, %v{', %m' if mask else ''}) scale=0.4 {attributes}\n  return %y as o\n}}\n"
    )


@functools.cache
def program_of(text: str, schedule: AttentionSchedule | None = None) -> Program:
    """Its kernels; nothing is left to torch."""
    program = lower(parse_graph(text), schedules={} if schedule is None else {"y": schedule})
    assert not program.left, program.left
    assert any(isinstance(each, MultiplyAccumulate) for kernel in program.kernels for each in walk(kernel.body))
    return program


@functools.cache
def compiled(text: str, schedule: AttentionSchedule | None = None) -> CompiledGraph:
    """One compiled graph for all sizes."""
    return compile_program(program_of(text, schedule))


def run_checked(program: Program, inputs: Sequence[Tensor], *, backwards: bool) -> list[Tensor]:
    """The kernels one after the other in their checking print."""
    symbols = bind_symbols(program.graph, inputs)
    known: dict[Value, Tensor] = dict(zip(program.graph.inputs, inputs, strict=True))
    for step in program.steps:
        assert isinstance(step, KernelStep)
        named = zip(step.kernel.sizes, step.sizes, strict=True)
        sizes = {name.name: evaluate_size(dim, symbols) for name, dim in named}
        tensors = []
        for value, buffer in zip(step.arguments, step.kernel.arguments, strict=True):
            shape = [_number(dim, sizes) for dim in buffer.shape]
            if value not in known:
                known[value] = torch.full(shape, math.nan, dtype=value.dtype)
            tensors.append(known[value].contiguous().view(shape))
            known[value] = tensors[-1]
        assert check(step.kernel, tensors, backwards=backwards) == ""
    return [known[value] for value in program.graph.outputs]


def expected(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float = 0.4
) -> Tensor:
    """In float64, by the definition; a query that sees no key gives zeros."""
    groups = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
    k, v = (x.double().repeat_interleave(groups, -3) if groups > 1 else x.double() for x in (k, v))
    scores = q.double() @ k.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    weights = scores.softmax(-1)
    return torch.where((scores == -math.inf).all(-1, keepdim=True), 0.0, weights) @ v


def close(found: Tensor, wanted: Tensor) -> None:
    largest = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=_TOLERANCE[found.dtype] * largest, equal_nan=True)


def drawn(
    b: int, n: int, s: int, dtype: torch.dtype, d: int = 8, e: int = 8, heads: tuple[int, int] = (2, 2)
) -> list[Tensor]:
    torch.manual_seed(b + n + s)
    return [
        torch.randn(b, heads[0], n, d).to(dtype), torch.randn(b, heads[1], s, d).to(dtype), torch.randn(b, heads[1], s, e).to(dtype),
    ]  # fmt: skip


sizes = given(b=st.integers(0, 3), n=st.integers(0, 70), s=st.integers(0, 300))


@needs_compiler
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "f16"])
@pytest.mark.parametrize("attributes", ["", "causal=true"])
@settings(max_examples=25, deadline=None)
@sizes
@example(b=2, n=1, s=1)
@example(b=1, n=33, s=129)
@example(b=1, n=64, s=256)
def test_any_lengths(dtype: str, attributes: str, b: int, n: int, s: int) -> None:
    q, k, v = drawn(b, n, s, DTYPES[dtype])
    close(compiled(attention(dtype, attributes=attributes))(q, k, v), expected(q, k, v, causal=bool(attributes)))


@needs_compiler
@pytest.mark.parametrize(("d", "e"), [(1, 1), (3, 5), (16, 40), (40, 16), (64, 64), (80, 96), (128, 32)])
@settings(max_examples=5, deadline=None)
@sizes
def test_any_size_of_heads(d: int, e: int, b: int, n: int, s: int) -> None:
    q, k, v = drawn(b, n, s, torch.float32, d, e)
    close(compiled(attention("f32", d, e))(q, k, v), expected(q, k, v))


@needs_compiler
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize(("d", "e", "attributes", "mask"), [
    (64, 32, "", ""), (20, 7, "causal=true", ""), (8, 16, "", "bool[b, 1, 1, s]"), (16, 16, "grouped=true", ""),
])  # fmt: skip
@settings(max_examples=8, deadline=None)
@given(b=st.integers(0, 3), s=st.integers(0, 600))
@example(b=1, s=128)
@example(b=1, s=129)
def test_one_query_as_in_decoding(dtype: str, d: int, e: int, attributes: str, mask: str, b: int, s: int) -> None:
    heads = (4, 2) if "grouped" in attributes else (2, 2)
    text = attention(dtype, d, e, attributes, mask, heads).replace(", l, ", ", 1, ")
    assert "one query" in program_of(text).steps[-1].why  # type: ignore[union-attr]
    inputs = drawn(b, 1, s, DTYPES[dtype], d, e, heads)
    if mask:
        inputs.append(torch.rand(b, 1, 1, s) < 0.5)
    close(compiled(text)(*inputs), expected(*inputs, causal="causal" in attributes))


@needs_compiler
@pytest.mark.parametrize(("n", "s", "attributes", "mask"), [
    (197, 197, "", ""), (5, 7, "", "bool[l, s]"), (256, 260, "", ""), (33, 40, "causal=true", ""), (40, 33, "causal=true", "f32[l, s]"),
    (1, 5, "", "f32[l, s]"), (2, 300, "", ""), (3, 0, "", ""), (0, 3, "", ""),
])  # fmt: skip
def test_lengths_that_are_known(n: int, s: int, attributes: str, mask: str) -> None:
    text = (
        attention("f32", 16, 24, attributes, mask)
        .replace("l, ", f"{n}, ")
        .replace(" s, ", f" {s}, ")
        .replace(" s]", f" {s}]")
    )
    inputs = drawn(2, n, s, torch.float32, 16, 24)
    if mask:
        inputs.append(torch.rand(n, s) < 0.5 if mask.startswith("bool") else torch.randn(n, s))
    close(compiled(text)(*inputs), expected(*inputs, causal=bool(attributes)))


_MASKS = {
    "bool[l, s]": lambda b, n, s: torch.rand(n, s) < 0.5,
    "bool[b, 1, l, s]": lambda b, n, s: torch.rand(b, 1, n, s) < 0.1,
    "bool[b, 1, 1, s]": lambda b, n, s: torch.rand(b, 1, 1, s) < 0.3,
    "f32[b, 2, l, s]": lambda b, n, s: torch.randn(b, 2, n, s).masked_fill(torch.rand(b, 2, n, s) < 0.2, -math.inf),
    "f32[2, l, 1]": lambda b, n, s: torch.randn(2, n, 1),
}


@needs_compiler
@pytest.mark.parametrize("mask", _MASKS)
@settings(max_examples=10, deadline=None)
@sizes
def test_masks(mask: str, b: int, n: int, s: int) -> None:
    q, k, v = drawn(b, n, s, torch.float32)
    m = _MASKS[mask](b, n, s)
    close(compiled(attention("f32", mask=mask))(q, k, v, m), expected(q, k, v, m))


@needs_compiler
def test_a_query_that_sees_no_key_gives_zeros_as_in_torch() -> None:
    q, k, v = drawn(1, 5, 7, torch.float32)
    m = torch.ones(5, 7, dtype=torch.bool)
    m[2] = False
    found = compiled(attention("f32", mask="bool[l, s]"))(q, k, v, m)
    assert torch.equal(found[:, :, 2], torch.zeros(1, 2, 8))
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, m, scale=0.4), rtol=1e-5, atol=1e-5)


@needs_compiler
def test_what_is_no_number_spreads_to_its_own_queries_alone() -> None:
    q, k, v = drawn(1, 40, 50, torch.float32)
    q[0, 1, 3] = math.nan
    found = compiled(attention("f32"))(q, k, v)
    assert found[0, 1, 3].isnan().all()
    assert int(found.isnan().any(-1).sum()) == 1
    q, k, v = drawn(1, 40, 50, torch.float32)
    k[0, 1, 7] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)  # one that is not the usual one
    found = compiled(attention("f32"))(q, k, v)
    assert torch.equal(found.isnan().all(-1), torch.tensor([False, True])[:, None].expand(2, 40)[None])
    assert torch.equal(found.isnan().any(-1), found.isnan().all(-1))


@needs_compiler
@pytest.mark.parametrize("attributes", ["grouped=true", "grouped=true causal=true"])
@settings(max_examples=10, deadline=None)
@sizes
def test_heads_in_groups(attributes: str, b: int, n: int, s: int) -> None:
    q, k, v = drawn(b, n, s, torch.float32, heads=(6, 2))
    found = compiled(attention("f32", attributes=attributes, heads=(6, 2)))(q, k, v)
    close(found, expected(q, k, v, causal="causal" in attributes))


PACKED = """\
graph g(%x: f32[b, l, 96]) {
  %a: f32[b, l, 3, 4, 8] = reshape(%x)
  %p: f32[3, b, 4, l, 8] = permute(%a) dims=(2, 0, 3, 1, 4)
  %q: f32[b, 4, l, 8] = select(%p)
  %k: f32[b, 4, l, 8] = select(%p) index=1
  %v: f32[b, 4, l, 8] = select(%p) index=2
  %y: f32[b, 4, l, 8] = attention(%q, %k, %v) scale=0.4
  %z: f32[b, l, 4, 8] = permute(%y) dims=(0, 2, 1, 3)
  %o: f32[b, l, 32] = reshape(%z)
  %n: f32[b, l, 32] = neg(%o)
  %t: f32[b, l, 32] = tanh(%n)
  return %t as o
}
"""


@needs_compiler
@settings(max_examples=15, deadline=None)
@given(b=st.integers(0, 3), n=st.integers(0, 70))
def test_queries_keys_and_values_are_read_in_one_result(b: int, n: int) -> None:
    x = torch.randn(b, n, 96)
    q, k, v = x.view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
    close(compiled(PACKED)(x), expected(q, k, v).transpose(1, 2).reshape(b, n, 32).neg().tanh())


def test_nothing_is_copied_on_the_way_in_or_out() -> None:
    program = program_of(PACKED)
    step = next(
        step for step in program.steps if isinstance(step, KernelStep) and step.kernel.name.startswith("attention")
    )
    assert [value.name for value in step.arguments] == ["x", "y"]
    assert program.storage[step.arguments[1]] == (0, 2, 1, 3)
    assert len(program.steps) == 2


@needs_compiler
def test_pointwise_nodes_behind_are_computed_with_it() -> None:
    text = attention("f32").replace(", %v: f32[b, 2, s, 8]", ", %v: f32[b, 2, s, 8], %g: f32[b, 2, l, 8]")
    text = text.replace(
        "  return %y as o", "  %a: f32[b, 2, l, 8] = sigmoid(%g)\n  %z: f32[b, 2, l, 8] = mul(%y, %a)\n  return %z as o"
    )
    q, k, v = drawn(2, 37, 50, torch.float32)
    gate = torch.randn(2, 2, 37, 8)
    close(compiled(text)(q, k, v, gate), expected(q, k, v) * gate.double().sigmoid())


WRITTEN = """\
graph g(%q: f32[b, 2, l, 8], %k: f32[b, 2, s, 8], %v: f32[b, 2, s, 8], %m: MASK) {
  %t: f32[b, 2, 8, s] = permute(%k) dims=(0, 1, 3, 2)
  %p: f32[b, 2, l, s] = matmul(%q, %t)
  %d: f32[b, 2, l, s] = div(%p, _) scalar=2.5
  MASKED
  %w: f32[b, 2, l, s] = softmax(%n) dim=3
  %y: f32[b, 2, l, 8] = matmul(%w, %v)
  return %y as o
}
"""
_WRITTEN = {
    "added": ("f32[l, s]", "add(%d, %m)"),
    "added first": ("f32[l, s]", "add(%m, %d)"),
    "kept where": ("bool[l, s]", "where(%m, %d) on_false=-inf"),
    "filled where": ("bool[l, s]", "where(%m, _, %d) on_true=-inf"),
    "filled where, finitely": ("bool[l, s]", "where(%m, _, %d) on_true=-3.4028234663852886e+38"),
    "kept where, finitely": ("bool[l, s]", "where(%m, %d) on_false=-3.4028234663852886e+38"),
}


@needs_compiler
@pytest.mark.parametrize("name", _WRITTEN)
@settings(max_examples=10, deadline=None)
@sizes
def test_attention_that_is_written_out_is_one_kernel(name: str, b: int, n: int, s: int) -> None:
    kind, masked = _WRITTEN[name]
    text = WRITTEN.replace("MASKED", f"%n: f32[b, 2, l, s] = {masked}").replace("MASK", kind)
    q, k, v = drawn(b, n, s, torch.float32)
    m = (
        torch.rand(n, s) < 0.5
        if kind.startswith("bool")
        else torch.randn(n, s).masked_fill(torch.rand(n, s) < 0.4, -math.inf)
    )
    graph = parse_graph(text.replace("f32", "f64"))
    wanted = evaluate(graph, [q.double(), k.double(), v.double(), m if m.dtype == torch.bool else m.double()])[0]
    close(compiled(text)(q, k, v, m), wanted)


def test_products_around_anything_else_are_left_alone() -> None:
    text = WRITTEN.replace("MASKED", "%n: f32[b, 2, l, s] = add(%d, %m)").replace("MASK", "f32[l, s]")
    assert "attention" in operators(text)
    for old, new in (
        ("add(%d, %m)", "mul(%d, %m)"), ("dim=3", "dim=2"), ("return %y as o", "return %y as o, %w as p"), ("add(%d, %m)", "add(%d, %d)"),
        ("[b, 2, s, 8], %m", "[b, 1, s, 8], %m"),
    ):  # fmt: skip
        assert "attention" not in operators(text.replace(old, new))
    filled = text.replace("add(%d, %m)", "where(%m, %d) on_false=0.0").replace("%m: f32", "%m: bool")
    assert "attention" not in operators(filled)
    assert "attention" in operators(filled.replace("=0.0", "=-inf"))


def operators(text: str) -> set[str]:
    """The operators of what a graph is lowered to."""
    return {node.operator.name for node in lower(parse_graph(text)).graph.nodes}


_CHECKED = {
    "small tiles": (attention("f32"), _SMALL),
    "a gpu's lanes": (attention("f32", 5, 12), _GPU),
    "causal": (attention("f32", attributes="causal=true"), _SMALL),
    "causal, a gpu's lanes": (attention("f32", attributes="causal=true"), _GPU),
    "masked, a gpu's lanes": (attention("bf16", mask="bool[b, 1, l, s]"), _GPU),
    "masked": (attention("f16", 8, 20, mask="bool[b, 1, l, s]"), _SMALL),
    "one query": (attention("f32", 20, 12, mask="bool[b, 1, l, s]"), AttentionSchedule(1, 32, 16, 16)),
    "one query, causal": (attention("f32", 16, 16, "causal=true"), AttentionSchedule(1, 16, 16, 16)),
    "grouped": (attention("f64", attributes="grouped=true", heads=(4, 2)), _SMALL),
}


@needs_compiler
@pytest.mark.parametrize("name", _CHECKED)
@settings(max_examples=4, deadline=None)
@given(b=st.integers(1, 2), n=st.integers(0, 40), s=st.integers(0, 40))
@example(b=1, n=17, s=33)
def test_lanes_may_run_in_any_order(name: str, b: int, n: int, s: int) -> None:
    text, schedule = _CHECKED[name]
    program = program_of(text, schedule)
    types = [each.type for each in program.graph.inputs]
    heads = (int(str(types[0].shape[1])), int(str(types[1].shape[1])))
    inputs = drawn(b, n, s, types[0].dtype, int(str(types[0].shape[-1])), int(str(types[2].shape[-1])), heads)
    if len(types) > 3:
        inputs.append(torch.rand(b, 1, n, s) < 0.5)
    wanted = expected(*inputs, causal="causal" in text)
    for backwards in (False, True):
        close(run_checked(program, inputs, backwards=backwards)[0], wanted)
    close(compiled(text, schedule)(*inputs), wanted)


@needs_compiler
@pytest.mark.parametrize("norm_first", [False, True])
@settings(max_examples=4, deadline=None)
@given(b=st.integers(1, 3), n=st.integers(2, 50))
def test_a_whole_encoder_layer(norm_first: bool, b: int, n: int) -> None:
    module, function = encoder_layer(norm_first)
    x = torch.randn(b, n, 48)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(x.double())
    torch.testing.assert_close(function(x).double(), wanted, rtol=0, atol=3e-5)


@functools.cache
def encoder_layer(norm_first: bool) -> tuple[torch.nn.Module, CompiledGraph]:
    torch.manual_seed(0)
    module = torch.nn.TransformerEncoderLayer(48, 3, 96, batch_first=True, norm_first=norm_first).eval()
    graph = suture.trace(module, (torch.randn(2, 7, 48),), dynamic={"src": {0: "b", 1: "l"}})
    function = suture.compile(graph)
    assert any(isinstance(step, KernelStep) and "attention" in step.kernel.name for step in function.program.steps)
    return module, function


def test_heads_of_a_symbol_are_left_to_torch() -> None:
    program = lower(parse_graph(attention("f32").replace(", 8]", ", d]")))
    assert list(program.left.values()) == ["attention over heads of no size, or of a symbol's"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler on this machine")
@pytest.mark.parametrize(
    "text",
    [attention("f32", 64, 64), attention("f16", 64, 64, "causal=true"), attention("f32", 128, 128, mask="bool[l, s]")],
)
def test_nvcc_takes_the_print_and_spills_nothing(text: str, tmp_path: Path) -> None:
    program = lower(parse_graph(text), "cuda", alone=True)  # without a library
    [step] = [each for each in program.steps if isinstance(each, KernelStep)]
    source = tmp_path / "kernel.cu"
    source.write_text(print_cuda(step.kernel), encoding="utf-8")
    command = ["nvcc", "-cubin", "-Xptxas", "-v", str(source), "-o", str(tmp_path / "kernel.cubin")]
    for arch in ("sm_80", "sm_90"):
        done = subprocess.run([*command, f"-arch={arch}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr


TURN = """\
kernel turn(n: size, m: size, x: KIND[n, m], y: KIND[m, n])
  grid block < n // 32
  each t < 32:
    for j in 0 .. m:
      y[j, block * 32 + t] = x[block * 32 + t, j]
"""


@needs_compiler
@pytest.mark.parametrize("kind", ["f32", "f64"])
@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 3), m=st.integers(0, 70))
def test_a_transposition_is_turned_in_registers(kind: str, n: int, m: int) -> None:
    kernel = parse_kernel(TURN.replace("KIND", kind))
    assert "k_transpose(&x" in print_cpp(kernel)
    x = torch.randn(n * 32, m, dtype=DTYPES[kind])
    y = torch.full((m, n * 32), math.nan, dtype=x.dtype)
    fast(kernel)(x, y)
    assert torch.equal(y, x.mT)


@pytest.mark.parametrize(("old", "new"), [
    ("x[block * 32 + t, j]", "x[block * 32 + t, 0]"),
    ("x[block * 32 + t, j]", "x[block * 32 + t, j] * f32(2.0)"),
    ("y[j, block * 32 + t] =", "y[j, block * 32 + t] +="),
    ("0 .. m", "0 .. min(m, t)"),
])  # fmt: skip
def test_what_only_resembles_a_transposition_is_a_loop(old: str, new: str) -> None:
    assert "k_transpose" not in print_cpp(parse_kernel(TURN.replace("KIND", "f32").replace(old, new)))
