"""The inspector's own operators against their definitions: the same numbers, or the same error."""

from __future__ import annotations

import pytest
import torch

from suture import relational
from suture.backends.counting import count_ends, run_counting
from suture.drivers.relational.program import rounded
from suture.frontends.messages.graph import MessageGraph
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.operators.sides import different_ends
from suture.ir.semantics import run_node
from suture.ir.text import parse_graph
from suture.passes.relational.statistics import Statistics, measure, questions

CASES = {
    "sort one": ("sort_order", "%a: i64[n]", "i64[n]", ""),
    "sort two": ("sort_order", "%a: i64[n], %b: i64[n]", "i64[n]", ""),
    "unique one": ("unique_rows", "%a: i64[n]", "i64[k]; i64[n]", ""),
    "unique two": ("unique_rows", "%a: i64[n], %b: i64[n]", "i64[k]; i64[n]", ""),
    "runs": ("run_pointers", "%a: i64[n]", "i64[41]", ""),
    "sums": ("segment_sum", "%a: i64[n], %b: i64[n]", "i64[40]", ""),
    "fewer": ("fewer_ends", "%a: i64[n], %b: i64[n], %c: i64[n]", "bool[40]", ""),
}


class Scaled(torch.nn.Module):
    """Messages of a width, weighted by type."""

    def __init__(self, types: int, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(types, width, width))

    def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
        return g.sum(x[g.edges.src] @ self.weight[g.edges.type])


def edges(nodes: int, count: int, types: int, seed: int = 0) -> MessageGraph:
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, count), generator=draw)
    return MessageGraph(
        ends[0], ends[1], torch.randint(types, (count,), generator=draw), num_nodes=nodes, num_types=types
    )


def make(name: str) -> Graph:
    operator, inputs, results, attributes = CASES[name]
    outputs = [f"%y{k}: {each}" for k, each in enumerate(results.split("; "))]
    operands = ", ".join(part.split(":")[0] for part in inputs.split(", "))
    returned = ", ".join(each.split(":")[0] for each in outputs)
    return parse_graph(
        f"graph f({inputs}) {{\n  {', '.join(outputs)} = {operator}({operands}){attributes}\n  return {returned}\n}}\n"
    )


def both(graph: Graph, tensors: list[torch.Tensor]) -> None:
    (node,) = graph.nodes
    found, wanted = (run(node, tensors, {"n": len(tensors[0])}) for run in (run_counting, run_node))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [0, 1, 7, 300, 9000])
def test_operators_give_the_numbers_of_their_definitions(name: str, rows: int) -> None:
    graph = make(name)
    for seed, dtype in ((0, torch.int64), (1, torch.int32)):
        draw = torch.Generator().manual_seed(seed)
        both(graph, [torch.randint(40, (rows,), generator=draw).to(dtype) for _ in graph.inputs])


@pytest.mark.parametrize("name", ["sort one", "sort two", "unique one", "unique two"])
@pytest.mark.parametrize("most", [1, 1 << 13, 1 << 33, 1 << 62])
def test_keys_of_any_length_sort(name: str, most: int) -> None:
    draw = torch.Generator().manual_seed(most % 7)
    graph, drawn = make(name), torch.randint(most, (500, 2), generator=draw)
    keys = [drawn[torch.randint(500, (5000,), generator=draw), 0], torch.randint(3, (5000,), generator=draw)]
    both(graph, keys[: len(graph.inputs)])
    both(graph, [each.sort().values for each in keys[: len(graph.inputs)]])
    both(graph, [drawn[:, 0] % 100, drawn[:, 1] % 100][: len(graph.inputs)])  # not contiguous


def test_indices_outside_are_refused_as_by_the_definitions() -> None:
    for name, worst in (("runs", 40), ("runs", -1), ("sums", 40), ("fewer", 40)):
        graph = make(name)
        tensors = [torch.tensor([3, worst, 2]) for _ in graph.inputs]
        (node,) = graph.nodes
        with pytest.raises((SutureError, IndexError, RuntimeError)):
            run_counting(node, tensors, {"n": 3})


