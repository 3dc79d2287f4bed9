"""What rules ask of a place in the graph, and how a value is replaced without losing its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import Dim

# Nodes of these draw random numbers or update statistics in training: two of them are not one, and none is computed ahead of time.
STATEFUL = frozenset(
    {"dropout", "batch_norm", "instance_norm", "attention", "opaque", "lstm", "gru", "rnn_tanh", "rnn_relu"}
)


class Scaled(NamedTuple):
    """A binary operator on a tensor and a number."""

    tensor: Value
    number: float | int
    right: bool  # whether the number is the right operand


def maker(value: Value | None, *names: str) -> Node | None:
    """The node that makes a value, if it is one of the named operators."""
    node = None if value is None else value.producer
    return node if node is not None and node.operator.name in names else None


def source(node: Node) -> Value:
    """The first operand, which must be there."""
    found = node.inputs[0]
    assert found is not None
    return found


def operands(node: Node) -> tuple[Value | None, Value | None]:
    """The two operands of a binary operator; one that is left out is None."""
    padded = (*node.inputs, None, None)
    return padded[0], padded[1]


def is_sole(value: Value) -> bool:
    """Whether one operand of one node reads the value, and nothing else does."""
    return len(value.uses) == 1 and not value.is_graph_output()


def readers(value: Value) -> tuple[Node, ...]:
    """The nodes that read a value, each once."""
    return tuple(dict.fromkeys(use.node for use in value.uses))


def scaled(node: Node) -> Scaled | None:
    """The tensor and the number of a binary operator that has both, and does not change the tensor's type."""
    left, right = operands(node)
    attribute = node.attributes.get("scalar")
    found: Scaled | None = None
    if left is not None and right is None and _is_number(attribute):
        found = Scaled(left, attribute, True)  # type: ignore[arg-type]
    elif right is not None and left is None and _is_number(attribute):
        found = Scaled(right, attribute, False)  # type: ignore[arg-type]
    elif left is not None and right is not None:
        for tensor, other, on_right in ((left, right, True), (right, left, False)):
            number = constant_number(other)
            if number is not None and constant_number(tensor) is None:
                found = Scaled(tensor, number, on_right)
    return found if found is not None and found.tensor.type == node.outputs[0].type else None


def constant_number(value: Value | None) -> float | int | None:
    """The number that a constant of one element holds."""
    if not isinstance(value, Parameter) or value.role != "constant" or value.data.is_meta or value.data.numel() != 1:
        return None
    number = value.data.item()
    return number if _is_number(number) else None


def _is_number(item: object) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def dims_of(node: Node) -> tuple[int, ...]:
    """The attribute `dims`, counted from the front."""
    rank = max(source(node).rank, 1)
    given = node.attributes["dims"]
    assert isinstance(given, tuple)
    return tuple(dim % rank for dim in given if isinstance(dim, int))


def compose(inner: Iterable[int], outer: Iterable[int]) -> tuple[int, ...]:
    """The order of dimensions that two orders make, the inner one first."""
    first = tuple(inner)
    return tuple(first[dim] for dim in outer)


def supersede(graph: Graph, old: Value, new: Value) -> None:
    """Let a new value, made for this, stand for an old one: it takes its readers and its name, and the old node goes if nothing needs it."""
    name, producer = old.name, old.producer
    graph.replace_uses(old, new)
    assert producer is not None
    if len(producer.outputs) == 1:
        graph.remove(producer)
    else:
        graph.rename_result(old, f"{name}_old")
    graph.rename_result(new, name)


def drop(graph: Graph, node: Node, stands: Value) -> None:
    """Remove a node whose only result equals a value that is there already."""
    graph.replace_uses(node.output, stands)
    graph.remove(node)


def reshaped(graph: Graph, value: Value, shape: tuple[Dim, ...], like: Node) -> Value:
    """The value in another shape, by a new node in front of `like`."""
    name = f"{value.name}_reshaped"
    return graph.add("reshape", [value], shapes=[shape], path=like.path, name=name, before=like).output
