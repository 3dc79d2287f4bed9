"""The same computation for other rows: for unique pairs instead of edges, for nodes instead of the edges that look them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim
from suture.passes.relational.locality import row_operands


class Rows:
    """Writes values anew, each with one row for every row of another index space."""

    def __init__(self, graph: Graph, size: Dim, suffix: str, start: Callable[[Value], Value | None]) -> None:
        """
        :param size: the number of rows there
        :param suffix: what the names of the values end in
        :param start: the rows of a value that is not computed from rows, such as a lookup; None for one that is
        """
        self._graph = graph
        self._size = size
        self._suffix = suffix
        self._start = start
        self._known: dict[Value, Value] = {}

    @property
    def moved(self) -> Mapping[Value, Value]:
        """What has been written so far: from the old value to the new."""
        return self._known

    def move(self, value: Value) -> Value:
        """The value's rows there."""
        found = self._known.get(value)
        if found is None:
            found = self._start(value) or self._again(value)
            self._known[value] = found
        return found

    def _again(self, value: Value) -> Value:
        node = value.producer
        rows = row_operands(node) if node is not None else None
        assert node is not None and rows is not None, f"{value} is not computed row by row"
        inputs = [
            self.move(operand) if k in rows and operand is not None else operand
            for k, operand in enumerate(node.inputs)
        ]
        shapes = [(self._size, *value.shape[1:])] if node.operator.declared else None
        return self._graph.add(
            node.operator, inputs, node.attributes, shapes=shapes, path=node.path, name=f"{value.name}_{self._suffix}"
        ).output


def supersede(graph: Graph, made: Mapping[Value, Value]) -> None:
    """Let new values take the places and the names of old ones, in place; what nothing reads any more goes."""
    for old, new in made.items():
        graph.replace_uses(old, new)
        name = old.name
        graph.rename_result(old, f"{name}_before")
        graph.rename_result(new, name)
    graph.remove_dead()
    graph.sort()
