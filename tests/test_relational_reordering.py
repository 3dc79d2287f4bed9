"""Linear reordering: each rewrite where it can be done, nowhere else, and with the same results and gradients."""

from __future__ import annotations

import pytest
import torch
from gradients import read
from hypothesis import given, settings
from hypothesis import strategies as st
from message_passing import PROGRAMS, Sizes, assert_same, edges_for, outputs, program, some_sizes

import suture
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import evaluate_size
from suture.ir.verify import verify
from suture.passes.relational.reordering import REORDERINGS, reorderings

SMALL = Sizes(nodes=6, edges=25)
EDGES = "%src: i64[edges], %dst: i64[edges], %type: i64[edges]"


def product_macs(graph: Graph, **sizes: int) -> int:
    """The multiply-accumulates of a graph's products."""
    return evaluate_size(graph.macs(), sizes)


def operators(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def test_an_inner_product_with_a_vector_of_the_type_needs_no_transformed_features() -> None:
    graph = program("rgat")
    after = suture.passes.reorder(graph, kinds=("weights first",), at=("sd",))
    verify(after)
    assert "zd" not in {value.name for node in after.nodes for value in node.outputs}
    assert product_macs(after, edges=1000, nodes=10) < 0.7 * product_macs(graph, edges=1000, nodes=10)
    assert_same(graph, after, edges_for(graph, SMALL))


def test_a_projection_of_nodes_folds_into_the_matrices_of_edge_types() -> None:
    graph = program("hgt")
    after = suture.passes.reorder(graph, kinds=("weights first",), at=("vm",))
    names = {value.name for node in after.nodes for value in node.outputs}
    assert "value" not in names and "vm_weights" in names  # the bias, too, has moved behind the product by type
    assert_same(graph, after, edges_for(graph, SMALL))


@pytest.mark.parametrize("line", ["linear(%z, @a, @c)", "linear(%z, @a, _)", "matmul(%z, @b)"])
def test_a_matrix_for_all_types_joins_the_matrices_of_the_types(line: str) -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], {EDGES}) {{
  parameter @w: f64[5, 4, 6]
  parameter @a: f64[2, 6]
  parameter @b: f64[6, 2]
  parameter @c: f64[2]

  %h: f64[edges, 4] = embedding(%x, %src)
  %z: f64[edges, 6] = typed_linear(%h, @w, %type)
  %s: f64[edges, 2] = {line}
  %y: f64[nodes, 2] = segment_sum(%s, %dst)
  return %y
}}
"""
    )
    after = suture.passes.reorder(graph, kinds=("weights first",))
    assert "z" not in {value.name for node in after.nodes for value in node.outputs}
    assert_same(graph, after, edges_for(graph, SMALL))


def test_a_projection_by_the_type_of_a_node_stays() -> None:
    found = set(reorderings(program("hgt"), ("weights first",)))
    assert found == {("weights first", "vm")}  # not ka: its keys are products by another type


@pytest.mark.parametrize("name", ["rgcn", "rgat", "hgt", "plain"])
def test_sums_come_first(name: str) -> None:
    graph = program(name)
    after = suture.passes.reorder(graph, kinds=("aggregate first",))
    verify(after)
    assert [note for note in after.history[-1].notes if note.startswith("aggregate first")]
    assert_same(graph, after, edges_for(graph, SMALL))


def test_each_destination_and_type_is_multiplied_once() -> None:
    after = suture.passes.reorder(program("rgcn"), kinds=("aggregate first",))
    (product,) = [node for node in after.nodes if node.operator.name == "typed_linear"]
    assert str(product.output.shape[0]) == "pairs_dst"
    assert operators(after).count("segment_sum") == 2


def test_sums_of_products_with_a_bias_stay() -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], {EDGES}) {{
  parameter @w: f64[3, 4]
  parameter @c: f64[3]

  %h: f64[edges, 4] = embedding(%x, %src)
  %z: f64[edges, 3] = linear(%h, @w, @c)
  %y: f64[nodes, 3] = segment_sum(%z, %dst)
  return %y
}}
"""
    )
    assert not list(reorderings(graph, ("aggregate first",)))


