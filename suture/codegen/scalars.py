"""Pointwise operators as expressions: what one element of the result is, from one element of each operand.

Short floats are computed in float32. An operator without an entry is not lowered; it runs as torch runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Literal, apply, cast

Lowering = Callable[[Node, "list[Expression]"], Expression]
SCALARS: dict[str, Lowering] = {}
"""Operator -> its expression. Operands come in the type that the result is computed in; a condition comes as a truth value."""


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """What numbers of an element type are computed in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def lower_scalar(node: Node, operands: list[Expression | None]) -> Expression | None:
    """One element of a pointwise node's result, in its compute type; None if the operator or its types have no expression."""
    lowering = SCALARS.get(node.operator.name)
    wanted = compute_type(node.output.dtype)
    if lowering is None or wanted.is_complex:
        return None
    given = _with_scalars(node, operands)
    if given is None or any(operand.dtype.is_complex for operand in given):
        return None
    name = node.operator.name
    if name == "where":
        given = [given[0], *(cast(operand, wanted) for operand in given[1:])]
    elif name in _COMPARING:
        common = _promoted(given)
        given = [cast(operand, common) for operand in given]
    elif name in _LOGICAL:
        given = [_truth(operand) for operand in given]
    elif name not in ("cast", "isnan", "isinf"):
        given = [cast(operand, wanted) for operand in given]
    if not wanted.is_floating_point and name in _FLOAT_ONLY:
        return None
    made = lowering(node, given)
    return cast(made, wanted)


def _with_scalars(node: Node, operands: list[Expression | None]) -> list[Expression] | None:
    """The operands, with attributes in the places of those that are absent."""
    names = {"where": (None, "on_true", "on_false")}.get(node.operator.name, ("scalar", "scalar"))
    if "scalar" in node.attributes and len(operands) == 1:
        operands = [*operands, None]
    if node.operator.name == "where":
        operands = [*operands, *[None] * (3 - len(operands))]
    found: list[Expression] = []
    for position, operand in enumerate(operands):
        if operand is not None:
            found.append(operand)
            continue
        name = names[position] if position < len(names) else None
        value = node.attributes.get(name) if name is not None else None
        if not isinstance(value, bool | int | float):
            return None
        found.append(Literal(value, _literal_type(value, operands)))
    return found


def _literal_type(value: float, operands: list[Expression | None]) -> torch.dtype:
    """A Python number has the kind of the tensors beside it, unless it is of a higher kind itself."""
    beside = [operand.dtype for operand in operands if operand is not None and operand.dtype != torch.bool]
    if isinstance(value, float) and not any(dtype.is_floating_point for dtype in beside):
        return torch.float32
    return beside[-1] if beside else (torch.bool if isinstance(value, bool) else torch.int64)


def _promoted(operands: list[Expression]) -> torch.dtype:
    common = operands[0].dtype
    for operand in operands[1:]:
        common = torch.promote_types(common, operand.dtype)
    return torch.uint8 if common == torch.bool else compute_type(common)


def _truth(operand: Expression) -> Expression:
    return operand if operand.dtype == torch.bool else apply("!=", operand, Literal(0, operand.dtype))


def _number(value: float, like: Expression) -> Literal:
    return Literal(value, like.dtype)


_COMPARING = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": "<", "ge": "<="}
_LOGICAL = frozenset({"logical_and", "logical_or", "logical_not", "logical_xor"})
_FLOAT_ONLY = frozenset(
    {
        "exp", "log", "sqrt", "rsqrt", "tanh", "sin", "cos", "erf", "floor", "round", "sigmoid", "gelu", "silu", "elu", "softplus", "reciprocal",
        "hardswish", "hardsigmoid", "mish", "log_sigmoid", "softsign", "selu", "celu", "expm1", "log1p", "log2", "atan2", "div", "pow", "ceil",
    }
)  # fmt: skip


def _enter(*names: str) -> Callable[[Lowering], Lowering]:
    def enter(function: Lowering) -> Lowering:
        SCALARS.update(dict.fromkeys(names, function))
        return function

    return enter


def _attribute(node: Node, name: str) -> float:
    value = node.attributes[name]
    assert isinstance(value, int | float)
    return float(value)


@_enter("exp")
def _exponential(node: Node, x: list[Expression]) -> Expression:
    """Of what its maximum was taken off, a shorter one."""
    return apply("exp_nonpositive" if _is_below_its_maximum(node.inputs[0]) else "exp", x[0])


def _is_below_its_maximum(value: Value | None) -> bool:
    """Whether a value is the difference of another and its maximum."""
    node = value.producer if value is not None else None
    if node is None or node.operator.name != "sub" or len(node.inputs) < 2 or node.attributes.get("alpha", 1) != 1:
        return False
    whole, top = node.inputs[0], node.inputs[1]
    found = top.producer if top is not None else None
    wanted = "amax"
    if found is not None and found.operator.name == "csr_spread" and found.inputs[0] is not None:
        spread, found, wanted = found, found.inputs[0].producer, "csr_max"
        if found is None or found.inputs[1:2] != spread.inputs[1:2]:
            return False
    return found is not None and found.operator.name == wanted and found.inputs[0] is whole


