"""Maps `y = scale * x + shift` with one pair a channel, and the layers that can take them in.

A *writer* is a layer whose output such a map reads, a *reader* one that reads the map's output; the algebra is that of linear forms
(`suture.passes.reparam.linear_form`). What lies between may regroup and reorder dimensions, as long as the channels stay one. Several readers
take a map in together or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import product
from suture.passes.reparam.linear_form import LinearForm, compose
from suture.passes.reparam.reading import LAYERS, Reading, read, weight_of
from suture.passes.reparam.writing import Place as Site
from suture.passes.reparam.writing import called, tied_reason, titled, write
from suture.passes.rewriting import Refusal, Rule

Into: TypeAlias = Literal["both", "writers", "readers"]

_KEEP = frozenset({"clone", "dropout", "pad"})  # the identity in some way: not worth a move of its own


class Stays(NamedTuple):
    """Why a map stays where it is; `near` if a layer that might have taken it in was found."""

    reason: str
    near: bool


class Place(NamedTuple):
    """A layer that a map can move into, and the nodes between the two, in order."""

    layer: Node
    between: tuple[Node, ...]


def move_affine(into: Into = "both", *, trained: bool = False) -> Rule:
    """The rule, applied at the map: it goes into the layer before it rather than into those after it.

    :param trained: whether a trained factor may go into the layers after it
    """
    return Rule("move", lambda graph, node: _move(graph, node, into, trained))


def _move(graph: Graph, node: Node, into: Into, trained: bool) -> str | Refusal | None:
    if not any(value.uses or value.is_graph_output() for value in node.outputs):
        return None  # dead by an earlier step of this round
    affine = read_affine(node)
    if isinstance(affine, Refusal):
        return Refusal(f"{titled(node)} stays: {affine.reason}")
    if affine is None:
        return None
    target = _target(affine, into, trained)
    if isinstance(target, Stays):
        said = target.near or node.operator.name == "batch_norm"
        return Refusal(f"{titled(node)} stays: {target.reason}") if said else None
    title, exact = titled(node), read(node)
    assert isinstance(exact, Reading)
    places = [target] if isinstance(target, Place) else target
    names = ", ".join(_weight_name(place.layer) for place in places)
    if isinstance(target, Place):
        _into_writer(graph, exact, target)
    else:
        _into_readers(graph, exact, target)
    return f"{title} is part of {names}"


def read_affine(node: Node) -> Reading | Refusal | None:
    """The map that a node is; None if it is none, a refusal for a norm whose numbers are not known."""
    if node.operator.name in LAYERS or node.operator.name in _KEEP:
        return None
    found = read(node, shapes=True)
    if isinstance(found, Refusal):
        return found if node.operator.name == "batch_norm" else None
    return found if found is not None and found.form.is_diagonal else None


def _target(affine: Reading, into: Into, trained: bool) -> Place | list[Place] | Stays:
    """Where a map can move."""
    writer: Place | Stays = find_writer(affine) if into != "readers" else Stays("", False)
    if isinstance(writer, Place) or into == "writers":
        return writer
    # a trained factor before a layer (the gain of a norm, say) may be a site of other surgeries: then it stays what it is
    norm = affine.node.operator.name == "batch_norm"
    if not norm and not trained and any(tensor.requires_grad for tensor in affine.parameters):
        return writer
    readers = find_readers(affine)
    if not isinstance(readers, Stays):
        return readers
    reasons = [stays.reason for stays in (writer, readers) if stays.reason]
    return Stays("; ".join(dict.fromkeys(reasons)), writer.near or readers.near)


def find_writer(affine: Reading) -> Place | Stays:
    """The layer before a map that can take it in."""
    value, axis, between = affine.operand, affine.axis, list[Node]()
    while True:
        node = value.producer
        if node is None:
            return Stays("nothing stands before it", False)
        reader = _other_reader(value, between[0] if between else affine.node)
        if node.operator.name in LAYERS and _channels(node, value) is not None:
            if reader:
                return Stays(f"{called(node)} has another reader, {reader}", True)
            if axis not in (None, _channels(node, value)):
                return Stays(f"it runs along another axis than the channels of {called(node)}", True)
            reason = _layer_reason(node)
            return Stays(reason, True) if reason else Place(node, tuple(between))
        before = _axis_before(node, axis)
        if before is None or (node.operator.name == "dropout" and _shifts(affine)):
            return Stays(f"what stands before it is {node.operator.name}", False)
        if reader:
            return Stays(f"{called(node)} has another reader, {reader}", False)
        between.insert(0, node)
        operand = node.inputs[0]
        assert operand is not None
        value, axis = operand, before.dim


def find_readers(affine: Reading) -> list[Place] | Stays:
    """The layers after a map, all of which must be able to take it in."""
    places: list[Place] = []
    pending: list[tuple[Value, int | None, tuple[Node, ...]]] = [(affine.node.output, affine.axis, ())]
    while pending:
        value, axis, between = pending.pop(0)
        if value.is_graph_output():
            return Stays("it is an output of the graph", bool(places))
        for node, index in value.uses:
            if node.operator.name in LAYERS and _data_index(node) == index and _channels(node, value) is not None:
                reason = _reader_reason(affine, node, axis, value)
                if reason:
                    return Stays(reason, True)
                places.append(Place(node, between))
                continue
            after = _axis_after(node, axis)
            if after is None or index != 0 or (node.operator.name == "dropout" and _shifts(affine)):
                return Stays(f"what reads it is {node.operator.name}", bool(places))
            pending.append((node.output, after.dim, (*between, node)))
    return places or Stays("nothing reads it", False)


def _into_writer(graph: Graph, affine: Reading, place: Place) -> None:
    layer = read(place.layer)
    assert isinstance(layer, Reading)
    form = compose(layer.form, affine.form, precision=_precision(affine))
    name, last = affine.node.output.name, (place.layer, *place.between)[-1]
    graph.replace_uses(affine.node.output, last.output)
    graph.remove(affine.node)
    # what holds the folded result takes its name; what lies between holds something new
    fresh = _rewritten(graph, layer, form, f"{layer.node.output.name}_folded" if place.between else name)
    for node in place.between[:-1]:
        graph.rename_result(node.output, f"{node.output.name}_folded")
    graph.rename_result((fresh, *place.between)[-1].output, name)


def _into_readers(graph: Graph, affine: Reading, places: Sequence[Place]) -> None:
    readings = [read(place.layer) for place in places]
    graph.replace_uses(affine.node.output, affine.operand)
    graph.remove(affine.node)
    for layer in readings:
        assert isinstance(layer, Reading)
        current = replace(layer, operand=layer.node.inputs[_data_index(layer.node)] or layer.operand)
        form = compose(affine.form, layer.form, precision=_precision(affine))
        _rewritten(graph, current, form, layer.node.output.name)
    for node in dict.fromkeys(node for place in places for node in place.between):
        graph.rename_result(node.output, f"{node.output.name}_folded")


def _rewritten(graph: Graph, layer: Reading, form: LinearForm | Refusal, name: str) -> Node:
    """The layer with another form."""
    assert isinstance(form, LinearForm)
    site = Site(layer.node, layer.operand, layer.axis, (layer.node,), (layer,))
    fresh = write(graph, form, site, name=name)
    assert isinstance(fresh, Node)
    return fresh


def _precision(affine: Reading) -> float:
    return torch.finfo(affine.operand.dtype).eps


def _shifts(affine: Reading) -> bool:
    """Whether the map moves zero; on shapes alone a shift counts as one."""
    exact = read(affine.node)
    return isinstance(exact, Reading) and exact.form.shifts()


def _channels(layer: Node, value: Value) -> int | None:
    """The dimension of a layer's operand and result that holds the channels; None if it is no layer after all."""
    if layer.operator.name in ("conv", "conv_transpose"):
        return 1
    if layer.operator.name in ("linear", "addmm"):
        return value.rank - 1 if value.rank > 1 else None
    found = read(layer, shapes=True)
    return found.axis if isinstance(found, Reading) else None


