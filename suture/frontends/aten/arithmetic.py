"""Elementwise operators: activations, arithmetic, comparisons, casts, dropout."""

from __future__ import annotations

import torch

from suture.frontends.aten.rule import AtenCall, Result, Rule, Untranslatable, translates
from suture.ir.graph import Value

_SAME = (
    "relu relu6 selu silu mish hardswish tanh sigmoid hardsigmoid exp expm1 log log1p log2 sqrt rsqrt reciprocal abs neg sign floor ceil sin cos erf"
    " logical_not bitwise_not isnan isinf"
)


def _unary(operator: str) -> Rule:
    return lambda call: call.emit(operator, call.value())


for _name in _SAME.split():
    translates(_name)(_unary(_name))
for _name, _operator in {
    "negative": "neg",
    "absolute": "abs",
    "sgn": "sign",
    "log_sigmoid": "log_sigmoid",
    "softsign": "softsign",
}.items():
    translates(_name)(_unary(_operator))


@translates(
    "identity",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "lift_fresh_copy",
    "lift",
    "lift_fresh",
    "resolve_conj",
    "resolve_neg",
    "positive",
)
def _same(call: AtenCall) -> Result:
    return call.value()


@translates("round.default")
def _round(call: AtenCall) -> Result:
    return call.emit("round", call.value())


@translates("gelu")
def _gelu(call: AtenCall) -> Result:
    return call.emit("gelu", call.value(), approximate=call["approximate"])


@translates("leaky_relu")
def _leaky_relu(call: AtenCall) -> Result:
    return call.emit("leaky_relu", call.value(), negative_slope=call["negative_slope"])


@translates("elu")
def _elu(call: AtenCall) -> Result:
    if call["scale"] != 1 or call["input_scale"] != 1:
        raise Untranslatable("a scaled ELU")
    return call.emit("elu", call.value(), alpha=float(call["alpha"]))


@translates("celu")
def _celu(call: AtenCall) -> Result:
    return call.emit("celu", call.value(), alpha=float(call["alpha"]))


@translates("softplus")
def _softplus(call: AtenCall) -> Result:
    return call.emit("softplus", call.value(), beta=float(call["beta"]), threshold=float(call["threshold"]))


@translates("hardtanh")
def _hardtanh(call: AtenCall) -> Result:
    low, high = call["min_val"], call["max_val"]
    if (low, high) == (0, 6) and call.type.dtype.is_floating_point:
        return call.emit("relu6", call.value())
    return call.emit("clamp", call.value(), min=low, max=high)