@pytest.mark.parametrize("scale", ["f64[edges, 3]", "f64[3]"])
def test_sums_of_products_whose_features_are_scaled_one_by_one_stay(scale: str) -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 3], {EDGES}, %c: {scale}) {{
  parameter @w: f64[5, 3, 3]

  %h: f64[edges, 3] = embedding(%x, %src)
  %z: f64[edges, 3] = typed_linear(%h, @w, %type)
  %m: f64[edges, 3] = mul(%z, %c)
  %y: f64[nodes, 3] = segment_sum(%m, %dst)
  return %y
}}
"""
    )
    assert not list(reorderings(graph, ("aggregate first",)))


def test_scales_come_along_in_their_order() -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], {EDGES}, %c: f64[edges, 1], %d: f64[edges, 1]) {{
  parameter @w: f64[5, 4, 3]

  %h: f64[edges, 4] = embedding(%x, %src)
  %z: f64[edges, 3] = typed_linear(%h, @w, %type)
  %m: f64[edges, 3] = mul(%c, %z)
  %n: f64[edges, 3] = div(%m, %d)
  %o: f64[edges, 3] = mul(%n) scalar=3.0
  %y: f64[nodes, 3] = segment_sum(%o, %dst)
  return %y
}}
"""
    )
    after = suture.passes.reorder(graph, kinds=("aggregate first",))
    assert [name for name in operators(after) if name in ("mul", "div")] == ["mul", "div", "mul"]
    assert_same(graph, after, edges_for(graph, SMALL))


def test_a_number_over_a_product_is_no_scale() -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], {EDGES}, %c: f64[edges, 1]) {{
  parameter @w: f64[5, 4, 3]

  %h: f64[edges, 4] = embedding(%x, %src)
  %z: f64[edges, 3] = typed_linear(%h, @w, %type)
  %m: f64[edges, 3] = div(%c, %z)
  %y: f64[nodes, 3] = segment_sum(%m, %dst)
  return %y
}}
"""
    )
    assert not list(reorderings(graph, ("aggregate first",)))


def test_joined_features_are_multiplied_apart() -> None:
    graph = program("joined")
    after = suture.passes.reorder(graph, kinds=("split",))
    assert "concat" not in operators(after)
    assert_same(graph, after, edges_for(graph, SMALL))


def test_features_joined_along_the_edges_stay() -> None:
    graph = read(
        """
graph g(%x: f64[n, 4], %z: f64[m, 4]) {
  parameter @w: f64[3, 4]

  %j: f64[n + m, 4] = concat(%x, %z) dim=0
  %y: f64[n + m, 3] = linear(%j, @w, _)
  return %y
}
"""
    )
    assert not list(reorderings(graph, ("split",)))


def test_the_other_end_may_be_multiplied() -> None:
    graph = program("hgt")
    after = suture.passes.reorder(graph, kinds=("turn",))
    compact = suture.passes.compact(after)
    assert any(str(value.shape[0]) == "pairs_dst" for node in compact.nodes for value in node.outputs)
    assert_same(graph, compact, edges_for(graph, SMALL))


def test_turning_twice_gives_the_program_back() -> None:
    graph = program("hgt")
    inputs = edges_for(graph, SMALL)
    twice = suture.passes.reorder(suture.passes.reorder(graph, kinds=("turn",)), kinds=("turn",))
    assert_same(graph, twice, inputs)


def edges_with_sides() -> list[torch.Tensor]:
    """Type 0 has one source and four destinations, type 1 three sources and one destination, type 2 as many of both, type 4 nothing."""
    src, dst = [0, 0, 0, 0, 1, 2, 3, 2, 5, 4, 1], [1, 2, 3, 4, 0, 0, 0, 0, 2, 3, 1]
    return [torch.tensor(each) for each in (src, dst, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3])]


def test_each_type_is_multiplied_at_the_end_of_which_it_has_fewer() -> None:
    graph = program("rgcn")
    after = suture.passes.reorder(graph, kinds=("aggregate by type",))
    verify(after)
    edges = edges_with_sides()
    inputs = [torch.randn(6, 6, dtype=torch.float64), *edges, torch.randn(11, 1, dtype=torch.float64)]
    assert_same(graph, after, inputs)
    products = [node.output.name for node in after.nodes if node.operator.name == "typed_linear"]
    rows = {}
    evaluate(after, inputs, watch=lambda value, tensor: rows.__setitem__(value.name, tensor.shape[0]))
    assert [rows[name] for name in products] == [1 + 1 + 2 + 1]


def test_one_side_of_an_inner_product_is_transformed_for_each_type() -> None:
    graph = program("hgt")
    after = suture.passes.reorder(graph, kinds=("turn by type", "aggregate by type"), check=False)
    verify(after)
    assert (
        operators(after).count("fewer_ends") == operators(after).count("unique_rows") == 1
    )  # both know the same pairs
    src, dst, type = edges_with_sides()
    inputs = [torch.randn(6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]), src, dst, type]
    assert_same(graph, after, inputs)
    rows = {}
    evaluate(after, inputs, watch=lambda value, tensor: rows.__setitem__(value.name, tensor.shape[0]))
    typed = [node.output.name for node in after.nodes if node.operator.name == "typed_linear"]
    assert sorted(rows[name] for name in typed) == [5, 5, 6, 6]  # pairs, and the nodes' own projections


@pytest.mark.parametrize("name", ["plain", "sage"])
def test_what_has_no_types_has_no_sides(name: str) -> None:
    assert not list(reorderings(program(name), ("aggregate by type", "turn by type")))


def test_tables_of_different_lengths_are_joined_end_to_end() -> None:
    graph = read(
        f"""
