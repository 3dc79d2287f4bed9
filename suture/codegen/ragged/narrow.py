"""Kernels over segments of rows that have a few numbers each, such as an attention's scores: lanes stand side by side over rows.

Each feature has a part of its own. What a later pass needs again is kept where the row's last number will be written.
"""

from __future__ import annotations

import itertools

from suture.codegen.ragged.domain import FIRST, LAST, ROW, RaggedLane
from suture.codegen.ragged.grouping import RaggedGroup, operand_of
from suture.codegen.ragged.writer import COMBINING, RaggedWriter, neutral, wide
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Survey
from suture.ir.graph import Value
from suture.ir.kernel import (
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
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

    def __init__(self, group: RaggedGroup, context: Context, found: Survey) -> None:
        super().__init__(group, context, found, "segment_rows")
        self.lanes = _LANES[context.target]
        self.known: list[dict[Value, Expression]] = []

    def write(self) -> KernelStep:
        """The kernel."""
        sizes = [axis.size for axis in self.found.domain.axes]
        features = list(itertools.product(*(range(size) for size in sizes if isinstance(size, int))))
        axes = self.found.domain.axes
        self.known = [{} for _ in features]
        self.each = [{axis.name: Literal(at) for axis, at in zip(axes, feature, strict=True)} for feature in features]
        body: list[Statement] = []
        self.kept = {value: home.buffer for value, home in self.keep(beside=True).items()}
        for number in range(self.passes.count):
            body += self._pass(number)
        body += self._segments()
        return self.finish(body, (), TraversalSchedule(self.lanes))

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
        starts: list[Statement] = []
        reduces: list[Statement] = []
        for feature in range(len(self.known)):
            self._at(feature)
            lane, begin, met = self._feature(number)
            statements += lane.statements
            starts += begin
            reduces += met
        if not statements:
            return reduces
        turn, t = Name("turn"), Name("t")
        turns = (LAST - FIRST - t + (self.lanes - 1)) // self.lanes
        place = Let(ROW, FIRST + turn * self.lanes + t)
        loop = Loop(turn, Literal(0), turns, (place, *statements))
        return [Threads(t, self.lanes, (*starts, loop)), *reduces]

    def _feature(self, number: int) -> tuple[RaggedLane, list[Statement], list[Statement]]:
        """The statements of a row, of the beginning and of the end of a pass."""
        reductions = self.passes.reductions(number)
        lane = self.lane()
        starts: list[Statement] = []
        ends: list[Statement] = []
        results: dict[Value, Expression] = {}
        for node in reductions:
            part = self.builder.local(f"part{len(self.builder.locals)}", wide(node), (), Scope.THREAD)
            total = self.builder.local(f"met{len(self.builder.locals)}", wide(node), (), Scope.UNIFORM)
            starts.append(Store(part, (), neutral(node)))
            element = cast(self.element(lane, operand_of(node)), part.dtype)
            lane.statements.append(Update(part, (), COMBINING[node.operator.name], element))
            ends.append(Reduce(total, COMBINING[node.operator.name], part, self.lanes))
            results[node.output] = self.result(node, Load(total, ()))
        for value in self.passes.stored(number):
            lane.store(value, self.places[value], self.element(lane, value))
        first = self.passes.kept()
        for value, home in self.kept.items():
            if first[value] == number:
                place = Load(home, tuple(self.places[value][dim] for dim in self.context.order(value)))
                lane.statements.append(Store(place.buffer, place.index, cast(self.element(lane, value), home.dtype)))
                results[value] = cast(place, compute_type(value.dtype))
        self.registers |= results
        return lane, starts, ends

    def _segments(self) -> list[Statement]:
        """What is written once a segment, by one lane."""
        statements: list[Statement] = []
        for feature in range(len(self.known)):
            self._at(feature)
            lane = self.lane()
            for value in self.of_segments():
                lane.store(value, self.places[value], self.element(lane, value))
            statements += lane.statements
        if not statements:
            return []
        return [Threads(Name("t"), self.lanes, (Branch(Name("t") < 1, tuple(statements)),))]
