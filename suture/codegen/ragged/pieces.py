"""Long segments in pieces: what keeps one segment of very many rows from being the work of one block.

Rows are cut at every multiple of `rows`. Of the segments longer than that, a chunk of rows holds at most two: the one that its first row is of, and
one that begins behind that and goes on beyond the chunk. A kernel for each pass gives the chunk's rows of either to a block, which leaves what they
add up to in memory; what needs a segment's sum or extreme takes that of its pieces, in their order. Shorter segments stay whole, in the kernel that
also writes what long ones end in. Nothing is scattered, and the sums are the same bits at every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from suture.codegen.builder import KernelBuilder
from suture.codegen.ragged.grouping import RaggedGroup
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Apply,
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)
from suture.ir.sizes import Dim, floor_divide

CHUNK, SIDE = Name("chunk"), Name("side_of_chunk")
_LANES = 64
_HALVINGS = 32  # of the segments, until one is left: there are fewer than 2^32


@dataclass
class Pieces:
    """The pieces of a group's long segments.

    :param rows: of a chunk; segments of more are long
    :param where: the segment of a chunk's first row, and of its last
    :param sums: what the rows of a piece add up to, or the largest, by the node that meets them
    :param kept: where values are kept from one pass's kernel to the next's
    """

    group: RaggedGroup
    rows: int
    where: Value
    sums: dict[Node, Value]
    kept: dict[Value, Value] = field(default_factory=dict)

    def number(self, at: Expression) -> Expression:
        """The chunk that a row lies in."""
        return at // self.rows

    def side(self, first: Expression, chunk: Expression) -> Expression:
        """Which of a chunk's two pieces is that of a long segment with this first row."""
        return apply("min", apply("max", first - chunk * self.rows, Literal(0)), Literal(1))

    def is_long(self, first: Expression, last: Expression) -> Expression:
        """Whether a segment comes in pieces."""
        return Literal(self.rows) < last - first

    def short_end(self, first: Expression, last: Expression) -> Expression:
        """Where a segment's rows end, for who takes whole segments alone: where a long one begins.

        It is written without a condition, so that loops to there are seen to end within the segment.
        """
        room = (Literal(self.rows + 1) - (last - first)) * self.rows
        return apply("min", last, first + apply("max", room, Literal(0)))

    def found(self, builder: KernelBuilder) -> Load:
        """The segment that a block's piece is of."""
        assert self.group.pointers is not None
        builder.bounded(self.where, self.group.pointers.shape[0] - 1)
        return builder.place(self.where, (CHUNK, SIDE))


def chunks_of(rows: Dim, length: int) -> Dim:
    """How many chunks there are."""
    return floor_divide(rows + (length - 1), length)


def cut(group: RaggedGroup, context: Context, rows: int, met: list[Node]) -> Pieces:
    """The pieces of a group's segments, and memory for what they add up to.

    :param met: the nodes that meet a segment's rows
    """
    chunks = chunks_of(group.rows, rows)
    sums = {
        node: context.temporary(compute_type(node.output.dtype), (chunks, 2, *node.output.shape[1:]), "pieces")
        for node in met
    }
    return Pieces(group, rows, context.temporary(torch.int64, (chunks, 2), "piece_segments"), sums)


def locate(pieces: Pieces, context: Context) -> KernelStep:
    """The kernel that finds the segments of each chunk's first and last row, by halving."""
    group, rows = pieces.group, pieces.rows
    pointers = group.pointers
    assert pointers is not None
    builder = KernelBuilder(context, (), "piece_segments")
    builder.pointers(pointers, group.rows)
    count, segments = builder.size(pieces.where.shape[0]), builder.size(pointers.shape[0] - 1)
    block = builder.grid("block", (count + (_LANES - 1)) // _LANES)
    lane, row, middle = Name("t"), Name("row"), Name("middle")
    low, high = (Load(builder.local(name, torch.int64, (), Scope.THREAD), ()) for name in ("low", "high"))
    halfway = apply("min", apply("max", (low + high) // 2, Literal(0)), segments)
    before = cast(builder.place(pointers, (middle,)), Literal(0).dtype) <= row
    halve: tuple[Statement, ...] = (
        Let(middle, halfway),
        Branch(before, (Store(low.buffer, (), middle),), (Store(high.buffer, (), middle),)),
    )
    target = builder.place(pieces.where, (CHUNK, SIDE))
    end = apply("min", CHUNK * rows + SIDE * (rows - 1), builder.size(group.rows) - 1)
    find: tuple[Statement, ...] = (
        Let(row, end),
        Store(low.buffer, (), Literal(0)),
        Store(high.buffer, (), segments),
        Loop(Name("turn"), Literal(0), Literal(_HALVINGS), halve),
        Store(target.buffer, target.index, low),
    )
    body: tuple[Statement, ...] = (
        Let(CHUNK, block * _LANES + lane),
        Branch(apply("<", CHUNK, count), (Loop(SIDE, Literal(0), Literal(2), find),)),
    )
    why = f"the segments at both ends of every {rows} rows of {group.rows}"
    return builder.finish([Threads(lane, _LANES, body)], why)


def is_busy(pieces: Pieces, first: Expression, last: Expression) -> Expression:
    """Whether a block's side of its chunk is a piece of a long segment."""
    return Apply("and", (pieces.is_long(first, last), apply("==", pieces.side(first, CHUNK), SIDE)), torch.bool)
