"""How values lie in memory where one compiled graph hands them to another."""

from __future__ import annotations

from suture.codegen.layouts.orders import choose, plain
from suture.ir.graph import Graph, Value


def storage_orders(graph: Graph) -> dict[Value, tuple[int, ...]]:
    """The dimensions of values in the order in which compiled code for a processor lays them out, outermost first, where that is not their own."""
    return {value: order for value, order in choose(graph).items() if order != plain(value.rank)}


__all__ = ["storage_orders"]
