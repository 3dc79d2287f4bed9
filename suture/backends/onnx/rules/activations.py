"""Functions of one operand, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering

if TYPE_CHECKING:
    import onnx_ir

# What ONNX has under a name of its own; operands that are integers become floats first, as torch does it.
_FLOAT = {
    "tanh": "Tanh", "sigmoid": "Sigmoid", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin",
    "cos": "Cos", "erf": "Erf", "softsign": "Softsign", "hardswish": "HardSwish",
}  # fmt: skip
_SAME = {"abs": "Abs", "neg": "Neg", "sign": "Sign"}
_ROUNDING = {"floor": "Floor", "ceil": "Ceil", "round": "Round"}


@rule(*_FLOAT)
def _float(at: Lowering) -> onnx_ir.Value:
    return at.op(_FLOAT[at.node.operator.name], at.x(0, at.out.dtype))


@rule(*_SAME)
def _same(at: Lowering) -> onnx_ir.Value:
    return at.op(_SAME[at.node.operator.name], at.x(0))


@rule(*_ROUNDING)
def _rounding(at: Lowering) -> onnx_ir.Value:
    return at.op(_ROUNDING[at.node.operator.name], at.x(0)) if at.out.dtype.is_floating_point else at.x(0)


@rule("clone", "dropout")
def _unchanged(at: Lowering) -> onnx_ir.Value:
    return at.x(0)


@rule("cast")
def _cast(at: Lowering) -> onnx_ir.Value:
    return at.x(0, at.out.dtype)


@rule("relu")
def _relu(at: Lowering) -> onnx_ir.Value:
    if at.out.dtype.is_floating_point:
        return at.op("Relu", at.x(0))
    return at.op("Max", at.x(0), at.constant(0, at.out.dtype))


@rule("relu6")
def _relu6(at: Lowering) -> onnx_ir.Value:
    return at.op("Clip", at.x(0), at.constant(0, at.out.dtype), at.constant(6, at.out.dtype))


@rule("clamp")
def _clamp(at: Lowering) -> onnx_ir.Value:
    return at.op("Clip", at.x(0), _bound(at, "min"), _bound(at, "max"))


def _bound(at: Lowering, name: str) -> onnx_ir.Value | None:
    """A bound in the operand's type; None where there is none, and for an infinite one, which bounds nothing."""
    bound = at.node.attributes[name]
    if bound is None or (isinstance(bound, float) and math.isinf(bound) and (bound < 0) == (name == "min")):
        return None
    return at.scalar(bound, at.out.dtype)


@rule("leaky_relu")
def _leaky_relu(at: Lowering) -> onnx_ir.Value:
    return at.op("LeakyRelu", at.x(0), alpha=at.number("negative_slope"))


@rule("prelu")
def _prelu(at: Lowering) -> onnx_ir.Value:
    slope, space = at.x(1), at.type(0).rank - 2
    return at.op("PRelu", at.x(0), at.unsqueeze(slope, *range(1, space + 1)) if space > 0 else slope)


@rule("elu")
def _elu(at: Lowering) -> onnx_ir.Value:
    return at.op("Elu", at.x(0), alpha=at.number("alpha"))


@rule("celu")
def _celu(at: Lowering) -> onnx_ir.Value:
    return at.op("Celu", at.x(0), alpha=at.number("alpha"))


@rule("selu")
def _selu(at: Lowering) -> onnx_ir.Value:
    return at.op("Selu", at.x(0), alpha=1.6732632423543772848170429916717, gamma=1.0507009873554804934193349852946)


@rule("hardsigmoid")
def _hardsigmoid(at: Lowering) -> onnx_ir.Value:
    return at.op("HardSigmoid", at.x(0), alpha=1 / 6, beta=0.5)


