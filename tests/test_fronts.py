"""Pointwise nodes in front of products and convolutions, as their prologue: the same numbers, no value in between, and only where it pays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gemm import Case, run_checked
from test_kernel_prints import needs_compiler

from suture.backends.compiled import compile_program
from suture.codegen.program import lower
from suture.ir.graph import Graph
from suture.ir.text import parse_graph


def product_text(rows: int, inner: int, columns: int, dtype: str = "f32") -> str:
    return f"""
graph g(%x: {dtype}[2, {rows}, {inner}], %g: {dtype}[{inner}]) {{
  parameter @w: {dtype}[{columns}, {inner}]
  parameter @b: {dtype}[{columns}]

  %m: {dtype}[2, {rows}, {inner}] = mul(%x, %g)
  %a: {dtype}[2, {rows}, {inner}] = add(%m) scalar=1.0
  %r: {dtype}[2, {rows}, {inner}] = relu(%a)
  %l: {dtype}[2, {rows}, {columns}] = linear(%r, @w, @b)
  %y: {dtype}[2, {rows}, {columns}] = tanh(%l)
  return %y
}}
"""


def kernels(graph: Graph) -> list[str]:
    """What the kernels of a graph do."""
    program = lower(graph, alone=True)
    assert not program.left, program.left
    return [step.why for step in program.steps if hasattr(step, "why")]


def case(text: str, seed: int = 0) -> Case:
    """Random inputs and parameters for a graph."""
    torch.manual_seed(seed)
    bare = parse_graph(text)
    parameters = {name: torch.randn(tuple(each.shape)).to(each.dtype) for name, each in bare.parameters.items()}
    return Case(text, [torch.randn(tuple(each.shape)).to(each.dtype) for each in bare.inputs], **parameters)


@needs_compiler
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 30), st.integers(1, 150), st.integers(1, 64), st.sampled_from(["f32", "f64"]))
def test_a_product_of_few_columns_takes_what_is_in_front_of_it(rows: int, inner: int, columns: int, dtype: str) -> None:
    drawn = case(product_text(rows, inner, columns, dtype))
    (only,) = kernels(drawn.graph)
    assert only.startswith("mul, add, relu, then linear to") and "then tanh" in only
    drawn.agree()


@needs_compiler
@pytest.mark.parametrize("backwards", [False, True])
def test_rows_brought_near_are_written_before_they_are_read(backwards: bool) -> None:
    drawn = case(product_text(13, 70, 40))
    drawn.close(run_checked(drawn, backwards=backwards))


def test_many_panels_read_what_was_computed_once() -> None:
    assert [each.split(";")[0] for each in kernels(case(product_text(13, 70, 200)).graph)] == [
        "3 nodes over [2, 13, 70]: mul, add, relu",
        "linear to [2, 13, 200], then tanh",
    ]


def test_what_takes_long_is_computed_once_for_two_panels() -> None:
    text = product_text(13, 70, 64).replace("relu(%a)", "exp(%a)")
    assert len(kernels(case(text).graph)) == 2
    assert len(kernels(case(text.replace("64", "32")).graph)) == 1


@pytest.mark.parametrize("line", ["return %y, %r", "return %y, %a"])
def test_what_else_reads_a_value_keeps_it_in_memory(line: str) -> None:
    text = product_text(13, 70, 32).replace("return %y", line)
    first, *_ = kernels(case(text).graph)
    assert "linear" not in first


def test_a_product_with_itself_reads_it_from_memory() -> None:
    text = """
graph g(%x: f32[9, 9]) {
  %r: f32[9, 9] = relu(%x)
  %y: f32[9, 9] = matmul(%r, %r)
  return %y
}
"""
    assert len(kernels(case(text).graph)) == 2


@needs_compiler
def test_a_computed_matrix_is_brought_near_through_what_computes_it() -> None:
    text = """
graph g(%x: f32[2, 17, 40], %z: f32[2, 70, 40]) {
  %r: f32[2, 70, 40] = relu(%z)
  %n: f32[2, 70, 40] = neg(%r)
  %t: f32[2, 40, 70] = permute(%n) dims=(0, 2, 1)
  %y: f32[2, 17, 70] = matmul(%x, %t)
  return %y
}
"""
    drawn = case(text)
    (only,) = kernels(drawn.graph)
    assert only.startswith("relu, neg, then matmul to")
    drawn.agree()
    drawn.close(run_checked(drawn, backwards=True))


@needs_compiler
@pytest.mark.parametrize(
    ("channels", "stride"), [(3, 2), (32, 1)], ids=["rows of a window", "channels brought innermost"]
)
def test_a_copy_of_an_image_computes_what_is_in_front_of_the_convolution(channels: int, stride: int) -> None:
    sizes = (9 - 1) // stride + 1
    text = f"""
graph g(%x: f32[2, {channels}, 9, 11], %m: f32[{channels}, 1, 1]) {{
  parameter @w: f32[24, {channels}, 3, 3]

  %s: f32[2, {channels}, 9, 11] = sub(%x, %m)
  %r: f32[2, {channels}, 9, 11] = relu(%s)
  %c: f32[2, 24, {sizes}, {(11 - 1) // stride + 1}] = conv(%r, @w) stride=({stride}, {stride}) padding=(1, 1) dilation=(1, 1) groups=1
  %y: f32[2, 24, {sizes}, {(11 - 1) // stride + 1}] = tanh(%c)
  return %y
}}
"""
    drawn = case(text)
    assert not any("nodes over" in each for each in kernels(drawn.graph))
    assert any("sub, relu, then conv to" in each for each in kernels(drawn.graph))
    found = compile_program(lower(drawn.graph, alone=True))(*drawn.inputs)
    drawn.close(found if isinstance(found, tuple) else (found,))


@needs_compiler
@pytest.mark.parametrize(
    "line", ["expand(%a)", "concat(%a, %a, %a) dim=0", "flip(%a) dims=(0,)"], ids=["expanded", "joined", "turned round"]
)
def test_what_is_read_through_other_views_stays_in_memory(line: str) -> None:
    rows = 1 if line.startswith("flip") else 3
    text = f"""
graph g(%x: f32[1, 16]) {{
  parameter @w: f32[8, 16]

  %a: f32[1, 16] = relu(%x)
  %e: f32[{rows}, 16] = {line}
  %y: f32[{rows}, 8] = linear(%e, @w, _)
  return %y
}}
"""
    drawn = case(text)
    drawn.agree()
    assert not kernels(drawn.graph)[-1].startswith("relu, then")
