"""Reductions that are nothing of no elements: the largest of none. The sizes that must not be zero are known before anything runs.

Only what the graph itself asks for counts: the maximum that a softmax takes away, once it is written out, may be over nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError
from suture.ir.expansion import expanded
from suture.ir.graph import Graph, Node
from suture.ir.sizes import Dim, evaluate_size, product, symbols_of


@dataclass(frozen=True)
class Extreme:
    """A reduction over elements of which there must be at least one.

    :param node: the node that reduces
    :param size: over how many elements
    """

    node: Node
    size: Dim

    def __str__(self) -> str:
        place = f" ({self.node.path})" if self.node.path else ""
        return f"{self.node.operator.name} {self.node.outputs[0].name}{place} is over no elements"


def find_extremes(graph: Graph) -> tuple[Extreme, ...]:
    """The extremes that a graph asks for over sizes that could be zero; one for each size."""
    found: dict[Dim, Extreme] = {}
    for node in expanded(graph).nodes:
        source = node.inputs[0] if node.inputs else None
        if source is None or not _chooses(node):
            continue
        dims = node.attributes["dim" if node.operator.name == "l_normalise" else "dims"]
        items = dims if isinstance(dims, tuple) else (dims,)
        size = product([source.shape[dim] for dim in items if isinstance(dim, int) and source.rank])
        if not isinstance(size, int) or size == 0:
            found.setdefault(size, Extreme(node, size))
    return tuple(found.values())


def refuse_empty(extremes: tuple[Extreme, ...], symbols: Mapping[str, int], where: str) -> None:
    """Refuse sizes at which something is the largest of nothing.

    :raises SutureError: INPUT, naming the reduction
    """
    for each in extremes:
        if symbols.keys() >= set(symbols_of(each.size)) and evaluate_size(each.size, symbols) == 0:
            raise SutureError(Code.INPUT, str(each), where=where, remedy=f"{each.size} must be at least 1")


def _chooses(node: Node) -> bool:
    """Whether a node's result is one of its elements, or where that is."""
    name = node.operator.name
    if name in ("vector_norm", "l_normalise"):
        p = node.attributes["p"]
        return isinstance(p, int | float) and (p < 0 or p == float("inf"))
    return name in ("amax", "amin", "argmax", "argmin")
