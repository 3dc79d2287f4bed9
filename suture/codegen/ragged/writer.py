"""What the ways of writing a kernel over segments share: the builder, passes over a segment's rows, and how they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from suture.codegen.access import Index
from suture.codegen.builder import KernelBuilder
from suture.codegen.ragged.domain import FIRST, LAST, ROW, SEGMENT, RaggedLane, enter, place_values
from suture.codegen.ragged.grouping import MEETING, RaggedGroup
from suture.codegen.ragged.pieces import CHUNK, SIDE, Pieces, is_busy
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Axis, Run, Survey
from suture.codegen.traversal.join import join_variables
from suture.codegen.traversal.passes import Passes
from suture.ir.graph import Node, Value
from suture.ir.kernel import Branch, Expression, Let, Literal, Load, Loop, Name, Statement, Store, Update, apply
from suture.ir.sizes import Dim

COMBINING = {"csr_sum": "+", "csr_max": "max", "sum": "+", "mean": "+"}
_END = Name("end")
_PIECE = Name("piece")


class RaggedWriter:
    """Writes the kernel of a group, or of one pass over the pieces of its long segments.

    :param found: its features
    :param pieces: of long segments, where they come in pieces
    :param only: the pass over pieces; None for the kernel of the segments
    """

    at_once = 1
    """Rows that are taken side by side."""
    beside = True
    """Whether what passes need again may be kept in memory of its own."""

    def __init__(
        self,
        group: RaggedGroup,
        context: Context,
        found: Survey,
        name: str,
        pieces: Pieces | None = None,
        only: int | None = None,
    ) -> None:
        self.group, self.context, self.found, self.pieces, self.only = group, context, found, pieces, only
        self.builder = KernelBuilder(context, group.nodes, name if only is None else f"{name}_pieces")
        pointers = group.pointers
        assert pointers is not None
        if pieces is not None and only is not None:
            self.builder.grid(CHUNK.name, self.builder.size(pieces.where.shape[0]))
            self.builder.variable(SIDE.name, Literal(0), Literal(2))
        else:
            self.builder.grid(SEGMENT.name, self.builder.size(pointers.shape[0] - 1))
        self.ends = enter(group, self.builder)
        self.end = LAST
        if pieces is not None and only is None:
            self.ends.append(Let(_END, pieces.short_end(FIRST, LAST)))
            self.end = _END
        found.domain.bind(self.builder)
        self.sizes: dict[str, Dim] = {
            axis.name: self.builder.indices.dim(self.builder.size(axis.size)) for axis in found.domain.axes
        }
        self.set_places(found.domain.index(self.builder))
        self.registers: dict[Value, Expression] = {}

    def set_places(self, index: Index) -> None:
        """Where values stand, for an index of features."""
        self.places = place_values(self.group, index, self.builder)
        self.passes = Passes(self.group, self.places, (Axis(ROW.name, self.group.rows, True),), reducing=MEETING)

    def lane(self) -> RaggedLane:
        """A lane that knows the registers."""
        return RaggedLane(self.builder, self.registers, self.group)

    def element(self, lane: RaggedLane, value: Value) -> Expression:
        """The element of a value at the features' variables."""
        return lane.value(value, self.places[value])

    def result(self, node: Node, total: Expression) -> Expression:
        """What a node over segments is, from the sum or extreme."""
        if node.operator.name != "csr_max":
            return total
        empty = node.attributes["empty"]
        assert isinstance(empty, int | float)
        return apply("select", FIRST < LAST, total, Literal(empty, total.dtype))

    def choose(self, lanes: int, rows: int = 1) -> TraversalSchedule:
        """The schedule that was chosen for the group, or the default."""
        return self.context.schedule(self.group, TraversalSchedule(lanes, rows=rows, split=self.context.split))

    # rows and pieces

    @property
    def count(self) -> int:
        """How many passes this kernel knows of."""
        return self.passes.count if self.only is None else self.only + 1

    def reads_rows(self, number: int) -> bool:
        """Whether a pass of this kernel is over rows; what an earlier kernel did is known from its pieces."""
        return self.only is None or number == self.only

    def has_rows(self, number: int) -> bool:
        """Whether a pass of the group has anything to do for each row."""
        kept = number in self.passes.kept().values()
        return kept or bool(self.passes.reductions(number) or self.passes.stored(number))

    def over_rows(self, variable: Name, body: Sequence[Statement], lane: Expression | None = None) -> Statement:
        """A lane's loop over rows, of which `at_once` are taken side by side.

        :param lane: which of those it is
        """
        count, lane = self.at_once, Literal(0) if lane is None else lane
        if self.pieces is None or self.only is None:
            if count == 1:
                return Loop(ROW, FIRST, self.end, tuple(body))
            steps = (self.end - FIRST - lane + (count - 1)) // count
            return Loop(variable, Literal(0), steps, (Let(ROW, FIRST + variable * count + lane), *body))
        start, stop = (end - lane + (count - 1) for end in self._within(self.pieces.rows))
        row = Let(ROW, CHUNK * self.pieces.rows + variable * count + lane)
        return Loop(variable, start // count, stop // count, (row, *body))

    def rows_of_block(self, variable: Name, lane: Expression) -> tuple[Let, Expression, Expression, Expression]:
        """As `over_rows`, for a loop that is the block's: all lanes take every turn.

        :returns: the row, where there is one, and where the loop begins and ends
        """
        count = self.at_once
        if self.pieces is None or self.only is None:
            row = Let(ROW, FIRST + variable * count + lane)
            return row, apply("<", ROW, self.end), Literal(0), (self.end - FIRST + (count - 1)) // count
        start, stop = self._within(self.pieces.rows)
        row = Let(ROW, CHUNK * self.pieces.rows + variable * count + lane)
        return row, apply("and", FIRST <= ROW, ROW < LAST), start // count, (stop + (count - 1)) // count

    def _within(self, rows: int) -> tuple[Expression, Expression]:
        """Where in its chunk a piece begins, and where it ends."""
        begin = CHUNK * rows
        return apply("max", FIRST - begin, Literal(0)), apply("min", LAST - begin, Literal(rows))

    def over_pieces(self, variable: Name, body: Sequence[Statement], lane: Expression | None = None) -> Statement:
        """A lane's loop over the pieces of a segment that is long, taken as rows are."""
        assert self.pieces is not None
        count, rows = self.at_once, self.pieces.rows
        start, stop = FIRST // rows, (LAST + (rows - 1)) // rows
        loop = Loop(_PIECE, start, stop, tuple(body))
        if lane is not None:
            piece = Let(_PIECE, start + variable * count + lane)
            inside = Branch(apply("<", _PIECE, stop), tuple(body))
            loop = Loop(variable, Literal(0), (stop - start + (count - 1)) // count, (piece, inside))
        return Branch(self.pieces.is_long(FIRST, LAST), (loop,))

    def of_piece(self, number: int, met: Sequence[tuple[Node, Load]]) -> list[Statement]:
        """What a pass meets in a piece, where an earlier kernel left it.

        :param met: what each of its nodes has met so far
        """
        if self.pieces is None or number == self.only:
            return []
        found: list[Statement] = []
        for node, part in met:
            index = (_PIECE, self.pieces.side(FIRST, _PIECE), *self.places[node.output][1:])
            theirs = self.builder.place(self.pieces.sums[node], index)
            found.append(Update(part.buffer, part.index, COMBINING[node.operator.name], theirs))
        return found

    def left(self, met: Sequence[tuple[Node, Load]]) -> list[Statement]:
        """What a piece leaves for those who need its segment's sums."""
        assert self.pieces is not None
        found: list[Statement] = []
        for node, part in met:
            place = self.builder.place(self.pieces.sums[node], (CHUNK, SIDE, *self.places[node.output][1:]))
            found.append(Store(place.buffer, place.index, part))
        return found

    def keep(self) -> dict[Value, Load]:
        """Where each value is kept that later passes need again."""
        homes = self.homes() if self.pieces is None else self.pieces.kept
        return {value: self.builder.place(home, self.places[value]) for value, home in homes.items()}

    def homes(self) -> dict[Value, Value]:
        """What each value is kept in that later passes need again: a result that is written last, or memory of its own."""
        found: dict[Value, Value] = {}
        last = self.passes.count - 1
        spare = [
            value for value in self.group.outputs
            if not self.passes.is_row(value) and self.passes.number[value] == last and value not in self.group.inputs
        ]  # fmt: skip
        taken: dict[Value, int] = {}
        for value, first in self.passes.kept().items():
            dtype = compute_type(value.dtype)
            readers = [each for node in self.group.nodes if value in node.inputs for each in node.outputs]
            home = next(
                (
                    each
                    for each in spare
                    if each.dtype == dtype and each.shape == value.shape and taken.get(each, -1) <= first
                ),
                None,
            )
            if home is None and not self.beside:
                continue
            home = home or self.context.temporary(dtype, value.shape, "kept")
            taken[home] = max((self.passes.number[each] for each in readers), default=last)
            found[value] = home
        return found

    def of_segments(self) -> list[Value]:
        """What is written once a segment."""
        return [value for value in self.group.outputs if self.passes.is_row(value)]

    def finish(self, body: Sequence[Statement], runs: Sequence[Run], schedule: TraversalSchedule) -> KernelStep:
        """The kernel, joined axes as one variable."""
        whole: list[Statement] = [*self.ends, *body]
        why = str(self.group)
        if self.pieces is not None and self.only is not None:
            busy = Branch(is_busy(self.pieces, FIRST, LAST), tuple(body))
            segment = Let(SEGMENT, self.pieces.found(self.builder))
            whole = [Loop(SIDE, Literal(0), Literal(2), (segment, *self.ends, busy))]
            why = f"pass {self.only + 1} over segments of more than {self.pieces.rows} rows, in pieces: {why}"
        step = self.builder.finish(whole, why, schedule)
        return replace(step, kernel=join_variables(step.kernel, runs, self.sizes, self.builder.indices))


def wide(node: Node) -> torch.dtype:
    """The type in which rows meet."""
    return compute_type(node.output.dtype)


def neutral(node: Node) -> Expression:
    """What meets nothing."""
    dtype = wide(node)
    if COMBINING[node.operator.name] == "+":
        return Literal(0.0 if dtype.is_floating_point else 0, dtype)
    if dtype.is_floating_point:
        return Literal(-math.inf, dtype)
    return apply(
        "-", Literal(torch.iinfo(dtype).min + 1, dtype), Literal(1, dtype)
    )  # the least number has no literal in C
