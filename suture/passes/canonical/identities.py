"""What changes nothing goes: casts, views and slices to what is there, factors of one, double negation, equal nodes."""

from __future__ import annotations

from typing import Any

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.canonical.matching import STATEFUL, dims_of, drop, maker, scaled, source, supersede
from suture.passes.rewriting import Rule


def drop_identity(graph: Graph, node: Node) -> str | None:
    """Remove a node whose result is its operand, bit for bit."""
    if len(node.outputs) != 1 or not node.inputs:
        return None
    same = _unchanged(node)
    if same is None or same.type != node.output.type:
        return None
    drop(graph, node, same)
    return f"{node.operator.name} that changes nothing"


def _unchanged(node: Node) -> Value | None:
    operand, attributes = node.inputs[0], node.attributes
    match node.operator.name:
        case "reshape" | "expand" | "cast" | "clone":
            return operand
        case "permute" if operand is not None and dims_of(node) == tuple(range(operand.rank)):
            return operand
        case "slice" if attributes["step"] == 1:
            return operand
        case "split" | "pad" if len(node.outputs) == 1 and not any(_numbers(attributes.get("pads"))):
            return operand
        case "concat" if len(node.inputs) == 1:
            return operand
        case "repeat" if all(count == 1 for count in _numbers(attributes["repeats"])):
            return operand
        case "roll" if all(shift == 0 for shift in _numbers(attributes["shifts"])):
            return operand
        case "dropout" if attributes["p"] == 0:
            return operand
    return _neutral(node)


def _numbers(item: Any) -> tuple[Any, ...]:
    return item if isinstance(item, tuple) else () if item is None else (item,)


def _neutral(node: Node) -> Value | None:
    """x * 1, x / 1, x - 0, x ** 1; x + 0 of integers only, because -0.0 + 0 is not -0.0."""
    if node.operator.name not in ("add", "sub", "mul", "div", "pow"):
        return None
    found = scaled(node)
    if found is None:
        return None
    tensor, number, right = found
    floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    match node.operator.name:
        case "mul" if number == 1:
            return tensor
        case "div" if number == 1 and right and node.attributes["rounding"] is None:
            return tensor
        case "sub" if number == 0 and right:
            return tensor
        case "add" if number == 0 and not floating:
            return tensor
        case "pow" if number == 1 and right:
            return tensor
    return None


def drop_cast_between(graph: Graph, node: Node) -> str | None:
    """A cast of a cast is one cast, where the first loses nothing that the second would keep."""
    if node.operator.name != "cast":
        return None
    inner = maker(node.inputs[0], "cast")
    if inner is None or not _keeps_all(source(inner).dtype, inner.output.dtype):
        return None
    made = graph.add(
        "cast", [source(inner)], node.attributes, path=node.path, name=f"{node.output.name}_direct", before=node
    )
    supersede(graph, node.output, made.output)
    return "two casts in one"


def _keeps_all(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every number of one type is a number of the other."""
    if narrow == wide or narrow == torch.bool:
        return True
    if narrow.is_complex or wide.is_complex:
        return False
    if narrow.is_floating_point != wide.is_floating_point:
        return wide.is_floating_point and torch.iinfo(narrow).bits <= {2: 8, 4: 16, 8: 32}.get(wide.itemsize, 0)
    if narrow.is_floating_point:
        a, b = torch.finfo(narrow), torch.finfo(wide)
        return a.max <= b.max and a.tiny >= b.tiny and a.eps >= b.eps
    first, second = torch.iinfo(narrow), torch.iinfo(wide)
    return second.min <= first.min and first.max <= second.max


_INVOLUTIONS = ("neg", "logical_not", "bitwise_not")
_IDEMPOTENT = ("relu", "relu6", "abs", "floor", "ceil", "round", "sign")


def drop_double(graph: Graph, node: Node) -> str | None:
    """What undoes itself twice over is nothing; what is done again is done once."""
    name, inner = node.operator.name, maker(node.inputs[0] if node.inputs else None, node.operator.name)
    if inner is None or name not in (*_INVOLUTIONS, *_IDEMPOTENT):
        return None
    stands = source(inner) if name in _INVOLUTIONS else inner.output
    if stands.type != node.output.type:
        return None
    drop(graph, node, stands)
    return f"{name} of {name}"


def merge_equal(graph: Graph, node: Node) -> str | None:
    """One node for nodes that compute the same; what draws or trains stays apart."""
    if node.operator.name in STATEFUL or node.bodies:
        return None
    key, first = _key(node), next((value for value in node.inputs if value is not None), None)
    others = [use.node for use in first.uses] if first is not None else list(graph.nodes)
    twins = {other for other in others if other is not node and other.operator is node.operator and _key(other) == key}
    if not twins:
        return None
    order = {other: place for place, other in enumerate(graph.nodes)}
    kept, *gone = sorted((node, *twins), key=order.__getitem__)
    for twin in gone:
        for old, new in zip(twin.outputs, kept.outputs, strict=True):
            graph.replace_uses(old, new)
        graph.remove(twin)
    return f"equal to {len(twins)} other" + "s" * (len(twins) != 1)


def _key(node: Node) -> tuple[Any, ...]:
    """What a node computes; attributes that are equal but not the same (0, 0.0 and False) differ."""
    attributes = tuple(sorted((name, _typed(item)) for name, item in node.attributes.items()))
    return (tuple(map(id, node.inputs)), attributes, tuple(value.type for value in node.outputs))


def _typed(item: Any) -> Any:
    return tuple(map(_typed, item)) if isinstance(item, tuple) else (type(item).__name__, str(item))


def merge_constants(graph: Graph, node: Node) -> str | None:
    """A node reads the first of several constants that hold the same."""
    for index, value in enumerate(node.inputs):
        if not isinstance(value, Parameter) or value.role != "constant" or value.data.is_meta:
            continue
        for other in graph.parameters.values():
            if other is value:
                break
            if other.role == "constant" and other.type == value.type and _same_bits(other.data, value.data):
                node.replace_input(index, other)
                return f"{value.name} holds what {other.name} holds"
    return None


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_meta or b.is_meta or a.device != b.device:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


RULES = (
    Rule("identity", drop_identity),
    Rule("casts", drop_cast_between),
    Rule("twice", drop_double),
    Rule("equal", merge_equal),
    Rule("constants", merge_constants),
)
