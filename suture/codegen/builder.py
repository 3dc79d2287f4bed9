"""Writing one kernel: sizes, arguments and variables by name, and the elements of values through views and pointwise nodes.

A template asks a `Lane` for elements; the lane looks through views, computes the group's own pointwise nodes, and loads the rest. What the template
has computed itself (a sum in a register) it tells the lane with `know`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from suture.codegen.access import Access, Index, free_view, is_view
from suture.codegen.indices import Indices
from suture.codegen.scalars import compute_type, lower_scalar
from suture.codegen.schedule import Schedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Bound,
    Buffer,
    Expression,
    Grid,
    Kernel,
    Let,
    Literal,
    Load,
    Name,
    Scope,
    Statement,
    Store,
    cast,
)
from suture.ir.sizes import Dim, parse_size, substitute, symbol, symbols_of


class KernelBuilder:
    """Builds one kernel.

    :param nodes: the nodes that it computes; what else it reads is in memory, or a view of that
    """

    def __init__(self, context: Context, nodes: Sequence[Node], name: str) -> None:
        self.context = context
        self.nodes = frozenset(nodes)
        self.name = name
        self.indices = Indices()
        self.locals: list[Buffer] = []
        self._grid: list[Grid] = []
        self._sizes: dict[str, Name] = {}
        self._buffers: dict[Value, Buffer] = {}
        self._bounds: dict[Value, Bound] = {}
        self._names = 0

    # sizes and variables

    def size(self, dim: Dim) -> Expression:
        """A size as an expression over the kernel's arguments."""
        if isinstance(dim, int):
            return Literal(dim)
        names = {}
        for each in symbols_of(dim):
            if each not in self._sizes:
                self._sizes[each] = Name(f"n{len(self._sizes)}")
                self.indices.add_size(self._sizes[each].name)
            names[each] = symbol(self._sizes[each].name)
        return self.indices.expression(substitute(dim, names))

    def grid(self, name: str, count: Expression) -> Name:
        """One more dimension of the grid of blocks, inside those before it."""
        self._grid.append(Grid(Name(name), count))
        return self.variable(name, Literal(0), count)

    def variable(self, name: str, start: Expression, stop: Expression) -> Name:
        """A variable of a loop or region that the template writes: `start <= name < stop`."""
        self.indices.bind(name, start, stop)
        return Name(name)

    def fresh(self) -> str:
        """A name for a `let`."""
        self._names += 1
        return f"v{self._names}"

    # buffers

    def buffer(self, value: Value) -> Buffer:
        """The argument that holds a value: its dimensions lie as the context says."""
        if value not in self._buffers:
            shape = tuple(self.size(value.shape[dim]) for dim in self.context.order(value))
            self._buffers[value] = Buffer(f"x{len(self._buffers)}", value.dtype, shape, bound=self._bounds.get(value))
        return self._buffers[value]

    def pointers(self, value: Value, rows: Dim) -> None:
        """Say that a value holds where segments of so many rows begin and end, before an element of it is asked for."""
        self._bounds[value] = Bound(self.size(rows + 1), rising=True)

    def bounded(self, value: Value, below: Dim) -> None:
        """Say that a value holds integers from zero to below a size, before an element of it is asked for."""
        self._bounds[value] = Bound(self.size(below))

    def permutation(self, value: Value) -> None:
        """Say that a value holds each number below its size once, before an element of it is asked for."""
        self._bounds[value] = Bound(self.size(value.shape[0]), distinct=True)

    def local(self, name: str, dtype: torch.dtype, shape: Sequence[int], scope: Scope) -> Buffer:
        """A buffer of the block."""
        found = Buffer(name, dtype, tuple(Literal(size) for size in shape), scope)
        self.locals.append(found)
        return found

    def place(self, value: Value, index: Sequence[Expression]) -> Load:
        """Where an element of a value that is in memory lies."""
        return Load(self.buffer(value), tuple(index[dim] for dim in self.context.order(value)))

    def is_stored(self, value: Value) -> bool:
        """Whether a value is in memory when the kernel runs: it is no view, and not computed here."""
        node = value.producer
        return node is None or not (node in self.nodes or is_view(node))

    def locate(self, value: Value, index: Sequence[Expression]) -> Load | None:
        """The element of memory that an element of a value is, seen through views that cost nothing; None if it is computed or chosen."""
        through: list[bool] = []

        def element(inner: Value, at: Index) -> Expression:
            node = inner.producer
            if node is not None and is_view(node):
                through.append(free_view(node))
                return access.read(inner, at)
            through.append(self.is_stored(inner))
            return self.place(inner, at) if through[-1] else Literal(0)

        access = Access(self.indices, self.size, element, _unguarded)
        found = element(value, tuple(index))
        return found if all(through) and isinstance(found, Load) else None

    def seen(self, value: Value, index: Sequence[Expression]) -> Expression:
        """An element of a value in memory, seen through any views, as one expression in the type that it is computed in."""

        def element(inner: Value, at: Index) -> Expression:
            node = inner.producer
            found = access.read(inner, at) if node is not None and is_view(node) else self.place(inner, at)
            return cast(found, compute_type(inner.dtype))

        access = Access(self.indices, self.size, element, _unguarded)
        return element(value, tuple(index))

    def lane(self) -> Lane:
        """A list of statements, and the elements that they know."""
        return Lane(self)

    def finish(self, body: Sequence[Statement], why: str, schedule: Schedule | None = None) -> KernelStep:
        """The kernel and its call."""
        names = sorted(self._sizes.items(), key=lambda item: int(item[1].name[1:]))
        kernel = Kernel(
            self.name, tuple(name for _, name in names), (), tuple(self._buffers.values()), tuple(self.locals),
            tuple(self._grid), tuple(body),
        )  # fmt: skip
        sizes = tuple(parse_size(each) for each, _ in names)
        return KernelStep(kernel, tuple(self._buffers), sizes, why, schedule)


