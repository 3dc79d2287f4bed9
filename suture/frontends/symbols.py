"""Sizes of an exported program (sympy expressions over `s77`) as sizes of a graph (polynomials over `batch`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.sizes import (
    Dim,
    Size,
    evaluate_size,
    floor_divide,
    maximum,
    minimum,
    modulo,
    product,
    symbol,
    symbols_of,
)


class SymbolTable:
    """Translates sizes, given what each of the program's symbols is called.

    The same size can be spelled in several ways once floors are involved. The graph's own operators decide on one: `learn` remembers it.
    """

    def __init__(self, symbols: Mapping[str, Dim]) -> None:
        self._symbols = dict(symbols)
        self._known: dict[Any, Dim] = {}

    def size(self, value: Any) -> Dim:
        """The size that an integer, a `SymInt` or a sympy expression stands for.

        :raises SutureError: EXPORT, for a size that depends on data
        """
        if isinstance(value, bool | int):
            return int(value)
        expression = value.node.expr if isinstance(value, torch.SymInt) else value
        found = self._known.get(expression)
        if found is None:
            found = self._known[expression] = self._translate(expression)
        return found

    def shape(self, tensor: torch.Tensor) -> tuple[Dim, ...]:
        """The shape of an exported program's fake tensor."""
        return tuple(self.size(size) for size in tensor.shape)

    def learn(self, value: Any, dim: Dim) -> None:
        """From now on, spell this size as `dim`."""
        if isinstance(value, torch.SymInt):
            self._known[value.node.expr] = dim

    def measure(self, tensors: Sequence[torch.Tensor], base: str) -> None:
        """Give a symbol of its own to each size that an operator takes from its data: `base`, `base_1`."""
        sizes: list[Any] = [size for tensor in tensors for size in tensor.shape]
        for expression in (size.node.expr for size in sizes if isinstance(size, torch.SymInt)):
            if expression.is_Symbol and str(expression) not in self._symbols:
                taken = {name for dim in self._symbols.values() for name in symbols_of(dim)}
                names = (base if k == 0 else f"{base}_{k}" for k in itertools.count())
                self._symbols[str(expression)] = symbol(next(name for name in names if name not in taken))

    def _translate(self, expression: Any) -> Dim:
        if getattr(expression, "is_Integer", False):
            return int(expression)
        if getattr(expression, "is_Symbol", False):
            if str(expression) not in self._symbols:
                raise SutureError(
                    Code.EXPORT,
                    f"the size {expression} depends on the values of a tensor",
                    remedy="sizes may depend on input shapes only",
                )
            return self._symbols[str(expression)]
        function = type(expression).__name__
        parts = [self.size(part) for part in getattr(expression, "args", ())]
        match function, parts:
            case "Add", _:
                total: Dim = 0
                for part in parts:
                    total = total + part
                return total
            case "Mul", _:
                return product(parts)
            case "Pow" | "PowByNatural", [base, int(exponent)] if exponent >= 0:
                return product([base] * exponent)
            case "FloorDiv" | "CleanDiv" | "IntTrueDiv", [left, right]:
                return floor_divide(left, right)
            case "Mod" | "PythonMod", [left, right]:
                return modulo(left, right)
            case "ModularIndexing", [base, divisor, modulus]:
                return modulo(floor_divide(base, divisor), modulus)
            case "Max" | "Min", [first, *rest]:
                for part in rest:
                    first = maximum(first, part) if function == "Max" else minimum(first, part)
                return first
        raise SutureError(
            Code.EXPORT,
            f"the size {expression} is no polynomial of the dynamic sizes",
            remedy="make fewer dimensions dynamic",
        )


def same_size(left: Dim, right: Dim) -> bool:
    """Whether two sizes agree wherever we look: equal spellings, or equal numbers at a few assignments of their symbols."""
    if left == right:
        return True
    if not isinstance(left, Size) and not isinstance(right, Size):
        return False
    names = sorted({*symbols_of(left), *symbols_of(right)})
    for seed in (17, 64, 101, 224, 1023):
        numbers = {name: seed + 13 * place for place, name in enumerate(names)}
        if evaluate_size(left, numbers) != evaluate_size(right, numbers):
            return False
    return True
