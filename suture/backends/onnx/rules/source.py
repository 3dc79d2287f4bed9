"""Values made from nothing: constants and ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.sizes import Size

if TYPE_CHECKING:
    import onnx_ir

_SMALL = 1024  # elements up to which a constant is stored rather than computed


@rule("full")
def _full(at: Lowering) -> onnx_ir.Value:
    value, dtype, shape = at.node.attributes["value"], at.out.dtype, at.out.shape
    if isinstance(value, Size):
        return at.op("Expand", at.size(value, dtype), at.shape(shape))
    if not isinstance(value, bool | int | float):
        at.fail(f"a value of {value}", "a real number would be right")
    static = tuple(dim for dim in shape if isinstance(dim, int))
    if len(static) == len(shape) and math.prod(static) <= _SMALL:
        return at.emitter.constant(torch.full(static, value, dtype=dtype))
    if dtype in (torch.bool, torch.int8, torch.uint8, torch.int16):
        return at.op("Expand", at.constant(value, dtype), at.shape(shape))
    import onnx_ir as ir

    filling = ir.tensor_adapters.TorchTensor(torch.full((1,), value, dtype=dtype))
    return at.op("ConstantOfShape", at.shape(shape), value=filling)


@rule("arange")
def _arange(at: Lowering) -> onnx_ir.Value:
    start, step = at.node.attributes["start"], at.node.attributes["step"]
    (length,), dtype = at.out.shape, at.out.dtype
    if (
        isinstance(length, int)
        and isinstance(start, int | float)
        and isinstance(step, int | float)
        and length <= _SMALL
    ):
        numbered = torch.arange(length, dtype=torch.float64 if dtype.is_floating_point else torch.int64)
        return at.emitter.constant((numbered * step + start).to(dtype))
    if isinstance(start, int | Size) and isinstance(step, int | Size):
        numbers = at.op("Range", at.size(start), at.size(start + length * step), at.size(step))
        return at.cast(numbers, torch.int64, dtype)
    # A range of floats: its length must not depend on rounding.
    if not isinstance(start, int | float) or not isinstance(step, int | float):
        at.fail(f"a range from {start} by {step}", "numbers would be right")
    count = at.cast(at.op("Range", at.size(0), at.size(length), at.size(1)), torch.int64, torch.float64)
    scaled = at.op("Mul", count, at.constant(step, torch.float64))
    return at.cast(at.op("Add", scaled, at.constant(start, torch.float64)), torch.float64, dtype)
