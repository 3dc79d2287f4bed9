"""Inner products by type: split over what is joined in them, and turned to the other side."""

from __future__ import annotations

from collections.abc import Iterator

from suture.ir.graph import Graph, Node, Value
from suture.passes.relational.moving import supersede

_PRODUCTS = frozenset({"typed_linear", "linear"})


def joined_sites(graph: Graph) -> Iterator[Value]:
    """The products of weights with features that stand side by side: `[u || v] V`."""
    for node in graph.nodes:
        if node.operator.name in _PRODUCTS and _joined(node) is not None:
            yield node.output


def split_joined(graph: Graph, value: Value) -> str | None:
    """Multiply each of several joined features by its own part of the weights, in place: `[u || v] V = u V1 + v V2`."""
    node = value.producer
    join = _joined(node) if node is not None else None
    if node is None or join is None:
        return None
    weight, dim = node.inputs[1], -2 if node.operator.name == "typed_linear" else -1
    assert weight is not None
    along, start, total = dim % weight.rank, 0, None
    for part in join.inputs:
        assert part is not None
        width = part.shape[-1]
        assert isinstance(width, int)
        shape = tuple(width if k == along else size for k, size in enumerate(weight.shape))
        own = graph.add("slice", [weight], {"dim": along, "start": start}, shapes=[shape], path=node.path).output
        bias = node.inputs[2:] if node.operator.name == "typed_linear" or total is None else ()
        made = graph.add(node.operator, [part, own, *bias], path=node.path).output
        total = made if total is None else graph.add("add", [total, made], path=node.path).output
        start += width
    assert total is not None
    supersede(graph, {value: total})
    return f"{total}: what is joined is multiplied part by part with {weight}"


def turning_sites(graph: Graph) -> Iterator[Value]:
    """The inner products `<a W, b>` of which one side is a product by type."""
    for node in graph.nodes:
        if turned_product(node) is not None:
            yield node.output


def turn_product(graph: Graph, value: Value) -> str | None:
    """Multiply the other side of an inner product by the transposed weights, in place: `<a W, b> = <a, b W'>`."""
    found = turned_product(value.producer) if value.producer is not None else None
    if found is None or value.producer is None:
        return None
    product, other = found
    rows, weight, type = product.inputs
    assert rows is not None and weight is not None
    rank = weight.rank
    dims = (*range(rank - 2), rank - 1, rank - 2)
    turned = graph.add("permute", [weight], {"dims": dims}, path=product.path).output
    moved = graph.add("typed_linear", [other, turned, type], path=product.path).output
    scaled = graph.add("mul", [rows, moved], path=product.path).output
    made = graph.add("sum", [scaled], value.producer.attributes, path=value.producer.path).output
    supersede(graph, {value: made})
    return f"{made}: the transposed {weight} is multiplied with the other side"


def _joined(node: Node) -> Node | None:
    """The concatenation of features that a product's rows are."""
    rows = node.inputs[0]
    join = rows.producer if rows is not None else None
    if rows is None or join is None or join.operator.name != "concat" or rows.rank < 2:
        return None
    dim = join.attributes["dim"]
    assert isinstance(dim, int)
    widths = [part.shape[-1] for part in join.inputs if part is not None]
    return join if dim % rows.rank == rows.rank - 1 and all(isinstance(width, int) for width in widths) else None


def turned_product(node: Node) -> tuple[Node, Value] | None:
    """For an inner product over the last dimension: the product by type on its one side, and the other side."""
    value = node.inputs[0] if node.operator.name == "sum" else None
    if value is None or value.producer is None or value.producer.operator.name != "mul" or value.rank < 2:
        return None
    if node.attributes["dims"] not in ((-1,), (value.rank - 1,)) or len(value.uses) > 1 or value.is_graph_output():
        return None
    for side, other in (tuple(value.producer.inputs), tuple(value.producer.inputs)[::-1]):
        if side is None or other is None or side.shape != other.shape:
            return None
        if side.producer is not None and side.producer.operator.name == "typed_linear":
            return side.producer, other
    return None
