"""Sums and other elementwise pairs, and the views around them: the pair is taken in the shape in which the fewest views stand."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Value
from suture.passes.canonical.matching import dims_of, is_sole, maker, operands, readers, reshaped, source, supersede
from suture.passes.rewriting import Rule


def join_in_front(graph: Graph, node: Node) -> str | None:
    """A sum (or another elementwise pair) of two values under the same view is that view of their sum."""
    pair = _pair(node)
    if pair is None:
        return None
    for view in ("permute", "reshape"):
        first, second = maker(pair[0], view), maker(pair[1], view)
        if first is None or second is None or source(first).shape != source(second).shape:
            continue
        if not (is_sole(first.output) and is_sole(second.output)) or first is second:
            continue
        if view == "permute" and dims_of(first) != dims_of(second):
            continue
        name = f"{node.output.name}_moved"
        made = graph.add(
            node.operator, [source(first), source(second)], node.attributes, path=node.path, name=name, before=node
        )
        attributes, shapes = ({"dims": dims_of(first)}, None) if view == "permute" else ({}, [node.output.shape])
        viewed = graph.add(
            view, [made.output], attributes, shapes=shapes, path=node.path, name=f"{name}_view", before=node
        )
        supersede(graph, node.output, viewed.output)
        graph.remove_dead()
        return f"{node.operator.name} in front of {view}"
    return None


def join_behind(graph: Graph, node: Node) -> str | None:
    """A sum that is only read in another shape is taken in that shape, if one operand came from it: a residual stream keeps one shape."""
    pair = _pair(node)
    if pair is None or node.output.is_graph_output():
        return None
    after = readers(node.output)
    if not after or any(reader.operator.name != "reshape" for reader in after):
        return None
    shape = after[0].output.shape
    if any(reader.output.shape != shape for reader in after):
        return None
    made_from = [maker(value, "reshape") for value in pair]
    from_there = [view is not None and source(view).shape == shape for view in made_from]
    free = [view is not None and is_sole(view.output) for view in made_from]
    if not any(from_there) or not all(here or sole for here, sole in zip(from_there, free, strict=True)):
        return None
    moved = [source(view) if here and view is not None else reshaped(graph, value, shape, node)
             for value, view, here in zip(pair, made_from, from_there, strict=True)]  # fmt: skip
    made = graph.add(
        node.operator, moved, node.attributes, path=node.path, name=f"{node.output.name}_moved", before=node
    )
    kept, *others = after
    for reader in others:
        graph.replace_uses(reader.output, made.output)
        graph.remove(reader)
    supersede(graph, kept.output, made.output)
    graph.remove_dead()
    return f"{node.operator.name} in the shape that it is read in"


def _pair(node: Node) -> tuple[Value, Value] | None:
    """The two operands of an elementwise node, both of the result's shape."""
    if not node.operator.pointwise or len(node.inputs) != 2:
        return None
    left, right = operands(node)
    if left is None or right is None or left.shape != node.output.shape or right.shape != node.output.shape:
        return None
    return left, right


RULES = (Rule("join in front", join_in_front), Rule("join behind", join_behind))
