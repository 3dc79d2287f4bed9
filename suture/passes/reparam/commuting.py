"""Linear operators on different letters commute: an average over space goes before a layer over channels, which then has fewer positions."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Value
from suture.passes.reparam.branches import reads_alone
from suture.passes.reparam.cost import MOVED, elements, reading_cost
from suture.passes.reparam.reading import Reading, read
from suture.passes.reparam.writing import called
from suture.passes.rewriting import Refusal, Rule

_POOLS = frozenset({"avg_pool", "adaptive_avg_pool"})


def _average_first(graph: Graph, node: Node) -> str | Refusal | None:
    if node.operator.name not in _POOLS:
        return None
    pool = read(node, shapes=True)
    layer = pool.operand.producer if isinstance(pool, Reading) else None
    if layer is None or layer.operator.name != "conv" or not isinstance(pool, Reading):
        return None
    mapped = read(layer, shapes=True)
    if not isinstance(mapped, Reading) or not mapped.form.is_pointwise or not reads_alone(layer.output):
        return None
    names = f"{called(node)} before {called(layer)}"
    if pool.form.pads and layer.inputs[2:] not in ((), (None,)):
        return Refusal(f"{names}: its windows pad with zeros that the bias would have to reach")
    return _swapped(graph, names, pool, mapped) if _pays(graph, pool, mapped) else None


AVERAGE_FIRST = Rule("commute", _average_first)
"""The rule, applied at the average."""


def _pays(graph: Graph, pool: Reading, layer: Reading) -> bool:
    """Whether the average of the layer's operand, then the layer at fewer positions, cost less than now."""
    old = reading_cost(graph, pool) + reading_cost(graph, layer)
    positions = elements(graph, pool.node.output) // layer.form.outputs
    averaged = positions * layer.form.inputs  # numbers that the average gives
    taps = pool.form.kernel[0].numel()
    new = averaged * taps + MOVED * (elements(graph, layer.operand) + averaged)
    new += positions * layer.form.kernel.numel() + MOVED * (averaged + elements(graph, pool.node.output))
    return new < old


def _swapped(graph: Graph, names: str, pool: Reading, layer: Reading) -> str:
    node, name = pool.node, pool.node.output.name
    operand: Value = layer.operand
    shape = (*operand.shape[:2], *node.output.shape[2:])
    shapes = [shape] if node.operator.declared else None
    averaged = graph.add(
        node.operator, [operand], node.attributes, shapes=shapes, path=node.path, name=f"{name}_first", before=node
    ).output
    inputs = [averaged, *layer.node.inputs[1:]]
    fresh = graph.add(
        layer.node.operator, inputs, layer.node.attributes, path=layer.node.path, name=f"{name}_new", before=node
    )
    graph.replace_uses(node.output, fresh.output)
    graph.remove(node)
    graph.remove(layer.node)
    graph.rename_result(fresh.output, name)
    return f"{names}: at fewer positions"
