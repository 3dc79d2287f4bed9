"""What a program says twice, said once: equal nodes become one, so that a value has one place where it is computed."""

from __future__ import annotations

from collections.abc import Hashable

from suture.ir.graph import Graph, Node


def merge_repeats(graph: Graph) -> int:
    """Let equal nodes be one, in place; how many have gone. Nodes that draw random numbers are never equal."""
    seen: dict[Hashable, Node] = {}
    gone = 0
    for node in graph.nodes:
        if node.bodies or node.operator.training or node.operator.name in ("opaque", "random_order"):
            continue
        attributes = tuple(sorted((name, str(value)) for name, value in node.attributes.items()))
        types = tuple(value.type for value in node.outputs)
        first = seen.setdefault((node.operator.name, node.inputs, attributes, types), node)
        if first is node:
            continue
        for old, new in zip(node.outputs, first.outputs, strict=True):
            graph.replace_uses(old, new)
        graph.remove(node)
        gone += 1
    return gone
