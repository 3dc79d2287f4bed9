"""The table of translations and what a rule gets to see of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim, Size
from suture.ir.types import TensorType

Result: TypeAlias = "Value | Sequence[Value | None]"
Number: TypeAlias = bool | int | float | Size


class Untranslatable(Exception):
    """This call has no translation; it becomes an opaque node."""


@dataclass(frozen=True)
class AtenCall:
    """One call of an ATen operator: arguments by the names of its schema, tensors as values, and the types it returns."""

    graph: Graph
    name: str  # without namespace, overload and the underscore of an in-place operator
    overload: str
    arguments: Mapping[str, Any]
    types: tuple[TensorType | None, ...]
    path: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that only some overloads have."""
        return self.arguments.get(name, default)

    def value(self, name: str = "self") -> Value:
        """An argument that must be a tensor."""
        found = self.arguments.get(name)
        if not isinstance(found, Value):
            raise Untranslatable(f"{name} is no tensor")
        return found

    def dim(self, name: str = "dim", of: str = "self") -> int:
        """A dimension argument, counted from the front."""
        return self.position(self.arguments[name], self.value(of).rank)

    def position(self, dim: Any, rank: int) -> int:
        """A dimension of a value of that rank, counted from the front."""
        return int(dim) % rank if rank else 0

    @property
    def type(self) -> TensorType:
        """The type of the first result."""
        if not self.types or self.types[0] is None:
            raise Untranslatable("it returns no tensor")
        return self.types[0]

    def emit(
        self,
        operator: str,
        *inputs: Value | None,
        shapes: Sequence[Sequence[Dim]] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node with one result and return that."""
        return self.graph.add(operator, inputs, attributes, shapes=shapes, path=self.path).output

    def emit_all(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Sequence[Dim]] | None = None,
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Add a node and return all its results."""
        return self.graph.add(operator, inputs, attributes, shapes=shapes, path=self.path).outputs

    def binary(self, operator: str, left: Any, right: Any, **attributes: Any) -> Value:
        """Add a binary node of two values, or of a value and a number."""
        if isinstance(left, Value) and isinstance(right, Value):
            return self.emit(operator, left, right, **attributes)
        if isinstance(left, Value) and isinstance(right, Number):
            return self.emit(operator, left, None, scalar=right, **attributes)
        if isinstance(right, Value) and isinstance(left, Number):
            return self.emit(operator, None, right, scalar=left, **attributes)
        raise Untranslatable("operands that are neither tensors nor numbers")

    def cast(self, value: Value, dtype: torch.dtype | None) -> Value:
        """The value in another element type, itself if it has that."""
        return value if dtype is None or value.dtype == dtype else self.emit("cast", value, dtype=dtype)

    def reshape(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The value in another shape, itself if it has that."""
        return value if value.shape == tuple(shape) else self.emit("reshape", value, shapes=[shape])

    def permute(self, value: Value, dims: Sequence[int]) -> Value:
        """The value with its dimensions reordered, itself if they stay."""
        order = tuple(dim % max(value.rank, 1) for dim in dims)
        return value if order == tuple(range(value.rank)) else self.emit("permute", value, dims=order)

    def expand(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The value repeated to a shape, itself if it has that."""
        return value if value.shape == tuple(shape) else self.emit("expand", value, shapes=[shape])

    def slice(self, value: Value, dim: int, start: Dim, length: Dim, step: int = 1) -> Value:
        """A range of a dimension, the value itself if that is all of it."""
        if step == 1 and start == 0 and length == value.shape[dim]:
            return value
        shape = (*value.shape[:dim], length, *value.shape[dim + 1 :])
        return self.emit("slice", value, shapes=[shape], dim=dim, start=start, step=step)

    def split(self, value: Value, dim: int, sizes: Sequence[Dim]) -> tuple[Value, ...]:
        """Parts of a dimension."""
        if len(sizes) == 1:
            return (value,)
        shapes = [(*value.shape[:dim], size, *value.shape[dim + 1 :]) for size in sizes]
        return self.emit_all("split", [value], shapes, dim=dim)


Rule: TypeAlias = Callable[[AtenCall], Result]
RULES: dict[str, Rule] = {}


def translates(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators: `name` for all overloads, `name.overload` for one."""

    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


def find_rule(name: str, overload: str) -> Rule | None:
    """The rule for an overload, else for its operator."""
    return RULES.get(f"{name}.{overload}") or RULES.get(name)