@_enter("log", "sqrt", "rsqrt", "tanh", "sin", "cos", "erf", "abs", "neg", "floor", "round")
def _function(node: Node, x: list[Expression]) -> Expression:
    return apply(node.operator.name, x[0])


@_enter("clone", "dropout", "cast")
def _same(node: Node, x: list[Expression]) -> Expression:
    if node.operator.name == "cast" and node.output.dtype == torch.bool:
        return _truth(x[0])
    return x[0]


@_enter("add", "sub", "mul")
def _arithmetic(node: Node, x: list[Expression]) -> Expression:
    return apply({"add": "+", "sub": "-", "mul": "*"}[node.operator.name], *x)


@_enter("div")
def _divide(node: Node, x: list[Expression]) -> Expression:
    quotient = apply("/", *x)
    match node.attributes.get("rounding"):
        case None:
            return quotient
        case "floor":
            return apply("floor", quotient)
    towards_zero = apply("floor", apply("abs", quotient))
    return apply("select", quotient < 0.0, apply("neg", towards_zero), towards_zero)


@_enter("pow")
def _power(node: Node, x: list[Expression]) -> Expression:
    """A small whole exponent multiplies: the general function goes number by number."""
    exponent = x[1].value if isinstance(x[1], Literal) else None
    if exponent == 0.5:
        return apply("sqrt", x[0])
    if exponent == -0.5:
        return apply("rsqrt", x[0])
    if exponent not in (-2, -1, 1, 2, 3, 4):
        return apply("pow", *x)
    square = x[0] * x[0]
    power = {1: x[0], 2: square, 3: square * x[0], 4: square * square}[abs(int(exponent))]
    return power if exponent > 0 else _number(1, power) / power


@_enter("maximum", "minimum")
def _extreme(node: Node, x: list[Expression]) -> Expression:
    return apply({"maximum": "max", "minimum": "min"}[node.operator.name], *x)


@_enter("relu")
def _relu(node: Node, x: list[Expression]) -> Expression:
    return apply("max", x[0], _number(0, x[0]))


@_enter("relu6")
def _relu6(node: Node, x: list[Expression]) -> Expression:
    return apply("min", apply("max", x[0], _number(0, x[0])), _number(6, x[0]))


@_enter("clamp")
def _clamp(node: Node, x: list[Expression]) -> Expression:
    value, low, high = x[0], node.attributes["min"], node.attributes["max"]
    value = apply("max", value, _number(low, value)) if isinstance(low, int | float) else value
    return apply("min", value, _number(high, value)) if isinstance(high, int | float) else value


@_enter("leaky_relu")
def _leaky_relu(node: Node, x: list[Expression]) -> Expression:
    return apply("select", x[0] < 0.0, x[0] * _attribute(node, "negative_slope"), x[0])


@_enter("elu", "celu", "selu")
def _elu(node: Node, x: list[Expression]) -> Expression:
    """alpha (exp(x) - 1) below zero; CELU divides x by alpha first, SELU has both factors given (Klambauer et al. 2017)."""
    if node.operator.name == "selu":
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return apply("select", x[0] < 0.0, _exp_minus_one(x[0]) * (alpha * scale), x[0] * scale)
    alpha = _attribute(node, "alpha")
    inner = x[0] / alpha if node.operator.name == "celu" else x[0]
    return apply("select", x[0] < 0.0, _exp_minus_one(inner) * alpha, x[0])


@_enter("sigmoid")
def _sigmoid(node: Node, x: list[Expression]) -> Expression:
    return _number(1, x[0]) / (_one_plus_exp(apply("neg", x[0])))


@_enter("silu")
def _silu(node: Node, x: list[Expression]) -> Expression:
    return x[0] / _one_plus_exp(apply("neg", x[0]))


@_enter("gelu")
def _gelu(node: Node, x: list[Expression]) -> Expression:
    """x times the normal distribution's function, or its tanh form (Hendrycks and Gimpel 2016, section 2)."""
    half = x[0] * 0.5
    if node.attributes["approximate"] == "tanh":
        inner = (x[0] + x[0] * x[0] * x[0] * 0.044715) * math.sqrt(2 / math.pi)
        return half * (apply("tanh", inner) + 1.0)
    return half * (apply("erf", x[0] * math.sqrt(0.5)) + 1.0)


@_enter("hardsigmoid")
def _hard_sigmoid(node: Node, x: list[Expression]) -> Expression:
    return _gate(x[0])


@_enter("hardswish")
def _hard_swish(node: Node, x: list[Expression]) -> Expression:
    return x[0] * _gate(x[0])


@_enter("softplus")
def _softplus(node: Node, x: list[Expression]) -> Expression:
    beta = _attribute(node, "beta")
    scaled = x[0] * beta
    grown = _log_one_plus_exp(scaled) / beta
    return apply("select", _number(_attribute(node, "threshold"), x[0]) < scaled, x[0], grown)


