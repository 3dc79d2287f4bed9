"""Norms that a model writes out, as one operator: `x * rsqrt(mean(x^2) + eps) * gain` is `rms_norm`."""

from __future__ import annotations

from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class WrittenNorm:
    """An RMS norm found in the graph."""

    source: Value
    eps: float
    last: Node  # the product that gives the result
    gain: Value | None


def gather_rms_norms(graph: Graph) -> bool:
    """Rewrite every written-out RMS norm over the last dimension. The operator computes it term by term, so that not a bit changes."""
    changed = False
    for node in graph.nodes:
        found = match_rms_norm(node)
        if found is None:
            continue
        operands = [found.source] if found.gain is None else [found.source, found.gain]
        made = graph.add("rms_norm", operands, {"rank": 1, "eps": found.eps}, path=found.last.path, before=found.last)
        graph.replace_uses(found.last.output, made.output)
        changed = True
    if changed:
        graph.remove_dead()
    return changed


def match_rms_norm(product: Node) -> WrittenNorm | None:
    """The norm whose product by the inverse root is this node, if there is one."""
    if product.operator.name != "mul" or len(product.inputs) != 2:
        return None
    for source, scale in (product.inputs, product.inputs[::-1]):
        if source is None or scale is None:
            continue
        root = _only(scale, "rsqrt")
        shifted = _only(root.inputs[0], "add") if root is not None else None
        if shifted is None or (len(shifted.inputs) == 2 and shifted.inputs[1] is not None):
            continue
        eps = shifted.attributes["scalar"]
        mean = _only(shifted.inputs[0], "mean")
        if mean is None or not isinstance(eps, float) or not _over_last(mean, source):
            continue
        if _squares(mean.inputs[0], source):
            gain = _gain(product, source)
            return (
                WrittenNorm(source, eps, product, None) if gain is None else WrittenNorm(source, eps, gain[0], gain[1])
            )
    return None


def _over_last(mean: Node, source: Value) -> bool:
    dims = mean.attributes["dims"]
    return (
        isinstance(dims, tuple)
        and len(dims) == 1
        and dims[0] in (-1, source.rank - 1)
        and mean.attributes["keepdim"] is True
    )


def _squares(value: Value | None, source: Value) -> bool:
    power = _only(value, "pow")
    if power is not None:
        return (
            power.inputs[0] is source
            and (len(power.inputs) < 2 or power.inputs[1] is None)
            and power.attributes["scalar"] == 2
        )
    square = _only(value, "mul")
    return square is not None and square.inputs == (source, source)


def _gain(product: Node, source: Value) -> tuple[Node, Value] | None:
    """The multiplication by a vector that alone reads the norm, if its vector has the norm's width and type."""
    if product.output.is_graph_output() or len(product.output.uses) != 1:
        return None
    node = product.output.uses[0].node
    if node.operator.name != "mul" or len(node.inputs) != 2:
        return None
    gain = node.inputs[0] if node.inputs[1] is product.output else node.inputs[1]
    if gain is None or gain is product.output or gain.shape != source.shape[-1:] or gain.dtype != source.dtype:
        return None
    return node, gain


def _only(value: Value | None, operator: str) -> Node | None:
    """The node that makes a value, if it is of that operator and one operand alone reads it."""
    if value is None or value.producer is None or value.producer.operator.name != operator or value.is_graph_output():
        return None
    return value.producer if len(value.uses) == 1 else None
