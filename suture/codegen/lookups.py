"""Indices that data hold are checked: a graph with one more output for each look-up, above zero where an index lies outside.

Kernels keep an index inside of what it looks up, so that nothing is read where it must not be; that it was wrong, these outputs say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import run_node
from suture.ir.sizes import Dim, product, symbols_of

_LARGEST = 1 << 24  # elements of a constant index that are looked at when a graph is compiled


@dataclass(frozen=True)
class Lookup:
    """A look-up that is checked.

    :param node: the node that looks up
    :param size: of what it looks up
    :param negative: whether an index may count from the end
    """

    node: Node
    size: Dim
    negative: bool

    def __str__(self) -> str:
        first = f"-{self.size}" if self.negative else "0"
        place = f" ({self.node.path})" if self.node.path else ""
        return f"an index of {self.node.operator.name} {self.node.outputs[0].name}{place} is not from {first} to below {self.size}"


def check_lookups(graph: Graph, trusted: Collection[str] = ()) -> tuple[Graph, tuple[Lookup, ...]]:
    """A copy of a graph with one more output (float32, of one element) for each index that data hold.

    Indices that only parameters and fixed numbers decide are looked at now, and have none where they are right.

    :param trusted: inputs that are indices which the caller has checked
    :returns: the copy, and what the outputs behind the graph's own are about
    """
    result = graph.copy()
    checked: dict[tuple[Value, Dim, bool], Lookup] = {}
    known: dict[Value, torch.Tensor | None] = {}
    for node in result.nodes:
        for value, size, negative in _indices(node):
            key = (value, size, negative)
            if value.producer is None and value.name in trusted:
                continue
            if key not in checked and not _is_right(value, size, negative, known):
                checked[key] = Lookup(node, size, negative)
    if not checked:
        return graph, ()
    names = [value.name for value in result.outputs]
    flags = [
        _outside(result, lookup.node, value, size, negative) for (value, size, negative), lookup in checked.items()
    ]
    result.set_outputs([*result.outputs, *flags], [*names, *(value.name for value in flags)])
    return result, tuple(checked.values())


def _indices(node: Node) -> Iterator[tuple[Value, Dim, bool]]:
    """The operands of a node that say where, what they look up in, and whether they may be negative."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return
    match node.operator.name:
        case "embedding":
            dims, negative = [0], False
        case "index":
            given = node.attributes["dims"]
            dims, negative = [dim for dim in given if isinstance(dim, int)] if isinstance(given, tuple) else [], True
        case "gather":
            dim = node.attributes["dim"]
            dims, negative = [dim] if isinstance(dim, int) else [], False
        case _:
            return
    for value, dim in zip(node.inputs[1:], dims, strict=False):
        if value is not None and not value.dtype.is_floating_point and value.dtype != torch.bool:
            yield value, source.shape[dim], negative


def _is_right(value: Value, size: Dim, negative: bool, known: dict[Value, torch.Tensor | None]) -> bool:
    """Whether an index is seen to lie inside."""
    if value.producer is not None and value.producer.operator.name == "arange":
        start, step = (value.producer.attributes[name] for name in ("start", "step"))
        if isinstance(start, int) and start >= 0 and step == 1:
            beyond = value.shape[0] - size + start
            return isinstance(beyond, int) and beyond <= 0
    if not isinstance(size, int):
        return False
    found = _constant(value, known)
    if found is None:
        return False
    return not found.numel() or bool(found.min() >= (-size if negative else 0) and found.max() < size)


def _constant(value: Value, known: dict[Value, torch.Tensor | None]) -> torch.Tensor | None:
    """The number that parameters and fixed sizes decide, or None."""
    waiting = [value]
    while waiting:
        at = waiting[-1]
        if at in known:
            waiting.pop()
            continue
        node = at.producer
        if node is None or any(isinstance(dim, int) is False for dim in at.shape) or not _is_small(at.shape):
            is_data = isinstance(at, Parameter) and at.data.device.type != "meta" and _is_small(at.shape)
            known[at] = at.data.detach() if isinstance(at, Parameter) and is_data else None
            continue
        lacking = [each for each in node.inputs if each is not None and each not in known]
        if lacking:
            waiting += lacking
            continue
        operands = [None if each is None else known[each] for each in node.inputs]
        unknown = any(each is not None and known[each] is None for each in node.inputs)
        symbolic = any(symbols_of(dim) for each in node.inputs if each is not None for dim in each.shape)
        if unknown or symbolic or node.operator.name == "opaque" or node.bodies:
            known.update(dict.fromkeys(node.outputs))
        else:
            known.update(zip(node.outputs, run_node(node, operands, {}), strict=True))
    return known[value]


def _is_small(shape: Sequence[Dim]) -> bool:
    count = product(tuple(shape))
    return isinstance(count, int) and count <= _LARGEST


def _outside(graph: Graph, node: Node, value: Value, size: Dim, negative: bool) -> Value:
    """How many of the indices lie outside, as a float32 of one element."""

    def add(operator: str, *operands: Value, shape: tuple[Dim, ...] | None = None, **attributes: object) -> Value:
        shapes = None if shape is None else [shape]
        return graph.add(operator, operands, attributes, shapes=shapes, path=node.path, name="outside").output  # type: ignore[arg-type]

    if isinstance(size, int):
        beyond = add("ge", value, scalar=size)
        low = add("lt", value, scalar=-size if negative else 0)
    else:
        limit = add("arange", shape=(1,), start=size, step=1, dtype=torch.int64)
        beyond = add("ge", value, limit)
        low = add("lt", value, add("neg", limit)) if negative else add("lt", value, scalar=0)
    wrong = add("cast", add("logical_or", beyond, low), dtype=torch.float32)
    flat = add("reshape", wrong, shape=(product(wrong.shape),))
    return add("sum", flat, dims=(0,), keepdim=True)