@_enter("log_sigmoid")
def _log_sigmoid(node: Node, x: list[Expression]) -> Expression:
    return apply("neg", _log_one_plus_exp(apply("neg", x[0])))


@_enter("mish")
def _mish(node: Node, x: list[Expression]) -> Expression:
    return x[0] * apply("tanh", _log_one_plus_exp(x[0]))


@_enter("softsign")
def _softsign(node: Node, x: list[Expression]) -> Expression:
    return x[0] / (apply("abs", x[0]) + 1.0)


@_enter("reciprocal")
def _reciprocal(node: Node, x: list[Expression]) -> Expression:
    return _number(1, x[0]) / x[0]


@_enter("ceil")
def _ceiling(node: Node, x: list[Expression]) -> Expression:
    return apply("neg", apply("floor", apply("neg", x[0])))


@_enter("sign")
def _sign(node: Node, x: list[Expression]) -> Expression:
    zero, one = _number(0, x[0]), _number(1, x[0])
    below = apply("select", x[0] < zero, _number(-1, x[0]), zero)
    return apply("select", zero < x[0], one, below)


@_enter("expm1")
def _expm1(node: Node, x: list[Expression]) -> Expression:
    return _exp_minus_one(x[0])


@_enter("log1p")
def _log1p(node: Node, x: list[Expression]) -> Expression:
    """Near zero 2 artanh(x / (2 + x)), whose series takes off nothing from one."""
    value = x[0]
    z = value / (value + 2.0)
    square = z * z
    series: Expression = _number(0, value)
    for k in range(16 if value.dtype == torch.float64 else 8, -1, -1):
        series = series * square + 1 / (2 * k + 1)
    return apply("select", apply("abs", value) < 0.5, z * series * 2.0, apply("log", value + 1.0))


@_enter("log2")
def _log2(node: Node, x: list[Expression]) -> Expression:
    return apply("log", x[0]) * (1 / math.log(2))


@_enter("remainder")
def _remainder(node: Node, x: list[Expression]) -> Expression:
    """Of the sign of the divisor."""
    if not x[0].dtype.is_floating_point:
        return apply("%", *x)
    rest, zero = apply("fmod", *x), _number(0, x[0])
    turns = apply("and", apply("!=", rest, zero), apply("!=", rest < zero, x[1] < zero))
    return apply("select", turns, rest + x[1], rest)


@_enter("atan2")
def _angle(node: Node, x: list[Expression]) -> Expression:
    return apply("atan2", *x)


@_enter("bitwise_and", "bitwise_or", "bitwise_xor")
def _bitwise(node: Node, x: list[Expression]) -> Expression:
    name = node.operator.name.removeprefix("bitwise_")
    if x[0].dtype == torch.bool:
        return apply("!=" if name == "xor" else name, *x)
    return apply(f"bit{name}", *x)


@_enter("bitwise_not")
def _bitwise_not(node: Node, x: list[Expression]) -> Expression:
    return apply("not", x[0]) if x[0].dtype == torch.bool else apply("neg", x[0]) - 1


@_enter("eq", "ne", "lt", "le", "gt", "ge")
def _compare(node: Node, x: list[Expression]) -> Expression:
    name = node.operator.name
    left, right = (x[1], x[0]) if name in ("gt", "ge") else (x[0], x[1])
    return apply(_COMPARING[name], left, right)


@_enter("logical_and", "logical_or", "logical_xor", "logical_not")
def _logic(node: Node, x: list[Expression]) -> Expression:
    match node.operator.name:
        case "logical_and":
            return apply("and", *x)
        case "logical_or":
            return apply("or", *x)
        case "logical_not":
            return apply("not", x[0])
    return apply("!=", *x)


@_enter("isnan")
def _is_nan(node: Node, x: list[Expression]) -> Expression:
    return apply("!=", x[0], x[0])


@_enter("isinf")
def _is_infinite(node: Node, x: list[Expression]) -> Expression:
    return apply("==", apply("abs", x[0]), _number(math.inf, x[0]))


@_enter("where")
def _where(node: Node, x: list[Expression]) -> Expression:
    return apply("select", _truth(x[0]), x[1], x[2])


def _one_plus_exp(x: Expression) -> Expression:
    return apply("exp", x) + 1.0


def _exp_minus_one(x: Expression) -> Expression:
    """exp(x) - 1 without the loss near zero: tanh(x / 2) (exp(x) + 1)."""
    return apply("tanh", x * 0.5) * _one_plus_exp(x)


def _log_one_plus_exp(x: Expression) -> Expression:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    return apply("max", x, _number(0, x)) + apply("log", _one_plus_exp(apply("neg", apply("abs", x))))


def _gate(x: Expression) -> Expression:
    """min(max(x + 3, 0), 6) / 6 (Howard et al. 2019, section 5.2)."""
    return apply("min", apply("max", x + 3.0, _number(0, x)), _number(6, x)) * (1 / 6)
