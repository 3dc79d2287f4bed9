"""One node on its way to ONNX: typed access to its operands and attributes, and the small vocabulary that rules are written in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch

from suture.backends.onnx.profile import CONTRIB, Choices
from suture.backends.onnx.weights import onnx_type
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Node, Parameter, Value
from suture.ir.sizes import Dim, Size
from suture.ir.types import Attribute, TensorType

if TYPE_CHECKING:
    import onnx_ir

    from suture.backends.onnx.emitter import Emitter

LAST = 2**63 - 1  # the end of a dimension, for Slice


class Lowering:
    """What a rule sees of the node that it writes."""

    def __init__(self, emitter: Emitter, node: Node, *, rows: bool = False) -> None:
        self.emitter = emitter
        self.node = node
        self.rows = rows  # whether operands of the result's shape are read as matrices of their rows
        self.opset = emitter.opset

    # operands and attributes

    def value(self, index: int) -> Value:
        """Operand `index`, which must be there."""
        found = self.node.inputs[index] if index < len(self.node.inputs) else None
        if found is None:
            self.fail(f"operand {index} is missing", "give it")
        return found

    def has(self, index: int) -> bool:
        """Whether operand `index` is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def type(self, index: int) -> TensorType:
        """The type of operand `index`."""
        return self.value(index).type

    @property
    def out(self) -> TensorType:
        """The type of the first result."""
        return self.node.outputs[0].type

    def x(self, index: int, dtype: torch.dtype | None = None) -> onnx_ir.Value:
        """Operand `index` as an ONNX value, cast where it has another element type."""
        value = self.value(index)
        by_rows = self.rows and value.shape == self.out.shape
        made = self.emitter.rows(value) if by_rows else self.emitter.read(value)
        return self.cast(made, value.dtype, dtype or value.dtype)

    def maybe(self, index: int, dtype: torch.dtype | None = None) -> onnx_ir.Value | None:
        """Operand `index`, or None where it is absent."""
        return self.x(index, dtype) if self.has(index) else None

    def integer(self, name: str) -> int:
        """An attribute that is an integer."""
        value = self.node.attributes[name]
        if not isinstance(value, int):
            self.fail(f"{name}={value} is no number", "a fixed integer would be right")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a tuple of integers; a single one counts as a tuple of one."""
        value = self.node.attributes[name]
        items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if not isinstance(item, int):
                self.fail(f"{name} holds {item}, no number", "fixed integers would be right")
        return tuple(item for item in items if isinstance(item, int))

    def dims(self, name: str) -> tuple[Dim, ...]:
        """An attribute that is a tuple of sizes, which may be symbolic."""
        value = self.node.attributes[name]
        items = value if isinstance(value, tuple) else (value,)
        return tuple(item for item in items if isinstance(item, int | Size))

    def number(self, name: str) -> float:
        """An attribute that is a real number."""
        value = self.node.attributes[name]
        if not isinstance(value, int | float):
            self.fail(f"{name}={value} is no number", "a number would be right")
        return float(value)

    def flag(self, name: str) -> bool:
        """An attribute that is true or false."""
        return bool(self.node.attributes[name])

    def text(self, name: str) -> str:
        """An attribute that is a word."""
        return str(self.node.attributes[name])

    def dim(self, name: str = "dim", index: int = 0) -> int:
        """A dimension attribute, counted from the front."""
        return self.integer(name) % max(self.type(index).rank, 1)

    # errors

    def fail(self, reason: str, remedy: str) -> NoReturn:
        """Say that this node cannot be written.

        :raises SutureError: ONNX_EXPORT, always
        """
        name = self.node.operator.name
        raise SutureError(
            Code.ONNX_EXPORT, f"{name} cannot be written as ONNX: {reason}", where=self.node.where(), remedy=remedy
        )

    def need(self, opset: int, what: str) -> None:
        """Say that this node needs a later operator set, if it does.

        :raises SutureError: ONNX_EXPORT, naming the lowest that has it
        """
        if self.opset < opset:
            self.fail(f"opset {self.opset} has no {what}", f"opset {opset} is the lowest that has it")

    @property
    def choices(self) -> Choices:
        """Which of several emissions is taken."""
        return self.emitter.choices

    # ONNX nodes

    def op(self, operator: str, *inputs: onnx_ir.Value | None, **attributes: object) -> onnx_ir.Value:
        """An ONNX node with one result."""
        return self.emitter.add(operator, inputs, attributes)[0]

    def ops(
        self, operator: str, results: int, *inputs: onnx_ir.Value | None, **attributes: object
    ) -> tuple[onnx_ir.Value, ...]:
        """An ONNX node with several results."""
        return self.emitter.add(operator, inputs, attributes, results)

    def contrib(
        self, operator: str, *inputs: onnx_ir.Value | None, results: int = 1, **attributes: object
    ) -> tuple[onnx_ir.Value, ...]:
        """A node of ONNX Runtime's own operators.

        :raises SutureError: PROFILE, if the profile does not have them
        """
        if not self.emitter.profile.contrib:
            raise SutureError(
                Code.PROFILE,
                f"{self.node.operator.name} asks for {CONTRIB}.{operator}, which the profile {self.emitter.profile.name} does not have",
                where=self.node.where(),
                remedy="the profile onnxruntime has it, or take the pass expand",
            )
        return self.emitter.add(operator, inputs, attributes, results, domain=CONTRIB)

    def constant(self, value: object, dtype: torch.dtype) -> onnx_ir.Value:
        """A constant from numbers: a number gives rank 0, a list rank 1."""
        return self.emitter.constant(torch.tensor(value, dtype=dtype))

    def ints(self, *values: int) -> onnx_ir.Value:
        """A constant vector of int64."""
        return self.constant(list(values), torch.int64)

    def weight(
        self, name: str, shape: tuple[int, ...], make: Callable[[], torch.Tensor], sources: Sequence[Parameter]
    ) -> onnx_ir.Value:
        """An initialiser computed from parameters when it is written; made once for all nodes that ask for it by that name and those sources."""
        key = ("weight", name, *map(id, sources))
        if key not in self.emitter.stored:
            self.emitter.stored[key] = self.emitter.initialiser(name, sources[0].dtype, shape, make)
        return self.emitter.stored[key]

    def filled(self, size: Dim, number: float, dtype: torch.dtype) -> onnx_ir.Value:
        """A constant vector of one number, for a gain or bias that is absent."""
        if not isinstance(size, int):
            self.fail(f"{size} channels", "a fixed number of channels would be right")
        return self.emitter.constant(torch.full((size,), number, dtype=dtype))

    def cast(self, x: onnx_ir.Value, source: torch.dtype, target: torch.dtype) -> onnx_ir.Value:
        """Another element type; the same value if it has it already."""
        if source == target:
            return x
        key = ("cast", x, target)
        if key not in self.emitter.cache:
            self.emitter.cache[key] = self.op("Cast", x, to=int(onnx_type(target, self.node.where())))
        return self.emitter.cache[key]

    def size(self, dim: Dim, dtype: torch.dtype = torch.int64) -> onnx_ir.Value:
        """A size as a number of rank 0."""
        if isinstance(dim, int):
            return self.constant(dim, dtype)
        return self.cast(self.emitter.sizes.scalar(dim), torch.int64, dtype)

    def scalar(self, value: Attribute, dtype: torch.dtype) -> onnx_ir.Value:
        """A scalar attribute as an operand of rank 0; a symbolic size is computed."""
        if isinstance(value, Size):
            return self.size(value, dtype)
        if not isinstance(value, bool | int | float):
            self.fail(f"a scalar of {value}", "a real number would be right")
        if isinstance(value, float) and not math.isfinite(value) and not dtype.is_floating_point:
            self.fail(f"{value} among integers", "cast the operand to floats")
        return self.constant(value, dtype)

    def shape(self, dims: Sequence[Dim]) -> onnx_ir.Value:
        """A shape as a vector."""
        return self.emitter.sizes.vector(dims)

    def reshape(self, x: onnx_ir.Value, source: Sequence[Dim], target: Sequence[Dim]) -> onnx_ir.Value:
        """Regroup. Unknown sizes are copied (0) or inferred (-1) where that says the same, computed where not."""
        return reshape(self.emitter, x, source, target)

    def transpose(self, x: onnx_ir.Value, order: Sequence[int]) -> onnx_ir.Value:
        """Reorder dimensions; the same value if the order is the old one."""
        return x if list(order) == list(range(len(order))) else self.op("Transpose", x, perm=list(order))

    def unsqueeze(self, x: onnx_ir.Value, *axes: int) -> onnx_ir.Value:
        """Insert dimensions of size 1."""
        return self.op("Unsqueeze", x, self.ints(*axes))

    def squeeze(self, x: onnx_ir.Value, *axes: int) -> onnx_ir.Value:
        """Drop dimensions of size 1."""
        return self.op("Squeeze", x, self.ints(*axes))

    def slice(self, x: onnx_ir.Value, axis: int, start: Dim, end: Dim, step: int = 1) -> onnx_ir.Value:
        """A range of one dimension."""
        return self.op(
            "Slice", x, self.shape([start]), self.shape([end]), self.ints(axis), self.ints(step) if step != 1 else None
        )

    def concat(self, parts: Sequence[onnx_ir.Value], axis: int) -> onnx_ir.Value:
        """Join along a dimension."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def reduce(self, operator: str, x: onnx_ir.Value, axes: Sequence[int], *, keep: bool) -> onnx_ir.Value:
        """Reduce dimensions. The axes are an operand since opset 18, for sums since 13."""
        if self.opset >= 18 or operator == "ReduceSum":
            return self.op(operator, x, self.ints(*axes), keepdims=int(keep))
        return self.op(operator, x, axes=list(axes), keepdims=int(keep))


def reshape(emitter: Emitter, x: onnx_ir.Value, source: Sequence[Dim], target: Sequence[Dim]) -> onnx_ir.Value:
    """Regroup. Unknown sizes are copied (0) or inferred (-1) where that says the same, computed where not."""
    if tuple(source) == tuple(target):
        return x
    if any(dim == 0 for dim in target):
        return emitter.add("Reshape", [x, emitter.sizes.vector(target)], {"allowzero": 1})[0]
    wanted = list(target)
    unknown = [k for k, dim in enumerate(wanted) if not isinstance(dim, int)]
    copied = [k for k in unknown if k < len(source) and source[k] == wanted[k]]
    # One unknown size is inferred; of several, those that stand where they stood are copied.
    if len(unknown) > 1:
        for k in copied:
            wanted[k] = 0
        unknown = [k for k in unknown if k not in copied]
    if unknown:
        wanted[max(unknown, key=lambda k: len(str(wanted[k])))] = -1
    return emitter.add("Reshape", [x, emitter.sizes.vector(wanted)], {})[0]
