"""Transform first: a product of a sum is a sum of products. It pays where what comes out is narrower than what goes in.

(sum over e into n of c[e] x[src[e]]) W  =  sum over e into n of c[e] (x W)[src[e]]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.passes.relational.aggregation import Scaling, rescaled, scaling_of
from suture.passes.relational.moving import supersede


@dataclass(frozen=True, eq=False)
class _Multiplied:
    """A product of a sum.

    :param node: the product
    :param behind: what scales the sum, the last first
    :param sum: the sum into segments
    :param before: what scales the rows, the last first
    :param rows: the rows that are summed
    """

    node: Node
    behind: tuple[Scaling, ...]
    sum: Node
    before: tuple[Scaling, ...]
    rows: Value


def transformation_sites(graph: Graph) -> Iterator[Value]:
    """The products of sums with one matrix."""
    for node in graph.nodes:
        if _multiplied_sum(node) is not None:
            yield node.output


def transform_first(graph: Graph, value: Value) -> str | None:
    """Multiply rows before they are summed, in place; says what was done."""
    found = _multiplied_sum(value.producer) if value.producer is not None else None
    if found is None:
        return None
    node, path, index = found.node, found.node.path, found.sum.inputs[1]
    rows = rescaled(graph, _product(graph, node, found.rows), found.before)
    shape = (found.sum.output.shape[0], *rows.shape[1:])
    total = graph.add("segment_sum", [rows, index], shapes=[shape], path=found.sum.path).output
    made = rescaled(graph, total, found.behind)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        made = graph.add("add", [made, bias], path=path).output
    text = f"{value}: rows are multiplied with {node.inputs[1]} before they are summed"
    supersede(graph, {value: made})
    return text


def _product(graph: Graph, node: Node, rows: Value) -> Value:
    """Rows times the weights of a product; where they are looked up, the table is multiplied."""
    lookup = rows.producer
    if lookup is not None and lookup.operator.name == "embedding" and lookup.inputs[0] is not None:
        made = _product(graph, node, lookup.inputs[0])
        return graph.add("embedding", [made, lookup.inputs[1]], path=lookup.path).output
    inputs = [rows, node.inputs[1]] + ([None] if len(node.inputs) > 2 else [])
    return graph.add(node.operator, inputs, node.attributes, path=node.path).output


def _multiplied_sum(node: Node) -> _Multiplied | None:
    """The sum that a product with one matrix is of, read through what scales it."""
    if node.operator.name not in ("linear", "matmul") or node.inputs[0] is None or node.inputs[1] is None:
        return None
    if node.inputs[0].rank != 2 or node.inputs[1].rank != 2:
        return None
    behind, total = _unscaled(node.inputs[0])
    source = total.producer
    if source is None or source.operator.name != "segment_sum" or source.inputs[0] is None or source.inputs[1] is None:
        return None
    if source.inputs[1].rank != 1:
        return None
    before, rows = _unscaled(source.inputs[0])
    return _Multiplied(node, behind, source, before, rows)


def _unscaled(value: Value) -> tuple[tuple[Scaling, ...], Value]:
    """What scales the rows of a value, the last first, and the rows."""
    found: list[Scaling] = []
    while (scaling := scaling_of(value)) is not None:
        found.append(scaling)
        operand = scaling[0].inputs[scaling[1]]
        assert operand is not None
        value = operand
    return tuple(found), value
