"""The second level of the IR: what one kernel does, loop by loop, without a word on barriers.

A kernel is a grid of blocks. A block runs a sequence of *thread regions*: in `each t < 128` every lane t runs the same statements by itself, and
all lanes of a region are done before the next begins. That is all the synchronisation there is: no barrier, thread index or shuffle can be
written, so no barrier can be forgotten, or stand where only some lanes reach it. Between regions stand loops and branches that are the same for the
whole block, and *collectives*, which lanes do together: a reduction, a scan, the copy of a tile.

    kernel softmax_rows(n: size, m: size, x: f32[n, m], y: f32[n, m])
      grid row < n
      thread part: f32[]
      uniform top: f32[]
      each t < 64:
        part = f32(-inf)
        for j in 0 .. (m - t + 63) // 64:
          part max= x[row, j * 64 + t]
      top = reduce max part over 64
      ...

Buffers say who sees them (`Scope`). A scatter, the one way in which blocks or lanes may meet in an element, is an operation with a chosen
lowering; there is no bare atomic. Nodes are frozen and compare by structure: an edit is `dataclasses.replace`. `suture.ir.kernel_text` prints and
parses, `suture.ir.kernel_verify` checks, `suture.codegen` prints CUDA C++ and C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeAlias

import torch

from suture.ir.kernel_expressions import (
    COMPARISONS,
    FUNCTIONS,
    INDEX,
    Apply,
    Expression,
    Literal,
    Load,
    Name,
    Operand,
    apply,
    cast,
)

__all__ = [
    "COLLECTIVES",
    "COMBINATIONS",
    "COMPARISONS",
    "FUNCTIONS",
    "INDEX",
    "Apply",
    "Bound",
    "Branch",
    "Buffer",
    "Collective",
    "CopyTile",
    "Expression",
    "Grid",
    "Kernel",
    "Let",
    "Literal",
    "Load",
    "Loop",
    "Lowering",
    "MultiplyAccumulate",
    "Name",
    "Operand",
    "Reduce",
    "Scan",
    "Scatter",
    "Scope",
    "Statement",
    "Store",
    "Threads",
    "Update",
    "apply",
    "bodies_of",
    "cast",
    "count_of",
    "expressions_of",
    "loads_in",
    "names_in",
    "parts",
    "walk",
]


class Scope(StrEnum):
    """Who sees a buffer, and how long it lives."""

    GLOBAL = "global"  # everybody; an argument of the kernel
    SHARED = "shared"  # the lanes of a block, from region to region
    THREAD = "thread"  # one lane, from region to region: registers
    UNIFORM = "uniform"  # one for a block, written by collectives and assignments between regions


COMBINATIONS = ("+", "max", "min")
"""How several numbers meet in one element: the operations of updates, reductions and scatters."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of the integers in a buffer: they lie in `0 .. below`.

    :param rising: they do not fall from one to the next
    :param distinct: no two are equal
    """

    below: Expression
    rising: bool = False
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named array; dense and row-major.

    :param bound: what is known of its values, where other buffers are indexed by them (a gather) or loops run between them (a segment)
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Expression, ...]
    scope: Scope = Scope.GLOBAL
    bound: Bound | None = None

    def __getitem__(self, index: Expression | int | tuple[Expression | int, ...]) -> Load:
        items = index if isinstance(index, tuple) else (index,)
        return Load(self, tuple(Literal(item) if isinstance(item, int) else item for item in items))


# statements of a lane


@dataclass(frozen=True, slots=True)
class Store:
    """`buffer[index] = value`."""

    buffer: Buffer
    index: tuple[Expression, ...]
    value: Expression


@dataclass(frozen=True, slots=True)
class Update:
    """`buffer[index] += value`, or `max=`, `min=`: by the one lane that writes the element."""

    buffer: Buffer
    index: tuple[Expression, ...]
    operation: str
    value: Expression


class Lowering(StrEnum):
    """How a scatter keeps those apart who meet in an element.

    Where the elements come sorted no scatter is needed: a loop runs over each segment.
    """

    ATOMIC = "atomic"  # the hardware does
    PRIVATE = "private"  # everyone who runs blocks has a copy, and the copies are added up in the end, in a fixed order


@dataclass(frozen=True, slots=True)
class Scatter:
    """`buffer[index] += value` where several lanes or blocks may have the same index."""

    buffer: Buffer
    index: tuple[Expression, ...]
    operation: str
    value: Expression
    lowering: Lowering


@dataclass(frozen=True, slots=True)
class Let:
    """A name for a value, for the statements that follow in the same body."""

    name: Name
    value: Expression


@dataclass(frozen=True, slots=True)
class Loop:
    """`for variable in start .. stop`. Inside a region the bounds may differ from lane to lane; between regions they are the block's."""

    variable: Name
    start: Expression
    stop: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """`if condition`, with an optional other side."""

    condition: Expression
    body: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


# statements of a block


@dataclass(frozen=True, slots=True)
class Threads:
    """A thread region: `count` lanes run the body, each by itself; all are done before what follows."""

    variable: Name
    count: int
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """Collective: `target[] = ` the combination of every lane's `source[]`; the block has `count` lanes.

    The order of the combination is fixed by `count` and `width` alone, so the result is the same from run to run.

    :param width: where it is not 0, lanes are combined in groups of so many neighbours, and the target is a lane's own: each gets its group's result
    """

    target: Buffer
    operation: str
    source: Buffer
    count: int
    width: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """Collective: every lane's `target[]` is the combination of the `source[]` of the lanes up to it, its own included."""

    target: Buffer
    operation: str
    source: Buffer
    count: int


