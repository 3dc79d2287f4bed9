"""What is written out before anyone differentiates it: fused operators, recurrent layers, and what draws or gathers statistics in training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from suture.ir.derivatives.attention import Heads, probabilities
from suture.ir.derivatives.formula import Formula, Writer
from suture.ir.derivatives.recurrent import LAYERS, unrolled
from suture.ir.derivatives.reverse import moved_by
from suture.ir.derivatives.rule import Site, refusal
from suture.ir.expansion import expand_node, is_fused
from suture.ir.graph import Graph, Node, Value


def prepare(graph: Graph, wanted: Collection[Value], *, training: bool = False) -> list[str]:
    """Write out the nodes on the way from the wanted values whose derivative is that of what they stand for.

    :param training: whether the function is that of training: dropout drops, and batch norm takes the statistics of the batch
    :returns: what was written out, for notes
    :raises SutureError: GRADIENT, naming the node, for one that cannot be
    """
    said: list[str] = []
    seen: set[Node] = set()
    while True:
        moved = moved_by(graph.nodes, wanted)
        found = [
            node
            for node in graph.nodes
            if node not in seen and any(value in moved for value in node.inputs if value is not None)
        ]
        if not found:
            return said
        for node in found:
            seen.add(node)
            if is_fused(node):
                expand_node(node)
                continue
            results = _definition(node, training)
            if results is not None:
                said.append(f"{node.where()} is written out")
                _replace(node, results)


def _replace(node: Node, results: Sequence[Formula]) -> None:
    graph, names = node.graph, [value.name for value in node.outputs]
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace_uses(old, new.value)
    graph.remove(node)
    for name, new in zip(names, results, strict=True):
        graph.rename_result(new.value, name)


def _definition(node: Node, training: bool) -> Sequence[Formula] | None:
    """The results of a node in other nodes, written in front of it; None where it may stay."""
    name, at = node.operator.name, Site(node, Writer(node.graph, node.path, node), [None] * len(node.outputs), ())
    if name in LAYERS:
        return unrolled(at, training=training)
    return _TRAINING[name](at) if training and name in _TRAINING else None


def dropped(x: Formula, p: float, *, whole: bool = False) -> Formula:
    """x times what dropout makes of ones: the same draw for values and cotangents."""
    return x * x.writer.full(1.0, x.value.type).op("dropout", p=p, whole=whole)


def _dropout(at: Site) -> Sequence[Formula] | None:
    x = at.operand()
    return [dropped(x, at["p"], whole=at["whole"])] if at["p"] else None


def _attention(at: Site) -> Sequence[Formula] | None:
    """The probabilities are dropped."""
    if not at["dropout"]:
        return None
    heads = Heads(at)
    kept = heads.matrices(dropped(probabilities(at, heads), at["dropout"]))
    made = kept.op("matmul", heads.keys(at.operand(2)))
    return [made.reshape([*heads.scores[:-1], made.shape[-1]])]


def _own_statistics(at: Site) -> Sequence[Formula] | None:
    """The statistics of the batch: those of a norm that has no running ones."""
    if not at.has(3) or at.node.attributes.get("frozen"):
        return None
    known = [at.operand(k) if at.has(k) else None for k in (1, 2)]
    return [at.operand(0).op(at.node.operator.name, *known, None, None, **at.node.attributes)]


def _no_experts(at: Site) -> Sequence[Formula] | None:
    raise refusal(
        at.node, "in training every position has an expert of its own", "differentiate the evaluated function"
    )


_TRAINING: dict[str, Callable[[Site], Sequence[Formula] | None]] = {
    "dropout": _dropout,
    "attention": _attention,
    "batch_norm": _own_statistics,
    "instance_norm": _own_statistics,
    "expert_linear": _no_experts,
}
