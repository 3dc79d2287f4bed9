"""Canonical forms: what can be written in several ways is written in one, so that axes and passes see one.

Every rewrite here is exact, bit for bit. They run to a fixed point, each over the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from suture.frontends.norms import gather_rms_norms
from suture.frontends.unpack import join_slices, unpack_factors
from suture.ir.graph import Graph, Node, Value
from suture.ir.paths import is_below

# Nodes of these draw random numbers or update statistics in training: two of them are not one.
_STATEFUL = {"dropout", "batch_norm", "attention", "lstm", "gru", "rnn_tanh", "rnn_relu", "opaque"}


def canonicalise(graph: Graph) -> None:
    """Bring a graph into canonical form, in place."""
    graph.remove_dead()
    changed = True
    while changed:
        changed = False
        for rewrite in REWRITES:
            changed = rewrite(graph) or changed


def drop_identities(graph: Graph) -> bool:
    """Remove what changes nothing: views and casts to what is there, whole slices, x + 0 of integers, x * 1, `true and x`, a dropout of none."""
    return _rewrite(graph, lambda node: _unchanged(node) is not None, _unchanged)


def _unchanged(node: Node) -> Value | None:
    """The operand that the node's result equals."""
    if _is_identity(node):
        return node.inputs[0]
    if node.operator.name in ("bitwise_and", "logical_and") and len(node.inputs) == 2:
        for sure, other in (node.inputs, node.inputs[::-1]):
            if sure is not None and other is not None and _is_true(sure) and other.type == node.output.type:
                return other
    return None


def _is_true(value: Value) -> bool:
    maker = value.producer
    return (
        maker is not None
        and maker.operator.name == "full"
        and value.dtype == torch.bool
        and bool(maker.attributes["value"])
    )


