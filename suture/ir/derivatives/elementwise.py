"""Derivatives of the operators that act on each index by itself: a table of scalar derivatives.

An entry is the cotangent of one operand, from the cotangent `g` of the result, the operands `x` and `z` and the result `y`. Where the operator
repeats an operand (broadcasting, a slope for every channel), the notation says over what to sum; no entry knows of shapes. Where a function has a
kink, the entry takes the side that torch takes, and where two operands tie, half each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from suture.ir.derivatives.formula import Formula, Operand
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.rule import CONSTANT, Gradients, Site, rule

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


class _Point:
    """What a scalar derivative is made of."""

    def __init__(self, at: Site) -> None:
        self.at = at
        self.g = at.g

    @property
    def x(self) -> Formula:
        """The operand."""
        return self.at.operand(0)

    @property
    def y(self) -> Formula:
        """The result."""
        return self.at.result()

    def __getitem__(self, attribute: str) -> Any:
        return self.at[attribute]


class _Pair:
    """What a scalar derivative of two operands is made of, all of the result's type; a number may stand for one operand."""

    def __init__(self, at: Site) -> None:
        self.g, self.y = at.g, at.result()
        self.x: Any = at.operand(0).cast(self.g.dtype) if at.has(0) else at["scalar"]
        self.z: Any = at.operand(1).cast(self.g.dtype) if at.has(1) else at["scalar"]


Entry: TypeAlias = "Callable[[_Point], Formula]"
PairEntry: TypeAlias = "Callable[[_Pair], Formula]"


def _normal_density(x: Formula) -> Formula:
    return (x * x * -0.5).exp() * (1 / math.sqrt(2 * math.pi))


def _gelu(p: _Point) -> Formula:
    """With the normal distribution itself, x Phi(x); or with the tanh that stands for it (Hendrycks and Gimpel 2016, section 2)."""
    if p["approximate"] == "none":
        phi = (p.x * math.sqrt(0.5)).op("erf") * 0.5 + 0.5
        return p.g * (phi + p.x * _normal_density(p.x))
    root, cube = math.sqrt(2 / math.pi), 0.044715
    square = p.x * p.x
    t = ((square * cube + 1) * p.x * root).tanh()
    return p.g * ((t + 1) * 0.5 + p.x * 0.5 * (1 - t * t) * ((square * (3 * cube) + 1) * root))


def _exponential(p: _Point, scale: float, alpha: float, slope: float) -> Formula:
    """scale * x above zero, scale * alpha * (exp(slope * x) - 1) below."""
    return (p.x > 0).where(p.g * scale, p.g * (p.x * slope).exp() * (scale * alpha * slope))


def _clamp(p: _Point) -> Formula:
    g = p.g
    for bound, inside in (("min", p.x.__ge__), ("max", p.x.__le__)):
        if p[bound] is not None:
            g = inside(p[bound]).where(g, 0.0)
    return g


def _softplus(p: _Point) -> Formula:
    scaled: Formula = p.x * p["beta"]
    linear: Formula = scaled > p["threshold"]
    return linear.where(p.g, p.g * scaled.sigmoid())


def _mish(p: _Point) -> Formula:
    t = p.x.op("softplus").tanh()
    return p.g * (t + p.x * p.x.sigmoid() * (1 - t * t))


def _inside(p: _Point, low: float, high: float, slope: float) -> Formula:
    return (p.x > low).also(p.x < high).where(p.g * slope, 0.0)


UNARY: dict[str, Entry] = {
    "relu": lambda p: (p.y > 0).where(p.g, 0.0),
    "leaky_relu": lambda p: (p.x > 0).where(p.g, p.g * p["negative_slope"]),
    "relu6": lambda p: _inside(p, 0.0, 6.0, 1),
    "elu": lambda p: _exponential(p, 1.0, p["alpha"], 1.0),
    "selu": lambda p: _exponential(p, _SELU_SCALE, _SELU_ALPHA, 1.0),
    "celu": lambda p: _exponential(p, 1.0, p["alpha"], 1.0 / p["alpha"]),
    "gelu": _gelu,
    "silu": lambda p: p.g * (p.x.sigmoid() * (1 + p.x * (1 - p.x.sigmoid()))),
    "mish": _mish,
    "hardswish": lambda p: (p.x <= -3).where(0.0, (p.x < 3).where(p.g * (p.x / 3 + 0.5), p.g)),
    "softsign": lambda p: p.g / ((p.x.abs() + 1) * (p.x.abs() + 1)),
    "tanh": lambda p: p.g * (1 - p.y * p.y),
    "sigmoid": lambda p: p.g * (p.y * (1 - p.y)),
    "log_sigmoid": lambda p: p.g * (-p.x).sigmoid(),
    "hardsigmoid": lambda p: _inside(p, -3.0, 3.0, 1 / 6),
    "softplus": _softplus,
    "exp": lambda p: p.g * p.y,
    "expm1": lambda p: p.g * (p.y + 1),
    "log": lambda p: p.g / p.x,
    "log1p": lambda p: p.g / (p.x + 1),
    "log2": lambda p: p.g / (p.x * math.log(2)),
    "sqrt": lambda p: p.g / (p.y * 2),
    "rsqrt": lambda p: p.g * (p.y * p.y * p.y) * -0.5,
    "reciprocal": lambda p: -p.g * (p.y * p.y),
    "abs": lambda p: p.g * p.x.sign(),
    "neg": lambda p: -p.g,
    "sin": lambda p: p.g * p.x.op("cos"),
    "cos": lambda p: -p.g * p.x.op("sin"),
    "erf": lambda p: p.g * (-(p.x * p.x)).exp() * (2 / math.sqrt(math.pi)),
    "clone": lambda p: p.g,
    "clamp": _clamp,
    "cast": lambda p: p.g,
    "dropout": lambda p: (
        p.g
    ),  # it drops nothing in evaluation, and in training it is written out before anyone differentiates it
}
"""Operator -> the cotangent of its operand."""