@translates("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(call: AtenCall) -> Result:
    low, high = call.get("min"), call.get("max")
    if not isinstance(low, Value) and not isinstance(high, Value):
        return call.emit("clamp", call.value(), min=low, max=high)
    result = call.value()
    if low is not None:
        result = call.binary("maximum", result, low)
    return result if high is None else call.binary("minimum", result, high)


@translates("prelu", "_prelu_kernel")
def _prelu(call: AtenCall) -> Result:
    x, slope = call.value(), call.value("weight")
    if x.rank < 2:
        raise Untranslatable("a PReLU of a vector")
    slope = call.reshape(slope, [size for size in slope.shape if size != 1] or [1])
    return call.emit("prelu", x, call.expand(slope, [x.shape[1]]))


@translates("square")
def _square(call: AtenCall) -> Result:
    return call.emit("pow", call.value(), None, scalar=2)


@translates("glu")
def _glu(call: AtenCall) -> Result:
    dim = call.dim()
    half = call.type.shape[dim]
    left, right = call.split(call.value(), dim, [half, half])
    return call.emit("mul", left, call.emit("sigmoid", right))


_PLAIN = (
    "mul", "maximum", "minimum", "remainder", "atan2", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor",
)  # fmt: skip


def _binary(operator: str) -> Rule:
    return lambda call: call.binary(operator, call["self"], call["other"])


for _name in _PLAIN:
    translates(_name)(_binary(_name))
for _name, _operator in {
    "multiply": "mul", "true_divide": "div", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "max.other": "maximum", "min.other": "minimum", "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor",
    "__iand__": "bitwise_and", "__ior__": "bitwise_or", "__ixor__": "bitwise_xor",
}.items():  # fmt: skip
    translates(_name)(_binary(_operator))


@translates("add", "sub", "subtract", "rsub")
def _sum(call: AtenCall) -> Result:
    left, right, alpha = call["self"], call["other"], call.get("alpha", 1)
    if call.name == "rsub":
        left, right = right, left
    if alpha != 1:
        right = call.binary("mul", right, alpha) if isinstance(right, Value) else right * alpha
    return call.binary("add" if call.name == "add" else "sub", left, right)


@translates("div", "divide", "floor_divide")
def _div(call: AtenCall) -> Result:
    rounding = "floor" if call.name == "floor_divide" else call.get("rounding_mode")
    return call.binary("div", call["self"], call["other"], rounding=rounding)


@translates("pow")
def _pow(call: AtenCall) -> Result:
    return call.binary("pow", call["self"], call["exponent"])


@translates("addcmul", "addcdiv")
def _add_product(call: AtenCall) -> Result:
    term = call.emit("mul" if call.name == "addcmul" else "div", call.value("tensor1"), call.value("tensor2"))
    if call["value"] != 1:
        term = call.emit("mul", term, None, scalar=call["value"])
    return call.emit("add", call.value(), term)


@translates("where")
def _where(call: AtenCall) -> Result:
    left, right = call.get("self"), call.get("other")
    if left is None or right is None:
        raise Untranslatable("the indices where a condition holds")
    scalars = {name: item for name, item in (("on_true", left), ("on_false", right)) if not isinstance(item, Value)}
    operands = [item if isinstance(item, Value) else None for item in (left, right)]
    return call.emit("where", call.value("condition"), *operands, **scalars)


@translates("masked_fill")
def _masked_fill(call: AtenCall) -> Result:
    fill, x = call["value"], call.value()
    if isinstance(fill, Value):
        result = call.emit("where", call.value("mask"), call.cast(fill, x.dtype), x)
    else:
        result = call.emit("where", call.value("mask"), None, x, on_true=fill)
    return call.cast(result, x.dtype)


@translates("to", "_to_copy", "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool")
def _cast(call: AtenCall) -> Result:
    return call.cast(call.value(), call.type.dtype)


@translates("dropout", "native_dropout")
def _dropout(call: AtenCall) -> Result:
    return call.emit("dropout", _dropped(call), p=float(call["p"]))


@translates("feature_dropout")
def _feature_dropout(call: AtenCall) -> Result:
    return call.emit("dropout", _dropped(call), p=float(call["p"]), whole=True)


def _dropped(call: AtenCall) -> Value:
    """The operand, which the in-place form calls `self`."""
    return call.value("input" if "input" in call.arguments else "self")


@translates("fill", "zero")
def _fill(call: AtenCall) -> Result:
    value, type_ = call.get("value", 0), call.type
    if isinstance(value, Value):
        return call.expand(call.cast(value, type_.dtype), type_.shape)
    return call.emit("full", shapes=[type_.shape], value=value, dtype=type_.dtype)


@translates("copy")
def _copy(call: AtenCall) -> Result:
    return call.expand(call.cast(call.value("src"), call.type.dtype), call.type.shape)


@translates("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax")
def _softmax(call: AtenCall) -> Result:
    if call.name == "_safe_softmax":
        raise Untranslatable("a softmax of rows that may be masked altogether")
    x = call.cast(call.value(), call.get("dtype") if isinstance(call.get("dtype"), torch.dtype) else None)
    return call.emit("log_softmax" if "log" in call.name else "softmax", x, dim=call.dim())
