"""The expressions of a kernel: numbers, names, scalar functions of them, and elements of buffers; Python's operators build them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from suture.ir.kernel import Buffer

INDEX = torch.int64
"""The element type of sizes, loop variables and indices."""


class _Arithmetic:
    """Python's operators build expressions; sums with zero and products with one are left out where they are about indices."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Expression:
        return _simplified("+", _operand(self), _operand(other, self))

    def __sub__(self, other: Operand) -> Expression:
        return _simplified("-", _operand(self), _operand(other, self))

    def __mul__(self, other: Operand) -> Expression:
        return _simplified("*", _operand(self), _operand(other, self))

    def __truediv__(self, other: Operand) -> Expression:
        return apply("/", _operand(self), _operand(other, self))

    def __floordiv__(self, other: Operand) -> Expression:
        return _simplified("//", _operand(self), _operand(other, self))

    def __mod__(self, other: Operand) -> Expression:
        return _simplified("%", _operand(self), _operand(other, self))

    def __lt__(self, other: Operand) -> Expression:
        return apply("<", _operand(self), _operand(other, self))

    def __le__(self, other: Operand) -> Expression:
        return apply("<=", _operand(self), _operand(other, self))


@dataclass(frozen=True, slots=True)
class Literal(_Arithmetic):
    """A number."""

    value: int | float | bool
    dtype: torch.dtype = INDEX


@dataclass(frozen=True, slots=True)
class Name(_Arithmetic):
    """A size or scalar argument, a grid or loop variable, or what a `let` names."""

    name: str
    dtype: torch.dtype = INDEX


@dataclass(frozen=True, slots=True)
class Apply(_Arithmetic):
    """A scalar function of operands: one of `FUNCTIONS`, `select` (condition, then, otherwise) or `cast` (to `dtype`)."""

    function: str
    operands: tuple[Expression, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Load(_Arithmetic):
    """An element of a buffer."""

    buffer: Buffer
    index: tuple[Expression, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The buffer's element type."""
        return self.buffer.dtype


Expression: TypeAlias = "Literal | Name | Apply | Load"
Operand: TypeAlias = "Expression | int | float"

FUNCTIONS: dict[str, int] = {
    **dict.fromkeys(
        ("+", "-", "*", "/", "//", "%", "min", "max", "pow", "fmod", "atan2", "bitand", "bitor", "bitxor"), 2
    ),
    **dict.fromkeys(("<", "<=", "==", "!=", "and", "or"), 2),
    **dict.fromkeys(
        (
            "neg",
            "not",
            "abs",
            "exp",
            "exp_nonpositive",
            "log",
            "sqrt",
            "rsqrt",
            "tanh",
            "erf",
            "sin",
            "cos",
            "floor",
            "round",
        ),
        1,
    ),
}
"""The scalar functions and how many operands they take. `//` and `%` round down; `min` and `max` give NaN where an operand is NaN."""

COMPARISONS = frozenset({"<", "<=", "==", "!=", "and", "or", "not"})
"""Those whose result is a truth value."""


def apply(function: str, *operands: Expression) -> Apply:
    """A scalar function of operands of one element type; its own follows from theirs."""
    kinds = operands[1:] if function == "select" else operands
    return Apply(function, operands, torch.bool if function in COMPARISONS else kinds[0].dtype)


def cast(value: Expression, dtype: torch.dtype) -> Expression:
    """The value as another element type; the value itself if it is of that type."""
    return value if value.dtype == dtype else Apply("cast", (value,), dtype)


def _operand(value: object, like: object = None) -> Expression:
    if isinstance(value, Literal | Name | Apply | Load):
        return value
    assert isinstance(value, int | float)
    return Literal(value, like.dtype if isinstance(like, Literal | Name | Apply | Load) else INDEX)


def _simplified(function: str, left: Expression, right: Expression) -> Expression:
    if left.dtype == INDEX:
        match function, left, right:
            case ("+", kept, Literal(value=0)) | ("+", Literal(value=0), kept) | ("-", kept, Literal(value=0)):
                return kept
            case ("*", kept, Literal(value=1)) | ("*", Literal(value=1), kept) | ("//", kept, Literal(value=1)):
                return kept
            case ("*", _, Literal(value=0)) | ("*", Literal(value=0), _) | ("%", _, Literal(value=1)):
                return Literal(0)
    return apply(function, left, right)
