"""What it costs to leave at each exit."""

from __future__ import annotations

from collections.abc import Iterable

from suture.ir.graph import Graph, Node, Value
from suture.ir.regions.cuts import ancestors
from suture.ir.sizes import Dim, evaluate_size, symbols_of
from suture.passes.exits.sites import exits_of, result_of


def exit_costs(graph: Graph) -> tuple[int, ...]:
    """MACs per sample up to each exit, with all heads and gates before it and its own; last, those of going all the way.

    :raises SutureError: EXIT, if the graph has no exits
    """
    costs: list[int] = []
    done: set[Node] = set()
    for item in exits_of(graph):
        done |= ancestors(item.logits) | ancestors(item.gate)
        costs.append(macs_per_sample(graph, done))
    return (*costs, macs_per_sample(graph, done | ancestors(result_of(graph))))


def model_cost(graph: Graph) -> int:
    """MACs per sample of the model without its exits."""
    return macs_per_sample(graph, ancestors(result_of(graph)))


def macs_per_sample(graph: Graph, nodes: Iterable[Node]) -> int:
    """The multiply-accumulates of some nodes for one sample, as `Graph.stats` counts them."""
    total: Dim = 0
    for node in nodes:
        total = total + node.operator.macs(node)
    numbers = {name: 1 if name == "batch" else graph.hints.get(name, 1) for name in symbols_of(total)}
    fixed = _fixed_batch(graph.inputs)
    return evaluate_size(total, numbers) // fixed


def _fixed_batch(inputs: list[Value]) -> int:
    """The number of samples that a graph without a symbolic batch takes."""
    first = inputs[0].shape[0] if inputs and inputs[0].rank else 1
    return first if isinstance(first, int) else 1