def _is_identity(node: Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or len(node.outputs) != 1 or source.type != node.output.type:
        return False
    attributes = node.attributes
    match node.operator.name:
        case "reshape" | "expand" | "cast" | "clone":
            return True
        case "slice":
            return bool(attributes["step"] == 1)
        case "split":
            return True
        case "concat":
            return len(node.inputs) == 1
        case "permute":
            return attributes["dims"] == tuple(range(source.rank))
        case "dropout":
            return attributes["p"] == 0
        case "add" | "sub":
            return bool(_scalar(node) == 0) and not source.dtype.is_floating_point and not source.dtype.is_complex
        case "mul":
            return bool(_scalar(node) == 1)
        case "div":
            return bool(_scalar(node) == 1) and attributes["rounding"] is None
    return False


def _scalar(node: Node) -> Any:
    """The number on the right of a binary operator."""
    return node.attributes["scalar"] if len(node.inputs) < 2 or node.inputs[1] is None else None


def merge_chains(graph: Graph) -> bool:
    """A reshape of a reshape is one, and so are two orders, two expansions, and a part of a part.

    Not across the border of two modules beside each other: a block would end otherwise than its equals because of what follows it.
    """

    def chained(node: Node) -> bool:
        before = _producer(node)
        return (
            before is not None
            and before.operator.name == node.operator.name
            and node.operator.name in ("reshape", "permute", "expand")
            and (is_below(node.path, before.path) or is_below(before.path, node.path))
        )

    def merge(node: Node) -> Value:
        before = _producer(node)
        assert before is not None
        source, name = before.inputs[0], node.operator.name
        if name == "permute":
            inner, outer = _dims(before), _dims(node)
            return graph.add(
                name, [source], {"dims": tuple(inner[dim] for dim in outer)}, path=node.path, before=node
            ).output
        return graph.add(name, [source], shapes=[node.output.shape], path=node.path, before=node).output

    return _rewrite(graph, chained, merge)


def lower_squeezes(graph: Graph) -> bool:
    """A reshape that only drops sizes of 1 goes in front of a permute, where it may meet the reshape that made them."""

    def squeezes_permute(node: Node) -> bool:
        before = _producer(node)
        if (
            node.operator.name != "reshape"
            or before is None
            or before.operator.name != "permute"
            or len(before.output.uses) != 1
        ):
            return False
        return _dropped(before.output, node.output) is not None

    def swap(node: Node) -> Value:
        before = _producer(node)
        assert before is not None
        source = before.inputs[0]
        assert source is not None
        order, dropped = _dims(before), _dropped(before.output, node.output) or set()
        gone = {order[place] for place in dropped}
        kept = [dim for dim in range(source.rank) if dim not in gone]
        squeezed = graph.add(
            "reshape", [source], shapes=[[source.shape[dim] for dim in kept]], path=before.path, before=node
        ).output
        dims = tuple(kept.index(dim) for place, dim in enumerate(order) if place not in dropped)
        return graph.add("permute", [squeezed], {"dims": dims}, path=before.path, before=node).output

    return _rewrite(graph, squeezes_permute, swap)


def order_to_shape(graph: Graph) -> bool:
    """A permute that only moves sizes of 1 is a reshape."""

    def moves_ones(node: Node) -> bool:
        source = node.inputs[0] if node.operator.name == "permute" else None
        if source is None:
            return False
        real = [dim for dim in _dims(node) if source.shape[dim] != 1]
        return real == sorted(real)

    return _rewrite(
        graph, moves_ones,
        lambda node: graph.add("reshape", [node.inputs[0]], shapes=[node.output.shape], path=node.path, before=node).output,
    )  # fmt: skip


def _dropped(before: Value, after: Value) -> set[int] | None:
    """The dimensions of size 1 that a reshape removes, if that is all it does."""
    gone: set[int] = set()
    rest = list(after.shape)
    for place, size in enumerate(before.shape):
        if rest and rest[0] == size:
            rest.pop(0)
        elif size == 1:
            gone.add(place)
        else:
            return None
    return gone if not rest and gone else None


def merge_equal(graph: Graph) -> bool:
    """One node for equal ones: of positions and masks, and of views; layers with parameters stay apart."""
    seen: dict[Any, Node] = {}
    changed = False
    for node in graph.nodes:
        if node.operator.name in _STATEFUL or any(getattr(value, "role", None) == "parameter" for value in node.inputs):
            continue
        shapes = tuple(value.type for value in node.outputs)
        key = (
            node.operator.name,
            tuple(map(id, node.inputs)),
            tuple((name, _key(item)) for name, item in node.attributes.items()),
            shapes,
        )
        first = seen.setdefault(key, node)
        if first is not node:
            for old, new in zip(node.outputs, first.outputs, strict=True):
                graph.replace_uses(old, new)
            changed = True
    graph.remove_dead()
    return changed


def _key(item: Any) -> Any:
    """Attributes that are equal but not the same (0, 0.0 and False) differ."""
    return tuple(map(_key, item)) if isinstance(item, tuple) else (type(item), item)


def _rewrite(graph: Graph, matches: Callable[[Node], bool], replacement: Callable[[Node], Value | None]) -> bool:
    """Replace the result of every node that matches, in order."""
    changed = False
    for node in graph.nodes:
        if matches(node):
            made = replacement(node)
            assert made is not None
            graph.replace_uses(node.output, made)
            changed = True
    if changed:
        graph.remove_dead()
    return changed


def _producer(node: Node) -> Node | None:
    source = node.inputs[0] if node.inputs else None
    return source.producer if source is not None else None


def _dims(node: Node) -> tuple[int, ...]:
    dims = node.attributes["dims"]
    assert isinstance(dims, tuple)
    return tuple(int(dim) for dim in dims if isinstance(dim, int))


REWRITES: tuple[Callable[[Graph], bool], ...] = (
    drop_identities, merge_equal, order_to_shape, merge_chains, lower_squeezes, unpack_factors, join_slices, gather_rms_norms,
)  # fmt: skip
