"""Arithmetic, comparisons and logic on two operands, one of which may be a scalar attribute; torch's type promotion by Cast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering

if TYPE_CHECKING:
    import onnx_ir

# Runtimes have few kernels for narrow integers: they compute in int32, and the cast back wraps around as torch does.
_WIDE = {torch.int8: torch.int32, torch.int16: torch.int32, torch.uint8: torch.int32}
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min"}
_LOGIC = {"add": "Or", "mul": "And", "maximum": "Or", "minimum": "And"}  # what arithmetic means on truth values
_COMPARE = {"eq": "Equal", "ne": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
_BITWISE = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor"}


def _pair(at: Lowering, dtype: torch.dtype) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Both operands in one element type; the one that is absent is the attribute `scalar`."""
    left, right = (at.x(k, dtype) if at.has(k) else at.scalar(at.node.attributes["scalar"], dtype) for k in (0, 1))
    return left, right


def _common(at: Lowering) -> torch.dtype:
    """The element type that torch compares in."""
    operands: list[torch.Tensor | int | float | bool] = []
    for k in (0, 1):
        if at.has(k):
            operands.append(torch.empty((1,) * at.type(k).rank, dtype=at.type(k).dtype, device="meta"))
        else:
            given = at.node.attributes["scalar"]
            operands.append(given if isinstance(given, bool | int | float) else 1)
    return torch.result_type(operands[0], operands[1])


@rule(*_ARITHMETIC)
def _arithmetic(at: Lowering) -> onnx_ir.Value:
    name, dtype = at.node.operator.name, at.out.dtype
    if dtype == torch.bool:
        return at.op(_LOGIC[name], *_pair(at, dtype))
    wide = _WIDE.get(dtype, dtype)
    return at.cast(at.op(_ARITHMETIC[name], *_pair(at, wide)), wide, dtype)


@rule("div")
def _divide(at: Lowering) -> onnx_ir.Value:
    rounding, dtype = at.node.attributes["rounding"], at.out.dtype
    wide = _WIDE.get(dtype, dtype)
    left, right = _pair(at, wide)
    if rounding is None:
        return at.op("Div", left, right)
    if not dtype.is_floating_point:
        if rounding == "floor":  # ONNX divides integers towards zero, its Mod has the divisor's sign
            left = at.op("Sub", left, at.op("Mod", left, right))
        return at.cast(at.op("Div", left, right), wide, dtype)
    quotient = at.op("Div", left, right)
    if rounding == "floor":
        return at.op("Floor", quotient)
    negative = at.op("Less", quotient, at.constant(0, dtype))
    return at.op("Where", negative, at.op("Ceil", quotient), at.op("Floor", quotient))


@rule("pow")
def _power(at: Lowering) -> onnx_ir.Value:
    exponent, dtype = at.node.attributes["scalar"], at.out.dtype
    if not at.has(1) and dtype.is_floating_point and isinstance(exponent, int | float):
        x = at.x(0, dtype)
        match exponent:
            case 0.5:
                return at.op("Sqrt", x)
            case -0.5:
                return at.op("Reciprocal", at.op("Sqrt", x))
            case -1:
                return at.op("Reciprocal", x)
            case 3:
                return at.op("Mul", at.op("Mul", x, x), x)
    wide = _WIDE.get(dtype, dtype)
    return at.cast(at.op("Pow", *_pair(at, wide)), wide, dtype)


@rule("remainder")
def _remainder(at: Lowering) -> onnx_ir.Value:
    """The sign is the divisor's, as in Python; ONNX's Mod on floats has the dividend's."""
    dtype = at.out.dtype
    wide = _WIDE.get(dtype, dtype)
    left, right = _pair(at, wide)
    if not dtype.is_floating_point:
        return at.cast(at.op("Mod", left, right), wide, dtype)
    zero = at.constant(0, dtype)
    rest = at.op("Mod", left, right, fmod=1)
    differs = at.op("Xor", at.op("Less", rest, zero), at.op("Less", right, zero))
    wrong = at.op("And", differs, at.op("Not", at.op("Equal", rest, zero)))
    return at.op("Where", wrong, at.op("Add", rest, right), rest)


@rule("atan2")
def _atan2(at: Lowering) -> onnx_ir.Value:
    """atan(y / x), moved by pi into the left half plane; on the vertical axis half pi with the sign of y."""
    dtype = at.out.dtype
    if not dtype.is_floating_point:
        at.fail("its operands are integers", "cast them to floats")
    y, x = _pair(at, dtype)
    zero, pi = at.constant(0, dtype), at.constant(math.pi, dtype)
    angle = at.op("Atan", at.op("Div", y, x))
    turned = at.op("Where", at.op("Less", y, zero), at.op("Sub", angle, pi), at.op("Add", angle, pi))
    upright = at.op("Mul", at.op("Sign", y), at.constant(math.pi / 2, dtype))
    left = at.op("Where", at.op("Less", x, zero), turned, angle)
    return at.op("Where", at.op("Equal", x, zero), upright, left)


@rule(*_COMPARE)
def _compare(at: Lowering) -> onnx_ir.Value:
    name, dtype = at.node.operator.name, _common(at)
    wide = torch.int32 if dtype == torch.bool and name not in ("eq", "ne") else _WIDE.get(dtype, dtype)
    made = at.op(_COMPARE[name], *_pair(at, wide))
    return at.op("Not", made) if name == "ne" else made


@rule(*_LOGICAL)
def _logical(at: Lowering) -> onnx_ir.Value:
    return at.op(_LOGICAL[at.node.operator.name], *_pair(at, torch.bool))


@rule(*_BITWISE)
def _bitwise(at: Lowering) -> onnx_ir.Value:
    name, dtype = at.node.operator.name, at.out.dtype
    if dtype == torch.bool:
        return at.op(_BITWISE[name], *_pair(at, dtype))
    at.need(18, f"Bitwise{_BITWISE[name]}")
    return at.op(f"Bitwise{_BITWISE[name]}", *_pair(at, dtype))


@rule("where")
def _where(at: Lowering) -> onnx_ir.Value:
    dtype = at.out.dtype
    wide = torch.uint8 if dtype == torch.bool else torch.int32 if dtype in (torch.int8, torch.int16) else dtype
    branches = []
    for index, name in ((1, "on_true"), (2, "on_false")):
        branches.append(at.x(index, wide) if at.has(index) else at.scalar(at.node.attributes[name], wide))
    return at.cast(at.op("Where", at.x(0, torch.bool), *branches), wide, dtype)
