"""Which linear layers are written as one Gemm on the matrix of rows, where that saves more nodes than the Reshapes at the borders cost."""

from __future__ import annotations

from suture.backends.onnx.held import works_on_rows
from suture.ir.graph import Graph, Node, Parameter, Value


def gemm_layers(graph: Graph) -> set[Node]:
    """The linear layers of all regions of row-wise nodes in which a Gemm for every MatMul and Add pays for the Reshapes around the region."""
    members = [node for node in graph.nodes if is_gemm_layer(node) or works_on_rows(node)]
    region = _regions(members)
    layers: dict[Node, set[Node]] = {}
    borders: dict[Node, set[Value]] = {}
    for node in members:
        root = _find(region, node)
        if node.operator.name == "linear":
            layers.setdefault(root, set()).add(node)
        borders.setdefault(root, set()).update(_borders(node, region))
    return {node for root, found in layers.items() if len(found) >= len(borders[root]) for node in found}


def integer_layers(graph: Graph) -> set[Node]:
    """The linear layers between quantisers, with a bias, on more than two dimensions: the integer kernel that adds a bias is Gemm's."""
    return {
        node for node in graph.nodes
        if node.operator.name == "linear" and len(node.inputs) > 2 and node.outputs[0].rank > 2 and all(map(_is_dequantised, node.inputs))
    }  # fmt: skip


def _is_dequantised(value: Value | None) -> bool:
    return value is not None and value.producer is not None and value.producer.operator.name == "dequantise"


def is_gemm_layer(node: Node) -> bool:
    """Whether a node is a linear layer with a bias, on more than two dimensions, whose weight is a tensor of the file."""
    if node.operator.name != "linear" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    return isinstance(node.inputs[1], Parameter) and node.outputs[0].rank > 2


def _regions(members: list[Node]) -> dict[Node, Node]:
    """Members that read each other, or the same value, are one region; each points towards its representative."""
    parent = {node: node for node in members}
    for node in members:
        for value in _wide(node):
            first = next(use.node for use in value.uses if use.node in parent)
            for other in (value.producer, first):
                if other is not None and other in parent:
                    parent[_find(parent, node)] = _find(parent, other)
    return parent


def _find(parent: dict[Node, Node], node: Node) -> Node:
    while parent[node] is not node:
        node = parent[node]
    return node


def _wide(node: Node) -> list[Value]:
    """The operands that would be held as rows."""
    if node.operator.name == "linear":
        return [value for value in node.inputs[:1] if value is not None]
    return [value for value in node.inputs if value is not None and value.shape == node.outputs[0].shape]


def _borders(node: Node, region: dict[Node, Node]) -> set[Value]:
    """The values at a node for which a Reshape must stand: read from outside, or by what is outside, and no view already."""
    found = {
        value
        for value in _wide(node)
        if value.producer not in region and (value.producer is None or value.producer.operator.name != "reshape")
    }
    for value in node.outputs:
        outside = [use.node for use in value.uses if use.node not in region]
        if value.is_graph_output() or any(reader.operator.name not in ("reshape", "split") for reader in outside):
            found.add(value)
    return found
