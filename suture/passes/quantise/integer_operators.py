"""Which operators can run in integers, how, and why the others cannot: what ONNX Runtime's CPU provider has kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.operator import OPERATORS


class Result(Enum):
    """What becomes of an operator's result."""

    INTEGER = "integer"  # the kernel writes integers, so the result has a quantiser of its own
    FLOAT = "float"  # the kernel can write floats, which is more exact and saves a conversion
    SHARED = "shared"  # the integers pass unchanged: operands and result are of one quantiser


@dataclass(frozen=True)
class IntegerForm:
    """How an operator runs in integers.

    :param operands: those that are quantised as activations; all that are there if None
    :param weight: the operand that is a weight if it is a parameter, and the dimension that has one scale per index
    :param bias: the operand that becomes 32 bits wide
    :param joins: whether the operator runs in integers only where its operands are integers anyway: by itself it would not pay for the conversions
    """

    result: Result
    operands: tuple[int, ...] | None = (0,)
    weight: tuple[int, int] | None = None
    bias: int | None = None
    joins: bool = False


_PASSES = IntegerForm(Result.SHARED, joins=True)

INTEGER: Mapping[str, IntegerForm] = {
    "conv": IntegerForm(Result.INTEGER, weight=(1, 0), bias=2),  # QLinearConv
    "linear": IntegerForm(Result.FLOAT, weight=(1, 0), bias=2),  # QGemm, MatMulIntegerToFloat
    "addmm": IntegerForm(Result.FLOAT, operands=(1,), weight=(2, 1), bias=0),  # QGemm
    "matmul": IntegerForm(Result.FLOAT, operands=(0, 1), weight=(1, -1)),  # QLinearMatMul, MatMulIntegerToFloat
    "add": IntegerForm(Result.INTEGER, operands=(0, 1), joins=True),  # QLinearAdd
    "mul": IntegerForm(Result.INTEGER, operands=(0, 1), joins=True),  # QLinearMul
    "concat": IntegerForm(Result.SHARED, operands=None, joins=True),
    "adaptive_avg_pool": IntegerForm(Result.INTEGER, joins=True),  # QLinearGlobalAveragePool
    "mean": IntegerForm(Result.INTEGER, joins=True),  # QLinearGlobalAveragePool, where it is over all of an image
    "avg_pool": IntegerForm(Result.INTEGER, joins=True),  # QLinearAveragePool
    "leaky_relu": IntegerForm(Result.INTEGER, joins=True),  # QLinearLeakyRelu
    "sigmoid": IntegerForm(Result.INTEGER, joins=True),  # QLinearSigmoid
    "max_pool": _PASSES,
    "reshape": _PASSES,
    "permute": _PASSES,
    "slice": _PASSES,
    "split": _PASSES,
    "select": _PASSES,
}
"""The operators that run in integers, by name."""

ABSORBED = ("relu", "relu6", "clamp")
"""Bounds that a quantiser's own range states: between an integer operator and its quantiser they cost nothing."""

REASONS: Mapping[str, str] = {
    "attention": "its softmax stays in floats, and ONNX Runtime has no integer kernel for the whole",
    "conv_transpose": "ONNX Runtime's CPU provider has no integer kernel for transposed convolutions",
    "layer_norm": "its statistics stay in floats; the linear layer behind it is what integers pay for",
    "rms_norm": "its statistics stay in floats; the linear layer behind it is what integers pay for",
    "softmax": "its values crowd near 0, and eight bits of them cost more accuracy than time",
    "gelu": "ONNX Runtime has no integer kernel for it",
    "silu": "ONNX Runtime has no integer kernel for it",
    "batch_norm": "ONNX Runtime has no integer kernel for it: merge it into the convolution before it (the pass fold)",
    "packed_attention": "its linear layers are fused into it: quantise before the pass fuse, or run expand first",
    "embedding": "it multiplies nothing: its table is stored in integers by the pass quantise_weights",
}
"""Why operators have no integers, where it needs saying."""


def reason_of(name: str) -> str:
    """Why an operator has no integers."""
    if name in ABSORBED:
        return "it is part of the quantiser behind it, and runs in integers where the operator before it does"
    return REASONS.get(name, "ONNX Runtime has no integer kernel for it")


def require_integers(name: str) -> IntegerForm:
    """How an operator runs in integers.

    :raises SutureError: OPERATOR, if there is none of that name; QUANTISER, if it has no integers, with the reason
    """
    if name in INTEGER:
        return INTEGER[name]
    if name not in OPERATORS:
        raise SutureError(
            Code.OPERATOR, f"there is no operator {name!r}", remedy=nearest(name, OPERATORS, what="operator")
        )
    own = [operator for operator, form in INTEGER.items() if not form.joins]
    raise SutureError(
        Code.QUANTISER, f"the operator {name} has no integers: {reason_of(name)}", remedy=f"{', '.join(own)} have them"
    )