@rule("gelu")
def _gelu(at: Lowering) -> onnx_ir.Value:
    x, dtype, approximate = at.x(0), at.out.dtype, at.text("approximate")
    if at.choices.gelu == "contrib" and dtype == torch.float32:
        return at.contrib("Gelu" if approximate == "none" else "FastGelu", x)[0]
    if at.opset >= 20 and at.choices.gelu == "operator":
        return at.op("Gelu", x, approximate=approximate)
    if approximate == "none":
        inner = at.op("Erf", at.op("Div", x, at.constant(math.sqrt(2.0), dtype)))
    else:
        cube = at.op("Mul", at.op("Mul", at.op("Mul", x, x), x), at.constant(0.044715, dtype))
        inner = at.op("Tanh", at.op("Mul", at.op("Add", x, cube), at.constant(math.sqrt(2.0 / math.pi), dtype)))
    return at.op("Mul", at.op("Mul", x, at.op("Add", inner, at.constant(1, dtype))), at.constant(0.5, dtype))


@rule("silu")
def _silu(at: Lowering) -> onnx_ir.Value:
    if at.choices.silu == "contrib" and at.out.dtype == torch.float32:
        return at.contrib("QuickGelu", at.x(0), alpha=1.0)[0]
    return at.op("Mul", at.x(0), at.op("Sigmoid", at.x(0)))


@rule("mish")
def _mish(at: Lowering) -> onnx_ir.Value:
    if at.opset >= 18:
        return at.op("Mish", at.x(0))
    return at.op("Mul", at.x(0), at.op("Tanh", at.op("Softplus", at.x(0))))


@rule("log_sigmoid")
def _log_sigmoid(at: Lowering) -> onnx_ir.Value:
    return at.op("Neg", at.op("Softplus", at.op("Neg", at.x(0))))


@rule("softplus")
def _softplus(at: Lowering) -> onnx_ir.Value:
    beta, threshold, x, dtype = at.number("beta"), at.number("threshold"), at.x(0), at.out.dtype
    scaled = x if beta == 1 else at.op("Mul", x, at.constant(beta, dtype))
    soft = at.op("Softplus", scaled)
    if beta != 1:
        soft = at.op("Div", soft, at.constant(beta, dtype))
    # Beyond the usual threshold both branches agree to the last bit that float32 has.
    return soft if threshold >= 20 else at.op("Where", at.op("Greater", scaled, at.constant(threshold, dtype)), x, soft)


@rule("rsqrt")
def _rsqrt(at: Lowering) -> onnx_ir.Value:
    return at.op("Reciprocal", at.op("Sqrt", at.x(0, at.out.dtype)))


@rule("log2")
def _log2(at: Lowering) -> onnx_ir.Value:
    return at.op("Div", at.op("Log", at.x(0, at.out.dtype)), at.constant(math.log(2.0), at.out.dtype))


@rule("expm1")
def _expm1(at: Lowering) -> onnx_ir.Value:
    """tanh(x/2) (exp(x) + 1) is exp(x) - 1 without the cancellation near 0."""
    x, dtype = at.x(0, at.out.dtype), at.out.dtype
    half = at.op("Tanh", at.op("Mul", x, at.constant(0.5, dtype)))
    return at.op("Mul", half, at.op("Add", at.op("Exp", x), at.constant(1, dtype)))


@rule("log1p")
def _log1p(at: Lowering) -> onnx_ir.Value:
    """With u = 1 + x as rounded, log(u) x / (u - 1) takes the rounding back (Kahan); x itself where u is 1."""
    x, one = at.x(0, at.out.dtype), at.constant(1, at.out.dtype)
    u = at.op("Add", x, one)
    corrected = at.op("Div", at.op("Mul", at.op("Log", u), x), at.op("Sub", u, one))
    return at.op("Where", at.op("Equal", u, one), x, corrected)


@rule("logical_not")
def _logical_not(at: Lowering) -> onnx_ir.Value:
    return at.op("Not", at.x(0, torch.bool))


@rule("bitwise_not")
def _bitwise_not(at: Lowering) -> onnx_ir.Value:
    if at.out.dtype == torch.bool:
        return at.op("Not", at.x(0))
    at.need(18, "BitwiseNot")
    return at.op("BitwiseNot", at.x(0))


@rule("isnan", "isinf")
def _special(at: Lowering) -> onnx_ir.Value:
    if at.type(0).dtype.is_floating_point:
        return at.op({"isnan": "IsNaN", "isinf": "IsInf"}[at.node.operator.name], at.x(0))
    return at.op("Not", at.op("Equal", at.x(0), at.x(0)))
