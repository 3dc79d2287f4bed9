"""Products by type put their rows back as they make them, functions of sums are computed where the sums are: the same numbers, one traversal less."""

from __future__ import annotations

import torch

from suture.drivers.relational.arrivals import settle_arrivals, settle_departures
from suture.ir.graph import Graph
from suture.ir.parser import parse_graph
from suture.ir.semantics import evaluate
from suture.ir.verify import verify

PROJECTED = """
graph projected(%x: f64[nodes, 3], %kind: i64[nodes], %w: f64[4, 3, 2], %b: f64[4, 2]) {
  %order: i64[nodes] = sort_order(%kind)
  %place: i64[nodes] = inverse_order(%order)
  %runs: i64[5] = run_pointers(%kind)
  %tiles: i64[tiles + 1], %types: i64[tiles] = tile_runs(%runs) rows=2
  %rows: f64[nodes, 3] = embedding(%x, %order)
  %made: f64[nodes, 2] = grouped_linear(%rows, %w, %tiles, %types)
  %back: f64[nodes, 2] = embedding(%made, %place)
  %own: f64[nodes, 2] = embedding(%b, %kind)
  %z: f64[nodes, 2] = add(%back, %own)
  return %z as z
}
"""
SUMMED = """
graph summed(%x: f64[edges, 3], %dst: i64[edges], %kind: i64[nodes]) {
  %dst_order: i64[edges] = sort_order(%dst)
  %dst_runs: i64[nodes + 1] = run_pointers(%dst)
  %rows: f64[edges, 3] = embedding(%x, %dst_order)
  %met: f64[nodes, 3] = csr_sum(%rows, %dst_runs)
  %order: i64[nodes] = sort_order(%kind)
  %turned: f64[nodes, 3] = embedding(%met, %order)
  %split: f64[nodes, 3, 1] = reshape(%turned)
  %risen: f64[nodes, 3, 1] = FUNCTION
  %y: f64[nodes, 3, 1] = neg(%risen)
  return %y as y
}
"""


def _names(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def _projected() -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(0)
    graph = parse_graph(PROJECTED)
    kind = torch.tensor([3, 0, 0, 1, 3, 1, 0])
    return graph, [torch.randn(7, 3).double(), kind, torch.randn(4, 3, 2).double(), torch.randn(4, 2).double()]


def test_a_bias_by_type_is_added_to_rows_as_they_are_put_back() -> None:
    graph, inputs = _projected()
    wanted = evaluate(graph, inputs)
    assert settle_arrivals(graph) == 1
    verify(graph)
    [product] = [node for node in graph.nodes if node.operator.name == "grouped_linear"]
    assert product.inputs[4].producer.operator.name == "sort_order"  # type: ignore[union-attr]
    assert [use.node.operator.name for use in product.output.uses] == ["add"]
    assert "inverse_order" not in _names(graph)
    torch.testing.assert_close(evaluate(graph, inputs), wanted, rtol=0, atol=0)
    assert settle_arrivals(graph) == 0


def test_rows_that_others_read_in_their_order_stay() -> None:
    graph, inputs = _projected()
    [product] = [node for node in graph.nodes if node.operator.name == "grouped_linear"]
    graph.set_outputs([*graph.outputs, product.output], ["z", "ordered"])
    before, wanted = str(graph), evaluate(graph, inputs)
    assert settle_arrivals(graph) == 0
    assert str(graph) == before
    torch.testing.assert_close(evaluate(graph, inputs), wanted, rtol=0, atol=0)


def _summed(function: str) -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(0)
    graph = parse_graph(SUMMED.replace("FUNCTION", function))
    dst, kind = torch.tensor([1, 4, 0, 1, 1]), torch.tensor([3, 0, 0, 1, 3])
    return graph, [torch.randn(5, 3).double(), dst, kind]


def test_a_function_of_sums_is_computed_where_they_are() -> None:
    graph, inputs = _summed("gelu(%split)")
    wanted = evaluate(graph, inputs)
    assert settle_departures(graph) == 1
    verify(graph)
    [after] = [node for node in graph.nodes if node.operator.name == "gelu"]
    [view] = [node for node in graph.nodes if node.operator.name == "reshape"]
    assert after.inputs[0] is view.output
    assert view.inputs[0].producer.operator.name == "csr_sum"  # type: ignore[union-attr]
    torch.testing.assert_close(evaluate(graph, inputs), wanted, rtol=0, atol=0)


def test_a_function_of_two_values_stays() -> None:
    graph, _ = _summed("mul(%split, %split)")
    before = str(graph)
    assert settle_departures(graph) == 0
    assert str(graph) == before
