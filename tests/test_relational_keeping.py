"""What is kept for the way back is whole values: views of them are taken again."""

from __future__ import annotations

import torch

from suture.drivers.relational.keeping import keep_bases
from suture.ir.graph import Graph, Node
from suture.ir.parser import parse_graph
from suture.ir.semantics import evaluate
from suture.ir.verify import verify
from suture.passes.recompute import read_back

PARTED = """
graph parted(%x: f64[5, 6], %w: f64[6, 6]) {
  %made: f64[5, 6] = matmul(%x, %w)
  %a: f64[5, 2], %b: f64[5, 4] = split(%made) dim=1
  %turned: f64[4, 5] = permute(%b) dims=(1, 0)
  %y: f64[5, 2] = exp(%a)
  %more: f64[4, 5] = exp(%turned)
  %back: f64[5, 2] = mul(%y, %a)
  %again: f64[4, 5] = mul(%more, READ)
  return %y as y, %more as more, %back as back, %again as again
}
"""


def _parted(read: str) -> tuple[Graph, list[Node], list[Node]]:
    graph = parse_graph(PARTED.replace("READ", read))
    return graph, list(graph.nodes[:-2]), list(graph.nodes[-2:])


def test_views_that_are_as_large_as_what_they_are_of_are_taken_again() -> None:
    torch.manual_seed(0)
    graph, forward, backward = _parted("%turned")
    inputs = [torch.randn(5, 6).double(), torch.randn(6, 6).double()]
    wanted = evaluate(graph, inputs)
    assert keep_bases(graph, forward, backward) == 3  # both parts of a split, and a permutation of one
    verify(graph)
    behind = [node for node in graph.nodes if node not in forward]
    assert {value.name for value in read_back(forward, behind)} == {"made", "y", "more"}
    torch.testing.assert_close(evaluate(graph, inputs), wanted, rtol=0, atol=0)


def test_a_small_part_is_kept_alone() -> None:
    graph, forward, backward = _parted("%more")
    before = str(graph)
    assert keep_bases(graph, forward, backward) == 0
    assert str(graph) == before
