"""What products by type on a GPU share: tiles of operands that come into shared memory, sums that begin at zero, and schedules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.codegen.builder import Lane
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import CudaGemmSchedule
from suture.ir.graph import Value
from suture.ir.kernel import (
    Branch,
    Buffer,
    Expression,
    Let,
    Literal,
    Loop,
    Name,
    Statement,
    Store,
    Threads,
    cast,
)
from suture.ir.kernel_collectives import number
from suture.ir.sizes import Dim

WARP = 32
_SHORT = (torch.bfloat16, torch.float16)


def staged_type(first: Value, second: Value) -> torch.dtype:
    """The type in which tiles are in shared memory: that of short operands, for tensor cores; else that of the sums."""
    same = first.dtype == second.dtype and first.dtype in _SHORT
    return first.dtype if same else compute_type(first.dtype)


def is_vector(rows: Dim, columns: Dim) -> bool:
    """Whether a result has one row or column: one warp then does all of a tile, so that lanes are told apart by the other."""
    return 1 in (rows, columns)


def schedule_for(rows: Dim, columns: Dim, staged: torch.dtype, *, tall: int) -> CudaGemmSchedule:
    """Tiles of 32 or 64 columns, and of as many rows as there are, or `tall`.

    :param tall: rows of a large tile where nothing but registers sets a limit
    """
    if is_vector(rows, columns):
        return CudaGemmSchedule(16, 32, 32, WARP)
    wide = 32 if isinstance(columns, int) and columns <= 32 else 64
    if staged in _SHORT:
        high = 32 if isinstance(rows, int) and rows <= 32 else 64
        return CudaGemmSchedule(high, wide, 32, high * 2)  # 16 rows to a warp
    high = 32 if isinstance(rows, int) and rows <= 32 else tall
    return CudaGemmSchedule(high, wide, 16 if staged == torch.float64 else 32, 256 if staged == torch.float64 else 128)


def zero(sums: Buffer, lanes: int) -> Threads:
    """All sums of all lanes become zero."""
    r, c = Name("r"), Name("c")
    high, wide = sums.shape
    inner = Loop(c, Literal(0), wide, (Store(sums, (r, c), Literal(0.0, sums.dtype)),))
    return Threads(Name("t"), lanes, (Loop(r, Literal(0), high, (inner,)),))


def stage(
    tile: Buffer, lanes: int, names: tuple[str, str], starts: tuple[Expression, Expression], inside: Expression, reader: Lane, value: Expression,
    *, fast_first: bool = False,
) -> Threads:  # fmt: skip
    """A tile of an operand into shared memory: lanes take its elements in turn, neighbours those that lie side by side; zeros outside.

    :param names: the variables of the tile's two dimensions, in which `inside` and `value` are written
    :param starts: where the tile begins
    :param fast_first: whether elements of the first dimension lie side by side in memory
    """
    high, wide = (number(size) for size in tile.shape)
    element, turn, lane, u, v = (Name(name) for name in ("element", "turn", "t", "u", "v"))
    digits = (element % high, element // high) if fast_first else (element // wide, element % wide)
    found: Sequence[Statement] = (*reader.statements, Store(tile, (u, v), cast(value, tile.dtype)))
    empty = Store(tile, (u, v), cast(Literal(0.0, value.dtype), tile.dtype))
    body: tuple[Statement, ...] = (
        Let(element, turn * lanes + lane), Let(u, digits[0]), Let(v, digits[1]),
        Let(Name(names[0]), starts[0] + u), Let(Name(names[1]), starts[1] + v), Branch(inside, tuple(found), (empty,)),
    )  # fmt: skip
    return Threads(lane, lanes, (Loop(turn, Literal(0), Literal(high * wide // lanes), body),))


def spread(lanes: int, sums: Buffer, body: Sequence[Statement], first: tuple[Expression, Expression]) -> Threads:
    """A region in which each lane takes its sums `r`, `c`, at `row` and `column`.

    :param first: where the block's tile begins
    """
    lane, r, c = Name("t"), Name("r"), Name("c")
    high, wide = (number(size) for size in sums.shape)
    alone = lanes == WARP
    row = first[0] + r if alone else first[0] + lane // WARP * high + r
    column = first[1] + c * WARP + (lane if alone else lane % WARP)
    inner = Loop(c, Literal(0), Literal(wide), (Let(Name("row"), row), Let(Name("column"), column), *body))
    return Threads(lane, lanes, (Loop(r, Literal(0), Literal(high), (inner,)),))
