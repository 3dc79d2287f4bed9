"""Expressions as C: the same text for every target, but for how an element of a buffer is spelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from suture.ir.kernel import Apply, Buffer, Expression, Literal, Load, Name

C_TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "float", torch.float64: "double", torch.int64: "k_i64", torch.int32: "k_i32", torch.int16: "k_i16", torch.int8: "k_i8",
    torch.uint8: "k_u8", torch.bool: "k_u8", torch.bfloat16: "k_u16", torch.float16: "k_u16",
}  # fmt: skip
"""Element types as C names them; short floats are bits in memory, and converted where they are cast."""

_SHORT = {torch.bfloat16: "bf16", torch.float16: "f16"}
_SIGNS = {"==": "==", "!=": "!=", "<": "<", "<=": "<=", "and": "&", "or": "|", "+": "+", "-": "-", "*": "*"}


class ExpressionPrinter:
    """Prints expressions. `spelling` says what stands for a name, where that is not the name itself."""

    def __init__(self) -> None:
        self.spelling: dict[str, str] = {}

    def show(self, expression: Expression) -> str:
        """The C text of an expression; brackets stand wherever they might matter."""
        match expression:
            case Literal(value, dtype):
                return show_literal(value, dtype)
            case Name(name):
                return self.spelling.get(name, name)
            case Load(buffer, index):
                return self.element(buffer, index)
            case Apply("cast", (value,), dtype):
                return self._cast(value, dtype)
            case Apply("select", (condition, then, otherwise)):
                return f"({self.show(condition)} ? {self.show(then)} : {self.show(otherwise)})"
            case Apply(("//" | "%") as function, (left, right)) if not left.dtype.is_floating_point:
                return self._divided(function, left, right)
            case Apply("/", (left, right)):
                return f"({self.show(left)} / {self.show(right)})"
            case Apply("neg", (value,)):
                return f"(-{self.show(value)})"
            case Apply("not", (value,)):
                return f"(!{self.show(value)})"
            case Apply(function, (left, right)) if function in _SIGNS:
                return f"({self.show(left)} {_SIGNS[function]} {self.show(right)})"
            case Apply(function, operands, dtype):
                return f"k_{function}_{suffix(dtype)}({', '.join(self.show(operand) for operand in operands)})"

    def element(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """An element of a buffer, row-major."""
        return f"{buffer.name}[{self.offset(buffer, index)}]"

    def offset(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """Where an element stands in its buffer."""
        text = "0"
        for at, size in zip(index, buffer.shape, strict=True):
            text = self.show(at) if text == "0" else f"({text} * {self.show(size)} + {self.show(at)})"
        return text

    def _divided(self, function: str, left: Expression, right: Expression) -> str:
        """A division that rounds down: by a power of two, a shift."""
        number = right.value if isinstance(right, Literal) else 0
        if isinstance(number, int) and number > 0 and number & (number - 1) == 0:
            return f"({self.show(left)} {'>>' if function == '//' else '&'} {number.bit_length() - 1 if function == '//' else number - 1})"
        return f"k_{'div' if function == '//' else 'mod'}({self.show(left)}, {self.show(right)})"

    def _cast(self, value: Expression, dtype: torch.dtype) -> str:
        text, source = self.show(value), value.dtype
        if source in _SHORT:
            text = f"k_from_{_SHORT[source]}({text})"
        if dtype in _SHORT:
            return f"k_to_{_SHORT[dtype]}((float)({text}))"
        if dtype == torch.bool:
            return f"(k_u8)({text} != 0)"
        return text if source in _SHORT and dtype == torch.float32 else f"(({C_TYPES[dtype]})({text}))"


def show_literal(value: int | float | bool, dtype: torch.dtype) -> str:
    """A number as C writes it."""
    if dtype in _SHORT:
        return f"k_to_{_SHORT[dtype]}({show_literal(value, torch.float32)})"
    if not dtype.is_floating_point:
        return str(int(value)) if value >= 0 else f"({int(value)})"
    if math.isnan(value):
        return f"(({C_TYPES[dtype]})K_NAN)"
    if math.isinf(value):
        return f"(({C_TYPES[dtype]}){'' if value > 0 else '-'}K_INF)"
    text = f"{float(value)!r}{'f' if dtype == torch.float32 else ''}"
    return text if value >= 0 else f"({text})"


def suffix(dtype: torch.dtype) -> str:
    """What the prelude's functions are called by."""
    return {torch.float64: "d", torch.float32: "f"}.get(dtype, "i")


def combined(operation: str, a: str, b: str, dtype: torch.dtype) -> str:
    """Two numbers met by `+`, `max` or `min`."""
    return f"{a} + {b}" if operation == "+" else f"k_{operation}_{suffix(dtype)}({a}, {b})"


def neutral(operation: str, dtype: torch.dtype) -> str:
    """The number that changes nothing when it is met."""
    if operation == "+":
        return show_literal(0, dtype)
    if dtype.is_floating_point:
        return show_literal(-math.inf if operation == "max" else math.inf, dtype)
    limits = torch.iinfo(dtype)
    return f"({limits.min + 1} - 1)" if operation == "max" else str(limits.max)
