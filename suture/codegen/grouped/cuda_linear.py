"""Rows times the matrix of their type, on a GPU: a block takes a tile's rows and some columns, both operands through shared memory."""

from __future__ import annotations

from suture.codegen.cuda.gemm_operands import runs_along
from suture.codegen.grouped.cuda_tiles import WARP, is_vector, schedule_for, spread, stage, staged_type, zero
from suture.codegen.grouped.heads import heads_of
from suture.codegen.grouped.operands import chosen, fixed, operand, pointer, row_of_result, row_variable
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import CudaGemmSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.kernel import (
    Branch,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Scope,
    Threads,
    apply,
)

_TILE = 48  # rows of the tiles that an inspector makes


def default_schedule(group: Group) -> CudaGemmSchedule:
    """A tile's rows, and 32 or 64 columns."""
    assert group.anchor is not None
    rows, matrices = operand(group.anchor, 0), operand(group.anchor, 1)
    return schedule_for(rows.shape[0], group.shape[-1], staged_type(rows, matrices), tall=_TILE)


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a product by type and its epilogue."""
    default = default_schedule(group)
    schedule = default if is_vector(0, group.shape[-1]) else context.schedule(group, default)
    return [_CudaLinear(group, context, schedule).step()]


class _CudaLinear:
    """Writes the kernel of one product."""

    def __init__(self, group: Group, context: Context, schedule: CudaGemmSchedule) -> None:
        assert group.anchor is not None
        self.group, self.anchor, self.schedule = group, group.anchor, schedule
        self.rows, self.matrices, self.tiles, self.types = (operand(self.anchor, k) for k in range(4))
        self.dtype, self.staged = compute_type(self.anchor.output.dtype), staged_type(self.rows, self.matrices)
        self.builder = MergingBuilder(context, group.nodes, "cuda_grouped_linear")
        self.builder.pointers(self.tiles, self.rows.shape[0])

    def step(self) -> KernelStep:
        builder, schedule = self.builder, self.schedule
        high, wide, depth, lanes = schedule.rows, schedule.columns, schedule.depth, schedule.lanes
        inner, columns = (builder.size(size) for size in self.matrices.shape[-2:])
        tile = builder.grid("tile", builder.size(self.types.shape[0]))
        self.heads = heads_of(builder, self.anchor.output.shape[1:-1], 1)
        self.beside = builder.grid("beside", (columns + (wide - 1)) // wide)
        row_variable(builder, "row", self.rows.shape[0])
        builder.variable("kind", Literal(0), builder.size(self.matrices.shape[0]))
        builder.variable("column", Literal(0), columns)
        builder.variable("inner", Literal(0), inner)
        self.sums = builder.local("sum", self.dtype, (high * WARP // lanes, wide // WARP), Scope.THREAD)
        left = builder.local("left", self.staged, (high, depth), Scope.SHARED)
        right = builder.local("right", self.staged, (depth, wide), Scope.SHARED)
        begin, end, part, start, step = (Name(name) for name in ("begin", "end", "part", "start", "step"))
        lets = (
            Let(Name("kind"), chosen(builder, self.types, tile, self.matrices.shape[0])),
            Let(begin, pointer(builder, self.tiles, tile)),
            Let(end, pointer(builder, self.tiles, tile + 1)),
        )
        row, at, column = Name("row"), Name("inner"), Name("column")
        rows, matrix = builder.lane(), builder.lane()
        taken = rows.value(self.rows, fixed(self.rows.shape, (row, *self.heads.of(Literal(0), at))))
        place = fixed(self.matrices.shape, (Name("kind"), *self.heads.of(Literal(0), at), column))
        weight, lies = matrix.value(self.matrices, place), builder.seen(self.matrices, place)
        turned = isinstance(lies, Load) and runs_along(lies, "inner") and not runs_along(lies, "column")
        here, there = apply("and", row < end, at < inner), apply("and", at < inner, column < columns)
        i, j, p = Name("i"), Name("j"), Name("p")
        turn = (
            stage(left, lanes, ("row", "inner"), (start, step * depth), here, rows, taken),
            stage(right, lanes, ("inner", "column"), (step * depth, self.beside * wide), there, matrix, weight, fast_first=turned),
            MultiplyAccumulate(
                self.sums, Load(left, (i, p)), Load(right, (p, j)), i, j, p, Literal(high), Literal(wide), Literal(depth), lanes, WARP,
            ),
        )  # fmt: skip
        body = (
            Let(start, begin + part * high),
            zero(self.sums, lanes),
            Loop(step, Literal(0), (inner + (depth - 1)) // depth, turn),
            self._epilogue(start, end),
        )
        loop = Loop(part, Literal(0), (end - begin + (high - 1)) // high, body)
        where = "tensor cores" if self.staged != self.dtype else "registers"
        return builder.finish(
            (*lets, loop), f"{self.group}; tiles of {high} x {wide} through shared memory, on {where}", schedule
        )

    def _epilogue(self, start: Name, end: Name) -> Threads:
        """The nodes behind, on the sums."""
        builder, reader, result = self.builder, self.builder.lane(), self.anchor.output
        to, moved = row_of_result(builder, self.anchor)
        index = fixed(result.shape, (to, *self.heads.of(Literal(0), Name("column"))))
        summed = Name("total", self.dtype)
        reader.statements.append(Let(summed, Load(self.sums, (Name("r"), Name("c")))))
        reader.know(result, index, summed)
        for value in self.group.outputs:
            reader.store(value, index, reader.value(value, index))
        inside = apply("and", Name("row") < end, Name("column") < builder.size(result.shape[-1]))
        body = (Branch(inside, (*moved, *reader.statements)),)
        return spread(self.schedule.lanes, self.sums, body, (start, self.beside * self.schedule.columns))
