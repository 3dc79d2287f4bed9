"""Fused operators put back into the nodes that they stand for."""

from __future__ import annotations

from collections.abc import Callable

from suture.ir.graph import Graph, Node, Value
from suture.ir.operators.fused import BODIES
from suture.ir.template import write


def is_fused(node: Node) -> bool:
    """Whether a node is a fused operator."""
    return node.operator.name in BODIES


def expand_node(node: Node) -> tuple[Value, ...]:
    """Put a fused operator's body where it stands; its results keep their names. A body may hold fused operators again.

    :returns: the values that now stand for the node's results
    """
    graph, template = node.graph, BODIES[node.operator.name]
    known = {**node.operator.instance(node).sizes, **node.attributes}
    operands = [*node.inputs, *[None] * (len(template.operands) - len(node.inputs))]
    given = dict(zip(template.operands, operands, strict=True))
    values = write(template, graph, given, known, name=node.outputs[0].name, path=node.path, before=node)
    results: list[Value] = []
    names = [value.name for value in node.outputs]
    for old, name in zip(node.outputs, template.results, strict=True):
        new = values[name]
        assert new is not None
        graph.replace_uses(old, new)
        results.append(new)
    graph.remove(node)
    for value, name in zip(results, names, strict=True):
        graph.rename_result(value, name)
    return tuple(results)


def expanded(graph: Graph, keep: Callable[[Node], bool] = lambda node: False) -> Graph:
    """A copy in which every fused operator has become its body, those in the bodies of branches too.

    :param keep: which fused nodes stay; a graph with none to expand is returned as it is
    """
    if not any(_has_fused(node, keep) for node in graph.nodes):
        return graph
    twin = graph.copy()
    while found := [node for node in twin.nodes if is_fused(node) and not keep(node)]:
        for node in found:
            expand_node(node)
    for node in twin.nodes:
        for name, body in node.bodies.items():
            node.attributes[name] = expanded(body, keep)
    twin.remove_dead()
    return twin


def _has_fused(node: Node, keep: Callable[[Node], bool]) -> bool:
    if is_fused(node):
        return not keep(node)
    return any(_has_fused(inner, keep) for body in node.bodies.values() for inner in body.nodes)
