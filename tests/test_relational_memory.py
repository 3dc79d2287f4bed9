"""What takes memory is taken once: sums in parts, narrow indices, results in the place of operands, long sums in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from relational_graphs import F64, Program, attention, convolution, edges, inputs_of, transformer

from suture.backends.compiled import compile_graph
from suture.codegen.taking_over import share_memory, takeovers
from suture.drivers.relational.incidence import find_incidence
from suture.drivers.relational.program import RelationalProgram
from suture.ir.graph import Graph
from suture.ir.parser import parse_graph
from suture.ir.semantics import evaluate
from suture.ir.verify import verify
from suture.passes.relational.inspection import inspect, split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.long_products import ROWS, cut_long_products
from suture.passes.relational.narrowing import narrow_indices
from suture.passes.relational.parting import part_sum, parts_wanted
from suture.passes.relational.sides import sum_on_sides


@settings(max_examples=6, deadline=None)
@given(edges())
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("parts", [2, 5])
def test_a_sum_in_parts_is_the_sum(parts: int, turned: bool, drawn: dict[str, int]) -> None:
    graph = convolution()
    if turned:
        total = next(node.output for node in reversed(graph.nodes) if node.operator.name == "segment_sum")
        assert sum_on_sides(graph, total)
    given = inputs_of(graph, drawn)
    wanted = evaluate(graph, given)
    assert part_sum(graph, parts)
    verify(graph)
    torch.testing.assert_close(evaluate(graph, given), wanted)
    laid = lay_out(graph, check=False)
    inspector, executor = split_inspector(laid)
    assert all(value.uses for value in executor.inputs if value.name in inspector.output_names)
    sizes = {"edges": drawn["edges"], "nodes": drawn["nodes"]}
    found = given | inspect(inspector, given, sizes)
    torch.testing.assert_close(evaluate(executor, [found[value.name] for value in executor.inputs]), wanted)


@pytest.mark.parametrize("make", [attention, transformer])
def test_what_meets_across_types_is_not_parted(make: Callable[[], Graph]) -> None:
    graph = make()
    before = str(graph)
    assert not part_sum(graph, 3) and parts_wanted(graph) == 1
    assert str(graph) == before


def test_as_many_parts_as_keep_pairs_within_the_result() -> None:
    graph = convolution()
    graph.hints.update(nodes=100_000, edges=1_000_000, pairs=500_000)
    assert parts_wanted(graph) > 2
    graph.hints.update(nodes=100_000, edges=50_000, pairs=50_000)
    assert parts_wanted(graph) == 1
    graph.hints.update(nodes=10, edges=1_000, pairs=500)  # too little to mind
    assert parts_wanted(graph) == 1


@settings(max_examples=6, deadline=None)
@given(edges())
def test_narrow_indices_give_the_same(drawn: dict[str, int]) -> None:
    graph = convolution(torch.float32)
    given = inputs_of(graph, drawn)
    wanted = evaluate(graph, given)
    inspector, executor = split_inspector(lay_out(graph, check=False))
    assert narrow_indices(inspector, executor)
    verify(inspector)
    verify(executor)
    made = {value.name for value in inspector.outputs}
    assert all(value.dtype != torch.int64 for value in executor.inputs if value.name in made)
    found = given | inspect(inspector, given, {"edges": drawn["edges"], "nodes": drawn["nodes"]})
    compiled = compile_graph(executor, trusted=[value.name for value in executor.inputs])
    (result,) = compiled.run_list([found[value.name] for value in executor.inputs])
    torch.testing.assert_close(result, wanted[0], rtol=1e-4, atol=1e-4)


def _sum_and_product() -> Graph:
    return parse_graph("""
