"""The bodies of a branch: made from nodes or from a graph of its own, put back in line, and opened for backends that have scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value


def body_of_nodes(name: str, nodes: Iterable[Node], operands: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """A body that computes `outputs` from `operands` by copies of the nodes; its values have the names they had.

    :param operands: everything that the nodes and outputs read and the nodes do not make, parameters included
    :raises SutureError: GRAPH, if the nodes read something else besides
    """
    body = Graph(name)
    mapping: dict[Value, Value] = {value: body.add_input(value.name, value.type) for value in operands}
    for node in nodes:
        _clone(body, node, mapping)
    missing = next((value for value in outputs if value not in mapping), None)
    if missing is not None:
        raise _unread(missing, name)
    body.set_outputs([mapping[value] for value in outputs], _distinct([value.name for value in outputs]))
    return body


def body_of_graph(piece: Graph, operands: Sequence[Value], chosen: Mapping[Value, Value]) -> Graph:
    """A body that computes what a graph computes.

    :param operands: the node's operands, which become the body's inputs
    :param chosen: which operand stands for each input and parameter of the piece
    """
    body = Graph(piece.name)
    inputs = {value: body.add_input(value.name, value.type) for value in operands}
    mapping = {value: inputs[operand] for value, operand in chosen.items() if operand in inputs}
    for node in piece.nodes:
        _clone(body, node, mapping)
    body.set_outputs([mapping[value] for value in piece.outputs], piece.output_names)
    return body


def inline(node: Node, body: Graph) -> tuple[Value, ...]:
    """Put a body where its node stands: copies of its nodes read the operands, the node goes, and its results' names stay.

    :returns: the values that now stand for the node's results
    """
    graph = node.graph
    operands = [value for value in node.inputs[1:] if value is not None]
    mapping: dict[Value, Value] = dict(zip(body.inputs, operands, strict=True))
    clones = [_clone(graph, inner, mapping, before=node) for inner in body.nodes]
    results = tuple(mapping[value] for value in body.outputs)
    names = [value.name for value in node.outputs]
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace_uses(old, new)
    graph.remove(node)
    made = {value for clone in clones for value in clone.outputs}
    for name, value in zip(names, results, strict=True):
        if value in made:
            made.discard(value)
            graph.rename_result(value, name)
    return results


def with_captures(graph: Graph) -> Graph:
    """A copy whose bodies have no inputs: their nodes read the values outside themselves.

    It is what a backend with scopes writes, and no well-formed graph: a body's nodes read values of the graphs around it. Every branch has bodies of
    its own. A graph without bodies is returned as it is.
    """
    if not any(node.bodies for node in graph.nodes):
        return graph
    twin = graph.copy()
    for node in twin.nodes:
        _open_bodies(node)
    return twin


def _open_bodies(node: Node) -> None:
    operands = [value for value in node.inputs[1:] if value is not None]
    for name, body in node.bodies.items():
        opened = Graph(body.name)
        mapping: dict[Value, Value] = dict(zip(body.inputs, operands, strict=True))
        for inner in body.nodes:
            _open_bodies(_clone(opened, inner, mapping))
        opened.set_outputs([mapping[value] for value in body.outputs], body.output_names)
        node.attributes[name] = opened


def _clone(graph: Graph, node: Node, mapping: dict[Value, Value], *, before: Node | None = None) -> Node:
    """A copy of a node in another graph; `mapping` says what stands for its operands there, and learns its results."""
    missing = next((value for value in node.inputs if value is not None and value not in mapping), None)
    if missing is not None:
        raise _unread(missing, graph.name)
    inputs = [None if value is None else mapping[value] for value in node.inputs]
    shapes = [value.shape for value in node.outputs] if node.operator.declared else None
    names = [value.name for value in node.outputs]
    clone = graph.add(node.operator, inputs, node.attributes, shapes=shapes, path=node.path, name=names, before=before)
    mapping.update(zip(node.outputs, clone.outputs, strict=True))
    return clone


def _unread(value: Value, name: str) -> SutureError:
    return SutureError(Code.GRAPH, f"the body {name} reads {value}, which is no operand", remedy="make it one")


def _distinct(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        count = sum(other == name for other in names[: len(found)])
        found.append(f"{name}_{count}" if count else name)
    return found
