"""Orders of rows: what each is sorted by, where its rows stand in others, where the runs of equal indices begin, and how runs are cut into tiles.

Everything here is made of inspector operators and lookups of integers, at the end of the graph: sort it when done.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim, Size, symbol, symbols_of


@dataclass(eq=False)
class Order:
    """An order of the rows of a space.

    :param keys: what rows are sorted by, the first before the second; empty where nothing is known
    :param order: the row, as it came in, that stands at each position; None for the order in which rows came in
    :param rank: the position of each row
    """

    keys: tuple[Value, ...] = ()
    order: Value | None = None
    rank: Value | None = None


def sort_keys(index: Value) -> tuple[Value, ...]:
    """What rows are sorted by when they are sorted by an index: the number of a unique pair sorts as the pair does."""
    node = index.producer
    if node is not None and node.operator.name == "unique_rows" and index.index == 1:
        return tuple(key for operand in node.inputs if operand is not None for key in sort_keys(operand))
    if node is not None and node.operator.name == "embedding":
        table, rank = node.inputs
        if table is not None and rank is not None and table.producer is not None and rank.producer is not None:
            made, first = rank.producer, table.producer.inputs[-1]
            if table.producer.operator.name == "embedding" and rank.index == 1 and first is made.outputs[0]:
                origin = table.producer.inputs[0]
                if made.operator.name == "unique_rows" and origin in made.inputs and origin is not None:
                    return sort_keys(origin)
    return (index,)


def born_keys(index: Value) -> tuple[Value, ...] | None:
    """For an index over unique pairs, what those came sorted by, if the index is the first part of that; else None."""
    keys = sort_keys(index)
    found: tuple[Value, ...] | None = None
    looked: list[Value] = []
    for key in keys:
        node = key.producer
        if node is None or node.operator.name != "embedding" or node.inputs[1] is None or node.inputs[0] is None:
            return None
        first = node.inputs[1]
        if first.producer is None or first.producer.operator.name != "unique_rows" or first.index != 0:
            return None
        pairs = sort_keys(first.producer.outputs[1])
        if found is not None and found != pairs:
            return None
        found = pairs
        looked.extend(sort_keys(node.inputs[0]))
    return found if found is not None and found[: len(looked)] == tuple(looked) else None


def is_sorted(index: Value, order: Order) -> bool:
    """Whether equal values of an index are neighbours, in rising order."""
    keys = sort_keys(index)
    if order.keys[: len(keys)] == keys:
        return True
    return order.order is None and born_keys(index) is not None


class Orders:
    """Makes orders in a graph, each thing once.

    :param rows: the most rows of a tile
    """

    def __init__(self, graph: Graph, rows: int) -> None:
        self.graph = graph
        self.rows = rows
        self._made: dict[Hashable, tuple[Value, ...]] = {}
        self._taken = {name for value in graph.values() for dim in value.shape for name in symbols_of(dim)}

    def sort(self, major: Value, minor: Value | None = None) -> Order:
        """The order that sorts rows by one index, or by two."""
        keys = sort_keys(major)
        if minor is not None:
            keys += tuple(key for key in sort_keys(minor) if key not in keys)
        name = major.name
        (order,) = self._once(("sort", major, minor), "sort_order", [major, minor], name=[f"{name}_order"])
        (rank,) = self._once(("rank", order), "inverse_order", [order], name=[f"{name}_place"])
        return Order(keys, order, rank)

    def index_in(self, index: Value, order: Order) -> Value:
        """An index in an order."""
        return index if order.order is None else self.lookup(index, order.order)

    def between(self, here: Order, there: Order) -> Value | None:
        """Where the rows of one order stand in another: for each position there the position here; None if they are the same order."""
        if here is there:
            return None
        if here.rank is None:
            return there.order
        return here.rank if there.order is None else self.lookup(here.rank, there.order)

    def lookup(self, table: Value, at: Value) -> Value:
        """A lookup of integers by integers."""
        return self._once(("lookup", table, at), "embedding", [table, at], name=[f"{table.name}_at_{at.name}"])[0]

    def pointers(self, index: Value, count: Dim) -> Value:
        """Where the rows of each value of an index begin, in an order that sorts by it."""
        name = [f"{index.name}_runs"]
        return self._once(("runs", index, count), "run_pointers", [index], shapes=[[count + 1]], name=name)[0]

    def tiles(self, pointers: Value) -> tuple[Value, Value]:
        """The tiles that runs are cut into, and the run of each."""
        key = ("tiles", pointers)
        if key not in self._made:
            count, base = self._symbol("tiles"), pointers.name.removesuffix("_runs")
            shapes: list[list[Dim]] = [[count + 1], [count]]
            name = [f"{base}_tiles", f"{base}_of_tile"]
            self._once(key, "tile_runs", [pointers], {"rows": self.rows}, shapes=shapes, name=name)
        tiles, types = self._made[key]
        return tiles, types

    def _symbol(self, base: str) -> Size:
        name, number = base, 0
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return symbol(name)

    def _once(
        self,
        key: Hashable,
        operator: str,
        inputs: Sequence[Value | None],
        attributes: dict[str, int] | None = None,
        *,
        shapes: Sequence[Sequence[Dim]] | None = None,
        name: Sequence[str] = (),
    ) -> tuple[Value, ...]:
        if key not in self._made:
            given = list(inputs)
            while given and given[-1] is None:
                given.pop()
            self._made[key] = self.graph.add(operator, given, attributes, shapes=shapes, name=name).outputs
        return self._made[key]
