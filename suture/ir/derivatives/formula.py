"""Formulas: arithmetic on values that writes nodes.

A rule of differentiation reads like the mathematics: `y * (g - (g * y).sum(dim))` on formulas adds four nodes to the graph. A node that was written
already is not written again, and what changes nothing (a factor of 1, a reshape to the same shape) is not written at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, Size
from suture.ir.types import TensorType

Number: TypeAlias = "int | float | bool | Size"
Operand: TypeAlias = "Formula | Number"


class Writer:
    """A place in a graph, its end as a rule, where formulas write their nodes; it knows what it has written."""

    def __init__(self, graph: Graph, path: str = "", before: Node | None = None) -> None:
        self.graph = graph
        self.path = path  # the module path of what is written next
        self.before = before  # the node in front of which it is written; the end if None
        self._written: dict[Hashable, tuple[Value, ...]] = {}

    def write(
        self, operator: str, *operands: Formula | None, shapes: Sequence[Sequence[Dim]] | None = None, **attributes: Any
    ) -> tuple[Formula, ...]:
        """Add a node, unless the same one was added before; its results.

        :raises SutureError: SHAPE or DTYPE, if the operands do not fit
        """
        values = [None if operand is None else operand.value for operand in operands]
        declared = None if shapes is None else tuple(tuple(shape) for shape in shapes)
        key = (operator, tuple(map(id, values)), _typed(tuple(sorted(attributes.items()))), declared)
        if key not in self._written:
            node = self.graph.add(operator, values, attributes, shapes=declared, path=self.path, before=self.before)
            self._written[key] = node.outputs
        return tuple(Formula(value, self) for value in self._written[key])

    def of(self, value: Value) -> Formula:
        """A value to compute with."""
        return Formula(value, self)

    def full(self, number: Number, type_: TensorType) -> Formula:
        """One number everywhere."""
        return self.write("full", shapes=[type_.shape], value=number, dtype=type_.dtype)[0]

    def constant(self, name: str, data: torch.Tensor) -> Formula:
        """A tensor that the graph holds from here on."""
        free = next(title for k in itertools.count() if (title := f"{name}_{k}") not in self.graph.parameters)
        return self.of(self.graph.add_parameter(free, data, "constant"))

    def counting(self, length: Dim, dtype: torch.dtype = torch.int64) -> Formula:
        """0, 1, 2, ... of that length."""
        return self.write("arange", shapes=[[length]], dtype=dtype)[0]


class Formula:
    """A value to compute with. Comparisons give values of truth, for `where`; they are no Python truth."""

    __slots__ = ("value", "writer")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Value, writer: Writer) -> None:
        self.value = value
        self.writer = writer

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The sizes of the dimensions."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        return self.value.dtype

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.value.rank

    def __bool__(self) -> bool:
        raise TypeError("a formula has no truth value: where() chooses by it")

    # arithmetic

    def __add__(self, other: Operand) -> Formula:
        return self if _is(other, 0) else self._with("add", other)

    def __radd__(self, other: Number) -> Formula:
        return self + other

    def __sub__(self, other: Operand) -> Formula:
        return self if _is(other, 0) else self._with("sub", other)

    def __rsub__(self, other: Number) -> Formula:
        return -self if _is(other, 0) else self._after("sub", other)

    def __mul__(self, other: Operand) -> Formula:
        return self if _is(other, 1) else self._with("mul", other)

    def __rmul__(self, other: Number) -> Formula:
        return self * other

    def __truediv__(self, other: Operand) -> Formula:
        return self if _is(other, 1) else self._with("div", other)

    def __rtruediv__(self, other: Number) -> Formula:
        return self.op("reciprocal") if _is(other, 1) else self._after("div", other)

    def __pow__(self, other: Operand) -> Formula:
        return self if _is(other, 1) else self._with("pow", other)

    def __neg__(self) -> Formula:
        return self.op("neg")

    # comparisons

    def __lt__(self, other: Operand) -> Formula:
        return self._with("lt", other)

    def __le__(self, other: Operand) -> Formula:
        return self._with("le", other)

    def __gt__(self, other: Operand) -> Formula:
        return self._with("gt", other)

    def __ge__(self, other: Operand) -> Formula:
        return self._with("ge", other)

    def equals(self, other: Operand) -> Formula:
        """Where the two are equal."""
        return self._with("eq", other)

    def also(self, other: Formula) -> Formula:
        """Where both hold."""
        return self._with("logical_and", other)

    def where(self, on_true: Operand, on_false: Operand) -> Formula:
        """One or the other, by this value of truth."""
        attributes: dict[str, Any] = {}
        operands: list[Formula | None] = []
        for name, choice in (("on_true", on_true), ("on_false", on_false)):
            operands.append(choice if isinstance(choice, Formula) else None)
            if not isinstance(choice, Formula):
                attributes[name] = choice
        return self.writer.write("where", self, *operands, **attributes)[0]

    # any operator

    def op(self, operator: str, *operands: Formula | None, **attributes: Any) -> Formula:
        """The first result of an operator of this and other operands."""
        return self.writer.write(operator, self, *operands, **attributes)[0]

    def exp(self) -> Formula:
        """e to its power."""
        return self.op("exp")

    def log(self) -> Formula:
        """The natural logarithm."""
        return self.op("log")

    def sigmoid(self) -> Formula:
        """1 / (1 + exp(-x))."""
        return self.op("sigmoid")

    def tanh(self) -> Formula:
        """The hyperbolic tangent."""
        return self.op("tanh")

    def sign(self) -> Formula:
        """-1, 0 or 1."""
        return self.op("sign")

    def abs(self) -> Formula:
        """The magnitude."""
        return self.op("abs")

    # reductions

    def sum(self, *dims: int, keepdim: bool = True) -> Formula:
        """The sum over dimensions; over none it is the value itself."""
        return self._reduced("sum", dims, keepdim)

    def mean(self, *dims: int, keepdim: bool = True) -> Formula:
        """The mean over dimensions."""
        return self._reduced("mean", dims, keepdim)

    def _reduced(self, operator: str, dims: Sequence[int], keepdim: bool) -> Formula:
        if not dims:
            return self
        if all(self.shape[dim] == 1 for dim in dims) and self.dtype.is_floating_point:
            gone = {dim % self.rank for dim in dims}
            return self if keepdim else self.reshape([size for k, size in enumerate(self.shape) if k not in gone])
        return self.op(operator, dims=tuple(dims), keepdim=keepdim)

    # views

    def reshape(self, shape: Sequence[Dim]) -> Formula:
        """The same elements, row-major, in another shape. A reshape that was just written is read through."""
        producer = self.value.producer
        if tuple(shape) != self.shape and producer is not None and producer.operator.name == "reshape":
            source = producer.inputs[0]
            assert source is not None
            return Formula(source, self.writer).reshape(shape)
        return self if tuple(shape) == self.shape else self.op("reshape", shapes=[shape])

    def permute(self, dims: Sequence[int]) -> Formula:
        """The dimensions in another order."""
        return self if list(dims) == list(range(self.rank)) else self.op("permute", dims=tuple(dims))

    def transposed(self) -> Formula:
        """The last two dimensions exchanged."""
        return self.permute([*range(self.rank - 2), self.rank - 1, self.rank - 2])

    def expand(self, shape: Sequence[Dim]) -> Formula:
        """Dimensions of size 1 repeated, new ones in front."""
        return self if tuple(shape) == self.shape else self.op("expand", shapes=[shape])

    def cut(self, dim: int, start: Dim, length: Dim, step: int = 1) -> Formula:
        """A range of a dimension."""
        dim %= self.rank
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        if start == 0 and step == 1 and shape == self.shape:
            return self
        return self.op("slice", shapes=[shape], dim=dim, start=start, step=step)

    def placed(self, dim: int, start: Dim, length: Dim) -> Formula:
        """The value as a range of a dimension of that length, with zeros around it."""
        dim %= self.rank
        after = length - (start + self.shape[dim])
        if start == 0 and after == 0:
            return self
        if isinstance(start, int) and isinstance(after, int):
            pads = [0] * (2 * self.rank)
            pads[dim], pads[dim + self.rank] = start, after
            return self.op("pad", pads=tuple(pads), value=0.0)
        zeros = [
            self.writer.full(0.0, TensorType(self.dtype, (*self.shape[:dim], size, *self.shape[dim + 1 :])))
            for size in (start, after)
        ]
        parts = [zeros[0]] * (start != 0) + [self] + [zeros[1]] * (after != 0)
        return parts[0].op("concat", *parts[1:], dim=dim)

    def cast(self, dtype: torch.dtype) -> Formula:
        """The value as another element type."""
        return self if dtype == self.dtype else self.op("cast", dtype=dtype)

    def _with(self, operator: str, other: Operand) -> Formula:
        if isinstance(other, Formula):
            return self.op(operator, other)
        return self.op(operator, None, scalar=other)

    def _after(self, operator: str, scalar: Number) -> Formula:
        return self.writer.write(operator, None, self, scalar=scalar)[0]

    def __repr__(self) -> str:
        return f"<formula {self.value!r}>"


def _is(operand: Operand, number: int) -> bool:
    return not isinstance(operand, Formula) and operand == number


def _typed(item: Any) -> Hashable:
    """A key in which 0, 0.0 and False differ."""
    if isinstance(item, tuple):
        return tuple(map(_typed, item))
    return (type(item).__name__, item if isinstance(item, Hashable) else id(item))
