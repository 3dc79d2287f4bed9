"""A gain and a bias behind a norm are operands of the norm."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.canonical.matching import is_sole, maker, operands, supersede
from suture.passes.rewriting import Rule


def gain_into_norm(graph: Graph, node: Node) -> str | None:
    """norm(x) * g is the norm with gain g."""
    if node.operator.name != "mul":
        return None
    return _absorb(graph, node, 1, ("layer_norm", "rms_norm"))


def bias_into_norm(graph: Graph, node: Node) -> str | None:
    """norm(x) + b is the norm with bias b."""
    if node.operator.name != "add":
        return None
    return _absorb(graph, node, 2, ("layer_norm",))


def _absorb(graph: Graph, node: Node, index: int, names: tuple[str, ...]) -> str | None:
    left, right = operands(node)
    for value, other in ((left, right), (right, left)):
        norm = maker(value, *names)
        if norm is None or not is_sole(norm.output) or not isinstance(other, Parameter) or _given(norm, index):
            continue
        if index == 1 and _given(norm, 2):
            continue  # (n + b) g is not n g + b
        rank = norm.attributes["rank"]
        assert isinstance(rank, int)
        if other.shape != norm.output.shape[norm.output.rank - rank :] or other.dtype != norm.output.dtype:
            continue
        inputs: list[Value | None] = [*norm.inputs, *[None] * (index + 1 - len(norm.inputs))]
        inputs[index] = other
        made = graph.add(
            norm.operator, inputs, norm.attributes, path=norm.path, name=f"{node.output.name}_absorbed", before=node
        )
        supersede(graph, node.output, made.output)
        graph.remove_dead()
        return f"{'gain' if index == 1 else 'bias'} {other.name}"
    return None


def _given(norm: Node, index: int) -> bool:
    return index < len(norm.inputs) and norm.inputs[index] is not None


RULES = (Rule("gain", gain_into_norm), Rule("bias", bias_into_norm))
