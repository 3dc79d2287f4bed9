"""Symbolic sizes as ONNX values: `12*batch + 1` becomes Shape, Mul and Add, each part computed once, in front of everything else.

What has a size that only data decide (the number of unique pairs) in it is computed where it is first needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.sizes import Dim, Size

if TYPE_CHECKING:
    import onnx_ir

    from suture.backends.onnx.emitter import Emitter

_NAME = re.compile(r"[A-Za-z_]\w*")
_LINEAR = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?: ([+-]) (\d+))?")


class SizeCompiler:
    """Makes int64 tensors of one element, shape [1], from sizes."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._made: dict[str, onnx_ir.Value] = {}
        self._measured = frozenset(emitter.graph.measured())

    def vector(self, dims: Sequence[Dim]) -> onnx_ir.Value:
        """A whole shape: a constant where all its sizes are numbers."""
        if all(isinstance(dim, int) for dim in dims):
            return self._emitter.constant(torch.tensor(list(dims), dtype=torch.int64))
        if len(dims) == 1:
            return self.single(dims[0])
        key = f"[{', '.join(map(str, dims))}]"
        if key not in self._made:
            parts: list[list[Dim]] = []
            for dim in dims:  # neighbouring numbers are one constant
                if parts and isinstance(dim, int) and isinstance(parts[-1][-1], int):
                    parts[-1].append(dim)
                else:
                    parts.append([dim])
            self._made[key] = self._add("Concat", [self.vector(part) for part in parts], key, axis=0)
        return self._made[key]

    def single(self, dim: Dim) -> onnx_ir.Value:
        """One size, of shape [1]."""
        if isinstance(dim, int):
            return self._emitter.constant(torch.tensor([dim], dtype=torch.int64))
        return self._build(ast.parse(str(dim), mode="eval").body)

    def scalar(self, dim: Dim) -> onnx_ir.Value:
        """One size, of rank 0."""
        if isinstance(dim, int):
            return self._emitter.constant(torch.tensor(dim, dtype=torch.int64))
        key = f"scalar {dim}"
        if key not in self._made:
            axes = self._emitter.constant(torch.tensor([0], dtype=torch.int64))
            self._made[key] = self._add("Squeeze", [self.single(dim), axes], key)
        return self._made[key]

    def _build(self, tree: ast.expr) -> onnx_ir.Value:
        key = ast.unparse(tree)
        if key not in self._made:
            self._made[key] = self._operation(tree, key)
        return self._made[key]

    def _operation(self, tree: ast.expr, key: str) -> onnx_ir.Value:
        match tree:
            case ast.Constant(value=int(number)):
                return self.single(number)
            case ast.Name(id=name):
                return self._symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._add("Neg", [self._build(operand)], key)
            case ast.BinOp(left=left, op=operation, right=right):
                a, b = self._build(left), self._build(right)
                match operation:
                    case ast.Add():
                        return self._add("Add", [a, b], key)
                    case ast.Sub():
                        return self._add("Sub", [a, b], key)
                    case ast.Mult():
                        return self._add("Mul", [a, b], key)
                    case ast.Mod():
                        return self._add("Mod", [a, b], key)
                    case ast.FloorDiv():
                        return self._floor_division(left, a, b, key)
            case ast.Call(func=ast.Name(id=("max" | "min") as function), args=[first, second]):
                return self._add("Max" if function == "max" else "Min", [self._build(first), self._build(second)], key)
        raise SutureError(
            Code.ONNX_EXPORT,
            f"the size {key} cannot be computed",
            where=self._emitter.graph.name,
            remedy="use + - * // %",
        )

    def _floor_division(self, left: ast.expr, a: onnx_ir.Value, b: onnx_ir.Value, key: str) -> onnx_ir.Value:
        """ONNX divides integers towards zero: what may be negative is rounded down to a multiple first."""
        negative = any(isinstance(part, ast.Sub | ast.USub) for part in ast.walk(left))
        if negative:
            a = self._add("Sub", [a, self._add("Mod", [a, b], key)], key)
        return self._add("Div", [a, b], key)

    def _symbol(self, name: str) -> onnx_ir.Value:
        """A symbol is read off the first input, or result that measures it, with it as a dimension, or the only unknown of one (`2*batch + 1`)."""
        found: tuple[onnx_ir.Value, int, int, int] | None = None
        graph = self._emitter.graph
        measuring = [value for node in graph.nodes if node.operator.measures for value in node.outputs]
        for value in measuring if name in self._measured else graph.inputs:
            for axis, dim in enumerate(value.shape):
                match = _LINEAR.fullmatch(str(dim)) if isinstance(dim, Size) else None
                if match is None or match[2] != name:
                    continue
                factor, offset = int(match[1] or 1), int(f"{match[3]}{match[4]}") if match[3] else 0
                simpler = (factor, abs(offset)) == (1, 0)
                if found is None or simpler:
                    found = (self._emitter.read(value), axis, factor, offset)
                if simpler:
                    return self._from_shape(name, *found)
        if found is None:
            raise SutureError(
                Code.ONNX_EXPORT,
                f"no input has {name} as a dimension",
                where=self._emitter.graph.name,
                remedy="a symbolic size must be read off an input",
            )
        return self._from_shape(name, *found)

    def _from_shape(self, name: str, source: onnx_ir.Value, axis: int, factor: int, offset: int) -> onnx_ir.Value:
        size = self._add("Shape", [source], name, start=axis, end=axis + 1)
        if offset:
            size = self._add("Sub", [size, self.single(offset)], name)
        return self._add("Div", [size, self.single(factor)], name) if factor != 1 else size

    def _add(self, operator: str, inputs: list[onnx_ir.Value], meaning: str, **attributes: object) -> onnx_ir.Value:
        early = self._measured.isdisjoint(_NAME.findall(meaning))
        (made,) = self._emitter.add(operator, inputs, attributes, early=early)
        made.name = self._emitter.fresh(f"size {meaning}".replace(" ", "_"))
        if early:
            self._emitter.prologue[-1].name = self._emitter.fresh(f"sizes/{operator}")
        return made