graph g(%x: f64[sources, 4], %z: f64[targets, 4], {EDGES}) {{
  parameter @w: f64[5, 4, 4]

  %k: f64[edges, 4] = embedding(%x, %src)
  %q: f64[edges, 4] = embedding(%z, %dst)
  %t: f64[edges, 4] = typed_linear(%k, @w, %type)
  %m: f64[edges, 4] = mul(%q, %t)
  %s: f64[edges] = sum(%m) dims=(1,)
  return %s
}}
"""
    )
    after = suture.passes.reorder(graph, kinds=("turn by type",), check=False)
    assert "2*nodes" not in str(after) and operators(after).count("concat") == 1
    src, dst, type = edges_with_sides()
    inputs = [torch.randn(6, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64), src, dst, type]
    assert_same(graph, after, inputs)


def test_rows_are_multiplied_before_they_are_summed() -> None:
    graph = program("sage")
    after = suture.passes.reorder(graph, kinds=("transform first",))
    verify(after)
    (product,) = [node for node in after.nodes if node.operator.name == "linear"]
    assert product.inputs[0] is after.inputs[0]  # on the nodes, not on the edges
    assert operators(after)[-1] == "add"  # the bias
    assert_same(graph, after, edges_for(graph, SMALL))


@pytest.mark.parametrize("line", ["relu(%t)", "add(%t) scalar=1.0", "mul(%t, @g)"])
def test_sums_that_are_changed_in_between_stay(line: str) -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], {EDGES}) {{
  parameter @w: f64[3, 4]
  parameter @g: f64[4]

  %h: f64[edges, 4] = embedding(%x, %src)
  %t: f64[nodes, 4] = segment_sum(%h, %dst)
  %r: f64[nodes, 4] = {line}
  %y: f64[nodes, 3] = linear(%r, @w, _)
  return %y
}}
"""
    )
    assert not list(reorderings(graph, ("transform first",)))


def test_nothing_to_reorder_is_said() -> None:
    graph = read("graph g(%x: f64[n, 4]) {\n  %y: f64[n, 4] = relu(%x)\n  return %y\n}")
    assert suture.passes.reorder(graph).history[-1].outcome == "not applicable"


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(SutureError, match="wieghts first"):
        suture.passes.reorder(program("rgat"), kinds=("wieghts first",))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(PROGRAMS)),
    st.lists(st.sampled_from(sorted(REORDERINGS)), min_size=1, max_size=3, unique=True),
    some_sizes(),
    st.integers(0, 1000),
)
def test_reordering_changes_neither_results_nor_gradients(name: str, kinds: list[str], sizes: Sizes, seed: int) -> None:
    graph = program(name, seed)
    after = suture.passes.reorder(graph, kinds=tuple(kinds), check=False)
    inputs = edges_for(graph, sizes, seed)
    assert_same(graph, after, inputs)
    assert_same(graph, suture.passes.compact(after, check=False), inputs)


def test_nan_and_isolated_nodes_pass_through() -> None:
    graph = program("rgcn")
    inputs = edges_for(graph, SMALL)
    inputs[0][2, 1] = torch.nan
    inputs[2][:] = 0  # all edges come to node 0
    after = suture.passes.reorder(graph, check=False)
    a, b = outputs(graph, inputs), outputs(after, inputs)
    assert torch.equal(a.isnan(), b.isnan()) and bool(a.isnan().any())
    assert not a[1:].any() and not b[1:].any()
