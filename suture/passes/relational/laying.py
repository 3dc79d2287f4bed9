"""How a graph is laid out: every node reads its operands in its home, and what meets or is multiplied by type becomes operators on sorted rows.

A value is read in another order than its home's through a lookup, which kernels see through. What is a lookup itself is looked up anew in the order
wanted, and so is a wide pointwise value whose operands are lookups or narrow: gathering what it is made of beats keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, Size
from suture.ir.types import Attribute
from suture.passes.relational.homes import SEGMENTS, Homes, is_narrow
from suture.passes.relational.orders import Order, is_sorted

REPEATED = 4  # how deep pointwise values may be made of each other to be computed again in another order


class Laying:
    """Lays out one graph, in place.

    :param known: the values that edges alone decide
    :param rows: the most rows of a tile
    """

    def __init__(self, graph: Graph, known: set[Value], rows: int) -> None:
        self.graph = graph
        self.chosen = Homes(graph, known, rows)
        self.spaces, self.orders = self.chosen.spaces, self.chosen.orders
        self.operands, self.bases = self.chosen.operands, self.chosen.bases
        self._now: dict[Value, Value] = {}  # what sites have become
        self._read: dict[tuple[Value, Order], Value] = {}

    @property
    def sites(self) -> list[Node]:
        """The nodes that sum over equal indices or multiply by type."""
        return self.chosen.sites

    def run(self) -> None:
        """Choose the orders, then rewrite every node."""
        self.chosen.choose()
        for node in self.chosen.nodes:
            self._write(node)
        names = self.graph.output_names
        self.graph.set_outputs([self._in_arrival_order(value) for value in self.graph.outputs], names)
        self.graph.sort()
        self.graph.remove_dead()

    def describe(self) -> Iterator[str]:
        """A line for every order."""
        return self.chosen.describe()

    # reading

    def _reading(self, value: Value, order: Order) -> Value:
        """A value over sorted rows, in an order."""
        key = (value, order)
        if key not in self._read:
            self._read[key] = self._made(value, order)
        return self._read[key]

    def _made(self, value: Value, order: Order) -> Value:
        if self.spaces.is_source(value):
            return value if order.order is None else self.orders.index_in(value, order)
        node = value.producer
        assert node is not None
        if self.chosen.is_lookup(node):
            return self._looked_up(node, order)
        home = self.chosen.home(value)
        now = self._now.get(value, value)
        if home is order:
            return now
        if self._repeats(value, REPEATED):
            return self._repeated(node, order)
        at = self.orders.between(home, order)
        return now if at is None else self._add("embedding", [now, at], like=node)

    def _looked_up(self, node: Node, order: Order) -> Value:
        table, index = self.operands[node]
        assert table is not None and index is not None
        if is_sorted(index, order):
            shape = (index.shape[0], *table.shape[1:])
            rows = self._arrived(node, 0)
            pointers = self.orders.pointers(index, table.shape[0])
            return self._add("csr_spread", [rows, pointers], like=node, shapes=[shape])
        at = self.orders.index_in(index, order)
        if (
            not self.spaces.is_source(table)
            and not self.chosen.is_lookup(table.producer)
            and self.spaces.of_operand(node, 0, 0) in self.bases
        ):
            home = self.chosen.home(table)
            if home.rank is not None:
                return self._add(
                    "embedding", [self._now.get(table, table), self.orders.lookup(home.rank, at)], like=node
                )
        return self._add("embedding", [self._arrived(node, 0), at], like=node)

    def _arrived(self, node: Node, index: int) -> Value:
        """An operand whose rows are chosen by an index: in the order in which they came."""
        value = self.operands[node][index]
        assert value is not None
        if self.spaces.is_source(value):
            return value
        space = self.spaces.of_operand(node, index, 0)
        return self._reading(value, self.bases[space]) if space in self.bases else self._now.get(value, value)

    def _repeats(self, value: Value, depth: int) -> bool:
        """Whether a value is wide, pointwise and made of what is cheap to read in any order."""
        node = value.producer
        if (
            node is None
            or node not in self.chosen.homes
            or node in self.sites
            or not node.operator.pointwise
            or not depth
        ):
            return False
        space = self.chosen.rows(node)
        if space is None or not self.chosen.follows(node, space) or is_narrow(value):
            return False
        return all(
            operand is None or self.spaces.is_source(operand) or self.chosen.is_lookup(operand.producer) or is_narrow(operand)
            or space not in self.spaces.operand_spaces(node, k) or self._repeats(operand, depth - 1)
            for k, operand in enumerate(self.operands[node])
        )  # fmt: skip

    def _repeated(self, node: Node, order: Order) -> Value:
        space = self.chosen.rows(node)
        inputs = [
            None if value is None
            else self._reading(value, order) if space in self.spaces.operand_spaces(node, k)
            else self._now.get(value, value)
            for k, value in enumerate(self.operands[node])
        ]  # fmt: skip
        shapes = [value.shape for value in node.outputs] if node.operator.declared else None
        return self.graph.add(node.operator, inputs, node.attributes, shapes=shapes, path=node.path).output

    # writing

    def _write(self, node: Node) -> None:
        """Let a node read its operands in its home, a site by operators on sorted rows."""
        name = node.operator.name
        if node in self.sites:
            self._now[node.output] = self._segments(node) if name in SEGMENTS else self._product(node)
            return
        space, home = self.chosen.rows(node), self.chosen.homes.get(node)
        follows = space is not None and self.chosen.follows(node, space)
        for index, value in enumerate(self.operands[node]):
            if value is None:
                continue
            places = self.spaces.operand_spaces(node, index)
            if self.spaces.is_source(value):
                for dim, place in enumerate(places):
                    if place in self.bases:
                        order = home if follows and home is not None and place is space else self.bases[place]
                        value = self._permuted(value, dim, order)
            elif places and places[0] in self.bases:
                order = home if follows and home is not None and places[0] is space else self.bases[places[0]]
                value = self._reading(value, order)
            else:
                value = self._now.get(value, value)
            node.replace_input(index, value)

    def _permuted(self, value: Value, dim: int, order: Order) -> Value:
        """What comes in, with a dimension put in order."""
        if order.order is None:
            return value
        if dim == 0:
            return self.orders.index_in(value, order)
        return self.graph.add("index", [value, order.order], {"dims": (dim,)}).output

    def _product(self, node: Node) -> Value:
        order, types = self.chosen.homes[node], self.chosen.index(node)
        x, w = self.operands[node][:2]
        assert x is not None and w is not None
        rows = self._reading(x, order)
        if node.operator.name == "typed_outer":
            pointers = self.orders.pointers(types, node.output.shape[0])
            return self._add("grouped_outer", [rows, self._reading(w, order), pointers], like=node)
        pointers = self.orders.pointers(types, w.shape[0])
        return self._add("grouped_linear", [rows, self._arrived(node, 1), *self.orders.tiles(pointers)], like=node)

    def _segments(self, node: Node) -> Value:
        order, index = self.chosen.homes[node], self.chosen.index(node)
        x = self.operands[node][0]
        assert x is not None
        rows = self._reading(x, order)
        if node.operator.name == "segment_softmax":
            return self._softmax(node, rows)
        pointers = self.orders.pointers(index, node.output.shape[0])
        if node.operator.name == "segment_sum":
            return self._add("csr_sum", [rows, pointers], like=node)
        return self._add("csr_max", [rows, pointers], {"empty": node.attributes["empty"]}, like=node)

    def _softmax(self, node: Node, rows: Value) -> Value:
        """exp(x - the segment's maximum) over the segment's sum of that."""
        count = node.attributes["segments"]
        assert isinstance(count, int | Size)
        pointers = self.orders.pointers(self.chosen.index(node), count)
        highest = self._add("csr_max", [rows, pointers], like=node)
        below = self._add("csr_spread", [highest, pointers], like=node, shapes=[rows.shape])
        risen = self._add("exp", [self._add("sub", [rows, below], like=node)], like=node)
        total = self._add("csr_sum", [risen, pointers], like=node)
        return self._add(
            "div", [risen, self._add("csr_spread", [total, pointers], like=node, shapes=[rows.shape])], like=node
        )

    def _in_arrival_order(self, value: Value) -> Value:
        """What the graph returns, its rows as they came in."""
        if self.spaces.is_source(value):
            return value
        made = self._now.get(value, value)
        for dim in range(value.rank):
            space = self.spaces.of_result(value, dim)
            if space not in self.bases:
                continue
            order = self.chosen.home(value) if dim == 0 else self.bases[space]
            if order.rank is not None and dim == 0:
                made = self.graph.add("embedding", [made, order.rank]).output
            elif order.rank is not None:
                made = self.graph.add("index", [made, order.rank], {"dims": (dim,)}).output
        return made

    def _add(
        self,
        operator: str,
        inputs: list[Value],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        like: Node,
        shapes: Sequence[Sequence[Dim]] | None = None,
    ) -> Value:
        return self.graph.add(operator, inputs, attributes, shapes=shapes, path=like.path).output