def _data_index(layer: Node) -> int:
    return 1 if layer.operator.name == "addmm" else 0


def _layer_reason(layer: Node) -> str:
    """Why the numbers of a layer cannot change, if they cannot."""
    found = read(layer, shapes=True)
    if not isinstance(found, Reading):
        return "" if found is None else found.reason
    return tied_reason(layer, {layer})


def _reader_reason(affine: Reading, layer: Node, axis: int | None, value: Value) -> str:
    """Why a layer cannot take in the map before it, if it cannot."""
    if axis not in (None, _channels(layer, value)):
        return f"it runs along another axis than the channels of {called(layer)}"
    reason = _layer_reason(layer)
    if reason or not _shifts(affine):
        return reason
    found = read(layer, shapes=True)
    assert isinstance(found, Reading)
    if found.form.pads and not found.form.transposed:
        return f"{called(layer)} pads with zeros that the shift would have to reach"
    if found.form.transposed and not all(window.is_trivial for window in found.form.windows):
        return f"the shift would not reach every output of {called(layer)} alike"
    return ""


def _weight_name(layer: Node) -> str:
    weight = weight_of(layer)
    return weight.name if weight is not None else layer.where()


def _other_reader(value: Value, reader: Node) -> str:
    """Who else reads a value, if anyone does."""
    if value.is_graph_output():
        return "an output of the graph"
    others = [node for node, _ in value.uses if node is not reader]
    return called(others[0]) if others else called(reader) if len(value.uses) > 1 else ""


class _Axis(NamedTuple):
    """The dimension that the channels are; None for a map of single numbers, which has none."""

    dim: int | None


_REGROUPS = frozenset({"reshape", "permute", "clone", "dropout"})


def _axis_before(node: Node, axis: int | None) -> _Axis | None:
    """Where dimension `axis` of a node's result stands in its operand; None if the node does not keep it in one piece."""
    name, operand = node.operator.name, node.inputs[0] if node.inputs else None
    if operand is None or name not in _REGROUPS:
        return None
    if axis is None or name in ("clone", "dropout"):
        return _Axis(axis)
    return _Axis(_order(node)[axis]) if name == "permute" else _regrouped(node.output, operand, axis)


def _axis_after(node: Node, axis: int | None) -> _Axis | None:
    """Where dimension `axis` of a node's operand stands in its result; None if the node does not keep it in one piece."""
    name, operand = node.operator.name, node.inputs[0] if node.inputs else None
    if operand is None or name not in _REGROUPS:
        return None
    if axis is None or name in ("clone", "dropout"):
        return _Axis(axis)
    return _Axis(_order(node).index(axis)) if name == "permute" else _regrouped(operand, node.output, axis)


def _order(node: Node) -> list[int]:
    dims = node.attributes["dims"]
    assert isinstance(dims, tuple)
    return [dim % len(dims) for dim in dims if isinstance(dim, int)]


def _regrouped(source: Value, target: Value, axis: int) -> _Axis | None:
    """The dimension of `target` that holds just what dimension `axis` of `source` does, under row-major regrouping."""
    size, outer = source.shape[axis], product(source.shape[:axis])
    for position, candidate in enumerate(target.shape):
        if candidate == size and product(target.shape[:position]) == outer:
            return _Axis(position)
    return None
