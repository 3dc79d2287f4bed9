"""Norms and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.rules.reduce import norm
from suture.ir.sizes import Dim

if TYPE_CHECKING:
    import onnx_ir


def _affine(at: Lowering, channels: Dim) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Gain and bias, constants of one and zero where absent."""
    dtype = at.type(0).dtype
    gain = at.x(1, dtype) if at.has(1) else at.filled(channels, 1, dtype)
    bias = at.x(2, dtype) if at.has(2) else at.filled(channels, 0, dtype)
    return gain, bias


def _scale_and_shift(at: Lowering, x: onnx_ir.Value, space: int) -> onnx_ir.Value:
    """Gain and bias by channel on [n, c, *space], where present."""
    for index, operator in ((1, "Mul"), (2, "Add")):
        if at.has(index):
            x = at.op(operator, x, at.unsqueeze(at.x(index), *range(1, space + 1)) if space else at.x(index))
    return x


@rule("batch_norm")
def _batch_norm(at: Lowering) -> onnx_ir.Value:
    """By running statistics; by the batch's own where there are none."""
    x, eps, channels, rank = at.x(0), at.number("eps"), at.type(0).shape[1], at.type(0).rank
    if at.has(3) and at.has(4):
        return at.op("BatchNormalization", x, *_affine(at, channels), at.x(3), at.x(4), epsilon=eps)
    axes = [axis for axis in range(rank) if axis != 1]
    centred = at.op("Sub", x, at.reduce("ReduceMean", x, axes, keep=True))
    return _scale_and_shift(at, _over_deviation(at, centred, axes, eps), rank - 2)


def _over_deviation(at: Lowering, x: onnx_ir.Value, axes: list[int], eps: float) -> onnx_ir.Value:
    """x / sqrt(mean(x^2) + eps), in the form that ONNX Runtime knows as an RMS norm."""
    dtype = at.out.dtype
    square = at.op("Pow", x, at.constant(2, dtype))
    deviation = at.op("Sqrt", at.op("Add", at.reduce("ReduceMean", square, axes, keep=True), at.constant(eps, dtype)))
    return at.op("Div", x, deviation)


@rule("layer_norm")
def _layer_norm(at: Lowering) -> onnx_ir.Value:
    rank, dtype = at.integer("rank"), at.out.dtype
    gain = at.x(1, dtype) if at.has(1) else _ones(at, rank)
    return at.op("LayerNormalization", at.x(0), gain, at.maybe(2, dtype), axis=-rank, epsilon=at.number("eps"))


def _ones(at: Lowering, rank: int) -> onnx_ir.Value:
    shape = at.type(0).shape[-rank:]
    if any(not isinstance(dim, int) for dim in shape):
        at.fail(f"it normalises over [{', '.join(map(str, shape))}]", "fixed sizes would be right")
    return at.emitter.constant(torch.ones([int(str(dim)) for dim in shape], dtype=at.out.dtype))


@rule("rms_norm")
def _rms_norm(at: Lowering) -> onnx_ir.Value:
    rank, dtype, given = at.integer("rank"), at.type(0).dtype, at.node.attributes["eps"]
    eps = torch.finfo(dtype).eps if given is None else at.number("eps")
    if at.opset >= 23 and at.choices.rms_norm == "operator":
        gain = at.x(1, dtype) if at.has(1) else _ones(at, rank)
        return at.op("RMSNormalization", at.x(0), gain, axis=-rank, epsilon=eps)
    normalised = _over_deviation(at, at.x(0), list(range(-rank, 0)), eps)
    return at.op("Mul", normalised, at.x(1, dtype)) if at.has(1) else normalised


@rule("group_norm")
def _group_norm(at: Lowering) -> onnx_ir.Value:
    groups, eps, shape, dtype = at.integer("groups"), at.number("eps"), at.type(0).shape, at.out.dtype
    if at.opset >= 21:
        return at.op("GroupNormalization", at.x(0), *_affine(at, shape[1]), num_groups=groups, epsilon=eps)
    # Each group becomes one channel of an instance norm.
    apart = at.op("Reshape", at.x(0), at.ints(0, groups, -1))
    ones, zeros = at.filled(groups, 1, dtype), at.filled(groups, 0, dtype)
    normalised = at.op("InstanceNormalization", apart, ones, zeros, epsilon=eps)
    back = at.op("Reshape", normalised, at.op("Shape", at.x(0)))
    return _scale_and_shift(at, back, len(shape) - 2)


@rule("instance_norm")
def _instance_norm(at: Lowering) -> onnx_ir.Value:
    channels, eps = at.type(0).shape[1], at.number("eps")
    if at.has(3) and at.has(4):
        return at.op("BatchNormalization", at.x(0), *_affine(at, channels), at.x(3), at.x(4), epsilon=eps)
    return at.op("InstanceNormalization", at.x(0), *_affine(at, channels), epsilon=eps)


@rule("softmax", "log_softmax")
def _softmax(at: Lowering) -> onnx_ir.Value:
    operator = "Softmax" if at.node.operator.name == "softmax" else "LogSoftmax"
    return at.op(operator, at.x(0), axis=at.dim())


@rule("l_normalise")
def _l_normalise(at: Lowering) -> onnx_ir.Value:
    dtype = at.out.dtype
    length = norm(at, at.x(0), at.number("p"), [at.dim()], dtype, keep=True)
    return at.op("Div", at.x(0), at.op("Max", length, at.constant(at.number("eps"), dtype)))
