"""A product by type on the side that has fewer pairs: each relation is multiplied at its sources or at its destinations, whichever differ less.

    y[n] = sum over e into n of c[e] (x[a[e]] W[type[e]])

A relation multiplied at its sources a has one product for each pair (type, a), which many edges weigh and sum; one multiplied at its destinations b
sums what its edges weigh first and has one product for each pair (type, b). So rows meet twice, in pairs before the product and in nodes behind
it, and every edge is weighed in one of the two places:

    z[p] = x[a] for a pair of the first side; the sum over its edges of c[e] x[a[e]] for one of the second
    y[n] = sum over edges of the first side of c[e] (z W)[pair[e]], and over pairs of the second of (z W)[p]

The inner product <x[a[e]] W[type[e]], q[b[e]]> likewise transforms x for pairs of the first side, and q with the transposed weights for the second.
Hector (ASPLOS 2024, linear operator reordering) chooses one order for all relations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import product, symbol
from suture.passes.relational.aggregation import SummedProduct, rescaled, summed_product
from suture.passes.relational.compaction import fresh_symbol, lifted, table_size
from suture.passes.relational.inner_products import turned_product
from suture.passes.relational.locality import Keys, is_index, row_keys
from suture.passes.relational.moving import supersede


@dataclass(frozen=True, eq=False)
class Sides:
    """The edges of typed products parted by the end at which their type is multiplied.

    :param turned: for each type `[t]` whether it is multiplied at its second end
    :param side: the same for each edge `[e]`
    :param first: an edge of each pair `[u]`
    :param rank: the pair of each edge `[e]`
    """

    turned: Value
    side: Value
    first: Value
    rank: Value


def sided_sum_sites(graph: Graph) -> Iterator[Value]:
    """The sums of products by type, of rows that one end looks up, into another end."""
    keys = row_keys(graph)
    for node in graph.nodes:
        if _sided_sum(node, keys) is not None:
            yield node.output


def sum_on_sides(graph: Graph, value: Value) -> str | None:
    """Sum before or behind a product, type by type, in place; says what was done."""
    node = value.producer
    found = _sided_sum(node, row_keys(graph)) if node is not None else None
    if node is None or found is None:
        return None
    total, end = found
    product, index, path = total.product, node.inputs[1], node.path
    assert index is not None and product.type is not None
    matrices = product.matrices(graph)
    sides = part_edges(graph, product.type, end, index, matrices)
    weight = _weight(graph, total)
    into = _meeting(graph, sides, together=False, name=f"into_{end.name}_or_{index.name}")
    rows = _looked(graph, product.rows(graph), into)
    if product.split is not None:
        rows = graph.add("reshape", [rows], shapes=[(rows.shape[0], 1, product.width)], path=path).output
    gathered = _weighed(graph, rows, weight, sides, into, on=True)
    shape = (sides.first.shape[0], *gathered.shape[1:])
    pairs = graph.add("embedding", [sides.rank, into]).output
    met = graph.add("segment_sum", [gathered, pairs], shapes=[shape], path=path).output
    kinds = graph.add("embedding", [product.type, sides.first]).output
    made = graph.add("typed_linear", [met, matrices, kinds], path=path).output
    out = _meeting(graph, sides, together=True, name=f"from_{end.name}_or_{index.name}")
    parts = graph.add("embedding", [made, graph.add("embedding", [sides.rank, out]).output], path=path).output
    spread = _weighed(graph, parts, weight, sides, out, on=False)
    ends = graph.add("embedding", [index, out]).output
    result = graph.add("segment_sum", [spread, ends], shapes=[value.shape], path=path).output
    everywhere = tuple(each for each in total.scalings if not _is_by_row(each))
    result = rescaled(graph, result, everywhere)
    text = (
        f"{value}: each {product.type} is multiplied with {product.weight} at {end} or {index}, of which it has fewer"
    )
    supersede(graph, {value: result})
    return text


def sided_inner_sites(graph: Graph) -> Iterator[Value]:
    """The inner products of a product by type at one end with what another end looks up."""
    keys = row_keys(graph)
    for node in graph.nodes:
        if _sided_inner(node, keys) is not None:
            yield node.output


def turn_on_sides(graph: Graph, value: Value) -> str | None:
    """Multiply one or the other side of an inner product by weights, type by type, in place; says what was done."""
    found = _sided_inner(value.producer, row_keys(graph)) if value.producer is not None else None
    if found is None or value.producer is None:
        return None
    product, other, end, far = found
    x, weight, type = product.inputs
    assert x is not None and weight is not None and type is not None
    path, rank = product.path, weight.rank
    sides = part_edges(graph, type, end, far, weight)
    dims = (*range(rank - 2), rank - 1, rank - 2)
    back = graph.add("permute", [weight], {"dims": dims}, path=path).output
    choice = graph.add("reshape", [sides.turned], shapes=[(weight.shape[0], *[1] * (rank - 1))]).output
    matrices = graph.add("where", [choice, back, weight], path=path).output
    near_table, far_table = lifted(graph, x, end), lifted(graph, other, far)
    assert near_table is not None and far_table is not None
    table, places = _joined(graph, near_table, far_table, [end, far], path)
    near = graph.add("where", [sides.side, *reversed(places)]).output
    across = graph.add("where", [sides.side, *places]).output
    kinds = graph.add("embedding", [type, sides.first]).output
    rows = graph.add("embedding", [table, graph.add("embedding", [near, sides.first]).output], path=path).output
    made = graph.add("typed_linear", [rows, matrices, kinds], path=path).output
    met = [
        graph.add("embedding", [made, sides.rank], path=path).output,
        graph.add("embedding", [table, across], path=path).output,
    ]
    scaled = graph.add("mul", met, path=path).output
    result = graph.add("sum", [scaled], value.producer.attributes, path=value.producer.path).output
    text = f"{value}: each {type} is multiplied with {weight} at {end} or {far}, of which it has fewer"
    supersede(graph, {value: result})
    return text


def _joined(graph: Graph, a: Value, b: Value, ends: list[Value], path: str) -> tuple[Value, list[Value]]:
    """Two tables as one, and where the rows of each stand in it that indices look up: row by row beside each other, if they have as many rows."""
    if a.shape[0] != b.shape[0] or not all(isinstance(size, int) for size in a.shape[1:]):
        behind = graph.add("add", [ends[1]], {"scalar": a.shape[0]}).output
        return graph.add("concat", [a, b], {"dim": 0}, path=path).output, [ends[0], behind]
    width = product(a.shape[1:])
    flat = [graph.add("reshape", [each], shapes=[(each.shape[0], width)], path=path).output for each in (a, b)]
    beside = graph.add("concat", flat, {"dim": 1}, path=path).output
    table = graph.add("reshape", [beside], shapes=[(2 * a.shape[0], *a.shape[1:])], path=path).output
    twice = [graph.add("mul", [end], {"scalar": 2}).output for end in ends]
    return table, [twice[0], graph.add("add", [twice[1]], {"scalar": 1}).output]


def part_edges(graph: Graph, type: Value, a: Value, b: Value, weight: Value) -> Sides:
    """The edges parted by the end of which their type has fewer; made where the graph has it not.

    :param weight: what has a first dimension of types
    """
    name = f"{a.name}_or_{b.name}"
    turned = next((node for node in graph.nodes if node.operator.name == "fewer_ends" and node.inputs == (type, a, b)), None)  # fmt: skip
    if turned is None or turned.output.shape != weight.shape[:1]:
        turned = graph.add("fewer_ends", [type, a, b], shapes=[weight.shape[:1]], name=[f"turned_{name}"])
        side = graph.add("embedding", [turned.output, type], name=[f"side_{name}"]).output
        end = graph.add("where", [side, b, a], name=[f"end_{name}"]).output
        shapes = [(symbol(fresh_symbol(graph, f"pairs_{name}")),), type.shape]
        pairs = graph.add("unique_rows", [type, end], shapes=shapes, name=[f"first_{name}", f"rank_{name}"])
        return Sides(turned.output, side, *pairs.outputs)
    side = next(use.node.output for use in turned.output.uses if use.node.operator.name == "embedding")
    end = next(use.node.output for use in side.uses if use.node.operator.name == "where" and use.node.inputs[1] is b)
    pairs = next(use.node for use in end.uses if use.node.operator.name == "unique_rows")
    return Sides(turned.output, side, *pairs.outputs)


def parted_by(node: Node) -> tuple[Value, Value, Value] | None:
    """For a node that lists pairs or rows of parted edges: the type, and both ends."""
    match node.operator.name:
        case "meeting_rows":
            side = node.inputs[0]
        case "unique_rows" if len(node.inputs) > 1:
            end = _source(node.inputs[1], "where")
            side = end.inputs[0] if end is not None else None
        case _:
            return None
    looked = _source(side, "embedding")
    turned = looked.inputs[0] if looked is not None else None
    if turned is None or turned.producer is None or turned.producer.operator.name != "fewer_ends":
        return None
    type, a, b = turned.producer.inputs
    assert type is not None and a is not None and b is not None
    return type, a, b


def _source(value: Value | None, operator: str) -> Node | None:
    """The node that a value comes from, if it is of that operator."""
    node = value.producer if value is not None else None
    return node if node is not None and node.operator.name == operator else None


def _meeting(graph: Graph, sides: Sides, *, together: bool, name: str) -> Value:
    """The edges that meet: those of one side once for each pair, those of the other themselves."""
    for use in sides.side.uses:
        if use.node.operator.name == "meeting_rows" and use.node.attributes["together"] is together:
            return use.node.output
    shapes = [(symbol(fresh_symbol(graph, f"rows_{name}")),)]
    return graph.add(
        "meeting_rows", [sides.side, sides.first], {"together": together}, shapes=shapes, name=[name]
    ).output


def _weight(graph: Graph, total: SummedProduct) -> Value | None:
    """The number that each row is weighed with, or a row of them, one a head; None where rows are summed as they are."""
    scalings = [each for each in total.scalings if _is_by_row(each)]
    if not scalings:
        return None
    node, place = scalings[-1]
    other = node.inputs[1 - place]
    assert other is not None
    if node.operator.name == "div":
        other = graph.add("reciprocal", [other], path=node.path).output
    for node, place in reversed(scalings[:-1]):
        scale = node.inputs[1 - place]
        other = graph.add(node.operator, [other, scale], node.attributes, path=node.path).output
    return other


def _is_by_row(scaling: tuple[Node, int]) -> bool:
    """Whether rows are scaled with numbers of their own."""
    node, place = scaling
    other = node.inputs[1 - place] if len(node.inputs) > 1 else None
    return other is not None and other.rank > 0 and other.shape[0] == node.output.shape[0]


def _weighed(graph: Graph, rows: Value, weight: Value | None, sides: Sides, at: Value, *, on: bool) -> Value:
    """Rows times their weight where they stand for an edge alone, which those of one side do."""
    if weight is None:
        return rows
    side = _narrowed(graph, _looked(graph, sides.side, at), weight.rank)
    own = _looked(graph, weight, at)
    if on:
        factor = graph.add("where", [side, own], {"on_false": 1.0}).output
    else:
        factor = graph.add("where", [side, None, own], {"on_true": 1.0}).output
    return graph.add("mul", [rows, factor]).output


def _looked(graph: Graph, value: Value, at: Value) -> Value:
    """The rows of a value at an index; of a lookup, what it looks up; of rows in another shape, those in this shape."""
    node = value.producer
    if node is not None and node.operator.name == "reshape" and node.inputs[0] is not None:
        whole = node.inputs[0]
        if whole.rank and value.rank and whole.shape[0] == value.shape[0]:
            shape = (at.shape[0], *value.shape[1:])
            return graph.add("reshape", [_looked(graph, whole, at)], shapes=[shape], path=node.path).output
    if node is not None and node.operator.name == "embedding" and node.inputs[1] is not None:
        return graph.add("embedding", [node.inputs[0], _looked(graph, node.inputs[1], at)], path=node.path).output
    return graph.add("embedding", [value, at]).output


def _narrowed(graph: Graph, side: Value, rank: int) -> Value:
    """A truth value a row, beside values of a rank."""
    return graph.add("reshape", [side], shapes=[(side.shape[0], *[1] * (rank - 1))]).output if rank > 1 else side


def _sided_sum(node: Node, keys: dict[Value, Keys | None]) -> tuple[SummedProduct, Value] | None:
    """The sum of a product by type, and the end that its rows are looked up by."""
    found = summed_product(node)
    if (
        found is None
        or found.product.type is None
        or not all(_is_by_row(each) or _is_number(each) for each in found.scalings)
    ):
        return None
    product, index = found.product, node.inputs[1]
    looked = product.looked if product.looked is not None else _only_key(product.node.inputs[0], keys)
    if looked is None or looked is index or not all(_is_edge_index(each, product.type) for each in (looked, index)):
        return None
    return found, looked


def _is_number(scaling: tuple[Node, int]) -> bool:
    """Whether all rows are scaled with one number."""
    node, place = scaling
    other = node.inputs[1 - place] if len(node.inputs) > 1 else None
    return other is None or other.rank == 0


def _sided_inner(node: Node, keys: dict[Value, Keys | None]) -> tuple[Node, Value, Value, Value] | None:
    """The product by type, the other side of the inner product, and the end of each."""
    found = turned_product(node)
    if found is None:
        return None
    product, other = found
    x, _, type = product.inputs
    end, far = _only_key(x, keys), _only_key(other, keys)
    if x is None or end is None or far is None or end is far or x.shape != other.shape:
        return None
    if table_size(x, end) is None or table_size(other, far) is None:
        return None
    return (product, other, end, far) if all(_is_edge_index(each, type) for each in (end, far)) else None


def _only_key(value: Value | None, keys: dict[Value, Keys | None]) -> Value | None:
    own = keys.get(value) if value is not None else None
    return next(iter(own)) if own is not None and len(own) == 1 else None


def _is_edge_index(value: Value | None, type: Value | None) -> bool:
    """Whether a value is an index of the edges that come in, beside their types."""
    return (
        value is not None and type is not None and value.producer is None and type.producer is None
        and is_index(value) and value is not type and value.shape == type.shape
    )  # fmt: skip
