"""fold: compute ahead of time whatever needs no input, above all batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.affine import (
    Affine,
    Place,
    Refusal,
    find_readers,
    find_writer,
    merge_into_reader,
    merge_into_writer,
    read_affine,
)
from suture.passes.constants import fold_constants
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register


@register(contract=Contract.EXACT)
def fold(
    graph: Graph, notes: Notes, *, into: Literal["both", "writers", "readers"] = "both", growth: int = 65536
) -> Graph:
    """Merge batch norms and per-channel factors into the layers beside them, compute constants, drop dead code.

    Batch norms count as they do in evaluation. Each one that stays is noted with the reason.

    :param into: whether maps move into the layers that write their input, into those that read their output, or into both
    :param growth: the most bytes that a constant computed ahead of time may add to the model
    """
    result = graph.copy()
    before = {name for name, parameter in result.parameters.items() if _is_read(parameter)}
    done: list[str] = []
    dead = result.remove_dead()
    if dead:
        done.append(f"{dead} nodes that reached no output are gone")
    # a computed weight (weight norm, say) must be a tensor before a norm can go into it; sizes left alone are noted in the last round only
    constants = fold_constants(result, Notes(), growth=growth)
    done += _fold_affines(result, into)
    constants += fold_constants(result, notes, growth=growth)
    if constants:
        done.append(f"{constants} values that depend on no input are tensors now")
    stay = _refusals(result, into)
    result.remove_dead()
    _drop_parameters(result, before)
    for text in (*done, *stay):
        notes.note(text)
    if not done:
        notes.not_applicable("nothing can be computed ahead of time" + (f" ({len(stay)} sites stay)" if stay else ""))
    return result


def _fold_affines(graph: Graph, into: str) -> list[str]:
    """Move affine maps into layers until none can move; what was done."""
    done: list[str] = []
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if not node.outputs[0].uses and not node.outputs[0].is_graph_output():
                continue  # dead by an earlier step of this round
            affine = read_affine(node)
            if not isinstance(affine, Affine):
                continue
            target = _target(affine, into)
            if isinstance(target, Refusal):
                continue
            places = [target] if isinstance(target, Place) else target
            done.append(f"{_called(node)} is part of {', '.join(_weight_name(place.layer) for place in places)}")
            if isinstance(target, Place):
                _move_into_writer(graph, affine, target)
            else:
                _move_into_readers(graph, affine, target)
            changed = True
    return done


def _target(affine: Affine, into: str) -> Place | list[Place] | Refusal:
    """Where a map can move: the layer before it rather than those after it."""
    writer: Place | Refusal = find_writer(affine) if into != "readers" else Refusal("", False)
    if isinstance(writer, Place) or into == "writers":
        return writer
    # a trained factor before a layer (the gain of a norm, say) is a site of other surgeries: it stays what it is
    if not affine.is_norm and any(tensor.requires_grad for tensor in affine.tensors):
        return writer
    readers = find_readers(affine)
    if not isinstance(readers, Refusal):
        return readers
    reasons = [refusal.reason for refusal in (writer, readers) if refusal.reason]
    return Refusal("; ".join(dict.fromkeys(reasons)), writer.near or readers.near)


def _refusals(graph: Graph, into: str) -> list[str]:
    """Why each norm, and each factor beside a layer, is still there."""
    stay = []
    for node in graph.nodes:
        found = read_affine(node)
        refusal = _target(found, into) if isinstance(found, Affine) else found
        if isinstance(refusal, Refusal) and (refusal.near or node.operator.name == "batch_norm"):
            stay.append(f"{_called(node)} stays: {refusal.reason}")
    return stay


def _move_into_writer(graph: Graph, affine: Affine, place: Place) -> None:
    weight, bias = merge_into_writer(place.layer, affine)
    name, last = affine.node.output.name, (place.layer, *place.between)[-1]
    graph.replace_uses(affine.node.output, last.output)
    graph.remove(affine.node)
    chain = (_assign(graph, place.layer, weight, bias), *place.between)
    # what holds the folded result takes its name; what lies between holds something new
    for position, node in enumerate(chain):
        ends = position == len(chain) - 1
        _rebuild(graph, node, node.inputs, name if ends else f"{node.output.name}_folded")


def _move_into_readers(graph: Graph, affine: Affine, places: Sequence[Place]) -> None:
    merged = [merge_into_reader(place.layer, affine) for place in places]
    graph.replace_uses(affine.node.output, affine.operand)
    graph.remove(affine.node)
    for place, (weight, bias) in zip(places, merged, strict=True):
        _assign(graph, place.layer, weight, bias)
    for node in dict.fromkeys(node for place in places for node in place.between):
        _rebuild(graph, node, node.inputs, f"{node.output.name}_folded")


def _assign(graph: Graph, layer: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> Node:
    """Give a layer other numbers; its parameters keep their names, a new bias is named beside the weight. Returns the layer."""
    old_weight, old_bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    assert isinstance(old_weight, Parameter)
    old_weight.assign(_like(weight, old_weight))
    if bias is None:
        return layer
    if isinstance(old_bias, Parameter):
        old_bias.assign(_like(bias, old_bias))
        return layer
    stem = old_weight.name.removesuffix("weight")
    base = f"{stem}bias" if stem != old_weight.name else f"{old_weight.name}_bias"
    name, count = base, 1
    while name in graph.parameters:
        name, count = f"{base}_{count}", count + 1
    new_bias = graph.add_parameter(name, _like(bias, old_weight), "parameter", requires_grad=old_weight.requires_grad)
    if len(layer.inputs) > 2:
        layer.replace_input(2, new_bias)
        return layer
    return _rebuild(graph, layer, (*layer.inputs, new_bias), layer.output.name)


def _rebuild(graph: Graph, node: Node, inputs: Sequence[Value | None], name: str) -> Node:
    """Replace a node by one of other inputs and another name."""
    for title in (f"{name}_new", name):  # twice, because the name may be the old node's own
        shapes = [value.shape for value in node.outputs] if node.operator.declared else None
        fresh = graph.add(
            node.operator, inputs, node.attributes, shapes=shapes, path=node.path, name=title, before=node
        )
        graph.replace_uses(node.output, fresh.output)
        graph.remove(node)
        node = fresh
    return node


def _like(data: torch.Tensor, old: Parameter) -> torch.Tensor:
    return data.to(old.data.dtype).contiguous()


def _drop_parameters(graph: Graph, before: set[str]) -> None:
    """Remove the tensors that nothing reads any more, and the batch counters of norms that are gone."""
    for name in before:
        parameter = graph.parameters[name]
        if _is_read(parameter):
            continue
        graph.remove_parameter(parameter)
        prefix, _, last = name.rpartition(".")
        counter = f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"
        if last == "running_mean" and counter in graph.parameters and not _is_read(graph.parameters[counter]):
            graph.remove_parameter(graph.parameters[counter])


def _is_read(parameter: Parameter) -> bool:
    return bool(parameter.uses) or parameter.is_graph_output()


def _called(node: Node) -> str:
    return f"{node.path} ({node.operator.name})" if node.path else node.where()


def _weight_name(layer: Node) -> str:
    weight = layer.inputs[1]
    return weight.name if weight is not None else layer.where()
