"""Random graphs with branches, each beside the plain graphs that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import strategies
import torch
from hypothesis import strategies as st

from suture.ir.control import choose
from suture.ir.graph import Graph, Node, Value
from suture.ir.interface import add_interface_input
from suture.ir.regions import Region
from suture.ir.splice import extract
from suture.ir.types import TensorType

SETTINGS = 3
SETTING = TensorType(torch.int64, ())


@dataclass(frozen=True)
class Switchable:
    """A graph with an input `setting`, and for every setting the plain graph of the same function."""

    graph: Graph
    plain: tuple[Graph, ...]


@st.composite
def switchable_graphs(draw: st.DrawFn, *, max_steps: int = 6) -> Switchable:
    """Some runs of nodes of a random graph become branches: the run itself, or the run and a sign; a table says which for every setting."""
    graph = draw(strategies.graphs(max_steps=max_steps))
    runs = draw(st.lists(st.tuples(st.integers(0, len(graph) - 1), st.integers(1, 3)), min_size=1, max_size=3))
    spans = disjoint([(start, min(start + length, len(graph))) for start, length in runs])
    spans = [span for span in spans if len(region(graph, span).outputs) == 1]
    table = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=3, max_size=3)))
    plain = tuple(negated(graph, [s for k, s in enumerate(spans) if not table[row, k]]) for row in range(SETTINGS))
    return Switchable(switched(graph, spans, table), plain)


def disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that do not overlap an earlier one in order."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def region(graph: Graph, span: tuple[int, int]) -> Region:
    return Region(graph, graph.nodes[slice(*span)], "run")


def negated(graph: Graph, spans: list[tuple[int, int]]) -> Graph:
    """The graph with a sign behind each of some runs."""
    result = graph.copy()
    for value in [region(result, span).output for span in spans]:
        add_sign(result, value)
    result.sort()
    return result


def add_sign(graph: Graph, value: Value) -> Node:
    node = graph.add("neg", [value])
    graph.replace_uses(value, node.output, keep=[node])
    return node


def switched(graph: Graph, spans: list[tuple[int, int]], table: torch.Tensor) -> Graph:
    """The graph with a branch for each of some runs, and the table that the input `setting` looks up."""
    result = graph.copy()
    regions = [region(result, span) for span in spans]
    setting = add_interface_input(result, "setting", SETTING)
    rows = result.add_parameter("table", table, "constant")
    row = result.add("index", [rows, setting], {"dims": (0,)}).output
    for k, part in enumerate(regions):
        predicate = result.add("select", [row], {"dim": 0, "index": k}).output
        other = extract(part)
        add_sign(other, other.outputs[0])
        old = part.output
        (new,) = choose(result, predicate, extract(part), other, part.inputs, name=f"choice_{k}")
        result.replace_uses(old, new)
        result.remove_dead()
    result.sort()
    return result
