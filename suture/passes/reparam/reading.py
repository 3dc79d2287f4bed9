"""What in a graph is a linear form of one of its operands: read off the node, from its numbers and attributes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from suture.ir.graph import Node, Parameter, Value
from suture.passes.reparam.linear_form import WIDE, LinearForm, identity
from suture.passes.reparam.window import Window
from suture.passes.rewriting import Refusal

Take: TypeAlias = "Callable[[Value | None], torch.Tensor | None]"  # the numbers of a parameter, or its shape alone

LAYERS = frozenset({"conv", "conv_transpose", "linear", "addmm", "matmul"})
"""Operators with a weight: what is computed ahead of time can be stored in one."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A node as a linear form of one operand.

    :param axis: the dimension of the operand that holds the channels, None where every dimension may
    :param parameters: the tensors that the form was read from
    """

    node: Node
    operand: Value
    axis: int | None
    form: LinearForm
    parameters: tuple[Parameter, ...] = ()

    @property
    def drops(self) -> bool:
        """Whether the node is the identity in evaluation only."""
        return self.node.operator.name == "dropout" and self.node.attributes["p"] != 0

    @property
    def is_layer(self) -> bool:
        """Whether the node has a weight."""
        return self.node.operator.name in LAYERS


def read(node: Node, *, shapes: bool = False) -> Reading | Refusal | None:
    """The linear form that a node is; None if it is none, a refusal where it would be one but for what is said.

    :param shapes: read no numbers: enough for what a form costs
    """
    reader = _READERS.get(node.operator.name)
    if reader is None or len(node.outputs) != 1 or not node.output.dtype.is_floating_point:
        return None
    found = reader(node, _shape if shapes else wide)
    if not isinstance(found, Reading):
        return found
    if found.operand.dtype != node.output.dtype:
        return Refusal("it changes the element type")
    return replace(found, form=found.form.shapes()) if shapes else found


def weight_of(node: Node) -> Value | None:
    """The weight of a layer: the second factor of its products."""
    return node.inputs[2 if node.operator.name == "addmm" else 1]


def bias_of(node: Node) -> Value | None:
    """The bias of a layer, if it has one."""
    if node.operator.name == "addmm":
        return node.inputs[0]
    return node.inputs[2] if len(node.inputs) > 2 else None


def wide(value: Value | None) -> torch.Tensor | None:
    """A parameter's numbers in float64."""
    return value.data.detach().to(WIDE) if isinstance(value, Parameter) else None


def _shape(value: Value | None) -> torch.Tensor | None:
    return torch.empty(value.data.shape, dtype=WIDE, device="meta") if isinstance(value, Parameter) else None


def _convolution(node: Node, take: Take) -> Reading | Refusal | None:
    operand, weight, bias = node.inputs[0], take(node.inputs[1]), take(bias_of(node))
    assert operand is not None
    reason = _computed(node)
    if reason:
        return Refusal(reason)
    assert weight is not None
    groups, rank = node.attributes["groups"], weight.ndim - 2
    assert isinstance(groups, int)
    transposed = node.operator.name == "conv_transpose"
    if transposed:  # [g*i, o, *r] to [g*o, i, *r]
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    stride, padding, dilation = (_each(node, name, rank) for name in ("stride", "padding", "dilation"))
    if transposed and any(_each(node, "output_padding", rank)):
        stride = tuple(max(each, 2) for each in stride)  # some outputs then see no input at all: never pointwise
    windows = tuple(
        Window(size, s, d, p, p) for size, s, d, p in zip(weight.shape[2:], stride, dilation, padding, strict=True)
    )
    return Reading(node, operand, 1, LinearForm(weight, bias, groups, windows, transposed=transposed), _tensors(node))


def _product(node: Node, take: Take) -> Reading | Refusal | None:
    """`linear`, `addmm` and a `matmul` by a matrix: the channels are the last dimension."""
    operand, weight = node.inputs[1 if node.operator.name == "addmm" else 0], weight_of(node)
    if operand is None or weight is None or operand.rank < 2 or weight.rank != 2:
        return None
    if node.operator.name == "matmul" and (isinstance(operand, Parameter) or not isinstance(weight, Parameter)):
        return None
    reason = _computed(node)
    if reason:
        return Refusal(reason)
    kernel, bias = take(weight), take(bias_of(node))
    assert kernel is not None
    if bias is not None and bias.ndim != 1:
        return Refusal("its bias differs from row to row")
    kernel = kernel if node.operator.name == "linear" else kernel.T
    if bias is not None:
        bias = bias.expand(kernel.shape[0])
    return Reading(node, operand, operand.rank - 1, LinearForm(kernel, bias), _tensors(node))