@pytest.mark.parametrize("text", ["f32[40]", "bool[40]", "i64[40, 1]", "f64[40]"])
def test_lookups_of_numbers_are_those_of_torch(text: str) -> None:
    tail = ", 1]" if ", 1" in text else "]"
    kind = text.split("[")[0]
    graph = parse_graph(
        f"graph f(%w: {text}, %i: i64[n]) {{\n  %y: {kind}[n{tail} = embedding(%w, %i)\n  return %y\n}}\n"
    )
    dtype = graph.inputs[0].dtype
    table = torch.arange(40).sub(7).to(dtype).reshape(graph.inputs[0].shape)
    both(graph, [table, torch.randint(40, (100,))])
    both(graph, [table, torch.arange(0)])


def test_tiles_and_meeting_rows_are_those_of_their_definitions() -> None:
    graph = parse_graph(
        "graph f(%p: i64[6]) {\n  %a: i64[k + 1], %b: i64[k] = tile_runs(%p) rows=3\n  return %a, %b\n}\n"
    )
    both(graph, [torch.tensor([0, 0, 4, 10, 10, 11])])
    both(graph, [torch.zeros(6, dtype=torch.int64)])
    side, first = torch.rand(200) < 0.5, torch.arange(0, 200, 3)
    for together in ("true", "false"):
        text = f"graph f(%s: bool[e], %u: i64[u]) {{\n  %y: i64[k] = meeting_rows(%s, %u) together={together}\n  return %y\n}}\n"
        both(parse_graph(text), [side, first])


def test_counted_ends_are_those_that_differ() -> None:
    draw = torch.Generator().manual_seed(3)
    type, end = torch.randint(9, (400,), generator=draw), torch.randint(60, (400,), generator=draw)
    wanted = [len(set(end[type == kind].tolist())) for kind in range(9)]
    assert count_ends(type, end, 9).tolist() == different_ends(type, end, 9).tolist() == wanted


def test_pairs_are_counted_once_for_all_that_is_asked() -> None:
    g = edges(30, 200, 5)
    graph = relational.trace(Scaled(5, 3), g, torch.randn(30, 3))
    given = {"src": g.src, "dst": g.dst, "type": g.type}
    found = measure(graph, given, questions(graph), count_ends)
    assert found == measure(graph, given)
    for end in ("src", "dst"):
        assert found.pairs("type", end) == len(set(zip(given["type"].tolist(), given[end].tolist(), strict=True)))


def test_batches_that_are_alike_are_decided_for_once() -> None:
    compiled = relational.compile(Scaled(5, 3))
    for seed in range(8):
        drawn = edges(400 + seed, 2000 + 7 * seed, 5, seed)
        g = MessageGraph(drawn.src, drawn.dst // 4, drawn.type, num_nodes=drawn.num_src, num_types=5)
        x = torch.randn(g.num_src, 3)
        torch.testing.assert_close(compiled(g, x), compiled.program(g, x))
    (program,) = compiled.programs()
    assert len(program._decisions) == 1


def test_rounded_statistics_keep_their_proportions() -> None:
    exact = Statistics({"edges": 48810, "nodes": 7262}, {frozenset({"type", "src"}): 24000}, {}, {
        ("type", "src", "dst"): (15000, 31000, 32810), ("type", "dst", "src"): (15000, 32810, 31000),
    })  # fmt: skip
    found = rounded(exact)
    assert found.sizes["edges"] == 1 << 16
    assert abs(found.sizes["nodes"] / found.sizes["edges"] / (7262 / 48810) - 1) < 0.1
    assert abs(found.distinct[frozenset({"type", "src"})] / found.sizes["edges"] - 24000 / 48810) <= 1 / 16
    pairs, into, behind = found.parted["type", "src", "dst"]
    assert found.parted["type", "dst", "src"] == (pairs, behind, into)
    assert into + behind == pairs + found.sizes["edges"]
    assert rounded(Statistics()) == Statistics()