class Lane:
    """What one lane computes, statement by statement; an element is computed once."""

    def __init__(self, builder: KernelBuilder) -> None:
        self.builder = builder
        self.statements: list[Statement] = []
        self._known: dict[tuple[Value, Index], Expression] = {}
        self._guards = 0
        self.access = Access(builder.indices, builder.size, self.value, self.guarded)

    def know(self, value: Value, index: Sequence[Expression], expression: Expression) -> None:
        """Say what an element is, in the type that it is computed in."""
        self._known[value, tuple(index)] = expression

    def value(self, value: Value, index: Sequence[Expression]) -> Expression:
        """An element of a value, in the type that it is computed in."""
        at = tuple(index)
        found = self._known.get((value, at))
        if found is None:
            found = self._made(value, at)
            if not self._guards:
                self._known[value, at] = found
        return found

    def store(self, value: Value, index: Sequence[Expression], expression: Expression) -> None:
        """Write an element of a value."""
        place = self.builder.place(value, index)
        self.statements.append(Store(place.buffer, place.index, cast(expression, value.dtype)))

    def _made(self, value: Value, index: Index) -> Expression:
        node = value.producer
        if node is not None and node in self.builder.nodes and not is_view(node):
            operands = [
                None if each is None else self.value(each, broadcast(each, value, index)) for each in node.inputs
            ]
            made = lower_scalar(node, operands)
            assert made is not None, f"{node.operator.name} is no function of single elements"
            return self._named(made)
        if node is not None and is_view(node):
            return self._named(cast(self.access.read(value, index), compute_type(value.dtype)))
        return self._named(cast(self.builder.place(value, index), compute_type(value.dtype)))

    def _named(self, made: Expression) -> Expression:
        if isinstance(made, Name | Literal) or self._guards:
            return made
        name = Name(self.builder.fresh(), made.dtype)
        self.statements.append(Let(name, made))
        return name

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is read under a condition gets no name outside of it."""
        self._guards += 1
        try:
            yield
        finally:
            self._guards -= 1


def broadcast(operand: Value, result: Value, index: Sequence[Expression]) -> Index:
    """The index of an operand that is broadcast to a result: aligned from the right, zero where it has one element."""
    own = index[len(index) - operand.rank :]
    return tuple(Literal(0) if size == 1 else at for size, at in zip(operand.shape, own, strict=True))


@contextmanager
def _unguarded() -> Iterator[None]:
    yield