def _batch_norm(node: Node, take: Take) -> Reading | Refusal | None:
    operand, gain, bias, mean, var = (*node.inputs, None, None, None, None)[:5]
    assert operand is not None
    if mean is None or var is None:
        return Refusal("it takes its statistics from the batch")
    tensors = [value for value in (gain, bias, mean, var) if value is not None]
    if not all(isinstance(value, Parameter) for value in tensors):
        return Refusal("its statistics are computed")
    eps = node.attributes["eps"]
    assert isinstance(eps, float | int)
    wide_gain, wide_bias, wide_mean, wide_var = (take(value) for value in (gain, bias, mean, var))
    assert wide_mean is not None
    assert wide_var is not None
    scale = (wide_var + eps).rsqrt() if wide_gain is None else wide_gain * (wide_var + eps).rsqrt()
    shift = -wide_mean * scale if wide_bias is None else wide_bias - wide_mean * scale
    return Reading(node, operand, 1, LinearForm.diagonal(scale, shift), _tensors(node))


def _arithmetic(node: Node, take: Take) -> Reading | None:
    """A sum, difference, product or quotient with numbers that are the same along all dimensions but one."""
    constants = [k for k, value in enumerate(node.inputs[:2]) if value is None or isinstance(value, Parameter)]
    if len(constants) != 1 or len(node.inputs) != 2 or node.attributes.get("rounding") is not None:
        return None
    side = constants[0]
    operand, constant = node.inputs[1 - side], node.inputs[side]
    assert operand is not None
    if node.output.type != operand.type or (node.operator.name == "div" and side == 0):
        return None
    found = _read_scalar(node) if constant is None else _read_vector(constant, operand, take)
    if found is None:
        return None
    axis, numbers = found
    one = torch.ones_like(numbers)
    sign = -one if node.operator.name == "sub" and side == 0 else one
    match node.operator.name:
        case "mul":
            form = LinearForm.diagonal(numbers)
        case "div":
            form = LinearForm.diagonal(1 / numbers)
        case "add":
            form = LinearForm.diagonal(one, numbers)
        case _:
            form = LinearForm.diagonal(sign, -sign * numbers)
    return Reading(node, operand, axis, form, _tensors(node))


def _sign(node: Node, take: Take) -> Reading | None:
    (operand,) = node.inputs
    assert operand is not None
    return Reading(node, operand, None, identity().scaled(-1.0))


def _unchanged(node: Node, take: Take) -> Reading | Refusal | None:
    operand = node.inputs[0]
    assert operand is not None
    return Reading(node, operand, None, identity())


def _average_pool(node: Node, take: Take) -> Reading | Refusal | None:
    operand, rank = node.inputs[0], len(_ints(node, "kernel"))
    assert operand is not None
    channels = operand.shape[1] if operand.rank > 1 else None
    if operand.rank != rank + 2 or not isinstance(channels, int):
        return None
    sizes, stride, padding = (_ints(node, name) for name in ("kernel", "stride", "padding"))
    if any(padding) and not node.attributes["count_padding"] and node.attributes["divisor"] is None:
        return Refusal("at the border it divides by fewer positions")
    windows = tuple(Window(size, s, 1, p, p) for size, s, p in zip(sizes, stride or sizes, padding, strict=True))
    if node.attributes["ceil"] and not _floor_too(operand, node.output, windows):
        return Refusal("its last windows reach beyond the padding")
    divisor = node.attributes["divisor"] or math.prod(sizes)
    assert isinstance(divisor, int)
    return _mean(node, operand, channels, windows, divisor)


