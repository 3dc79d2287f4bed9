"""Decoding with heads that share a key head: their queries, one each, become the queries of one head, and keys and values are read once for all."""

from __future__ import annotations

from suture.codegen.step import Context
from suture.ir.graph import Graph, Node, Value

_WORTH = 4  # queries from which on a tile of them is faster than one after the other: measured with 3 to 16


def share_keys(graph: Graph, context: Context) -> int:
    """Rewrite attentions of one query over grouped heads, in place; returns how many were."""
    found = 0
    for node in graph.nodes:
        sizes = _sizes(node)
        if sizes is None:
            continue
        q, k, v, *more = node.inputs
        assert q is not None and k is not None and v is not None
        heads, each = sizes
        shape = (*q.shape[:-3], heads, each, q.shape[-1])
        asked = graph.add("reshape", [q], shapes=[shape], path=node.path, before=node).output
        attributes = {**node.attributes, "grouped": False}
        made = graph.add(
            "attention", [asked, k, v, *more], attributes, path=node.path, name=node.output.name, before=node
        )
        result = graph.add("reshape", [made.output], shapes=[node.output.shape], path=node.path, before=node).output
        graph.replace_uses(node.output, result)
        if node in context.undefined:
            context.undefined.add(made)
        found += 1
    if found:
        graph.remove_dead()
    return found


def _sizes(node: Node) -> tuple[int, int] | None:
    """Key heads and the queries of each, where sharing pays and changes nothing."""
    if node.operator.name != "attention" or not node.attributes["grouped"] or node.attributes["causal"]:
        return None
    q, k = node.inputs[:2]
    assert q is not None and k is not None
    whole, own = q.shape[-3], k.shape[-3]
    if q.shape[-2] != 1 or not isinstance(whole, int) or not isinstance(own, int) or not own:
        return None
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    fits = mask is None or _is_of_all_heads(mask)
    return (own, whole // own) if whole // own >= _WORTH and fits else None


def _is_of_all_heads(mask: Value) -> bool:
    """Whether a mask says the same of every head."""
    return all(mask.rank < dim or mask.shape[-dim] == 1 for dim in (2, 3))