@dataclass(frozen=True, slots=True)
class CopyTile:
    """Collective: a rectangle of a global buffer comes into a shared one of the same rank; what lies outside is `fill`."""

    target: Buffer
    source: Buffer
    origin: tuple[Expression, ...]
    count: int
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class MultiplyAccumulate:
    """Collective: the product of two matrices comes into the lanes' registers, or is added to them.

    The matrices are access functions: `left` is an expression of `row` and `inner`, `right` one of `inner` and `column`, for example `x[b, i0 + row,
    h, inner]` of a tensor of any rank, a gather, or a select between an element and zero. There are `rows` rows and `columns` columns; what the
    target holds beyond them means nothing.

    Every lane holds a `target` of `[rows of a lane, columns of a lane]`. `across` lanes stand side by side: element (r, c) of lane t is row
    `(t // across) * target.shape[0] + r` and column `c * across + t % across` of the block's tile, so that neighbouring lanes have neighbouring
    columns. Row i and column j of the tile gain `sum over inner < depth of left(i, inner) * right(inner, j)`, computed in the target's type.

    On a CPU this is a register tile if all lanes stand side by side (`across == count`) and the tile is a multiple of 64 bytes wide. What is fast
    there: a `left` that is an element (or an element where a condition on the row holds, else zero) whose place is linear in `inner`, and a
    `right` that is an element whose place is linear in `inner` and contiguous in `column`, of the target's type, bf16, f16 or i8. Anything else is
    computed into a scratch tile first, in every call.

    :param adds: whether the product is added to what the target holds; else it takes its place
    :param towards: elements, by row and perhaps column, that will be stored or read; a processor's cache may fetch them in the meantime, nothing is
        read or promised
    """

    target: Buffer
    left: Expression
    right: Expression
    row: Name
    column: Name
    inner: Name
    rows: Expression
    columns: Expression
    depth: Expression
    count: int
    across: int
    adds: bool = True
    towards: tuple[Load, ...] = ()


Statement: TypeAlias = (
    "Store | Update | Scatter | Let | Loop | Branch | Threads | Reduce | Scan | CopyTile | MultiplyAccumulate"
)
Collective: TypeAlias = "Reduce | Scan | CopyTile | MultiplyAccumulate"
COLLECTIVES = (Reduce, Scan, CopyTile, MultiplyAccumulate)


@dataclass(frozen=True, slots=True)
class Grid:
    """One dimension of the grid of blocks."""

    variable: Name
    count: Expression


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: its arguments, the buffers of its blocks, the grid, and what a block does.

    :param sizes: integer arguments that shapes and loops depend on
    :param scalars: other numbers
    :param arguments: global buffers, in the order in which a caller passes them
    :param locals: shared, thread and uniform buffers
    """

    name: str
    sizes: tuple[Name, ...]
    scalars: tuple[Name, ...]
    arguments: tuple[Buffer, ...]
    locals: tuple[Buffer, ...]
    grid: tuple[Grid, ...]
    body: tuple[Statement, ...]

    @property
    def threads(self) -> int:
        """The lanes of a block: as many as its widest region or collective asks for."""
        return max((count_of(each) for each in walk(self.body) if count_of(each)), default=1)

    def __str__(self) -> str:
        from suture.ir.kernel_text import print_kernel

        return print_kernel(self)


def count_of(statement: Statement) -> int:
    """The lanes that a region or collective takes; 0 for other statements."""
    return statement.count if isinstance(statement, Threads | Reduce | Scan | CopyTile | MultiplyAccumulate) else 0


def bodies_of(statement: Statement) -> tuple[tuple[Statement, ...], ...]:
    """The bodies of a statement."""
    match statement:
        case Loop(body=body) | Threads(body=body):
            return (body,)
        case Branch(body=body, otherwise=otherwise):
            return (body, otherwise)
    return ()


def walk(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """All statements, outer ones first, in order."""
    for statement in body:
        yield statement
        for inner in bodies_of(statement):
            yield from walk(inner)


def expressions_of(statement: Statement) -> Iterator[Expression]:
    """The expressions that stand in a statement itself, its bodies aside."""
    for item in fields(statement):
        value = getattr(statement, item.name) if item.name != "towards" else None  # a hint
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Literal | Apply | Load) or (isinstance(part, Name) and item.name not in _BINDERS):
                yield part


_BINDERS = ("variable", "name", "row", "column", "inner")


def parts(expression: Expression) -> Iterator[Expression]:
    """An expression and all in it, outermost first."""
    yield expression
    inner = expression.operands if isinstance(expression, Apply) else ()
    for part in expression.index if isinstance(expression, Load) else inner:
        yield from parts(part)


def names_in(expression: Expression) -> frozenset[str]:
    """The names that an expression mentions."""
    return frozenset(part.name for part in parts(expression) if isinstance(part, Name))


def loads_in(statement: Statement) -> Iterator[Load]:
    """The elements that a statement itself reads."""
    for expression in expressions_of(statement):
        yield from (part for part in parts(expression) if isinstance(part, Load))
