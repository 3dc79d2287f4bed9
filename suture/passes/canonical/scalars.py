"""Numbers: a chain of factors is one factor, a chain of bounds one pair, a bound at zero a ReLU."""

from __future__ import annotations

import math

from suture.ir.graph import Graph, Node, Value
from suture.ir.types import Attribute
from suture.passes.canonical.matching import Scaled, is_sole, maker, operands, scaled, supersede
from suture.passes.rewriting import Rule

_LARGEST = 1e30  # a factor beyond this, or its inverse, is left as it stands: the product could overflow where the chain does not


def merge_factors(graph: Graph, node: Node) -> str | None:
    """x * a * b is x * (a b), also where a or b divides."""
    if node.operator.name not in ("mul", "div"):
        return None
    outer = _factor(node)
    inner_node = None if outer is None else maker(outer.tensor, "mul", "div")
    inner = None if inner_node is None else _factor(inner_node)
    if outer is None or inner_node is None or inner is None or not is_sole(inner_node.output):
        return None
    number = outer.number * inner.number
    if not 1 / _LARGEST < abs(number) < _LARGEST:
        return None
    _replace(graph, node, "mul", inner.tensor, number)
    return f"two factors in one, {number:g}"


def _factor(node: Node) -> Scaled | None:
    """The number by which a node multiplies real numbers."""
    found = scaled(node)
    if found is None or not found.tensor.dtype.is_floating_point or not found.number:
        return None
    if node.operator.name == "mul":
        return Scaled(found.tensor, float(found.number), True)
    if not found.right or node.attributes["rounding"] is not None:
        return None
    return Scaled(found.tensor, 1 / found.number, True)


def merge_terms(graph: Graph, node: Node) -> str | None:
    """x + a + b is x + (a + b), where both have one sign: nothing cancels."""
    outer = _term(node)
    inner_node = None if outer is None else maker(outer.tensor, "add", "sub")
    inner = None if inner_node is None else _term(inner_node)
    if outer is None or inner_node is None or inner is None or not is_sole(inner_node.output):
        return None
    floating = outer.tensor.dtype.is_floating_point
    if floating and (outer.number < 0) != (inner.number < 0):
        return None
    number = outer.number + inner.number
    _replace(graph, node, "add", inner.tensor, number)
    return f"two terms in one, {number:g}"


def _term(node: Node) -> Scaled | None:
    """The number that a node adds."""
    if node.operator.name not in ("add", "sub"):
        return None
    found = scaled(node)
    if found is None or found.tensor.dtype.is_complex or (node.operator.name == "sub" and not found.right):
        return None
    return Scaled(found.tensor, found.number if node.operator.name == "add" else -found.number, True)


def _replace(graph: Graph, node: Node, operator: str, tensor: Value, number: float | int) -> None:
    made = graph.add(
        operator, [tensor], {"scalar": number}, path=node.path, name=f"{node.output.name}_merged", before=node
    )
    assert made.output.type == node.output.type
    supersede(graph, node.output, made.output)


def number_as_attribute(graph: Graph, node: Node) -> str | None:
    """A constant of one element beside a tensor is a number of the node."""
    if node.operator.name not in ("add", "sub", "mul", "div", "maximum", "minimum") or None in operands(node):
        return None
    found = scaled(node)
    if found is None or len(node.inputs) != 2:
        return None
    given = [found.tensor] if found.right else [None, found.tensor]
    made = graph.add(
        node.operator, given, {**node.attributes, "scalar": found.number}, path=node.path, name=f"{node.output.name}_number", before=node
    )  # fmt: skip
    if made.output.type != node.output.type:
        graph.remove(made)
        return None
    supersede(graph, node.output, made.output)
    return f"the number {found.number:g}"


def merge_bounds(graph: Graph, node: Node) -> str | None:
    """A bound after a bound is one clamp; a clamp with the bounds of a known function is that function."""
    bounds = _bounds(node)
    if bounds is None:
        return None
    tensor = _bounded(node)
    below = tensor.producer if is_sole(tensor) else None
    inner = None if below is None else _bounds(below)
    if below is not None and inner is not None and max(inner[0], bounds[0]) <= min(inner[1], bounds[1]):
        # a clamp inside, or overlapping, the outer bounds: the bounds intersect
        bounds, tensor = (max(inner[0], bounds[0]), min(inner[1], bounds[1])), _bounded(below)
    elif node.operator.name in ("relu", "relu6"):
        return None
    operator, attributes = _function(bounds, integral=not tensor.dtype.is_floating_point)
    if operator == node.operator.name and tensor is _bounded(node):
        return None
    made = graph.add(operator, [tensor], attributes, path=node.path, name=f"{node.output.name}_bounded", before=node)
    if made.output.type != node.output.type:
        graph.remove(made)
        return None
    supersede(graph, node.output, made.output)
    return f"{operator} between {bounds[0]:g} and {bounds[1]:g}"


def _bounded(node: Node) -> Value:
    left, right = operands(node)
    found = left if left is not None else right
    assert found is not None
    return found


def _bounds(node: Node) -> tuple[float, float] | None:
    """The interval that a node holds its operand in."""
    match node.operator.name:
        case "relu":
            return (0, math.inf)
        case "relu6":
            return (0, 6)
        case "clamp":
            low, high = (_number(node.attributes[name], none) for name, none in (("min", -math.inf), ("max", math.inf)))
            return None if low is None or high is None else (low, high)
        case "maximum" | "minimum":
            found = scaled(node)
            if found is None or node.attributes["scalar"] is None or not found.right:
                return None
            return (found.number, math.inf) if node.operator.name == "maximum" else (-math.inf, found.number)
    return None


def _number(item: Attribute, none: float) -> float | None:
    """A bound as a number; None for one that is not known yet."""
    if item is None:
        return none
    return item if isinstance(item, int | float) else None


def _function(bounds: tuple[float, float], *, integral: bool) -> tuple[str, dict[str, float | None]]:
    low, high = bounds
    if low == 0 and high == math.inf:
        return "relu", {}
    if low == 0 and high == 6 and not integral:
        return "relu6", {}
    return "clamp", {"min": None if low == -math.inf else low, "max": None if high == math.inf else high}


RULES = (
    Rule("number", number_as_attribute),
    Rule("factors", merge_factors),
    Rule("terms", merge_terms),
    Rule("bounds", merge_bounds),
)
