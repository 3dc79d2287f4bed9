"""Folding the low-rank updates of stitching layers into their weights, W + B A / r: a stitch costs one product again (SN-Netv2, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register

_DOWN, _UP, _WEIGHT, _BIAS = ".update.down", ".update.up", ".weight", ".bias"


@register(contract=Contract.EXACT)
def fold_updates(graph: Graph, notes: Notes) -> Graph:
    """Fold the trained updates of stitching layers into their frozen weights, which are then trained again."""
    result = graph.copy()
    names = [name.removesuffix(_DOWN) for name in result.parameters if name.endswith(_DOWN)]
    layers = [name for name in names if name + _UP in result.parameters and name + _WEIGHT in result.parameters]
    if not layers:
        notes.not_applicable("no stitching layer has an update")
        return graph
    for name in layers:
        down, up = result.parameters[name + _DOWN], result.parameters[name + _UP]
        for node in [use.node for use in down.uses]:
            _bypass(result, node, down, up)
        _fold_weight(result, name)
        notes.note(f"{name}: an update of rank {down.data.shape[0]} is folded")
        for parameter in (down, up):
            if not parameter.uses:
                result.remove_parameter(parameter)
    return result


def _fold_weight(graph: Graph, name: str) -> None:
    weight, bias = graph.parameters[name + _WEIGHT], graph.parameters.get(name + _BIAS)
    down, up = (graph.parameters[name + suffix].data.detach().flatten(1).double() for suffix in (_DOWN, _UP))
    update = (up @ down / len(down)).reshape(weight.data.shape)
    weight.assign((weight.data.detach().double() + update).to(weight.data.dtype))
    for parameter in (weight, bias):
        if parameter is not None:
            parameter.requires_grad = True


def _bypass(graph: Graph, node: Node, down: Parameter, up: Parameter) -> None:
    """Let what reads the sum of layer and update read the layer alone: in the graph itself, or in the body of a branch."""
    if not node.bodies:
        _drop_update(graph, node)
        return
    index = node.inputs.index(down)
    then = node.bodies["then"].copy()
    _drop_update(then, then.inputs[index - 1].uses[0].node)
    then.remove_dead()
    drop = [k for k, value in enumerate(node.inputs) if value is down or value is up]
    bodies = {"then": _without(then, drop), "otherwise": _without(node.bodies["otherwise"].copy(), drop)}
    kept = [value for k, value in enumerate(node.inputs) if k not in drop]
    names = [value.name for value in node.outputs]
    replacement = graph.add("branch", kept, bodies, path=node.path, before=node)
    for old, new in zip(node.outputs, replacement.outputs, strict=True):
        graph.replace_uses(old, new)
    graph.remove(node)
    for value, name in zip(replacement.outputs, names, strict=True):
        graph.rename_result(value, name)


def _without(body: Graph, drop: Sequence[int]) -> Graph:
    """A body without the inputs that belong to some operands of its node; operand 0 is the predicate."""
    body.inputs = [value for k, value in enumerate(body.inputs, start=1) if k not in drop]
    return body


def _drop_update(graph: Graph, down: Node) -> None:
    """From the product with `down` on, follow to the sum, and let its readers read the other term."""
    value: Value = down.output
    while value.uses[0].node.operator.name != "add":
        value = value.uses[0].node.output
    total = value.uses[0].node
    layer = next(operand for operand in total.inputs if operand is not None and operand is not value)
    graph.replace_uses(total.output, layer)
    graph.remove_dead()
