"""Matrix products on a GPU: tiles of both matrices come into shared memory, and every warp multiplies whole rows of them.

The library multiplies large matrices better, and is left to do so unless a `CudaGemmSchedule` is chosen for a product: then its epilogue (bias,
activation, residual, ...) runs on the sums where they are. Short floats go to tensor cores, others to registers; see `suture.codegen.cuda.tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.codegen.cuda.gemm_operands import matrix_parameter, runs_along
from suture.codegen.cuda.library import is_librarys
from suture.codegen.epilogue import store_results
from suture.codegen.gemm.operands import index_of, variables
from suture.codegen.gemm.roles import Roles, find_roles, operand_of
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import CudaGemmSchedule
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Buffer,
    CopyTile,
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

_WARP = 32
_SHORT = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float32, torch.float64, *_SHORT)
_TILES = ((64, 64, 128), (128, 128, 256), (128, 64, 256))
_BLOCKS = 256  # a product should have about as many tiles, so that all multiprocessors have some


def refuses(node: Node, context: Context) -> str | None:
    """Why a product is left to torch, or None."""
    if is_librarys(node, context):
        return "the GPU's library multiplies"
    if any(value is not None and value.dtype not in _FLOATS for value in (*node.inputs, *node.outputs)):
        return "its numbers are no floats"
    roles = find_roles(node, context.order(node.output))
    return roles if isinstance(roles, str) else None


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a product and its epilogue."""
    anchor = group.anchor
    assert anchor is not None
    roles = find_roles(anchor, context.order(anchor.output))
    assert isinstance(roles, Roles)
    default = default_schedule(anchor, roles)
    schedule = default if _is_vector(roles) else context.schedule(group, default)
    return [_CudaGemm(group, context, roles, schedule).step()]


def _is_vector(roles: Roles) -> bool:
    """Whether there is one row or one column: one warp then does all of a tile, so that lanes are told apart by the other."""
    return 1 in (roles.size(roles.rows), roles.size(roles.columns))


