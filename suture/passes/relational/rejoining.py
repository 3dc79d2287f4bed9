"""What was cut in pieces and is joined again is a part of the whole."""

from __future__ import annotations

from suture.ir.graph import Graph, Value


def rejoin(graph: Graph) -> None:
    """Let a concatenation of neighbouring pieces of one value be a slice of that value, in place."""
    for node in graph.nodes:
        if node.operator.name != "concat":
            continue
        parts = [None if value is None else _piece(value) for value in node.inputs]
        first, dim = parts[0], node.attributes["dim"]
        if first is None or not isinstance(dim, int):
            continue
        whole, along, number = first
        following = [(whole, along, number + k) for k in range(len(parts))]
        if along != dim % node.output.rank or parts != following or whole.producer is None:
            continue
        pieces = whole.producer.outputs
        base = whole.producer.inputs[0]
        assert base is not None
        start = sum(size for each in pieces[:number] if isinstance(size := each.shape[along], int))
        if not all(isinstance(each.shape[along], int) for each in pieces):
            continue
        joined = graph.add(
            "slice", [base], {"dim": along, "start": start}, shapes=[node.output.shape], path=node.path, before=node
        ).output
        graph.replace_uses(node.output, joined)
    graph.remove_dead()


def _piece(value: Value) -> tuple[Value, int, int] | None:
    """For a piece of a split value, seen through changes of shape and back: the first piece, the dimension of the cut, and the piece's number."""
    shape = value.shape
    while (
        value.producer is not None
        and value.producer.operator.name == "reshape"
        and value.producer.inputs[0] is not None
    ):
        value = value.producer.inputs[0]
    node = value.producer
    if node is None or node.operator.name != "split" or value.shape != shape:
        return None
    dim = node.attributes["dim"]
    assert isinstance(dim, int)
    return node.outputs[0], dim % value.rank, value.index