def _adaptive_average_pool(node: Node, take: Take) -> Reading | None:
    """Windows that are all alike, where the sizes are known and the one divides the other."""
    operand, rank = node.inputs[0], node.attributes["rank"]
    assert operand is not None
    assert isinstance(rank, int)
    channels = operand.shape[1] if operand.rank > 1 else None
    if operand.rank != rank + 2 or not isinstance(channels, int):
        return None
    windows = []
    for size, wanted in zip(operand.shape[2:], node.output.shape[2:], strict=True):
        if not isinstance(size, int) or not isinstance(wanted, int) or wanted < 1 or size % wanted:
            return None
        windows.append(Window(size // wanted, size // wanted))
    return _mean(node, operand, channels, tuple(windows), math.prod(window.size for window in windows))


def _mean(node: Node, operand: Value, channels: int, windows: tuple[Window, ...], divisor: int) -> Reading:
    kernel = torch.full((channels, 1, *(window.size for window in windows)), 1 / divisor, dtype=WIDE)
    return Reading(node, operand, 1, LinearForm(kernel, None, channels, windows))


def _padding(node: Node, take: Take) -> Reading | Refusal | None:
    """Constant padding of space."""
    operand, pads, value = node.inputs[0], _ints(node, "pads"), node.attributes["value"]
    assert operand is not None
    if node.attributes["mode"] != "constant" or operand.rank < 3 or not isinstance(operand.shape[1], int):
        return None
    before, after = pads[: operand.rank], pads[operand.rank :]
    if any((*before[:2], *after[:2])) or min(pads) < 0 or isinstance(value, bool | str | complex):
        return None
    channels = operand.shape[1]
    windows = tuple(Window(before=a, after=b) for a, b in zip(before[2:], after[2:], strict=True))
    border = torch.full((channels,), float(value), dtype=WIDE) if value else None  # type: ignore[arg-type]
    kernel = torch.ones(channels, 1, *[1] * len(windows), dtype=WIDE)
    return Reading(node, operand, 1, LinearForm(kernel, None, channels, windows, border))


_READERS: dict[str, Callable[[Node, Take], Reading | Refusal | None]] = {
    "conv": _convolution, "conv_transpose": _convolution, "linear": _product, "addmm": _product, "matmul": _product,
    "batch_norm": _batch_norm, "add": _arithmetic, "sub": _arithmetic, "mul": _arithmetic, "div": _arithmetic, "neg": _sign,
    "clone": _unchanged, "dropout": _unchanged, "avg_pool": _average_pool, "adaptive_avg_pool": _adaptive_average_pool, "pad": _padding,
}  # fmt: skip


def _computed(layer: Node) -> str:
    """Why the numbers of a layer are not known, if they are not."""
    for kind, value in (("weight", weight_of(layer)), ("bias", bias_of(layer))):
        if value is not None and not isinstance(value, Parameter):
            return f"the {kind} of {layer.path or layer.where()} is computed"
    return ""


def _read_scalar(node: Node) -> tuple[None, torch.Tensor] | None:
    scalar = node.attributes.get("scalar")
    if isinstance(scalar, bool) or not isinstance(scalar, int | float):
        return None
    return None, torch.tensor(float(scalar), dtype=WIDE)


def _read_vector(constant: Value, operand: Value, take: Take) -> tuple[int | None, torch.Tensor] | None:
    """The numbers of a parameter that is broadcast over all dimensions but one."""
    data = take(constant)
    if data is None or not constant.dtype.is_floating_point or constant.rank > operand.rank:
        return None
    vary = [axis for axis, size in enumerate(data.shape) if size != 1]
    if len(vary) > 1:
        return None
    if not vary:
        return None, data.reshape(())
    axis = vary[0] + operand.rank - constant.rank
    return (axis, data.reshape(-1)) if operand.shape[axis] == data.numel() else None


def _floor_too(operand: Value, result: Value, windows: tuple[Window, ...]) -> bool:
    """Whether rounding the number of windows down gives as many as the result has."""
    pairs = zip(operand.shape[2:], result.shape[2:], windows, strict=True)
    return all(
        isinstance(size, int) and isinstance(count, int) and (size + window.slack) // window.stride + 1 == count
        for size, count, window in pairs
    )


def _tensors(node: Node) -> tuple[Parameter, ...]:
    return tuple(value for value in node.inputs if isinstance(value, Parameter))


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attributes[name]
    found = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in found if isinstance(each, int))


def _each(node: Node, name: str, rank: int) -> tuple[int, ...]:
    values = _ints(node, name)
    return values * rank if len(values) == 1 else values
