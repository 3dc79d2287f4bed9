"""Operators that act on each index by itself: activations, arithmetic, comparisons, casts, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, instantiate, parse_signature
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.types import Attribute

LINEAR, HOMOGENEOUS, ZERO, OTHER = (
    FunctionClass.LINEAR,
    FunctionClass.HOMOGENEOUS,
    FunctionClass.ZERO_PRESERVING,
    FunctionClass.OTHER,
)


def _float_result(call: Call) -> torch.dtype:
    dtype = call.type(0).dtype
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.get_default_dtype()


def _bool_result(call: Call) -> torch.dtype:
    return torch.bool


def _unary(
    name: str,
    run: Callable[..., Any],
    function: FunctionClass,
    dtype: Callable[[Call], torch.dtype] | None = None,
    **attributes: Attribute,
) -> None:
    declare(name, "x[*d] -> y[*d]", run, attributes=attributes, function=function, pointwise=True, dtype=dtype)


_unary("relu", torch.relu, HOMOGENEOUS)
_unary("leaky_relu", F.leaky_relu, HOMOGENEOUS, negative_slope=0.01)
_unary("relu6", F.relu6, ZERO)
_unary("elu", F.elu, ZERO, alpha=1.0)
_unary("selu", torch.selu, ZERO)
_unary("celu", F.celu, ZERO, alpha=1.0)
_unary("gelu", F.gelu, ZERO, approximate="none")
_unary("silu", F.silu, ZERO)
_unary("mish", F.mish, ZERO)
_unary("hardswish", F.hardswish, ZERO)
_unary("softsign", F.softsign, ZERO)
_unary("tanh", torch.tanh, ZERO, _float_result)
_unary("sigmoid", torch.sigmoid, OTHER, _float_result)
_unary("log_sigmoid", F.logsigmoid, OTHER)
_unary("hardsigmoid", F.hardsigmoid, OTHER)
_unary("softplus", F.softplus, OTHER, beta=1.0, threshold=20.0)
_unary("exp", torch.exp, OTHER, _float_result)
_unary("expm1", torch.expm1, ZERO, _float_result)
_unary("log", torch.log, OTHER, _float_result)
_unary("log1p", torch.log1p, ZERO, _float_result)
_unary("log2", torch.log2, OTHER, _float_result)
_unary("sqrt", torch.sqrt, ZERO, _float_result)
_unary("rsqrt", torch.rsqrt, OTHER, _float_result)
_unary("reciprocal", torch.reciprocal, OTHER, _float_result)
_unary("abs", torch.abs, HOMOGENEOUS)
_unary("neg", torch.neg, LINEAR)
_unary("sign", torch.sign, ZERO)
_unary("floor", torch.floor, ZERO)
_unary("ceil", torch.ceil, ZERO)
_unary("round", torch.round, ZERO)
_unary("sin", torch.sin, ZERO, _float_result)
_unary("cos", torch.cos, OTHER, _float_result)
_unary("erf", torch.erf, ZERO, _float_result)
_unary("clone", torch.clone, LINEAR)
_unary("logical_not", torch.logical_not, OTHER, _bool_result)
_unary("bitwise_not", torch.bitwise_not, OTHER)
_unary("isnan", torch.isnan, ZERO, _bool_result)
_unary("isinf", torch.isinf, ZERO, _bool_result)


def _clamp(x: torch.Tensor, *, min: float | None, max: float | None) -> torch.Tensor:
    return torch.clamp(x, min, max)


def _cast_result(call: Call) -> torch.dtype:
    dtype = call.attributes["dtype"]
    assert isinstance(dtype, torch.dtype)
    return dtype


def _cast(x: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


def _dropout(x: torch.Tensor, *, p: float, whole: bool, training: bool) -> torch.Tensor:
    return torch.feature_dropout(x, p, training) if whole else F.dropout(x, p, training)


_unary("clamp", _clamp, OTHER, min=None, max=None)
declare(
    "cast", "x[*d] -> y[*d]", _cast, attributes={"dtype": REQUIRED}, function=LINEAR, pointwise=True, dtype=_cast_result
)
declare("dropout", "x[*d] -> y[*d]", _dropout, attributes={"p": 0.5, "whole": False}, function=LINEAR, pointwise=True, training=True,
        doc="Drops elements in training mode, or `whole` channels.")  # fmt: skip


def _prelu_instance(call: Call) -> Instance:
    """One slope for all channels reads as a dimension of size 1; a vector has no channels."""
    shared = call.shape(1) == (1,)
    notation = (
        "x[n], slope[1] -> y[n]"
        if call.type(0).rank == 1
        else f"x[n, c, *h], slope[{1 if shared else 'c'}] -> y[n, c, *h]"
    )
    return instantiate(parse_signature(notation), [call.shape(0), call.shape(1)], where=call.where)


declare(
    "prelu", "x[n, c, *h], slope[c] -> y[n, c, *h]", torch.prelu, function=HOMOGENEOUS, pointwise=True, build=_prelu_instance,
    doc="max(0, x) + slope * min(0, x), one slope a channel or one for all.",
)  # fmt: skip


def _operands(left: torch.Tensor | None, right: torch.Tensor | None, scalar: Any) -> tuple[Any, Any]:
    return (scalar if left is None else left), (scalar if right is None else right)


def _binary_run(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(
        x: torch.Tensor | None, z: torch.Tensor | None = None, *, scalar: Any = None, **attributes: Any
    ) -> torch.Tensor:
        left, right = _operands(x, z, scalar)
        if not isinstance(left, torch.Tensor) and function in _NEED_TENSOR:
            left = torch.tensor(left, dtype=torch.result_type(right, left), device=right.device)
        if not isinstance(right, torch.Tensor) and function in _NEED_TENSOR:
            right = torch.tensor(right, dtype=torch.result_type(left, right), device=left.device)
        result: torch.Tensor = function(left, right, **attributes)
        return result

    return run


def _arithmetic(call: Call) -> torch.dtype:
    """Torch's promotion of two operands, one of which may be a Python scalar."""
    operands: list[Any] = []
    for type_ in (*call.types, None)[:2]:
        if type_ is None:
            scalar = call.attributes["scalar"]
            operands.append(scalar if isinstance(scalar, bool | int | float | complex) else 1)
        else:
            operands.append(torch.empty((1,) * type_.rank, dtype=type_.dtype, device="meta"))
    return torch.result_type(*operands)


