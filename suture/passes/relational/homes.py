"""Which order every space of rows gets, and in which order each value is computed.

A *home* is the order that a value is computed in. A value that all readers want in one order (rows sorted by type, say) is computed in it; else it is
computed in its space's own order, and others read it through a lookup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from suture.ir.graph import Graph, Node, Value
from suture.ir.notation import Role
from suture.ir.sizes import product
from suture.passes.relational.orders import Order, Orders, is_sorted, sort_keys
from suture.passes.relational.structure import Space, Spaces

SEGMENTS = ("segment_sum", "segment_max", "segment_softmax")
TYPED = {"typed_linear": 2, "typed_outer": 2}  # the operand that holds the types
NARROW = 8  # a value of at most so many numbers a row is read through a lookup, never computed twice


class Homes:
    """The orders of one graph, which makes its operators for sorting at the end of it.

    :param known: the values that edges alone decide
    :param rows: the most rows of a tile
    """

    def __init__(self, graph: Graph, known: set[Value], rows: int) -> None:
        self.graph = graph
        self.known = known
        self.spaces = Spaces(graph, {*graph.inputs, *graph.parameters.values(), *known})
        self.orders = Orders(graph, rows)
        self.nodes = [node for node in graph.nodes if not all(value in known for value in node.outputs)]
        self.operands = self.spaces.operands
        self.sites = [node for node in self.nodes if self.index_of(node) is not None]
        self.wanted: dict[Space, list[Value]] = {}  # the indices that rows of a space are wanted sorted by
        self.bases: dict[Space, Order] = {}  # the order of each space
        self.homes: dict[Node, Order] = {}  # the order that each node works in
        self._secondary: dict[Space, list[Order]] = {}

    def choose(self) -> None:
        """Choose the order of every space, then of every node."""
        for node in self.sites:
            self.wanted.setdefault(self.space(node), []).append(self.index(node))
        for node in self.sites:
            for index in range(len(node.inputs)):
                for space in self.spaces.operand_spaces(node, index)[1:]:
                    space.bound = True
        for space in self.wanted:
            self.bases[space] = self._base(space)
        self._settle()

    def describe(self) -> Iterator[str]:
        """A line for every order."""
        for space in self.wanted:
            base, others = self.bases[space], self._secondary.get(space, [])
            size = next(value.shape[0] for value in self.wanted[space])
            first = f"sorted by {_names(base)}" if base.order is not None else "in the order in which they come"
            yield f"{size} rows {first}" + "".join(f"; also by {_names(order)}" for order in others)

    def index_of(self, node: Node) -> Value | None:
        """The index that a site sorts its rows by, if the node is a site: its rows and its index have one first dimension."""
        name = node.operator.name
        if name not in SEGMENTS and name not in TYPED:
            return None
        index = node.inputs[TYPED.get(name, 1)]
        return index if index is not None and index in self.known and index.rank == 1 else None

    def index(self, node: Node) -> Value:
        """The index of a site."""
        found = self.index_of(node)
        assert found is not None
        return found

    def space(self, node: Node) -> Space:
        """The rows of a site."""
        return self.spaces.of_operand(node, 0, 0)

    def _base(self, space: Space) -> Order:
        """The order of a space: by the index that most segments run over; as it came, where that is sorted already or something holds on to it."""
        unsorted = Order()
        wanted = self.wanted[space]
        if space.bound or any(is_sorted(index, unsorted) for index in wanted):
            return unsorted
        segments, types = Counter[Value](), Counter[Value]()
        for node in self.sites:
            if self.space(node) is space:
                (types if node.operator.name in TYPED else segments)[self.index(node)] += 1
        (chosen, _), *_ = (segments or types).most_common(1)
        major = self._longest(chosen, wanted)
        minor = next((index for index, _ in types.most_common() if index not in sort_keys(major)), None)
        return self.orders.sort(major, minor if len(sort_keys(major)) == 1 else None)

    @staticmethod
    def _longest(index: Value, wanted: list[Value]) -> Value:
        """Of the indices that sort as this one and further, the furthest."""
        keys = sort_keys(index)
        return max([index, *(w for w in wanted if sort_keys(w)[: len(keys)] == keys)], key=lambda w: len(sort_keys(w)))

    def order_for(self, space: Space, index: Value) -> Order:
        """The order in which rows are read by those who want them sorted by an index."""
        base, known = self.bases[space], self._secondary.setdefault(space, [])
        for order in (base, *known):
            if is_sorted(index, order):
                return order
        major = self._longest(index, self.wanted[space])
        minor = base.keys[0] if base.keys and base.keys[0] not in sort_keys(major) else None
        known.append(self.orders.sort(major, minor))
        return known[-1]

    def _settle(self) -> None:
        """Give every node its home: from the last node to the first, the order that all who read its result want."""
        demands: dict[Value, set[Order]] = {value: {self.bases[space]} for value, space in self._returned()}
        for node in reversed(self.nodes):
            if self.index_of(node) is not None:
                self.homes[node] = home = self.order_for(self.space(node), self.index(node))
            else:
                space = self.rows(node)
                if space is None:
                    continue
                wishes = set().union(*(demands.get(value, ()) for value in node.outputs))
                home = next(iter(wishes)) if len(wishes) == 1 else self.bases[space]
                self.homes[node] = home if self.follows(node, space) else self.bases[space]
                home = self.homes[node]
            for index, value in enumerate(node.inputs):
                if value is None or self.spaces.is_source(value) or not value.rank:
                    continue
                space = self.spaces.of_operand(node, index, 0)
                if space in self.bases:
                    own = space is (self.space(node) if node in self.sites else self.rows(node))
                    demands.setdefault(value, set()).add(home if own else self.bases[space])

        for node in self.nodes:
            if node in self.homes:
                self._come_home(node)

    def _come_home(self, node: Node) -> None:
        """Narrow numbers are computed where they come from: the order of a segment whose other numbers they follow from."""
        space = self.rows(node)
        if node in self.sites or space is None or not all(map(is_narrow, node.outputs)):
            return
        base = self.bases[space]
        for index, value in enumerate(self.operands[node]):
            if (
                value is None
                or self.spaces.is_source(value)
                or space not in self.spaces.operand_spaces(node, index)[:1]
            ):
                continue
            lookup = value.producer if self.is_lookup(value.producer) else None
            by = self.operands[lookup][1] if lookup is not None else None
            if self.home(value) is base if by is None else is_sorted(by, base):
                self.homes[node] = base

    def _returned(self) -> Iterator[tuple[Value, Space]]:
        for value in self.graph.outputs:
            if not self.spaces.is_source(value) and value.rank:
                space = self.spaces.of_result(value, 0)
                if space in self.bases:
                    yield value, space

    def rows(self, node: Node) -> Space | None:
        """The sorted space that a node's results, or else its operands, run over in their first dimension."""
        found = [self.spaces.of_result(value, 0) for value in node.outputs if value.rank]
        found += [
            self.spaces.of_operand(node, k, 0)
            for k, value in enumerate(self.operands[node])
            if value is not None and value.rank
        ]
        return next((space for space in found if space in self.bases), None)

    def follows(self, node: Node, space: Space) -> bool:
        """Whether a node computes each row by itself: it can do so in any order."""
        instance = self.spaces.instances[node]
        letters = {dims[0] for dims in instance.outputs if dims}
        if len(letters) != 1 or any(self.spaces.of_result(value, 0) is not space for value in node.outputs):
            return False
        (letter,) = letters
        if not isinstance(letter, str) or instance.roles[letter] is not Role.FREE:
            return False
        sides = [*(dims for dims in instance.inputs if dims), *instance.outputs]
        return not any(letter == term for dims in sides for term in dims[1:]) and all(
            place is not space
            for index, dims in enumerate(instance.inputs[: len(self.operands[node])])
            for dim, place in enumerate(self.spaces.operand_spaces(node, index))
            if dim or dims is None or dims[0] != letter
        )

    def is_lookup(self, node: Node | None) -> bool:
        """Whether a node looks rows up by an index of sorted rows: it can do so in any order."""
        if node is None or node.operator.name != "embedding" or node not in self.operands:
            return False
        index = self.operands[node][1]
        return (
            index is not None
            and index in self.known
            and index.rank == 1
            and self.spaces.of_operand(node, 1, 0) in self.bases
        )

    def home(self, value: Value) -> Order:
        """The order of a result: its node's, where it runs over that node's rows; else its space's."""
        node, space = value.producer, self.spaces.of_result(value, 0)
        assert node is not None
        if node in self.sites:
            own = node.operator.name in ("typed_linear", "segment_softmax")
        else:
            own = self.rows(node) is space
        return self.homes[node] if own else self.bases[space]


def is_narrow(value: Value) -> bool:
    """Whether a value has but a few numbers a row."""
    width = product(value.shape[1:])
    return isinstance(width, int) and width <= NARROW


def _names(order: Order) -> str:
    return ", then ".join(key.name for key in order.keys)
