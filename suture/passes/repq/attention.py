"""Attention written out, so that what its two products read can be quantised."""

from __future__ import annotations

import math

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, exact_quotient
from suture.passes.rewriting import Refusal


def write_out(graph: Graph, node: Node) -> str | Refusal | None:
    """softmax(scale q k^T + mask) v as matmul, softmax and matmul: a rewriting rule.

    Where a mask leaves a row nothing to attend to, the row is no number afterwards; the one operator gives zeros.
    """
    if node.operator.name != "attention":
        return None
    q, k, v = (_required(node, index) for index in range(3))
    if q.rank < 2 or k.rank < 2:
        return Refusal("its operands are no matrices")
    if node.attributes["grouped"]:
        ratio = exact_quotient(q.shape[-3], _fixed(k.shape[-3])) if isinstance(k.shape[-3], int) else None
        if not isinstance(ratio, int):
            return Refusal("how many query heads share a key head is not known")
        k, v = (_repeated(graph, node, value, ratio) for value in (k, v))
    scores = _scores(graph, node, q, k)
    name = f"{node.output.name}_probabilities"
    made = graph.add("softmax", [scores], {"dim": -1}, path=node.path, name=name, before=node).output
    dropout = node.attributes["dropout"]
    if isinstance(dropout, int | float) and dropout > 0:
        made = graph.add("dropout", [made], {"p": float(dropout)}, path=node.path, name=name, before=node).output
    result = graph.add("matmul", [made, v], path=node.path, name=f"{node.output.name}_out", before=node).output
    title = node.output.name
    graph.replace_uses(node.output, result)
    graph.remove(node)
    graph.rename_result(result, title)
    return "is a product, a softmax and a product"


def _scores(graph: Graph, node: Node, q: Value, k: Value) -> Value:
    """scale q k^T, and what the mask and causality leave of it."""
    name = f"{node.output.name}_scores"
    order = (*range(k.rank - 2), k.rank - 1, k.rank - 2)
    keys = graph.add("permute", [k], {"dims": order}, path=node.path, name=f"{name}_keys", before=node).output
    made = graph.add("matmul", [q, keys], path=node.path, name=name, before=node).output
    scale = node.attributes["scale"]
    if scale is None:
        scale = 1 / math.sqrt(_fixed(q.shape[-1]))
    made = graph.add("mul", [made, None], {"scalar": scale}, path=node.path, name=name, before=node).output
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if node.attributes["causal"]:
        made = _kept(graph, node, made, _causal(graph, node, made))
    if mask is None:
        return made
    if mask.dtype.is_floating_point:
        return graph.add("add", [made, mask], path=node.path, name=name, before=node).output
    return _kept(graph, node, made, mask)


def _causal(graph: Graph, node: Node, scores: Value) -> Value:
    """Which positions a query may look at: those up to its own, counted from the first."""
    name = f"{node.output.name}_causal"
    shape: tuple[Dim, ...] = scores.shape[-2:]
    ones = graph.add(
        "full", [], {"value": 1.0, "dtype": scores.dtype}, shapes=[shape], path=node.path, name=name, before=node
    )
    lower = graph.add("triangle", [ones.output], path=node.path, name=name, before=node)
    return graph.add("gt", [lower.output, None], {"scalar": 0.5}, path=node.path, name=name, before=node).output


def _kept(graph: Graph, node: Node, scores: Value, mask: Value) -> Value:
    attributes = {"on_false": -math.inf}
    name = f"{node.output.name}_scores"
    return graph.add("where", [mask, scores, None], attributes, path=node.path, name=name, before=node).output


def _repeated(graph: Graph, node: Node, value: Value, times: int) -> Value:
    """Keys or values, each head as often as query heads share it."""
    attributes = {"dim": value.rank - 3, "repeats": times}
    return graph.add("repeat_interleave", [value], attributes, path=node.path, name=value.name, before=node).output


def _required(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _fixed(size: Dim) -> int:
    assert isinstance(size, int), f"a symbolic head size {size}"
    return size