def _division(call: Call) -> torch.dtype:
    dtype = _arithmetic(call)
    if call.attributes.get("rounding") is None and not (dtype.is_floating_point or dtype.is_complex):
        return torch.get_default_dtype()
    return dtype


def _divide(x: Any, z: Any, *, rounding: str | None = None) -> torch.Tensor:
    return torch.div(x, z, rounding_mode=rounding)


def _broadcast_bind(call: Call) -> Binding:
    given = sum(t is not None for t in call.types)
    if given < 2 and call.attributes["scalar"] is None:
        raise SutureError(
            Code.SHAPE,
            "one operand, and no scalar for the other",
            where=call.where,
            remedy="give both operands, or scalar=",
        )
    if given != 1 and call.attributes["scalar"] is not None:
        raise SutureError(
            Code.SHAPE,
            f"a scalar beside {given} operands",
            where=call.where,
            remedy="the scalar stands for one of two operands",
        )
    return Binding()


_COMPARISONS = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)
_NEED_TENSOR = {
    torch.maximum,
    torch.minimum,
    torch.atan2,
    torch.logical_and,
    torch.logical_or,
    torch.logical_xor,
    *_COMPARISONS,
}


def _binary(
    name: str,
    run: Callable[..., Any],
    function: FunctionClass,
    dtype: Callable[[Call], torch.dtype] = _arithmetic,
    **attributes: Attribute,
) -> None:
    declare(
        name, "x[*d]?, z[*d]? -> y[*d]", _binary_run(run), attributes={"scalar": None, **attributes}, function=function, pointwise=True,
        broadcast=("d",), bind=_broadcast_bind, dtype=dtype, doc=f"Elementwise {name}; a missing operand is the attribute `scalar`.",
    )  # fmt: skip


_binary("add", torch.add, LINEAR)
_binary("sub", torch.sub, LINEAR)
_binary("mul", torch.mul, LINEAR)
_binary("div", _divide, OTHER, _division, rounding=None)
_binary("pow", torch.pow, OTHER)
_binary("maximum", torch.maximum, HOMOGENEOUS)
_binary("minimum", torch.minimum, HOMOGENEOUS)
_binary("remainder", torch.remainder, OTHER)
_binary("atan2", torch.atan2, OTHER)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _binary(_name, getattr(torch, _name), OTHER, _bool_result)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _binary(_name, getattr(torch, _name), OTHER, _bool_result)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _binary(_name, getattr(torch, _name), OTHER)


def _where(
    condition: torch.Tensor, x: Any = None, z: Any = None, *, on_true: Any = None, on_false: Any = None
) -> torch.Tensor:
    return torch.where(condition, on_true if x is None else x, on_false if z is None else z)


def _where_bind(call: Call) -> Binding:
    for index, name in ((1, "on_true"), (2, "on_false")):
        absent = index >= len(call.types) or call.types[index] is None
        if absent and call.attributes[name] is None:
            raise SutureError(
                Code.SHAPE, f"neither operand {index} nor {name}", where=call.where, remedy="give one of the two"
            )
    return Binding()


def _where_result(call: Call) -> torch.dtype:
    operands: list[Any] = []
    for index, name in ((1, "on_true"), (2, "on_false")):
        type_ = call.types[index] if index < len(call.types) else None
        operands.append(
            call.attributes[name] if type_ is None else torch.empty((1,) * type_.rank, dtype=type_.dtype, device="meta")
        )
    return torch.result_type(*operands)


declare(
    "where", "condition[*d], x[*d]?, z[*d]? -> y[*d]", _where, attributes={"on_true": None, "on_false": None}, function=OTHER, pointwise=True,
    broadcast=("d",), bind=_where_bind, dtype=_where_result, doc="x where the condition holds, else z; a missing operand is a scalar attribute.",
)  # fmt: skip
