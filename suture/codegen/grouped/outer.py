"""Sums of outer products over the rows of each segment, on a processor: what a product by type gives back to its matrices.

A block takes a segment and a tile of its matrix, and runs over the segment's rows a few at a time: they come near once, through look-ups, for all
of the tile. The order of a sum is that of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.codegen.grouped.heads import folding, heads_of
from suture.codegen.grouped.operands import fixed, operand, pointer, row_variable
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import GemmSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Buffer,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
)
from suture.ir.sizes import Dim

_DEPTH = 64  # rows of a segment that come near at a time
_NARROW = 16  # columns of the narrowest register tile
_FEW = 16  # rows of a tile of several heads, at most


@dataclass(frozen=True)
class Sides:
    """The operands as matrices: the left one's features are rows of the result, those of the right one columns.

    :param swapped: whether the rows of what is computed are the result's last dimension
    """

    left: Value
    right: Value
    swapped: bool

    @property
    def rows(self) -> Dim:
        """How many rows there are."""
        return self.left.shape[-1]

    @property
    def columns(self) -> Dim:
        """How many columns there are."""
        return self.right.shape[-1]


def sides(node: Node) -> Sides:
    """Columns are the result's last dimension, unless that would leave most of a vector empty."""
    first, second = operand(node, 0), operand(node, 1)
    rows, columns = first.shape[-1], second.shape[-1]
    if isinstance(columns, int) and columns < _NARROW and not (isinstance(rows, int) and rows <= columns):
        return Sides(second, first, True)
    return Sides(first, second, False)


def default_schedule(node: Node) -> GemmSchedule:
    """A tile of 64 by 64, as much as stays near with the rows that it is made of; less where the matrix is smaller."""
    found = sides(node)
    folded = _folded(node, found)
    rows = min(found.rows * folded, 64) if isinstance(found.rows, int) else 48
    columns = found.columns * folded if isinstance(found.columns, int) else 64
    return GemmSchedule(rows, next((width for width in (16, 32, 48) if columns <= width), 64), _DEPTH, 1)


def _lanes(columns: int) -> int:
    """The lanes of a block, side by side in a tile's columns."""
    return 32 if columns % 32 == 0 else 16


