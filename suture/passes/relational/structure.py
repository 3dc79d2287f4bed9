"""What the edges of a graph alone decide: the integers that follow from index inputs, and which dimensions of values run over the same rows."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.notation import Instance, Role, letters_of

INDICES = (torch.int64, torch.int32)
_BOUND = (Role.ORDERED, Role.LOOKUP, Role.CONDITIONAL)


def structural(graph: Graph) -> set[Value]:
    """The values that are integers (or truth values) and follow from integer inputs and constants alone."""
    found: set[Value] = {value for value in graph.inputs if value.dtype in INDICES}
    found |= {value for value in graph.parameters.values() if value.dtype in INDICES and not value.requires_grad}
    for node in graph.nodes:
        if node.bodies or node.operator.training:
            continue
        known = all(value is None or value in found for value in node.inputs)
        if known and all(value.dtype in INDICES or value.dtype == torch.bool for value in node.outputs):
            found.update(node.outputs)
    return found


def share_structure(graph: Graph, known: set[Value]) -> None:
    """Let equal structural nodes be one, so that equal indices are the same value."""
    seen: dict[Hashable, Node] = {}
    for node in graph.nodes:
        if not node.outputs or not all(value in known for value in node.outputs):
            continue
        types = tuple(value.type for value in node.outputs)
        key = (node.operator.name, node.inputs, tuple(sorted((k, str(v)) for k, v in node.attributes.items())), types)
        first = seen.setdefault(key, node)
        if first is not node:
            for old, new in zip(node.outputs, first.outputs, strict=True):
                graph.replace_uses(old, new)
                known.discard(old)
            graph.remove(node)


class Space:
    """Rows that dimensions of several values run over together, in one order. A bound space keeps the order it has."""

    def __init__(self) -> None:
        self.parent: Space | None = None
        self.bound = False

    def root(self) -> Space:
        """The space that this one has become part of."""
        found = self
        while found.parent is not None:
            found = found.parent
        return found


class Spaces:
    """Which dimensions of which values run over the same rows.

    Values that come in (inputs, parameters, structure) are in nobody's order yet: each use of one is a place of its own.

    :param sources: the values that come in
    """

    def __init__(self, graph: Graph, sources: set[Value]) -> None:
        self.sources = sources
        self.instances: dict[Node, Instance] = {}
        self.operands: dict[Node, tuple[Value | None, ...]] = {}  # as they were: nodes may be rewritten meanwhile
        self._places: dict[Hashable, Space] = {}
        for node in graph.nodes:
            if not all(value in sources for value in node.outputs):
                self._visit(node)

    def is_source(self, value: Value) -> bool:
        """Whether a value comes in from outside, in the order that it has there."""
        return value in self.sources

    def of_operand(self, node: Node, index: int, dim: int) -> Space:
        """The rows that a dimension of an operand runs over."""
        value = self.operands[node][index]
        assert value is not None
        return self._space((node, index, dim) if value in self.sources else (value, dim))

    def of_result(self, value: Value, dim: int) -> Space:
        """The rows that a dimension of a result runs over."""
        return self._space((value, dim))

    def operand_spaces(self, node: Node, index: int) -> list[Space]:
        """The rows of every dimension of an operand."""
        value = self.operands[node][index]
        return [] if value is None else [self.of_operand(node, index, dim) for dim in range(value.rank)]

    def _space(self, key: Hashable) -> Space:
        return self._places.setdefault(key, Space()).root()

    def _unite(self, a: Space, b: Space) -> None:
        first, second = a.root(), b.root()
        if first is not second:
            second.parent = first
            first.bound |= second.bound

    def _visit(self, node: Node) -> None:
        self.operands[node] = node.inputs
        instance = self.instances[node] = node.operator.instance(node)
        places = [
            (self.of_operand(node, index, dim), term)
            for index, (value, dims) in enumerate(zip(node.inputs, instance.inputs, strict=False))
            if value is not None and dims is not None
            for dim, term in enumerate(dims)
        ]
        places += [
            (self.of_result(value, dim), term)
            for value, dims in zip(node.outputs, instance.outputs, strict=True)
            for dim, term in enumerate(dims)
        ]
        for space, term in places:
            if isinstance(term, str):
                self._unite(self._space((node, term)), space)
            elif not isinstance(term, int):
                space.root().bound = True
                for letter in letters_of(term):
                    self._space((node, letter)).bound = True
        for letter, role in instance.roles.items():
            if node.bodies or role in _BOUND:
                self._space((node, letter)).bound = True
