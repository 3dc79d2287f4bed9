"""Rows times the matrix of their type, on a processor: a block takes the rows of a tile and a panel of the matrix.

Rows are read where they lie, through look-ups. A matrix whose columns do not lie side by side (that of a derivative is transposed), or that has
fewer than a register tile, comes into the block's own memory first; then the rest runs as in `suture.codegen.gemm`.
"""

from __future__ import annotations

from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.codegen.grouped import dot
from suture.codegen.grouped.heads import folding, heads_of
from suture.codegen.grouped.operands import chosen, fixed, operand, pointer, row_of_result, row_variable
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import GemmSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.kernel import (
    Apply,
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
    cast,
)

_PANEL = 256 * 1024  # bytes of a panel that a block may bring near
_NARROW = 16  # columns of the narrowest register tile
_DEEP = 256  # how long sums of heads side by side are at most


def default_schedule(group: Group) -> GemmSchedule:
    """As many rows as tiles have, and two vectors of columns; one where there are few."""
    columns = group.shape[-1]
    return GemmSchedule(48, _NARROW if isinstance(columns, int) and columns <= _NARROW else 32, group=1)


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a product by type and its epilogue."""
    if dot.is_narrow(group) and group.key not in context.schedules:
        return dot.lower(group, context)
    return [_Linear(group, context, context.schedule(group, default_schedule(group))).step()]


class _Linear:
    """Writes the kernel of one product."""

    def __init__(self, group: Group, context: Context, schedule: GemmSchedule) -> None:
        assert group.anchor is not None
        self.group, self.anchor, self.schedule = group, group.anchor, schedule
        self.rows, self.matrices, self.tiles, self.types = (operand(self.anchor, k) for k in range(4))
        self.dtype = compute_type(self.anchor.output.dtype)
        self.lanes = min(32, schedule.columns)
        self.builder = MergingBuilder(context, group.nodes, "grouped_linear")
        self.builder.pointers(self.tiles, self.rows.shape[0])
        self.own_inner, self.own_columns = self.matrices.shape[-2:]
        heads = self.anchor.output.shape[1:-1]
        folded = folding(heads, self.own_columns, self.own_inner, schedule.columns, _DEEP)
        self.folded, self.inner, self.columns = folded, self.own_inner * folded, self.own_columns * folded

    def step(self) -> KernelStep:
        builder, schedule = self.builder, self.schedule
        width, most, columns = schedule.columns, schedule.rows, builder.size(self.columns)
        tile = builder.grid("tile", builder.size(self.types.shape[0]))
        self.heads = heads_of(builder, self.anchor.output.shape[1:-1], self.folded)
        self.panel: Expression = Literal(0)
        if not (isinstance(self.columns, int) and self.columns <= width):
            self.panel = builder.grid("panel", (columns + (width - 1)) // width)
        row_variable(builder, "row", self.rows.shape[0])
        self.to, self.moved = row_of_result(builder, self.anchor)
        builder.variable("column", Literal(0), columns)
        builder.variable("inner", Literal(0), builder.size(self.inner))
        builder.variable("kind", Literal(0), builder.size(self.matrices.shape[0]))
        self.sums = builder.local("sum", self.dtype, (most, width // self.lanes), Scope.THREAD)
        begin, end, part, start, height = (Name(name) for name in ("begin", "end", "part", "start", "height"))
        lets = (
            Let(Name("kind"), chosen(builder, self.types, tile, self.matrices.shape[0])),
            Let(begin, pointer(builder, self.tiles, tile)),
            Let(end, pointer(builder, self.tiles, tile + 1)),
        )
        right, staging = self._right()
        body = (
            Let(start, begin + part * most),
            Let(height, apply("min", Literal(most), end - start)),
            self._product(start, height, right),
            self._epilogue(start, height),
        )
        loop = Loop(part, Literal(0), (end - begin + (most - 1)) // most, body)
        folded = f", {self.folded} heads side by side" if self.folded > 1 else ""
        return builder.finish((*lets, *staging, loop), f"{self.group}; tiles of {most} x {width}{folded}", schedule)

    def _product(self, start: Name, height: Name, right: Expression) -> MultiplyAccumulate:
        builder, width = self.builder, self.schedule.columns
        i, j, k = Name("i"), Name("j"), Name("k")
        left = builder.seen(self.rows, (Name("row"), *self.heads.index(builder, Name("inner"), self.own_inner)))
        there: Expression = Literal(width)
        if isinstance(self.columns, int) and self.columns < width:
            there = Literal(self.columns)
        elif not self._is_whole:
            there = apply("min", Literal(width), builder.size(self.columns) - self.panel * width)
        names: dict[str, Expression] = {"row": start + i, "inner": k, "column": self.panel * width + j}
        put: dict[str, Expression] = {each.name.name: replaced(each.value, names) for each in self.moved}
        towards = replaced(builder.place(self.group.outputs[0], self._result()), {**names, **put})
        assert isinstance(towards, Load)
        return MultiplyAccumulate(
            self.sums, replaced(left, names), replaced(right, {**names, "near_column": j}), i, j, k, height, there,
            builder.size(self.inner), self.lanes, self.lanes, False, (towards,),
        )  # fmt: skip

    @property
    def _is_whole(self) -> bool:
        """Whether panels are full of columns."""
        return isinstance(self.columns, int) and self.columns % self.schedule.columns == 0

    def _result(self) -> tuple[Expression, ...]:
        """The result's index."""
        index = (self.to, *self.heads.index(self.builder, Name("column"), self.own_columns))
        return fixed(self.anchor.output.shape, index)

    def _matrix(self, within: Expression, inner: Expression, column: Expression) -> Expression:
        """An element of the matrix that a head of the block's has."""
        index = (Name("kind"), *self.heads.of(within, inner), column)
        return self.builder.seen(self.matrices, fixed(self.matrices.shape, index))

    def _right(self) -> tuple[Expression, tuple[Statement, ...]]:
        """The matrix of the type where it lies, or a panel of it that the block brings near first."""
        builder, value, width = self.builder, self.matrices, self.schedule.columns
        found = self._matrix(Literal(0), Name("inner"), Name("column"))
        memory = found.operands[0] if isinstance(found, Apply) and found.function == "cast" else found
        beside = isinstance(memory, Load) and stride_of_load(memory, "column") == Literal(1)
        if self.folded == 1 and beside and self._is_whole:
            return found, ()
        if not isinstance(self.inner, int) or self.inner * width * value.dtype.itemsize > _PANEL:
            return found, ()
        near = builder.local("near", value.dtype, (self.inner, width), Scope.SHARED)
        lane, body = Name("t"), []
        for at in range(0, width, self.lanes):
            own = lane + at
            if self.folded > 1:
                body += self._diagonal(near, own)
            elif beside or not self._is_whole:
                body += self._by_rows(near, self.panel * width + own, own)
            else:  # printers know a loop that does nothing but to store what it loads, whichever side lies side by side
                store = Store(
                    near,
                    (Name("inner"), own),
                    cast(self._matrix(Literal(0), Name("inner"), self.panel * width + own), near.dtype),
                )
                body.append(Loop(Name("inner"), Literal(0), builder.size(self.inner), (store,)))
        return cast(near[Name("inner"), Name("near_column")], self.dtype), (Threads(lane, self.lanes, tuple(body)),)

    def _by_rows(self, near: Buffer, column: Expression, own: Expression) -> list[Statement]:
        """A row of the matrix after the other, zeros behind its last column."""
        inner, zero = Name("inner"), cast(Literal(0.0, self.dtype), near.dtype)
        found = cast(self._matrix(Literal(0), inner, column), near.dtype)
        store = Branch(
            column < self.builder.size(self.columns), (Store(near, (inner, own), found),), (Store(near, (inner, own), zero),)
        )  # fmt: skip
        return [Loop(inner, Literal(0), self.builder.size(self.inner), (store,))]

    def _diagonal(self, near: Buffer, own: Expression) -> list[Statement]:
        """The matrices of the block's heads on the diagonal, zeros elsewhere."""
        builder, within, inner = self.builder, Name("within"), Name("inner")
        zero = cast(Literal(0.0, self.dtype), near.dtype)
        size, columns = builder.size(self.own_inner), builder.size(self.own_columns)
        column = own - within * columns
        found = cast(self._matrix(within, inner, column), near.dtype)
        place = (within * size + inner, own)
        inside = apply("and", within * columns <= own, column < columns)
        store = Branch(inside, (Store(near, place, found),), (Store(near, place, zero),))
        rows = Loop(inner, Literal(0), size, (store,))
        return [Loop(within, Literal(0), Literal(self.folded), (rows,))]

    def _epilogue(self, start: Name, height: Name) -> Threads:
        """The nodes behind, on the sums of one tile."""
        builder, width = self.builder, self.schedule.columns
        lane, r, c = Name("t"), Name("r"), Name("c")
        reader = builder.lane()
        summed, result = Name("total", self.dtype), self._result()
        reader.statements.append(Let(summed, Load(self.sums, (r, c if width > self.lanes else Literal(0)))))
        reader.know(self.anchor.output, result, summed)
        for value in self.group.outputs:
            reader.store(value, result, reader.value(value, result))
        column = self.panel * width + (c * self.lanes + lane if width > self.lanes else lane)
        body: tuple[Statement, ...] = tuple(reader.statements)
        if not self._is_whole:
            body = (Branch(Name("column") < builder.size(self.columns), body),)
        body = (Let(Name("column"), column), *body)
        if width > self.lanes:
            body = (Loop(c, Literal(0), Literal(width // self.lanes), body),)
        return Threads(
            lane, self.lanes, (Loop(r, Literal(0), height, (Let(Name("row"), start + r), *self.moved, *body)),)
        )