def _folded(node: Node, found: Sides) -> int:
    """How many heads a block takes, side by side."""
    return folding(node.output.shape[1:-2], found.columns, found.rows, 64, _FEW)


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a sum of outer products."""
    assert group.anchor is not None
    return [_Outer(group, context, context.schedule(group, default_schedule(group.anchor))).step()]


class _Outer:
    """Writes the kernel."""

    def __init__(self, group: Group, context: Context, schedule: GemmSchedule) -> None:
        assert group.anchor is not None
        self.group, self.anchor, self.schedule = group, group.anchor, schedule
        self.sides = sides(self.anchor)
        self.pointers = operand(self.anchor, 2)
        self.dtype = compute_type(self.anchor.output.dtype)
        self.lanes, self.depth = _lanes(schedule.columns), schedule.depth or _DEPTH
        self.clearing: tuple[Statement, ...] = ()
        self.builder = MergingBuilder(context, group.nodes, "grouped_outer")
        self.builder.pointers(self.pointers, self.sides.left.shape[0])
        self.folded = folded = _folded(self.anchor, self.sides)
        self.rows, self.columns = self.sides.rows * folded, self.sides.columns * folded
        if folded > 1:  # one tile has all of them
            default = default_schedule(self.anchor)
            self.schedule = replace(schedule, rows=default.rows, columns=default.columns)
            self.lanes = _lanes(default.columns)

    def step(self) -> KernelStep:
        builder, schedule, depth = self.builder, self.schedule, self.depth
        high, width = schedule.rows, schedule.columns
        rows, columns = builder.size(self.rows), builder.size(self.columns)
        self.segment = builder.grid("segment", builder.size(self.anchor.output.shape[0]))
        self.heads = heads_of(builder, self.anchor.output.shape[1:-2], self.folded)
        self.below = self._tiles("below", self.rows, high)
        self.panel = self._tiles("panel", self.columns, width)
        builder.variable("row", Literal(0), rows)
        builder.variable("column", Literal(0), columns)
        self.member = row_variable(builder, "member", self.sides.left.shape[0])
        self.sums = builder.local("sum", self.dtype, (high, width // self.lanes), Scope.THREAD)
        begin, end, turn, first, count = (Name(name) for name in ("begin", "end", "turn", "first", "count"))
        lets = (
            Let(begin, pointer(builder, self.pointers, self.segment)),
            Let(end, pointer(builder, self.pointers, self.segment + 1)),
        )
        left, bring_left = self._operand(self.sides.left, "row", self.below * high, first, count)
        right, bring_right = self._operand(self.sides.right, "column", self.panel * width, first, count)
        i, j, k = Name("i"), Name("j"), Name("k")
        names: dict[str, Expression] = {"member": first + k, "near": k}
        product = MultiplyAccumulate(
            self.sums, replaced(left, {**names, "row": self.below * high + i, "near_row": i}),
            replaced(right, {**names, "column": self.panel * width + j, "near_column": j}), i, j, k,
            self._there(self.rows, high, self.below), self._there(self.columns, width, self.panel),
            count, self.lanes, self.lanes,
        )  # fmt: skip
        body = (
            Let(first, begin + turn * depth),
            Let(count, apply("min", Literal(depth), end - first)),
            *bring_left,
            *bring_right,
            product,
        )
        loop = Loop(turn, Literal(0), (end - begin + (depth - 1)) // depth, body)
        folded = f", {self.folded} heads side by side" if self.folded > 1 else ""
        why = f"{self.group}; tiles of {high} x {width}, {depth} rows at a time{folded}"
        return builder.finish((*lets, *self.clearing, self._zero(), loop, self._epilogue()), why, schedule)

    def _tiles(self, name: str, size: Dim, most: int) -> Expression:
        """Blocks for tiles, if there are several."""
        if isinstance(size, int) and size <= most:
            return Literal(0)
        return self.builder.grid(name, (self.builder.size(size) + (most - 1)) // most)

    def _there(self, size: Dim, most: int, number: Expression) -> Expression:
        """How many rows or columns of a tile there are."""
        if isinstance(size, int) and size % most == 0:
            return Literal(most)
        if isinstance(size, int) and size < most:
            return Literal(size)
        return apply("min", Literal(most), self.builder.size(size) - number * most)

    def _operand(
        self, value: Value, name: str, start: Expression, first: Name, count: Name
    ) -> tuple[Expression, tuple[Statement, ...]]:
        """A side where it lies if its features lie side by side, or some of its rows that the block brings near first.

        :param name: the variable of its features
        :param start: the first of them that the tile takes
        """
        builder, is_left = self.builder, name == "row"
        extent, size = (self.schedule.rows, self.rows) if is_left else (self.schedule.columns, self.columns)
        index = (self.member, *self.heads.index(builder, Name(name), value.shape[-1]))
        found, whole = builder.seen(value, index), isinstance(size, int) and size % extent == 0
        if isinstance(found, Load) and found.dtype == self.dtype and (whole or is_left):
            beside = stride_of_load(found, name) == Literal(1) or size == 1
            if beside and stride_of_load(found, "member") is not None:
                return found, ()
        near = builder.local(f"near_{name}s", self.dtype, (self.depth, extent), Scope.SHARED)
        lane, brought, across = Name("t"), Name("brought"), Name("across")
        own = across * self.lanes + lane
        reader = builder.lane()
        taken = reader.value(value, index)
        body = (Let(Name(name), start + own), *reader.statements, Store(near, (brought, own), taken))
        turns = (
            self._there(size, extent, self.below if is_left else self.panel) - lane + (self.lanes - 1)
        ) // self.lanes
        if whole and extent % self.lanes == 0:
            turns = Literal(extent // self.lanes)
        every = Loop(
            brought, Literal(0), count, (Let(self.member, first + brought), Loop(across, Literal(0), turns, body))
        )
        if not whole and not is_left:
            self.clearing = (self._clear(near),)
        return near[Name("near"), Name(f"near_{name}")], (Threads(lane, self.lanes, (every,)),)

    def _clear(self, near: Buffer) -> Threads:
        """Zeros where there are no columns: vectors are multiplied whole."""
        lane, brought, across = Name("t"), Name("brought"), Name("across")
        own, wide = across * self.lanes + lane, self.schedule.columns // self.lanes
        store = Store(near, (brought, own), Literal(0.0, self.dtype))
        inner = Loop(across, Literal(0), Literal(wide), (store,))
        return Threads(lane, self.lanes, (Loop(brought, Literal(0), Literal(self.depth), (inner,)),))

    def _zero(self) -> Threads:
        lane, r, c = Name("t"), Name("r"), Name("c")
        wide = self.schedule.columns // self.lanes
        inner = Loop(c, Literal(0), Literal(wide), (Store(self.sums, (r, c), Literal(0.0, self.dtype)),))
        return Threads(lane, self.lanes, (Loop(r, Literal(0), Literal(self.schedule.rows), (inner,)),))

    def _epilogue(self) -> Threads:
        """The sums, and the nodes behind; of heads side by side, the blocks on the diagonal."""
        builder, width, high, folded = self.builder, self.schedule.columns, self.schedule.rows, self.folded
        lane, within, r, c, row, column = (Name(name) for name in ("t", "within", "r", "c", "row", "column"))
        reader, result = builder.lane(), self.anchor.output
        at = (column, row) if self.sides.swapped else (row, column)
        index = fixed(result.shape, (self.segment, *self.heads.of(within if folded > 1 else Literal(0), at[0]), at[1]))
        own_rows, own_columns = builder.size(self.sides.rows), builder.size(self.sides.columns)
        place = within * own_rows + r if folded > 1 else r
        summed = Name("total", self.dtype)
        reader.statements.append(Let(summed, Load(self.sums, (place, c))))
        reader.know(result, index, summed)
        for value in self.group.outputs:
            reader.store(value, index, reader.value(value, index))
        body: tuple[Statement, ...] = tuple(reader.statements)
        first: Expression = self.panel * width + c * self.lanes + lane
        rows = self._there(self.rows, high, self.below)
        if folded > 1:
            first, rows = first - within * own_columns, own_rows
            body = (Branch(apply("and", Literal(0) <= column, column < own_columns), body),)
        elif self._there(self.columns, width, self.panel) != Literal(width):
            body = (Branch(column < own_columns, body),)
        inner = Loop(c, Literal(0), Literal(width // self.lanes), (Let(column, first), *body))
        start = r if folded > 1 else self.below * high + r
        every: Statement = Loop(r, Literal(0), rows, (Let(row, start), inner))
        if folded > 1:
            every = Loop(within, Literal(0), Literal(folded), (every,))
        return Threads(lane, self.lanes, (every,))
