"""Products of weights first: `(x W) V = x (W V)`. What two products of each edge cost becomes one, and one of each type.

Inner products with the vector of a type are such a `V` with one column: an attention's score of an end no longer needs that end's transformed
features. A projection of nodes in front of a product by type folds into the matrices of the types.
"""

from __future__ import annotations

from collections.abc import Iterator

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.relational.moving import supersede
from suture.passes.relational.products import Product, read_product


def weight_product_sites(graph: Graph) -> Iterator[Value]:
    """The products of weights with what is itself a product."""
    for node in graph.nodes:
        typed, plain = node.operator.name == "typed_linear", node.operator.name in ("linear", "matmul")
        if (typed and _inner_product(node.output) is not None) or (plain and _typed_rows(node) is not None):
            yield node.output


def multiply_weights(graph: Graph, value: Value) -> str | None:
    """Multiply the weights of two products that follow each other, in place; says what was done."""
    if value.producer is not None and value.producer.operator.name in ("linear", "matmul"):
        return _behind_types(graph, value.producer)
    inner = _inner_product(value)
    if inner is None or value.producer is None:
        return None
    node, path = value.producer, value.producer.path
    outer, type = node.inputs[1], node.inputs[2]
    assert outer is not None
    if inner.split is not None and inner.split[0] == 1 and inner.bias is None:
        return _one_head(graph, value, inner)
    first = inner.matrices(graph)
    if inner.type is None:
        first = graph.add("expand", [first], shapes=[(outer.shape[0], *first.shape)], path=path).output
    weight = graph.add("matmul", [first, outer], path=path, name=f"{value.name}_weights").output
    if inner.split is None:
        made = graph.add("typed_linear", [inner.rows(graph), weight, type], path=path).output
    else:
        made = _side_by_side(graph, inner, weight, type, value)
    if inner.bias is not None:
        made = graph.add("add", [made, _moved_bias(graph, inner, outer, type)], path=path).output
    text = f"{value}: the weights {inner.weight} and {outer} are multiplied first"
    supersede(graph, {value: made})
    return text


def _behind_types(graph: Graph, node: Node) -> str | None:
    """The same where the second product has one matrix for all types."""
    inner, outer = _typed_rows(node), node.inputs[1]
    if inner is None or outer is None:
        return None
    value, path = node.output, node.path
    if node.operator.name == "linear":
        outer = graph.add("permute", [outer], {"dims": (1, 0)}, path=path).output
    spread = graph.add("expand", [outer], shapes=[(inner.weight.shape[0], *outer.shape)], path=path).output
    weight = graph.add("matmul", [inner.weight, spread], path=path, name=f"{value.name}_weights").output
    made = graph.add("typed_linear", [inner.rows(graph), weight, inner.type], path=path).output
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        made = graph.add("add", [made, bias], path=path).output
    text = f"{value}: the weights {inner.weight} and {node.inputs[1]} are multiplied first"
    supersede(graph, {value: made})
    return text


def _typed_rows(node: Node) -> Product | None:
    """The product by type that the rows of a product with one matrix are; None if they are something else."""
    rows, outer = node.inputs[:2] if node.operator.name in ("linear", "matmul") else (None, None)
    if rows is None or outer is None or rows.rank != 2 or outer.rank != 2 or _comes_from_rows(outer):
        return None
    inner = read_product(rows)
    return inner if inner is not None and inner.type is not None and inner.split is None else None


def _comes_from_rows(value: Value) -> bool:
    """Whether a matrix depends on the graph's inputs, so that it is no weight."""
    waiting, seen = [value], {value}
    while waiting:
        node = (at := waiting.pop()).producer
        if node is None and not isinstance(at, Parameter):
            return True
        inputs = [each for each in node.inputs if each is not None and each not in seen] if node is not None else []
        seen.update(inputs)
        waiting += inputs
    return False


def _one_head(graph: Graph, value: Value, inner: Product) -> str:
    """The same where what is seen as heads is one: their dimension stays out of the products."""
    node = value.producer
    assert node is not None and node.inputs[1] is not None
    outer, type, path = node.inputs[1], node.inputs[2], node.path
    flat = graph.add("reshape", [outer], shapes=[(outer.shape[0], *outer.shape[2:])], path=path).output
    first = inner.weight
    if inner.type is None:
        turned = graph.add("permute", [first], {"dims": (1, 0)}, path=path).output
        first = graph.add("expand", [turned], shapes=[(outer.shape[0], *turned.shape)], path=path).output
    weight = graph.add("matmul", [first, flat], path=path, name=f"{value.name}_weights").output
    made = graph.add("typed_linear", [inner.rows(graph), weight, type], path=path).output
    seen = graph.add("reshape", [made], shapes=[value.shape], path=path).output
    text = f"{value}: the weights {inner.weight} and {outer} are multiplied first"
    supersede(graph, {value: seen})
    return text


def _inner_product(value: Value) -> Product | None:
    """The product that the rows of a product by type are; None where it has other types."""
    node = value.producer
    if node is None or node.operator.name != "typed_linear" or node.inputs[0] is None:
        return None
    inner = read_product(node.inputs[0])
    return inner if inner is not None and inner.type in (None, node.inputs[2]) else None


def _side_by_side(graph: Graph, inner: Product, weight: Value, type: Value | None, value: Value) -> Value:
    """Heads of one row: their matrices `[t, h, i, p]` stand side by side, so that one product makes them all."""
    types, heads, width, columns = weight.shape
    turned = graph.add("permute", [weight], {"dims": (0, 2, 1, 3)}).output
    flat = graph.add("reshape", [turned], shapes=[(types, width, heads * columns)]).output
    made = graph.add("typed_linear", [inner.rows(graph), flat, type]).output
    return graph.add("reshape", [made], shapes=[value.shape]).output


def _moved_bias(graph: Graph, inner: Product, outer: Value, type: Value | None) -> Value:
    """What the bias of the first product adds to the second: a row for each type."""
    bias = inner.bias
    assert bias is not None
    lead = outer.shape[:-2]
    row = graph.add("reshape", [bias], shapes=[(*lead[1:], 1, outer.shape[-2])]).output
    spread = graph.add("expand", [row], shapes=[(*lead, 1, outer.shape[-2])]).output
    moved = graph.add("matmul", [spread, outer]).output
    table = graph.add("reshape", [moved], shapes=[(*lead, outer.shape[-1])]).output
    return graph.add("embedding", [table, type]).output