def default_schedule(node: Node, roles: Roles) -> CudaGemmSchedule:
    """Large tiles where there are enough of them to fill a GPU; twice as deep for tensor cores, fewer sums to a lane in double precision."""
    if _is_vector(roles):
        return CudaGemmSchedule(16, 32, 32, 32)
    if compute_type(node.output.dtype) == torch.float64:
        return CudaGemmSchedule(64, 64, 16, 256)
    short = all(value is None or value.dtype in _SHORT for value in node.inputs)
    large = CudaGemmSchedule(128, 128, 32 if short else 16, 256)
    tiles = 1
    for dim, size in ((roles.size(roles.rows), large.rows), (roles.size(roles.columns), large.columns)):
        tiles *= -(-dim // size) if isinstance(dim, int) else _BLOCKS
    return large if tiles >= _BLOCKS else CudaGemmSchedule(64, 64, 32 if short else 16, 128)


def candidates(group: Group, context: Context) -> list[CudaGemmSchedule]:
    """Schedules worth measuring, the default first."""
    anchor = group.anchor
    assert anchor is not None
    roles = find_roles(anchor, context.order(anchor.output))
    assert isinstance(roles, Roles)
    default = default_schedule(anchor, roles)
    if _is_vector(roles):
        return [default]
    if compute_type(anchor.output.dtype) == torch.float64:
        return [default, CudaGemmSchedule(32, 64, default.depth, 128)]
    others = [CudaGemmSchedule(rows, columns, default.depth, lanes) for rows, columns, lanes in _TILES]
    return list(dict.fromkeys([default, *others]))


TEMPLATE = Template(lower, refuses, candidates=candidates)
"""For `linear`, `matmul`, `addmm` and `einsum` on a GPU."""


def by_target(cpp: Template) -> Template:
    """The template of a product for either target: that for C++, and this one."""
    return Template(
        lambda group, context: (TEMPLATE if context.target == "cuda" else cpp).lower(group, context),
        lambda node, context: (TEMPLATE if context.target == "cuda" else cpp).refuses(node, context),
        cpp.fuses,
        candidates=lambda group, context: (TEMPLATE if context.target == "cuda" else cpp).candidates(group, context),
        reshapes=cpp.reshapes,
        fronts=lambda group, operand, context: context.target == "cpp" and cpp.fronts(group, operand, context),
    )


class _CudaGemm:
    """Writes the kernel of one product."""

    def __init__(self, group: Group, context: Context, roles: Roles, schedule: CudaGemmSchedule) -> None:
        assert group.anchor is not None
        self.group, self.context, self.roles, self.schedule = group, context, roles, schedule
        self.anchor = group.anchor
        self.dtype = compute_type(self.anchor.output.dtype)
        self.builder = MergingBuilder(context, group.nodes, "cuda_gemm")
        operands = [operand_of(self.anchor, position) for position in (roles.left, roles.right)]
        same = operands[0].dtype == operands[1].dtype and operands[0].dtype in _SHORT
        self.staged = operands[0].dtype if same else self.dtype

    def step(self) -> KernelStep:
        builder, roles, schedule = self.builder, self.roles, self.schedule
        rows, columns, inner = (builder.size(roles.size(each)) for each in (roles.rows, roles.columns, roles.inner))
        batch = [builder.grid(f"b{k}", builder.size(roles.instance.sizes[x])) for k, x in enumerate(roles.batch)]
        self.below = builder.grid("below", (rows + (schedule.rows - 1)) // schedule.rows)
        self.beside = builder.grid("beside", (columns + (schedule.columns - 1)) // schedule.columns)
        self.letters = variables(builder, roles, batch)
        left = builder.local("left", self.staged, (schedule.rows, schedule.depth), Scope.SHARED)
        right = builder.local("right", self.staged, (schedule.depth, schedule.columns), Scope.SHARED)
        self.high, self.wide = schedule.rows * _WARP // schedule.lanes, schedule.columns // _WARP
        self.sums = builder.local("sum", self.dtype, (self.high, self.wide), Scope.THREAD)
        step = builder.variable("step", Literal(0), (inner + (schedule.depth - 1)) // schedule.depth)
        row, column, along = self.below * schedule.rows, self.beside * schedule.columns, step * schedule.depth
        i, j, p = Name("i"), Name("j"), Name("p")
        product = MultiplyAccumulate(
            self.sums, Load(left, (i, p)), Load(right, (p, j)), i, j, p,
            Literal(schedule.rows), Literal(schedule.columns), Literal(schedule.depth), schedule.lanes, _WARP,
        )  # fmt: skip
        turn = (
            self._stage(left, roles.left, {"row": (row, rows), "inner": (along, inner)}),
            self._stage(right, roles.right, {"inner": (along, inner), "column": (column, columns)}),
            product,
        )
        loop = Loop(step, Literal(0), (inner + (schedule.depth - 1)) // schedule.depth, turn)
        where = "tensor cores" if self.staged in _SHORT else "registers"
        why = f"{self.group}; tiles of {schedule.rows} x {schedule.columns} through shared memory, on {where}"
        return builder.finish([self._zero(), loop, self._epilogue(row, rows, column, columns)], why, schedule)

    def _zero(self) -> Threads:
        r, c = Name("r"), Name("c")
        store = Store(self.sums, (r, c), Literal(0.0, self.dtype))
        inner = Loop(c, Literal(0), Literal(self.wide), (store,))
        return Threads(Name("t"), self.schedule.lanes, (Loop(r, Literal(0), Literal(self.high), (inner,)),))

    def _stage(self, tile: Buffer, operand: int, ends: dict[str, tuple[Expression, Expression]]) -> Statement:
        """A tile of an operand into shared memory: as a rectangle where it lies as one, else element by element.

        :param ends: the tile's two dimensions in order: where it begins, and where the matrix ends
        """
        value, names = operand_of(self.anchor, operand), tuple(ends)
        ready = matrix_parameter(self.context, self.roles, value) if operand == self.roles.right else None
        if ready is not None and ready.dtype == tile.dtype:
            place: Load | None = self.builder.place(ready, [Name(name) for name in names])
        else:
            place = self.builder.locate(value, index_of(self.roles, operand, self.letters))
        whole = place is not None and place.buffer.dtype == tile.dtype
        if whole and place is not None and place.index == tuple(Name(name) for name in names):
            return CopyTile(tile, place.buffer, tuple(begin for begin, _ in ends.values()), self.schedule.lanes)
        return self._gather(tile, value, operand, ends, place)

    def _gather(
        self,
        tile: Buffer,
        value: Value,
        operand: int,
        ends: dict[str, tuple[Expression, Expression]],
        place: Load | None,
    ) -> Threads:
        """Every lane takes some elements; neighbours take those that lie side by side in memory."""
        (first, (start, stop)), (second, (begin, end)) = ends.items()
        lanes, extents = self.schedule.lanes, [int(getattr(size, "value", 1)) for size in tile.shape]
        fast_first = place is not None and runs_along(place, first) and not runs_along(place, second)
        fastest = extents[0] if fast_first else extents[1]
        element, turn, lane = Name("element"), Name("turn"), Name("t")
        u, v = Name("u"), Name("v")
        digits = (element % fastest, element // fastest) if fast_first else (element // fastest, element % fastest)
        reader = self.builder.lane()
        found = reader.value(value, index_of(self.roles, operand, self.letters))
        stored = Store(tile, (u, v), cast(found, tile.dtype))
        empty = Store(tile, (u, v), cast(Literal(0.0, self.dtype), tile.dtype))
        inside = apply("and", Name(first) < stop, Name(second) < end)
        body: Sequence[Statement] = (
            Let(element, turn * lanes + lane), Let(u, digits[0]), Let(v, digits[1]), Let(Name(first), start + u), Let(Name(second), begin + v),
            Branch(inside, (*reader.statements, stored), (empty,)),
        )  # fmt: skip
        return Threads(lane, lanes, (Loop(turn, Literal(0), Literal(extents[0] * extents[1] // lanes), tuple(body)),))

    def _epilogue(self, row: Expression, rows: Expression, column: Expression, columns: Expression) -> Threads:
        """What is added and the nodes behind, on the sums."""
        roles, builder, lane, r, c = self.roles, self.builder, Name("t"), Name("r"), Name("c")
        reader = builder.lane()
        total: Expression = Load(self.sums, (r, c))
        if roles.added is not None:
            added = reader.value(operand_of(self.anchor, roles.added), index_of(roles, roles.added, self.letters))
            total = total + cast(added, self.dtype)
        result = tuple(self.letters[x] if isinstance(x, str) else Literal(0) for x in roles.instance.outputs[0])
        summed = Name("total", self.dtype)
        reader.statements.append(Let(summed, total))
        store_results(reader, self.group, result, summed)
        inside = apply("and", Name("row") < rows, Name("column") < columns)
        alone = self.schedule.lanes == _WARP
        body: tuple[Statement, ...] = (
            Let(Name("row"), row + r if alone else row + lane // _WARP * self.high + r),
            Let(Name("column"), column + c * _WARP + (lane if alone else lane % _WARP)),
            Branch(inside, tuple(reader.statements)),
        )
        inner = Loop(c, Literal(0), Literal(self.wide), body)
        return Threads(lane, self.schedule.lanes, (Loop(r, Literal(0), Literal(self.high), (inner,)),))
