"""Sums over all rows of a graph, cut into pieces: the gradient of a matrix that every node is multiplied with.

`x^T g` of x[n, i] and g[n, o] is a small matrix and a sum over many rows. In pieces of so many rows, each the work of one block that reads its rows
once, it is the sum of outer products by type of rows whose type is their piece. The matrices of the pieces are added up in their order: on any
number of threads the result is the same.
"""

from __future__ import annotations

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Size, symbol
from suture.passes.relational.compaction import fresh_symbol

ROWS = 2048  # rows of a piece: their sum costs far more than to add it up
_WIDE = 256  # columns from which on a matrix product of its own has enough to do in every block


def cut_long_products(graph: Graph) -> int:
    """Cut products that sum over rows of which only data say how many, in place.

    :param graph: a program that was laid out and still has its inspector
    :returns: how many were cut
    """
    pieces: dict[Size, Value] = {}
    found = [(node, rows) for node in graph.nodes if (rows := _long(node)) is not None]
    for node, (x, g) in found:
        count = x.shape[0]
        assert isinstance(count, Size)
        if count not in pieces:
            pieces[count] = _cut(graph, count, node)
        parts = graph.add("grouped_outer", [x, g, pieces[count]], path=node.path, before=node).output
        total = graph.add("sum", [parts], {"dims": (0,)}, path=node.path, name=node.output.name, before=node).output
        graph.replace_uses(node.output, total)
        graph.remove(node)
    return len(found)


def _long(node: Node) -> tuple[Value, Value] | None:
    """The operands of a product of a transposed matrix of many rows with another."""
    if node.operator.name != "matmul":
        return None
    turned, g = node.inputs[:2]
    maker = None if turned is None else turned.producer
    if maker is None or maker.operator.name != "permute" or g is None:
        return None
    x = maker.inputs[0]
    if x is None or x.rank != 2 or g.rank != 2 or not isinstance(x.shape[0], Size) or not x.dtype.is_floating_point:
        return None
    small = all(isinstance(size, int) and 16 <= size <= _WIDE for size in node.output.shape)
    return (x, g) if small else None


def _cut(graph: Graph, rows: Size, before: Node) -> Value:
    """Where the pieces of so many rows begin, and where the last ends."""
    one = graph.add("full", [], {"value": 0, "dtype": torch.int64}, shapes=[(rows,)], before=before).output
    whole = graph.add("run_pointers", [one], shapes=[(2,)], before=before).output
    count = symbol(fresh_symbol(graph, "pieces"))
    made = graph.add("tile_runs", [whole], {"rows": ROWS}, shapes=[(count + 1,), (count,)], before=before)
    return made.outputs[0]
