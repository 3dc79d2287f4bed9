"""Reductions and running sums."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.sizes import product

if TYPE_CHECKING:
    import onnx_ir

_SIMPLE = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"}
_NARROW = (torch.bool, torch.int8, torch.int16, torch.uint8)


def _axes(at: Lowering) -> list[int]:
    rank = max(at.type(0).rank, 1)
    return sorted(dim % rank for dim in at.integers("dims"))


@rule(*_SIMPLE)
def _simple(at: Lowering) -> onnx_ir.Value:
    """Sums and products of integers are int64; extremes of narrow types are taken in int32."""
    operator, source, dtype = _SIMPLE[at.node.operator.name], at.type(0).dtype, at.out.dtype
    wide = torch.int32 if source in _NARROW and dtype in _NARROW else dtype
    x = at.x(0, wide)
    if at.type(0).rank == 0 or not _axes(at):
        return at.cast(x, wide, dtype)
    if operator == "ReduceMean" and at.choices.mean == "pool" and _is_whole_image(at):
        return at.op("GlobalAveragePool", x)
    return at.cast(at.reduce(operator, x, _axes(at), keep=at.flag("keepdim")), wide, dtype)


def _is_whole_image(at: Lowering) -> bool:
    """Whether all of an image is reduced to one position a channel: runtimes have that as a pool, in the layout of convolutions."""
    rank = at.type(0).rank
    return at.flag("keepdim") and 3 < rank < 6 and _axes(at) == list(range(2, rank)) and at.out.dtype.is_floating_point


@rule("any", "all")
def _truth(at: Lowering) -> onnx_ir.Value:
    truth = at.x(0, torch.bool)
    if at.type(0).rank == 0:
        return truth
    operator = "ReduceMax" if at.node.operator.name == "any" else "ReduceMin"
    numbers = at.cast(truth, torch.bool, torch.int32)
    return at.cast(at.reduce(operator, numbers, _axes(at), keep=at.flag("keepdim")), torch.int32, torch.bool)


@rule("var")
def _variance(at: Lowering) -> onnx_ir.Value:
    x, axes, dtype = at.x(0), _axes(at), at.out.dtype
    centred = at.op("Sub", x, at.reduce("ReduceMean", x, axes, keep=True))
    mean = at.reduce("ReduceMean", at.op("Mul", centred, centred), axes, keep=at.flag("keepdim"))
    correction = at.number("correction")
    if correction == 0:
        return mean
    count = product([at.type(0).shape[axis] for axis in axes])
    if isinstance(count, int):
        factor = count / (count - correction) if count != correction else math.nan
        return at.op("Mul", mean, at.constant(factor, dtype))
    size = at.size(count, dtype)
    return at.op("Mul", mean, at.op("Div", size, at.op("Sub", size, at.constant(correction, dtype))))


@rule("vector_norm")
def _vector_norm(at: Lowering) -> onnx_ir.Value:
    return norm(at, at.x(0), at.number("p"), _axes(at), at.out.dtype, keep=at.flag("keepdim"))


def norm(at: Lowering, x: onnx_ir.Value, p: float, axes: list[int], dtype: torch.dtype, *, keep: bool) -> onnx_ir.Value:
    """The p-norm over dimensions."""
    match p:
        case 2.0:
            return at.reduce("ReduceL2", x, axes, keep=keep)
        case 1.0:
            return at.reduce("ReduceL1", x, axes, keep=keep)
        case math.inf:
            return at.reduce("ReduceMax", at.op("Abs", x), axes, keep=keep)
        case _ if p == -math.inf:
            return at.reduce("ReduceMin", at.op("Abs", x), axes, keep=keep)
        case 0.0:
            nonzero = at.cast(at.cast(x, dtype, torch.bool), torch.bool, dtype)
            return at.reduce("ReduceSum", nonzero, axes, keep=keep)
    powers = at.reduce("ReduceSum", at.op("Pow", at.op("Abs", x), at.constant(p, dtype)), axes, keep=keep)
    return at.op("Pow", powers, at.constant(1 / p, dtype))


@rule("argmax", "argmin")
def _arg(at: Lowering) -> onnx_ir.Value:
    operator = "ArgMax" if at.node.operator.name == "argmax" else "ArgMin"
    source = at.type(0).dtype
    x = at.x(0, torch.int32 if source in _NARROW else source)
    return at.op(operator, x, axis=_axes(at)[0], keepdims=int(at.flag("keepdim")))


@rule("cumsum")
def _cumsum(at: Lowering) -> onnx_ir.Value:
    return at.op("CumSum", at.x(0, at.out.dtype), at.constant(at.dim(), torch.int64))


@rule("topk")
def _topk(at: Lowering) -> tuple[onnx_ir.Value, ...]:
    return at.ops(
        "TopK",
        2,
        at.x(0),
        at.shape(at.dims("k")),
        axis=at.dim(),
        largest=int(at.flag("largest")),
        sorted=int(at.flag("sorted")),
    )
