"""Kernels over segments of rows that have a few numbers each, such as an attention's scores: lanes stand side by side over rows.

Each feature has a part of its own. What a later pass needs again is kept where the row's last number will be written.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from suture.codegen.ragged.domain import RaggedLane
from suture.codegen.ragged.grouping import RaggedGroup, operand_of
from suture.codegen.ragged.pieces import Pieces
from suture.codegen.ragged.writer import COMBINING, RaggedWriter, neutral, wide
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Survey
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Expression,
    Literal,
    Load,
    Name,
    Reduce,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    cast,
)

_LANES = {"cpp": 16, "cuda": 32}


class NarrowWriter(RaggedWriter):
    """Lanes over rows."""

    def __init__(
        self, group: RaggedGroup, context: Context, found: Survey, pieces: Pieces | None = None, only: int | None = None
    ) -> None:
        super().__init__(group, context, found, "segment_rows", pieces, only)
        self.lanes = self.at_once = _LANES[context.target]
        self.schedule = replace(self.choose(self.lanes), lanes=self.lanes, rows=1)
        self.known: list[dict[Value, Expression]] = []

    def write(self) -> KernelStep:
        """The kernel."""
        sizes = [axis.size for axis in self.found.domain.axes]
        features = list(itertools.product(*(range(size) for size in sizes if isinstance(size, int))))
        axes = self.found.domain.axes
        self.known = [{} for _ in features]
        self.each = [{axis.name: Literal(at) for axis, at in zip(axes, feature, strict=True)} for feature in features]
        body: list[Statement] = []
        self.kept = {value: home.buffer for value, home in self.keep().items()}
        for number in range(self.count):
            body += self._pass(number)
        body += self._last()
        return self.finish(body, (), self.schedule)

    def _at(self, feature: int) -> None:
        """From now on, elements are those of one feature."""
        index = tuple(
            self.each[feature][dim[0].name] if len(dim) == 1 else Literal(0) for dim in self.found.domain.dims
        )
        self.set_places(index)
        self.registers = self.known[feature]

    def _pass(self, number: int) -> list[Statement]:
        """One pass over the segment's rows, for each feature, and what then meets."""
        statements: list[Statement] = []
        pieces: list[Statement] = []
        starts: list[Statement] = []
        reduces: list[Statement] = []
        self.met: list[list[tuple[Node, Load]]] = []
        for feature in range(len(self.known)):
            self._at(feature)
            lane, of_piece, begin, met = self._feature(number)
            statements += lane.statements
            pieces += of_piece
            starts += begin
            reduces += met
        turn, t = Name("turn"), Name("t")
        loops = [self.over_rows(turn, statements, t)] if statements else []
        loops += [self.over_pieces(turn, pieces, t)] if pieces else []
        return [Threads(t, self.lanes, (*starts, *loops)), *reduces] if loops else reduces

    def _feature(self, number: int) -> tuple[RaggedLane, list[Statement], list[Statement], list[Statement]]:
        """The statements of a row, of a piece, of the beginning and of the end of a pass."""
        reductions = self.passes.reductions(number)
        lane = self.lane()
        starts: list[Statement] = []
        ends: list[Statement] = []
        results: dict[Value, Expression] = {}
        pieces: list[Statement] = []
        totals: list[tuple[Node, Load]] = []
        for node in reductions:
            part = self.builder.local(f"part{len(self.builder.locals)}", wide(node), (), Scope.THREAD)
            total = self.builder.local(f"met{len(self.builder.locals)}", wide(node), (), Scope.UNIFORM)
            starts.append(Store(part, (), neutral(node)))
            if self.reads_rows(number):
                element = cast(self.element(lane, operand_of(node)), part.dtype)
                lane.statements.append(Update(part, (), COMBINING[node.operator.name], element))
            pieces += self.of_piece(number, [(node, Load(part, ()))])
            ends.append(Reduce(total, COMBINING[node.operator.name], part, self.lanes))
            results[node.output] = self.result(node, Load(total, ()))
            totals.append((node, Load(total, ())))
        for value in self.passes.stored(number) if self.reads_rows(number) else ():
            lane.store(value, self.places[value], self.element(lane, value))
        first = self.passes.kept()
        for value, home in self.kept.items():
            if first[value] == number:
                place = Load(home, tuple(self.places[value][dim] for dim in self.context.order(value)))
                if self.reads_rows(number):
                    element = cast(self.element(lane, value), home.dtype)
                    lane.statements.append(Store(place.buffer, place.index, element))
                results[value] = cast(place, compute_type(value.dtype))
        self.registers |= results
        self.met.append(totals)
        return lane, pieces, starts, ends

    def _last(self) -> list[Statement]:
        """What is written once a segment, or once a piece, by one lane."""
        statements: list[Statement] = []
        for feature in range(len(self.known)):
            self._at(feature)
            lane = self.lane()
            for value in self.of_segments() if self.only is None else ():
                lane.store(value, self.places[value], self.element(lane, value))
            statements += lane.statements
            statements += [] if self.only is None else self.left(self.met[feature])
        if not statements:
            return []
        return [Threads(Name("t"), self.lanes, (Branch(Name("t") < 1, tuple(statements)),))]
