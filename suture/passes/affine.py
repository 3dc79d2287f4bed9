"""Affine maps in a graph, `y = scale * x + shift` with one pair a channel, and the layers that can take them in.

A *writer* is a layer whose output an affine map reads: `scale * (W x + b) + shift` is the layer with `scale * W` and `scale * b + shift`. A
*reader* reads the map's output: `W (scale * x + shift) + b` is the layer with `W * scale` and `b + W shift`, as long as nothing is padded
with zeros that the shift would have had to reach. What lies between may regroup and reorder dimensions, as long as the channels stay one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from suture.ir.graph import Node, Parameter, Value
from suture.ir.sizes import product

_CHANNEL_AXIS = {"conv": 1, "conv_transpose": 1, "linear": -1}
"""Layers with a weight and perhaps a bias, and where the channels of their input and output are."""

_WIDE = torch.float64


@dataclass(frozen=True)
class Affine:
    """One affine map: `axis` is the dimension of its operand that the vectors run along, None for single numbers; no shift is None."""

    node: Node
    operand: Value
    axis: int | None
    scale: torch.Tensor
    shift: torch.Tensor | None
    tensors: tuple[Parameter, ...]

    @property
    def is_norm(self) -> bool:
        """Whether this is a batch norm."""
        return self.node.operator.name == "batch_norm"

    def shifts(self) -> bool:
        """Whether the map moves zero; on shapes alone a shift counts as one."""
        return self.shift is not None and (self.shift.is_meta or bool((self.shift != 0).any()))


class Refusal(NamedTuple):
    """Why a map stays where it is; `near` if a layer that might have taken it in was found."""

    reason: str
    near: bool


class Place(NamedTuple):
    """A layer that a map can move into, and the nodes between the two, in order."""

    layer: Node
    between: tuple[Node, ...]


def read_affine(node: Node) -> Affine | Refusal | None:
    """The affine map that a node is; None if it is none, a refusal for a norm whose numbers are not known."""
    if node.operator.name == "batch_norm":
        return _read_norm(node)
    if node.operator.name not in {"add", "sub", "mul", "div"} or node.attributes.get("rounding") is not None:
        return None
    constants = [k for k, value in enumerate(node.inputs[:2]) if value is None or isinstance(value, Parameter)]
    if len(constants) != 1 or len(node.inputs) != 2:
        return None
    side = constants[0]
    operand, constant = node.inputs[1 - side], node.inputs[side]
    assert operand is not None
    if (
        not operand.dtype.is_floating_point
        or node.output.type != operand.type
        or (node.operator.name == "div" and side == 0)
    ):
        return None
    found = _read_scalar(node) if constant is None else _read_vector(constant, operand)
    if found is None:
        return None
    axis, numbers = found
    negated = node.operator.name == "sub" and side == 0  # c - x
    one = torch.ones((), dtype=_WIDE, device=numbers.device)
    scale, shift = {
        "mul": (numbers, None), "div": (1 / numbers, None), "add": (one, numbers), "sub": (-one, numbers) if negated else (one, -numbers),
    }[node.operator.name]  # fmt: skip
    return Affine(node, operand, axis, scale, shift, (constant,) if isinstance(constant, Parameter) else ())


def find_writer(affine: Affine) -> Place | Refusal:
    """The layer before an affine map that can take it in."""
    value, axis, between = affine.operand, affine.axis, list[Node]()
    while True:
        node = value.producer
        if node is None:
            return Refusal("nothing stands before it", False)
        reader = _other_reader(value, between[0] if between else affine.node)
        if node.operator.name in _CHANNEL_AXIS:
            if reader:
                return Refusal(f"{_called(node)} has another reader, {reader}", True)
            channels = _CHANNEL_AXIS[node.operator.name] % value.rank
            if axis not in (None, channels):
                return Refusal(f"it runs along another axis than the channels of {_called(node)}", True)
            refusal = _refuse_layer(node)
            return Refusal(refusal, True) if refusal else Place(node, tuple(between))
        before = _axis_before(node, axis)
        if before is None:
            return Refusal(f"what stands before it is {node.operator.name}", False)
        if reader:
            return Refusal(f"{_called(node)} has another reader, {reader}", False)
        between.insert(0, node)
        operand = node.inputs[0]
        assert operand is not None
        value, axis = operand, before.dim


def find_readers(affine: Affine) -> list[Place] | Refusal:
    """The layers after an affine map, all of which must be able to take it in."""
    places: list[Place] = []
    pending: list[tuple[Value, int | None, tuple[Node, ...]]] = [(affine.node.output, affine.axis, ())]
    while pending:
        value, axis, between = pending.pop(0)
        if value.is_graph_output():
            return Refusal("it is an output of the graph", bool(places))
        for node, index in value.uses:
            if node.operator.name in _CHANNEL_AXIS and index == 0:
                refusal = _refuse_reader(affine, node, axis, value)
                if refusal:
                    return Refusal(refusal, True)
                places.append(Place(node, between))
                continue
            after = _axis_after(node, axis)
            if after is None or index != 0:
                return Refusal(f"what reads it is {node.operator.name}", bool(places))
            pending.append((node.output, after.dim, (*between, node)))
    return places or Refusal("nothing reads it", False)


def merge_into_writer(layer: Node, affine: Affine) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and bias of `layer` followed by the map."""
    weight, bias = _wide(layer.inputs[1]), _wide(layer.inputs[2] if len(layer.inputs) > 2 else None)
    assert weight is not None
    groups = _groups(layer)
    transposed = layer.operator.name == "conv_transpose"
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    scale = affine.scale.expand(channels)
    if transposed:
        split = weight.reshape(groups, -1, *weight.shape[1:])
        merged = (split * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    else:
        merged = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    moved = None if bias is None else bias * scale
    if affine.shift is not None:
        moved = affine.shift.expand(channels) + (0 if moved is None else moved)
    return merged, moved


def merge_into_reader(layer: Node, affine: Affine) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and bias of `layer` after the map."""
    weight, bias = _wide(layer.inputs[1]), _wide(layer.inputs[2] if len(layer.inputs) > 2 else None)
    assert weight is not None
    groups = _groups(layer)
    transposed = layer.operator.name == "conv_transpose"
    # weight as [group, output, input, kernel]
    split = weight.reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    split = split.transpose(1, 2) if transposed else split
    inputs = groups * split.shape[2]
    scale = affine.scale.expand(inputs).reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    merged = split * scale
    merged = (merged.transpose(1, 2) if transposed else merged).reshape(weight.shape)
    if not affine.shifts():
        return merged, bias
    assert affine.shift is not None
    shift = affine.shift.expand(inputs).reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    moved = (split * shift).flatten(2).sum(2).reshape(-1)
    return merged, moved if bias is None else bias + moved


def _read_norm(node: Node) -> Affine | Refusal:
    operand, gain, bias, mean, var = (*node.inputs, None, None, None, None)[:5]
    if mean is None or var is None:
        return Refusal("it takes its statistics from the batch", True)
    tensors = [value for value in (gain, bias, mean, var) if value is not None]
    parameters = tuple(value for value in tensors if isinstance(value, Parameter))
    if len(parameters) != len(tensors) or operand is None:
        return Refusal("its statistics are computed", True)
    if operand.type != node.output.type:
        return Refusal("it changes the element type", True)
    eps = node.attributes["eps"]
    assert isinstance(eps, float | int)
    wide_mean, wide_var, wide_gain, wide_bias = (_wide(value) for value in (mean, var, gain, bias))
    assert wide_mean is not None
    assert wide_var is not None
    scale = (wide_var + eps).rsqrt() if wide_gain is None else wide_gain * (wide_var + eps).rsqrt()
    shift = -wide_mean * scale if wide_bias is None else wide_bias - wide_mean * scale
    return Affine(node, operand, 1, scale, shift, parameters)


def _read_scalar(node: Node) -> tuple[None, torch.Tensor] | None:
    scalar = node.attributes.get("scalar")
    if isinstance(scalar, bool) or not isinstance(scalar, int | float):
        return None
    return None, torch.tensor(float(scalar), dtype=_WIDE)


def _read_vector(constant: Value, operand: Value) -> tuple[int | None, torch.Tensor] | None:
    """The numbers of a parameter that is broadcast over all dimensions but one."""
    data = _wide(constant)
    if data is None or not constant.dtype.is_floating_point or constant.rank > operand.rank:
        return None
    wide = [axis for axis, size in enumerate(data.shape) if size != 1]
    if len(wide) > 1:
        return None
    if not wide:
        return None, data.reshape(())
    return wide[0] + operand.rank - constant.rank, data.reshape(-1)


def _wide(value: Value | None) -> torch.Tensor | None:
    return value.data.detach().to(_WIDE) if isinstance(value, Parameter) else None


def _groups(layer: Node) -> int:
    groups = layer.attributes.get("groups", 1)
    assert isinstance(groups, int)
    return groups


def _refuse_layer(layer: Node) -> str:
    """Why the numbers of a layer cannot change, if they cannot."""
    for kind, value in zip(("weight", "bias"), layer.inputs[1:3], strict=False):
        if value is None:
            continue
        if not isinstance(value, Parameter):
            return f"the {kind} of {_called(layer)} is computed"
        others = [node for node, _ in value.uses if node is not layer]
        if others or len(value.uses) > 1 or value.is_graph_output():
            by = _called(others[0]) if others else "the same layer" if len(value.uses) > 1 else "the graph's output"
            return f"the {kind} {value.name} is tied, {by} reads it too"
    return ""


def _refuse_reader(affine: Affine, layer: Node, axis: int | None, value: Value) -> str:
    """Why a layer cannot take in the map before it, if it cannot."""
    if axis not in (None, _CHANNEL_AXIS[layer.operator.name] % value.rank):
        return f"it runs along another axis than the channels of {_called(layer)}"
    refusal = _refuse_layer(layer)
    if refusal or not affine.shifts() or layer.operator.name == "linear":
        return refusal
    if _any(layer, "padding", 0):
        return f"{_called(layer)} pads with zeros that the shift would have to reach"
    kernel = layer.inputs[1].shape[2:] if layer.inputs[1] is not None else ()
    if layer.operator.name == "conv_transpose" and (
        any(size != 1 for size in kernel) or _any(layer, "stride", 1) or _any(layer, "output_padding", 0)
    ):
        return f"the shift would not reach every output of {_called(layer)} alike"
    return ""


def _any(layer: Node, name: str, usual: int) -> bool:
    values = layer.attributes[name]
    return any(value != usual for value in (values if isinstance(values, tuple) else (values,)))


def _other_reader(value: Value, reader: Node) -> str:
    """Who else reads a value, if anyone does."""
    if value.is_graph_output():
        return "an output of the graph"
    others = [node for node, _ in value.uses if node is not reader]
    return _called(others[0]) if others else _called(reader) if len(value.uses) > 1 else ""


def _called(node: Node) -> str:
    """What a person calls a layer: its module path, else its place in the graph."""
    return node.path or node.where()


class _Axis(NamedTuple):
    """The dimension that the channels are; None for a map of single numbers, which has none."""

    dim: int | None


def _axis_before(node: Node, axis: int | None) -> _Axis | None:
    """Where dimension `axis` of a node's result stands in its operand; None if the node does not keep it in one piece."""
    name, operand = node.operator.name, node.inputs[0] if node.inputs else None
    if operand is None or name not in {"reshape", "permute", "clone"}:
        return None
    if axis is None or name == "clone":
        return _Axis(axis)
    return _Axis(_order(node)[axis]) if name == "permute" else _regrouped(node.output, operand, axis)


def _axis_after(node: Node, axis: int | None) -> _Axis | None:
    """Where dimension `axis` of a node's operand stands in its result; None if the node does not keep it in one piece."""
    name, operand = node.operator.name, node.inputs[0] if node.inputs else None
    if operand is None or name not in {"reshape", "permute", "clone"}:
        return None
    if axis is None or name == "clone":
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
