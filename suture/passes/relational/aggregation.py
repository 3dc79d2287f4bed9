"""Transform then aggregate, or aggregate then transform: a sum of products by type is a product of sums.

    sum over e into n of c[e] (x[src[e]] W[type[e]])  =  sum over pairs (type, n) of (sum over e into the pair of c[e] x[src[e]]) W[type]

The left side multiplies once for each unique pair of source and type, the right side once for each unique pair of destination and type, and its sums
have the features that go in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from suture.ir.graph import Graph, Node, Value
from suture.passes.relational.compaction import unique_pairs
from suture.passes.relational.locality import is_index
from suture.passes.relational.moving import supersede
from suture.passes.relational.products import Product, read_product

_SCALING = frozenset({"mul", "div"})

Scaling: TypeAlias = "tuple[Node, int]"
"""A node that scales whole rows, and which of its operands the rows are."""


@dataclass(frozen=True, eq=False)
class SummedProduct:
    """A sum into segments of a product whose rows are scaled: the scalings, the last first."""

    node: Node
    scalings: tuple[Scaling, ...]
    product: Product


def aggregation_sites(graph: Graph) -> Iterator[Value]:
    """The sums of products."""
    for node in graph.nodes:
        if summed_product(node) is not None:
            yield node.output


def aggregate_first(graph: Graph, value: Value) -> str | None:
    """Sum rows before they are multiplied, in place; says what was done."""
    found = summed_product(value.producer) if value.producer is not None else None
    if found is None:
        return None
    product, index, path = found.product, found.node.inputs[1], found.node.path
    assert index is not None
    rows = product.rows(graph)
    if product.split is not None:
        rows = graph.add("reshape", [rows], shapes=[(rows.shape[0], 1, product.width)], path=path).output
    rows = rescaled(graph, rows, found.scalings)
    matrices = product.matrices(graph)
    if product.type is None:
        total = graph.add("segment_sum", [rows, index], shapes=[(value.shape[0], *rows.shape[1:])], path=path).output
        made = _transformed(graph, product, total, matrices, path)
        text = f"{value}: rows are summed before they are multiplied with {product.weight}"
        supersede(graph, {value: made})
        return text
    first, rank, count = unique_pairs(graph, product.type.name, index.name)
    total = graph.add("segment_sum", [rows, rank], shapes=[(count, *rows.shape[1:])], path=path).output
    types, ends = (graph.add("embedding", [each, first]).output for each in (product.type, index))
    each = graph.add("typed_linear", [total, matrices, types], path=path).output
    made = graph.add("segment_sum", [each, ends], shapes=[value.shape], path=path).output
    text = f"{value}: rows are summed by {product.type} and {index} before they are multiplied with {product.weight}"
    supersede(graph, {value: made})
    return text


def rescaled(graph: Graph, rows: Value, scalings: Sequence[Scaling]) -> Value:
    """Other rows scaled as those before, by the last of the scalings first."""
    for node, place in reversed(scalings):
        inputs = [rows if k == place else operand for k, operand in enumerate(node.inputs)]
        rows = graph.add(node.operator, inputs, node.attributes, path=node.path).output
    return rows


def _transformed(graph: Graph, product: Product, total: Value, matrices: Value, path: str) -> Value:
    """The sums times weights without types."""
    if product.split is None:
        return graph.add("linear", [total, product.weight], path=path).output
    turned = graph.add("permute", [total], {"dims": (1, 0, 2)}, path=path).output
    made = graph.add("matmul", [turned, matrices], path=path).output
    return graph.add("permute", [made], {"dims": (1, 0, 2)}, path=path).output


def summed_product(node: Node) -> SummedProduct | None:
    """The sum of a product, read through what scales its rows."""
    if node.operator.name != "segment_sum" or node.inputs[1] is None or node.inputs[1].rank != 1:
        return None
    value, index = node.inputs[0], node.inputs[1]
    scalings: list[Scaling] = []
    while value is not None:
        product = read_product(value)
        if product is not None:
            break
        scaling = scaling_of(value)
        if scaling is None:
            return None
        scalings.append(scaling)
        value = scaling[0].inputs[scaling[1]]
    if value is None or product is None or product.bias is not None:
        return None
    if product.type is not None and not (
        product.type in _index_inputs(node.graph) and index in _index_inputs(node.graph)
    ):
        return None
    if product.split is not None and not any(_widens(scaling, product) for scaling in scalings):
        return None
    return SummedProduct(node, tuple(scalings), product)


def scaling_of(value: Value) -> Scaling | None:
    """The node that scales whole rows, and which of its operands the rows are."""
    node = value.producer
    if node is None or node.operator.name not in _SCALING or node.attributes.get("rounding"):
        return None
    left, right = (*node.inputs, None)[:2]
    if left is None:
        return None
    if right is None:
        return (node, 0) if node.attributes["scalar"] is not None else None
    if left.shape == value.shape and _is_scale(right, value):
        return node, 0
    if node.operator.name == "mul" and right.shape == value.shape and _is_scale(left, value):
        return node, 1
    return None


def _is_scale(scale: Value, value: Value) -> bool:
    """Whether a value is the same for all features of a row and head."""
    if scale.rank == 0:
        return True
    return scale.shape[-1] == 1 and value.shape[-1] != 1


def _widens(scaling: Scaling, product: Product) -> bool:
    """Whether a scale has a number for each head."""
    node, place = scaling
    other = node.inputs[1 - place] if len(node.inputs) > 1 else None
    assert product.split is not None
    return other is not None and other.rank == 3 and other.shape[1] == product.split[0]


def _index_inputs(graph: Graph) -> list[Value]:
    return [value for value in graph.inputs if is_index(value)]