graph g(%x: f32[n, 16], %e: f32[m, 16], %p: i64[n + 1], %w: f32[16, 16]) {
  %own: f32[n, 16] = matmul(%x, %w)
  %met: f32[n, 16] = csr_sum(%e, %p)
  %y: f32[n, 16] = add(%met, %own)
  return %y as y
}
""")


def test_a_result_takes_the_place_of_what_is_added_to_it() -> None:
    compiled = compile_graph(_sum_and_product())
    kept, taken = share_memory(compiled.program, compiled.program.lifetimes())
    assert [value.name for value in taken] == ["own"] and "own" not in [each.value.name for each in kept]
    x, e, w = torch.randn(5, 16), torch.randn(9, 16), torch.randn(16, 16)
    p = torch.tensor([0, 0, 4, 4, 8, 9])
    wanted = x @ w + torch.stack([e[a:b].sum(0) for a, b in itertools.pairwise(p)])
    for _ in range(2):
        torch.testing.assert_close(compiled(x, e, p, w), wanted, rtol=1e-4, atol=1e-4)


def test_an_operand_that_is_read_again_keeps_its_place() -> None:
    text = str(_sum_and_product()).replace("return", "%z: f32[16] = sum(%own) dims=(0,)\n  return %z as z,")
    compiled = compile_graph(parse_graph(text))
    values = {value.name for value in share_memory(compiled.program, compiled.program.lifetimes())[1]}
    x, e, w = torch.randn(5, 16), torch.randn(9, 16), torch.randn(16, 16)
    z, y = compiled(x, e, torch.tensor([0, 0, 4, 4, 8, 9]), w)
    torch.testing.assert_close(z, (x @ w).sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[0], x[0] @ w, rtol=1e-4, atol=1e-4)
    assert "y" not in values


def test_kernels_that_read_elsewhere_take_nothing_over() -> None:
    text = """
graph g(%x: f32[n, 16]) {
  %s: f32[n, 16] = softmax(%x) dim=1
  %y: f32[n, 16] = cumsum(%s) dim=0
  return %y as y
}
"""
    compiled = compile_graph(parse_graph(text))
    names = {node.operator.name for node in compiled.graph.nodes}
    assert names and not any(takeovers(kernel) for kernel in compiled.program.kernels if "cumsum" in kernel.name)


def test_a_long_sum_of_outer_products_is_cut_into_pieces() -> None:
    p = Program("g")
    turned = p.op("permute", p.x, dims=(1, 0))
    graph = p.graph
    g = p.input("g", F64, graph.inputs[0].shape[0], 16)
    wide = p.input("wide", F64, graph.inputs[0].shape[0], 16)
    long = p.op("matmul", p.op("permute", wide, dims=(1, 0)), g)
    p.returns(long, p.op("matmul", turned, g))
    rows = 2 * ROWS + 5
    given = {
        "x": torch.randn(rows, 10).double(),
        "g": torch.randn(rows, 16).double(),
        "wide": torch.randn(rows, 16).double(),
    }
    given |= {name: torch.zeros(3, dtype=torch.int64) for name in ("src", "dst", "type")}
    assert cut_long_products(graph) == 1  # 10 columns are too few
    verify(graph)
    found = evaluate(graph, given)
    torch.testing.assert_close(found[0], given["wide"].T @ given["g"])
    torch.testing.assert_close(found[1], given["x"].T @ given["g"])


def test_of_what_is_measured_sizes_are_kept() -> None:
    graph = convolution(torch.float32)
    given = inputs_of(graph, {"edges": 40, "nodes": 9, "seed": 1})
    program = RelationalProgram(graph)
    indices = {value.name: given[value.name] for value in graph.inputs if not value.dtype.is_floating_point}
    incidence = find_incidence(indices)
    tensors = [given[value.name] for value in graph.inputs] + [each.data for each in graph.parameters.values()]
    (first,) = program.run(incidence, tensors, gradients=False)
    torch.testing.assert_close(first, evaluate(graph, given)[0], rtol=1e-4, atol=1e-4)
    assert incidence.measured and all(each.dtype != torch.int64 for each in incidence.results.values())
