"""The tables of a standalone network as C: sizes, shapes, weights, lifetimes, and where each value's address stands."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from suture.backends.standalone_program import Standalone
from suture.codegen.program import pointers
from suture.codegen.runner import show_size, symbol_slots
from suture.codegen.step import KernelStep
from suture.ir.graph import Parameter, Value
from suture.ir.sizes import Dim, parse_size
from suture.ir.types import DTYPE_NAMES, TensorType

_Item = TypeVar("_Item")

STORED = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Element types as safetensors files name them."""


class Tables:
    """What the text of a network is filled with: by name, as the templates ask for it."""

    def __init__(self, standalone: Standalone) -> None:
        self.standalone = standalone
        self.program = standalone.program
        self.symbols = symbol_slots(self.program)
        self.slots = {value: k for k, value in enumerate(pointers(self.program))}
        self.values = [each for each in self.program.lifetimes() if each.value in self.slots]
        self.weights: list[Value] = [value for value in self.slots if isinstance(value, Parameter)]
        self.weights += [each.value for each in self.program.constants if each.value in self.slots]
        self._dimensions: dict[Dim, int] = {}

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The program's inputs."""
        return tuple(self.program.graph.inputs)

    def fill(self) -> dict[str, str]:
        """Every table."""
        outputs = self.standalone.outputs
        names = list(self.standalone.graph.output_names)
        types = [*(value.type for value in (*self.inputs, *outputs)), *(each.value.type for each in self.values)]
        for type_ in types:
            for dim in type_.shape:
                self._dimension(dim)
        for step in self.program.steps:
            for dim in step.sizes if isinstance(step, KernelStep) else ():
                self._dimension(dim)
        extremes = [
            f"  if (!k_d[{self._dimension(each.size)}]) return {quoted(str(each))};" for each in self.program.extremes
        ]
        return {
            "NAME": self.standalone.name,
            "TITLE": f"{self.standalone.graph.name}, written by suture build",
            "INPUTS": _listed(self.inputs, [value.name for value in self.inputs]),
            "OUTPUTS": _listed(outputs, names),
            "SYMBOLS": "\n".join(f"     {k}: {name}" for name, k in self.symbols.items()) or "     none",
            "SYMBOL_NAMES": "".join(f" {self.standalone.name}_SIZE_{name} = {k}," for name, k in self.symbols.items()),
            "SYMBOL_TEXTS": ", ".join(map(quoted, self.symbols)) or "0",
            "SYMBOL_COUNT": str(len(self.symbols)),
            "INPUT_COUNT": str(len(self.inputs)),
            "OUTPUT_COUNT": str(len(outputs)),
            "WEIGHT_COUNT": str(len(self.weights)),
            "VALUE_COUNT": str(len(self.values)),
            "DIMENSION_COUNT": str(len(self._dimensions)),
            "SLOT_COUNT": str(len(self.slots)),
            "LOOKUP_COUNT": str(len(self.standalone.lookups)),
            "RANK": str(max([1, *(type_.rank for type_ in types), *(value.rank for value in self.weights)])),
            "INPUT_TENSORS": _rows(self.inputs, lambda k, value: _tensor(value.name, value.type)),
            "OUTPUT_TENSORS": _rows(outputs, lambda k, value: _tensor(names[k], value.type)),
            "INPUT_SHAPES": _rows(self.inputs, lambda k, value: self._shape(value)),
            "OUTPUT_SHAPES": _rows(outputs, lambda k, value: self._shape(value)),
            "VALUE_SHAPES": _rows([each.value for each in self.values], lambda k, value: self._shape(value)),
            "LIVES": _rows(self.values, lambda k, each: f"{{{each.first}, {each.last}}}"),
            "WEIGHTS": _rows(self.weights, lambda k, value: self._weight(value)),
            "LOOKUPS": ", ".join(quoted(str(each)) for each in self.standalone.lookups) or "0",
            "FLAG_SLOTS": ", ".join(str(self.slots.get(value, -1)) for value in self.standalone.flags) or "-1",
            "EXTREMES": "\n".join(extremes),
            "DIMENSIONS": "\n".join(self._dimension_lines()),
        }

    def _dimension(self, dim: Dim) -> int:
        return self._dimensions.setdefault(dim, len(self._dimensions))

    def _dimension_lines(self) -> Iterable[str]:
        checked: set[str] = set()
        for dim, place in self._dimensions.items():
            for divisor in _divisors(dim):
                text = show_size(divisor, self.symbols)
                if text not in checked:
                    checked.add(text)
                    yield f"  if (!{text}) return false;"
            yield f"  k_d[{place}] = {show_size(dim, self.symbols)};"

    def _shape(self, value: Value) -> str:
        dims = ", ".join(str(self._dimension(dim)) for dim in value.shape) or "0"
        return f"{{{value.dtype.itemsize}, {value.rank}, {self.slots.get(value, -1)}, {{{dims}}}}}"

    def _weight(self, value: Value) -> str:
        dims = ", ".join(map(str, value.shape)) or "0"
        return f"{{{quoted(value.name)}, {quoted(STORED[value.dtype])}, {value.rank}, {self.slots[value]}, {{{dims}}}}}"


def quoted(text: str) -> str:
    """A text as C writes it: bytes beyond ASCII in octal, which no digit behind them joins."""
    signs = {'"': '\\"', "\\": "\\\\", "?": "\\?"}
    return '"' + "".join(signs.get(c) or (c if " " <= c <= "~" else _octal(c)) for c in text) + '"'


def _octal(sign: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in sign.encode())


def _listed(values: Sequence[Value], names: Sequence[str]) -> str:
    lines = [
        f"     {k}: {name}, {_type(value.type)}" for k, (value, name) in enumerate(zip(values, names, strict=True))
    ]
    return "\n".join(line.replace("*/", "* /") for line in lines) or "     none"


def _type(type_: TensorType) -> str:
    return f"{DTYPE_NAMES[type_.dtype]}[{', '.join(map(str, type_.shape))}]"


def _tensor(name: str, type_: TensorType) -> str:
    return f"{{{quoted(name)}, {quoted(STORED[type_.dtype])}, {type_.dtype.itemsize}, {type_.rank}}}"


def _rows(items: Sequence[_Item], row: Callable[[int, _Item], str]) -> str:
    return "".join(f"    {row(k, item)},\n" for k, item in enumerate(items)) or "    {},\n"


def _divisors(dim: Dim) -> Iterable[Dim]:
    """What a size divides by, inner divisions first."""
    if isinstance(dim, int):
        return
    for tree in reversed(list(ast.walk(ast.parse(str(dim), mode="eval")))):
        if (
            isinstance(tree, ast.BinOp)
            and isinstance(tree.op, ast.FloorDiv | ast.Mod)
            and not isinstance(tree.right, ast.Constant)
        ):
            yield parse_size(ast.unparse(tree.right))
