"""Torch operators that the graph has no operator for, where ONNX has one: written from their torch names and arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering

if TYPE_CHECKING:
    import onnx_ir

Written: TypeAlias = "onnx_ir.Value | Sequence[onnx_ir.Value]"

_UNARY = {
    "aten.tan.default": "Tan", "aten.asin.default": "Asin", "aten.acos.default": "Acos", "aten.atan.default": "Atan",
    "aten.sinh.default": "Sinh", "aten.cosh.default": "Cosh", "aten.asinh.default": "Asinh", "aten.acosh.default": "Acosh",
    "aten.atanh.default": "Atanh",
}  # fmt: skip
_TARGETS: dict[str, Callable[[Arguments], Written]] = {}


class Arguments:
    """The call of a torch operator: its arguments by position and name, its operands as ONNX values."""

    def __init__(self, at: Lowering) -> None:
        self.at = at
        template = json.loads(at.text("arguments"))
        self._positional: list[Any] = template["args"]
        self._named: dict[str, Any] = template["kwargs"]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is a number, a word or a list of numbers."""
        value = self._positional[position] if position < len(self._positional) else self._named.get(name, default)
        if any(isinstance(item, dict) for item in (value if isinstance(value, list) else [value])):
            self.at.fail(f"its argument {name} is no constant", "a fixed one would be right")
        return value

    def operand(self, position: int, name: str, dtype: torch.dtype | None = None) -> onnx_ir.Value:
        """An argument that is a tensor."""
        value = self._positional[position] if position < len(self._positional) else self._named.get(name)
        if not isinstance(value, dict) or "$" not in value:
            self.at.fail(f"its argument {name} is no tensor", "give one")
        return self.at.x(int(value["$"]), dtype)

    def plain(self) -> bool:
        """Whether there is one operand and nothing else."""
        return self._positional == [{"$": 0}] and not self._named


def _target(*names: str) -> Callable[[Callable[[Arguments], Written]], Callable[[Arguments], Written]]:
    def enter(function: Callable[[Arguments], Written]) -> Callable[[Arguments], Written]:
        _TARGETS.update({f"aten.{name}": function for name in names})
        return function

    return enter


@rule("opaque")
def _opaque(at: Lowering) -> Written:
    target, arguments = at.text("target"), Arguments(at)
    if target in _UNARY and arguments.plain():
        return at.op(_UNARY[target], at.x(0, at.out.dtype))
    if target not in _TARGETS:
        at.fail(f"nothing in ONNX stands for torch's {target}", "write the module with other operators")
    return _TARGETS[target](arguments)


@_target("sort.default", "sort.stable", "argsort.default", "argsort.stable")
def _sort(call: Arguments) -> Written:
    """All of a dimension is its top k."""
    at = call.at
    dim, descending = int(call.get(1, "dim", -1)) % at.type(0).rank, bool(call.get(2, "descending", False))
    values, indices = at.ops("TopK", 2, at.x(0), at.shape([at.type(0).shape[dim]]), axis=dim, largest=int(descending))
    return (values, indices) if len(at.node.outputs) == 2 else indices


@_target("scatter.src", "scatter_add.default")
def _scatter(call: Arguments) -> Written:
    at = call.at
    reduction = "add" if "scatter_add" in at.text("target") else "none"
    dtype = at.out.dtype
    parts = (call.operand(0, "self"), call.operand(2, "index", torch.int64), call.operand(3, "src", dtype))
    return at.op("ScatterElements", *parts, axis=int(call.get(1, "dim")) % at.out.rank, reduction=reduction)


@_target("logsumexp.default")
def _logsumexp(call: Arguments) -> Written:
    given = call.get(1, "dim")
    axes = [dim % call.at.type(0).rank for dim in (given if isinstance(given, list) else [given])]
    return call.at.reduce("ReduceLogSumExp", call.operand(0, "self"), axes, keep=bool(call.get(2, "keepdim", False)))


@_target("im2col.default")
def _im2col(call: Arguments) -> Written:
    """The patches of an image are a convolution, channel by channel, whose kernels each pick one element."""
    at = call.at
    channels = at.type(0).shape[1]
    if at.type(0).rank != 4 or not isinstance(channels, int):
        at.fail(f"patches of {at.type(0)}", "[batch, channels, height, width] with fixed channels would be right")
    height, width = call.get(1, "kernel_size")
    dilation, padding, stride = (call.get(k, name) for k, name in ((2, "dilation"), (3, "padding"), (4, "stride")))
    picks = (
        torch.eye(height * width, dtype=at.out.dtype)
        .reshape(height * width, 1, height, width)
        .repeat(channels, 1, 1, 1)
    )
    patches = at.op(
        "Conv", at.x(0), at.emitter.constant(picks), kernel_shape=[height, width], strides=list(stride), pads=list(padding) * 2,
        dilations=list(dilation), group=channels,
    )  # fmt: skip
    return at.op("Reshape", patches, at.ints(0, channels * height * width, -1))


@_target("col2im.default")
def _col2im(call: Arguments) -> Written:
    at = call.at
    at.need(18, "Col2Im")
    kernel, dilation, padding, stride = (
        call.get(k, name) for k, name in enumerate(("kernel_size", "dilation", "padding", "stride"), 2)
    )
    options = {"dilations": list(dilation), "pads": list(padding) * 2, "strides": list(stride)}
    return at.op("Col2Im", at.x(0), at.shape(at.out.shape[-2:]), at.ints(*kernel), **options)


@_target("one_hot.default")
def _one_hot(call: Arguments) -> Written:
    at, classes = call.at, int(call.get(1, "num_classes", -1))
    if classes < 0:
        at.fail("its number of classes depends on the data", "give num_classes")
    return at.op("OneHot", at.x(0), at.constant(classes, torch.int64), at.ints(0, 1), axis=-1)


@_target("hardshrink.default", "softshrink.default")
def _shrink(call: Arguments) -> Written:
    bound = float(call.get(1, "lambd", 0.5))
    return call.at.op("Shrink", call.at.x(0), lambd=bound, bias=bound if "soft" in call.at.text("target") else 0.0)


@_target("threshold.default")
def _threshold(call: Arguments) -> Written:
    at, dtype = call.at, call.at.out.dtype
    bound, value = (at.constant(call.get(k, name), dtype) for k, name in ((1, "threshold"), (2, "value")))
    return at.op("Where", at.op("Greater", at.x(0), bound), at.x(0), value)


@_target("trunc.default", "frac.default")
def _trunc(call: Arguments) -> Written:
    at, x = call.at, call.at.x(0)
    whole = at.op("Mul", at.op("Sign", x), at.op("Floor", at.op("Abs", x)))
    return whole if "trunc" in at.text("target") else at.op("Sub", x, whole)


@_target("exp2.default")
def _exp2(call: Arguments) -> Written:
    at, dtype = call.at, call.at.out.dtype
    return at.op("Exp", at.op("Mul", at.x(0, dtype), at.constant(math.log(2.0), dtype)))


@_target("fmod.Scalar", "fmod.Tensor")
def _fmod(call: Arguments) -> Written:
    at, dtype = call.at, call.at.out.dtype
    right = (
        call.operand(1, "other", dtype) if "Tensor" in at.text("target") else at.constant(call.get(1, "other"), dtype)
    )
    return at.op("Mod", call.operand(0, "self", dtype), right, fmod=1)
