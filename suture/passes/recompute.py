"""Which values of the forward part are kept for the way back, and which are computed again from those.

What the way back reads must be there when it runs: kept since it was made, or computed again from what was kept. Inputs and parameters are there
anyway, and so is what the graph returns. A cheap value may be computed again, from operands that are then needed themselves. Which values to keep,
so that they take the fewest bytes, is a minimum cut: every value is an edge of its bytes, computing again is free, and the cut separates what is
there anyway from what the way back reads (Chen et al. 2016, "Training deep nets with sublinear memory cost", put the question; the cut is that of
PyTorch's `min_cut_rematerialization_partition`). Of several smallest cuts it is the one nearest to the way back: no more is computed again than pays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import evaluate_size, symbols_of

_VIEWS = frozenset({
    "reshape", "permute", "expand", "slice", "select", "split", "clone", "concat", "pad", "repeat", "repeat_interleave", "flip", "roll", "triangle",
    "pixel_shuffle", "pixel_unshuffle", "full", "arange", "embedding", "csr_spread",
})  # fmt: skip
_DRAWN = frozenset({"dropout", "random_order"})
_ENDLESS = 1 << 62


def is_cheap(node: Node, *, training: bool = False) -> bool:
    """Whether a node costs no more than reading its operands: pointwise functions, views, values made from nothing, norms by running statistics.

    What is drawn is drawn once, and a norm that keeps running statistics in training sees a batch once.
    """
    name = node.operator.name
    if name in ("batch_norm", "instance_norm"):
        return not training and len(node.inputs) > 3 and node.inputs[3] is not None
    return (node.operator.pointwise or name in _VIEWS) and name not in _DRAWN


def bytes_of(graph: Graph, value: Value) -> int:
    """The size of a value, symbols at the sizes seen when traced."""
    numbers = {name: graph.hints.get(name, 1) for name in symbols_of(value.type.bytes)}
    return evaluate_size(value.type.bytes, numbers)


def read_back(forward: Collection[Node], backward: Sequence[Node]) -> list[Value]:
    """The results of the forward part that the way back reads, in the order of the forward part."""
    wanted = {value for node in backward for value in node.inputs if value is not None}
    return [value for node in forward for value in node.outputs if value in wanted]


def kept_bytes(graph: Graph, forward: Collection[Node], backward: Sequence[Node]) -> int:
    """What lives from the forward part to the way back, in bytes: not what the graph takes or returns, which lives anyway, nor views of it."""
    held = {_memory(value) for value in read_back(forward, backward)} - {_memory(value) for value in graph.outputs}
    return sum(bytes_of(graph, value) for value in held if value.producer is not None)


def _memory(value: Value) -> Value:
    """The value that a view reads."""
    while value.producer is not None and value.producer.operator.name in ("reshape", "permute", "clone"):
        source = value.producer.inputs[0]
        assert source is not None
        value = source
    return value


def recompute_cheap(
    graph: Graph, forward: Sequence[Node], backward: Sequence[Node], *, training: bool = False
) -> list[Node]:
    """Compute cheap values again next to the way back, where that leaves fewer bytes to keep; the nodes that were added.

    :param forward: the nodes of the forward part, in order
    :param backward: the nodes of the way back, in order, behind them
    :param training: whether the graph is run in training mode
    """
    wanted = read_back(forward, backward)
    kept = smallest_cut(graph, wanted, training=training)
    first: dict[Value, Node] = {}
    for node in backward:
        for value in node.inputs:
            if value is not None:
                first.setdefault(value, node)
    position = {node: k for k, node in enumerate(backward)}
    again: dict[Value, Node] = {}  # what is computed again, and the first node that reads it
    for node in reversed(forward):
        readers = [first[value] for value in node.outputs if value in first and value not in kept]
        if not readers:
            continue
        reader = min(readers, key=position.__getitem__)
        for value in node.outputs:
            again[value] = reader
        for operand in node.inputs:
            if operand is not None and (operand not in first or position[reader] < position[first[operand]]):
                first[operand] = reader
    return _duplicate(
        graph, [node for node in forward if node.outputs and node.outputs[0] in again], again, set(backward)
    )


def _duplicate(graph: Graph, nodes: Sequence[Node], again: Mapping[Value, Node], backward: set[Node]) -> list[Node]:
    made: list[Node] = []
    twins: dict[Value, Value] = {}
    for node in nodes:
        reader = again[node.outputs[0]]
        twin = graph.add(
            node.operator,
            [None if value is None else twins.get(value, value) for value in node.inputs],
            node.attributes,
            shapes=[value.shape for value in node.outputs] if node.operator.declared else None,
            path=node.path,
            name=[f"{value.name}_again" for value in node.outputs],
            before=reader,
        )
        made.append(twin)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            twins[old] = new
            for use in old.uses:
                if use.node in backward:
                    use.node.replace_input(use.index, new)
    return made


@dataclass
class _Edge:
    """An edge of the flow network, and the one that leads back."""

    target: int
    room: int
    back: int = 0


@dataclass
class _Flow:
    """A flow network; the largest flow by shortest augmenting paths in layers (Dinic 1970)."""

    edges: list[list[_Edge]] = field(default_factory=list)

    def add_vertex(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def add_edge(self, source: int, target: int, room: int) -> None:
        there, back = _Edge(target, room), _Edge(source, 0)
        there.back, back.back = len(self.edges[target]), len(self.edges[source])
        self.edges[source].append(there)
        self.edges[target].append(back)

    def saturate(self, source: int, sink: int) -> None:
        """Send as much as goes."""
        while (level := self._levels(source))[sink] >= 0:
            places = [0] * len(self.edges)
            while self._push(source, sink, level, places):
                pass

    def _levels(self, source: int) -> list[int]:
        level, waiting = [-1] * len(self.edges), deque([source])
        level[source] = 0
        while waiting:
            here = waiting.popleft()
            for edge in self.edges[here]:
                if edge.room and level[edge.target] < 0:
                    level[edge.target] = level[here] + 1
                    waiting.append(edge.target)
        return level

    def _push(self, source: int, sink: int, level: Sequence[int], places: list[int]) -> int:
        """One path through the layers, filled; what went along it."""
        path: list[_Edge] = []
        here = source
        while here != sink:
            while places[here] < len(self.edges[here]):
                edge = self.edges[here][places[here]]
                if edge.room and level[edge.target] == level[here] + 1:
                    break
                places[here] += 1
            else:
                if not path:
                    return 0
                edge = path.pop()
                here = self.edges[edge.target][edge.back].target
                places[here] += 1
                continue
            path.append(edge)
            here = edge.target
        amount = min(edge.room for edge in path)
        for edge in path:
            edge.room -= amount
            self.edges[edge.target][edge.back].room += amount
        return amount

    def reaching(self, sink: int) -> set[int]:
        """The vertices from which more could flow to the sink."""
        found, waiting = {sink}, [sink]
        while waiting:
            here = waiting.pop()
            for edge in self.edges[here]:
                if edge.target not in found and self.edges[edge.target][edge.back].room:
                    found.add(edge.target)
                    waiting.append(edge.target)
        return found


def smallest_cut(graph: Graph, wanted: Sequence[Value], *, training: bool = False) -> set[Value]:
    """The values to keep, so that the wanted ones are there or can be computed again, and the kept ones take the fewest bytes."""
    flow = _Flow()
    source, sink = flow.add_vertex(), flow.add_vertex()
    ends: dict[Value, tuple[int, int]] = {}
    returned = set(graph.outputs)

    def vertices(value: Value) -> tuple[int, int]:
        if value not in ends:
            ends[value] = flow.add_vertex(), flow.add_vertex()
            flow.add_edge(*ends[value], 0 if value in returned else bytes_of(graph, value))
        return ends[value]

    waiting, seen = list(wanted), set(wanted)
    for value in wanted:
        flow.add_edge(vertices(value)[1], sink, _ENDLESS)
    while waiting:
        value = waiting.pop()
        node = value.producer
        assert node is not None
        if not is_cheap(node, training=training):
            flow.add_edge(source, vertices(value)[0], _ENDLESS)
            continue
        for operand in node.inputs:
            if operand is None or isinstance(operand, Parameter) or operand.producer is None:
                continue
            flow.add_edge(vertices(operand)[1], vertices(value)[0], _ENDLESS)
            if operand not in seen:
                seen.add(operand)
                waiting.append(operand)
    flow.saturate(source, sink)
    after = flow.reaching(sink)
    return {value for value, (before, behind) in ends.items() if before not in after and behind in after}
