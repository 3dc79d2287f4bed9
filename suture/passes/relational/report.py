"""What becomes of a relational graph on given edges: where each value lives, what was reordered, what it is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import evaluate_size, symbols_of
from suture.passes.relational.choosing import Decisions, apply, prepared
from suture.passes.relational.costs import CPU, Rates, estimate, known_sizes
from suture.passes.relational.locality import is_index
from suture.passes.relational.reordering import REORDERINGS
from suture.passes.relational.sides import parted_by
from suture.passes.relational.statistics import Statistics

_VIEWS = frozenset({"embedding", "reshape", "permute", "expand", "slice", "concat", "cast"})


@dataclass(frozen=True)
class ValueReport:
    """One value.

    :param lives: what it has rows for: "edge", "pair of type and src", "node", "type", or "weight" where it has none
    :param rows: how many
    :param computed: the operator
    :param changed: what was reordered there, or nothing
    :param predicted: microseconds; None for what is computed in the kernel that reads it
    :param measured: microseconds, where it was run
    """

    name: str
    lives: str
    rows: int
    shape: str
    computed: str
    changed: str
    predicted: float | None
    measured: float | None = None


@dataclass(frozen=True)
class RelationalReport:
    """A graph as decided for edges.

    :param before: microseconds predicted for the graph as it is written
    :param after: microseconds predicted for it as decided
    :param measured: microseconds measured, "as written" and "as decided", where it was run
    """

    statistics: Statistics
    decisions: Decisions
    values: tuple[ValueReport, ...]
    before: float
    after: float
    measured: Mapping[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        pairs = {" and ".join(sorted(names)): count for names, count in self.statistics.distinct.items()}
        return {
            "sizes": dict(self.statistics.sizes),
            "pairs": pairs,
            "steps": [str(step) for step in self.decisions.steps],
            "predicted": {"as written": self.before, "as decided": self.after},
            "measured": dict(self.measured),
            "values": [vars(value) for value in self.values],
        }


def report(
    graph: Graph,
    statistics: Statistics,
    decisions: Decisions,
    rates: Rates = CPU,
    measured: Mapping[str, float] | None = None,
) -> RelationalReport:
    """Say what becomes of a graph.

    :param measured: microseconds of values, by name, where they were measured
    :raises SutureError: RELATION, if the decisions are for another graph
    """
    decided = apply(graph, decisions)
    sizes = known_sizes(decided, statistics)
    costs = estimate(decided, statistics, rates)
    changed = {step.at[0]: step.kind for step in decisions.steps if step.kind in REORDERINGS}
    spaces = row_spaces(decided)
    weights = _of_weights(decided)
    values = tuple(
        ValueReport(
            value.name,
            "weight" if value in weights else spaces.get(str(value.shape[0]), "number") if value.rank else "number",
            evaluate_size(value.shape[0], sizes) if value.rank else 1,
            str(value.type),
            node.operator.name,
            changed.get(value.name, ""),
            costs.parts.get(value.name),
            (measured or {}).get(value.name),
        )
        for node in decided.nodes
        for value in node.outputs
        if value.dtype.is_floating_point and _is_told(value, node, weights, costs.parts, changed)
    )
    return RelationalReport(
        statistics, decisions, values, estimate(prepared(graph), statistics, rates).total, costs.total
    )


def row_spaces(graph: Graph) -> dict[str, str]:
    """What the sizes of a graph count: edges, nodes, pairs of indices."""
    found: dict[str, str] = {}
    for value in graph.inputs:
        if value.rank and symbols_of(value.shape[0]):
            found.setdefault(str(value.shape[0]), "node")
    for value in graph.inputs:
        if is_index(value) and any(_leads_to_nodes(node, place) for node, place in value.uses):
            found[str(value.shape[0])] = "edge"
    for node in graph.nodes:
        if node.operator.measures:
            parted = parted_by(node)
            names = [operand.name for operand in node.inputs if operand is not None]
            if parted is not None:
                names = [parted[0].name, f"{parted[1].name} or {parted[2].name}"]
            what = "pair of " if node.operator.name == "unique_rows" else "row of pairs of "
            found[str(node.outputs[0].shape[0])] = what + " and ".join(names)
    return found


def _leads_to_nodes(node: Node, place: int) -> bool:
    """Whether an operand is an index of as many things as there are."""
    if node.operator.name == "embedding":
        table = node.inputs[0]
        return place == 1 and table is not None and bool(symbols_of(table.shape[0]))
    if node.operator.name == "fewer_ends":
        return True
    return node.operator.name in ("segment_sum", "segment_max", "segment_softmax") and place == 1


def _of_weights(graph: Graph) -> set[Value]:
    """What is computed of parameters alone."""
    found: set[Value] = set(graph.parameters.values())
    for node in graph.nodes:
        if node.inputs and all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _is_told(
    value: Value, node: Node, weights: set[Value], parts: Mapping[str, float], changed: Mapping[str, str]
) -> bool:
    """Whether a value is one to tell of: not a view or a lookup of another, nor a step on the way to weights."""
    if value.name in parts or value.name in changed or value.is_graph_output():
        return True
    return node.operator.name not in _VIEWS and value not in weights