def _power(p: _Pair) -> Formula:
    """z x^(z - 1); zero where z is, though x^(z - 1) be infinite."""
    moved: Formula = p.g * (p.x ** (p.z - 1) * p.z)
    if isinstance(p.z, Formula):
        return p.z.equals(0).where(0.0, moved)
    return moved if p.z != 0 else p.g * 0.0


def _exponent(p: _Pair) -> Formula:
    """x^z log(x); zero where x is zero and z is not negative, though the logarithm be infinite."""
    nothing: Formula
    if isinstance(p.x, Formula):
        nothing = p.x.equals(0).also(p.z >= 0)
        return nothing.where(0.0, p.g * (p.y * p.x.log()))
    if p.x == 0:
        nothing = p.z >= 0
        return nothing.where(0.0, p.g * (p.y * -math.inf))
    return p.g * (p.y * (math.log(p.x) if p.x > 0 else math.nan))


def _share(p: _Pair, mine: Formula, other: Operand, wins: Formula) -> Formula:
    """The cotangent where an operand is the extreme, and half of it where both are."""
    return wins.where(p.g, mine.equals(other).where(p.g * 0.5, 0.0))


def _turn(p: _Pair) -> Formula:
    """1 / (x^2 + z^2), by which the arc tangent of x / z moves."""
    radius: Formula | float = p.x * p.x + p.z * p.z
    return p.g / radius


BINARY: dict[str, tuple[PairEntry, PairEntry]] = {
    "add": (lambda p: p.g, lambda p: p.g),
    "sub": (lambda p: p.g, lambda p: -p.g),
    "mul": (lambda p: p.g * p.z, lambda p: p.g * p.x),
    "div": (lambda p: p.g / p.z, lambda p: -p.g * (p.y / p.z)),
    "pow": (_power, _exponent),
    "maximum": (lambda p: _share(p, p.x, p.z, p.x > p.z), lambda p: _share(p, p.z, p.x, p.z > p.x)),
    "minimum": (lambda p: _share(p, p.x, p.z, p.x < p.z), lambda p: _share(p, p.z, p.x, p.z < p.x)),
    "remainder": (lambda p: p.g, lambda p: -p.g * (p.x / p.z).op("floor")),
    "atan2": (lambda p: _turn(p) * p.z, lambda p: _turn(p) * p.x * -1),
}
"""Operator -> the cotangents of its two operands."""


@rule(*UNARY)
def _unary(at: Site) -> Gradients:
    yield 0, UNARY[at.node.operator.name](_Point(at))


@rule(*BINARY)
def _binary(at: Site) -> Gradients:
    if at.node.operator.name == "div" and at["rounding"] is not None:
        return  # a rounded quotient does not move with small moves
    point = _Pair(at)
    for k, entry in enumerate(BINARY[at.node.operator.name]):
        if at.wants(k):
            yield k, relabel(entry(point), at.instance.outputs[0], at.terms(k), at.instance)


@rule("where")
def _where(at: Site) -> Gradients:
    condition = at.operand(0)
    for k, chosen in ((1, condition.where(at.g, 0.0)), (2, condition.where(0.0, at.g))):
        if at.wants(k):
            yield k, relabel(chosen, at.instance.outputs[0], at.terms(k), at.instance)


@rule("prelu")
def _prelu(at: Site) -> Gradients:
    x, slope, dims = at.operand(0), at.operand(1), at.instance.outputs[0]
    positive = x > 0
    shape = [at.instance.size(term) if term in at.terms(1) else 1 for term in dims]
    if at.wants(0):
        yield 0, positive.where(at.g, at.g * slope.reshape(shape))
    if at.wants(1):
        yield 1, relabel(positive.where(0.0, at.g * x), dims, at.terms(1), at.instance)


CONSTANT |= dict.fromkeys(
    ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf"),
    "its result is a truth",
)
CONSTANT |= dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"), "it acts on integers")
CONSTANT |= dict.fromkeys(("sign", "floor", "ceil", "round"), "it is constant between its steps")
