"""Sums of outer products over the rows of each segment, on a GPU.

Segments are as long as they are, and a GPU wants blocks of about the same length: a block takes a part of a segment. The first part of a segment goes
where the result is, the others into a memory of their own, and are added in their order: the same sum every time. Part j of a segment that begins
at b has the place b // rows + j, which is another one for every part but the first: the memory has one place for so many rows, however many segments
there are.
"""

from __future__ import annotations

from suture.codegen.grouped.cuda_tiles import WARP, is_vector, schedule_for, spread, stage, staged_type, zero
from suture.codegen.grouped.heads import heads_of
from suture.codegen.grouped.operands import fixed, operand, pointer, row_variable
from suture.codegen.grouped.outer import sides
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import CudaGemmSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node
from suture.ir.kernel import (
    Branch,
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
    Update,
    apply,
    cast,
)
from suture.ir.sizes import floor_divide

PART = 2048
"""Rows of a segment that one block adds up."""
_ADDING = 128  # lanes that add parts


def default_schedule(node: Node) -> CudaGemmSchedule:
    """Tiles of up to 64 by 64."""
    found = sides(node)
    return schedule_for(found.rows, found.columns, staged_type(found.left, found.right), tall=64)


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a sum of outer products: parts of segments, and what adds them up where segments have several."""
    assert group.anchor is not None
    found, default = sides(group.anchor), default_schedule(group.anchor)
    vector = is_vector(found.rows, found.columns)
    writer = _CudaOuter(group, context, default if vector else context.schedule(group, default))
    rows = writer.sides.left.shape[0]
    alone = isinstance(rows, int) and rows <= PART
    return [writer.step()] if alone else [writer.step(), writer.adding()]


class _CudaOuter:
    """Writes the kernels."""

    def __init__(self, group: Group, context: Context, schedule: CudaGemmSchedule) -> None:
        assert group.anchor is not None
        self.group, self.context, self.anchor, self.schedule = group, context, group.anchor, schedule
        self.sides, self.pointers = sides(self.anchor), operand(self.anchor, 2)
        self.result = self.anchor.output
        self.dtype, self.staged = compute_type(self.result.dtype), staged_type(self.sides.left, self.sides.right)
        slots = floor_divide(self.sides.left.shape[0], PART) + 1
        self.parts = context.temporary(self.dtype, (slots, *self.result.shape[1:]), "parts")
        self.builder = MergingBuilder(context, group.nodes, "cuda_grouped_outer")
        self.builder.pointers(self.pointers, self.sides.left.shape[0])

    def step(self) -> KernelStep:
        builder, schedule = self.builder, self.schedule
        high, wide, depth, lanes = schedule.rows, schedule.columns, schedule.depth, schedule.lanes
        rows, columns = builder.size(self.sides.rows), builder.size(self.sides.columns)
        self.segment = builder.grid("segment", builder.size(self.result.shape[0]))
        self.part = builder.grid("part", builder.size(self.parts.shape[0]))
        self.heads = heads_of(builder, self.result.shape[1:-2], 1)
        self.below = builder.grid("below", (rows + (high - 1)) // high)
        self.beside = builder.grid("beside", (columns + (wide - 1)) // wide)
        builder.variable("row", Literal(0), rows)
        builder.variable("column", Literal(0), columns)
        row_variable(builder, "member", self.sides.left.shape[0])
        short = self.staged != self.dtype  # tensor cores read the left tile row by row
        self.sums = builder.local("sum", self.dtype, (high * WARP // lanes, wide // WARP), Scope.THREAD)
        left = builder.local("left", self.staged, (high, depth) if short else (depth, high), Scope.SHARED)
        right = builder.local("right", self.staged, (depth, wide), Scope.SHARED)
        begin, end, start, stop, step, first = (
            Name(name) for name in ("begin", "end", "start", "stop", "step", "first")
        )
        lets = (
            Let(begin, pointer(builder, self.pointers, self.segment)),
            Let(end, pointer(builder, self.pointers, self.segment + 1)),
            Let(start, begin + self.part * PART),
            Let(stop, apply("min", end, start + PART)),
        )
        member, row, column = Name("member"), Name("row"), Name("column")
        readers = builder.lane(), builder.lane()
        values = [
            reader.value(value, fixed(value.shape, (member, *self.heads.of(Literal(0), feature))))
            for reader, value, feature in zip(readers, (self.sides.left, self.sides.right), (row, column), strict=True)
        ]
        in_left, in_right = (apply("and", member < stop, each) for each in (row < rows, column < columns))
        above, beside = self.below * high, self.beside * wide
        names, starts = (("row", "member"), (above, first)) if short else (("member", "row"), (first, above))
        i, j, p = Name("i"), Name("j"), Name("p")
        body = (
            Let(first, start + step * depth),
            stage(left, lanes, names, starts, in_left, readers[0], values[0], fast_first=short),
            stage(right, lanes, ("member", "column"), (first, beside), in_right, readers[1], values[1]),
            MultiplyAccumulate(
                self.sums, Load(left, (i, p) if short else (p, i)), Load(right, (p, j)), i, j, p,
                Literal(high), Literal(wide), Literal(depth), lanes, WARP,
            ),
        )  # fmt: skip
        work = (
            zero(self.sums, lanes),
            Loop(step, Literal(0), (stop - start + (depth - 1)) // depth, body),
            self._store(begin, start, end),
        )
        busy = apply("or", self.part < 1, start < end)
        where = "tensor cores" if short else "registers"
        why = f"{self.group}; tiles of {high} x {wide}, {PART} rows to a block, on {where}"
        return builder.finish((*lets, Branch(busy, work)), why, schedule)

    def _index(self, first: Expression) -> tuple[Expression, ...]:
        """The index of an element of the result, or of a part."""
        at = (Name("column"), Name("row")) if self.sides.swapped else (Name("row"), Name("column"))
        index = (first, *self.heads.of(Literal(0), at[0]), at[1])
        return (first, *fixed(self.result.shape[1:], index[1:]))

    def _store(self, begin: Name, start: Name, end: Name) -> Threads:
        """The sums of a first part where the result is; those of another where parts are."""
        builder, reader = self.builder, self.builder.lane()
        index, total = self._index(self.segment), Load(self.sums, (Name("r"), Name("c")))
        reader.store(self.result, index, total)
        other = builder.place(self.parts, self._index(begin // PART + self.part))
        apart = Branch(start < end, (Store(other.buffer, other.index, total),))
        inside = apply(
            "and", Name("row") < builder.size(self.sides.rows), Name("column") < builder.size(self.sides.columns)
        )
        body = (Branch(inside, (Branch(self.part < 1, tuple(reader.statements), (apart,)),)),)
        above, beside = self.below * self.schedule.rows, self.beside * self.schedule.columns
        return spread(self.schedule.lanes, self.sums, body, (above, beside))

    def adding(self) -> KernelStep:
        """What adds the other parts of segments to their first."""
        builder = MergingBuilder(self.context, (), "cuda_grouped_parts")
        builder.pointers(self.pointers, self.sides.left.shape[0])
        shape = self.result.shape
        builder.size(self.sides.left.shape[0])
        segment = builder.grid("segment", builder.size(shape[0]))
        heads = heads_of(builder, shape[1:-2], 1)
        across = -2 if shape[-1] == 1 else -1  # lanes take the result's last dimension, or the one before
        other = builder.grid("other", builder.size(shape[-3 - across]))
        lanes, count = (1 if shape[across] == 1 else _ADDING), builder.size(shape[across])
        own = builder.variable("own", Literal(0), count)
        at = (own, other) if across == -2 else (other, own)
        lane, turn, part, begin, end, start = (Name(name) for name in ("t", "turn", "part", "begin", "end", "start"))
        sums = builder.local("sum", self.dtype, (), Scope.THREAD)
        index = (segment, *fixed(shape[1:], (*heads.of(Literal(0), at[0]), at[1])))
        target = builder.place(self.result, index)
        found = builder.place(self.parts, (begin // PART + part, *index[1:]))
        inner: tuple[Statement, ...] = (
            Let(start, begin + part * PART),
            Branch(start < end, (Update(sums, (), "+", found),)),
        )
        body: tuple[Statement, ...] = (
            Let(own, turn * lanes + lane),
            Store(sums, (), cast(target, self.dtype)),
            Loop(part, Literal(1), (end - begin + (PART - 1)) // PART, inner),
            Store(target.buffer, target.index, cast(Load(sums, ()), target.dtype)),
        )
        over = Loop(turn, Literal(0), (count - lane + (lanes - 1)) // lanes, body)
        lets = (
            Let(begin, pointer(builder, self.pointers, segment)),
            Let(end, pointer(builder, self.pointers, segment + 1)),
        )
        several = Branch(begin + PART < end, (Threads(lane, lanes, (over,)),))
        return builder.finish((*lets, several), f"the parts of {self.result.name} added in their order")
