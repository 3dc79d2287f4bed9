"""Kernels over segments whose lanes stand side by side over features.

On a CPU each lane runs over all rows of a segment. On a GPU a block has several teams of lanes, which take turns at the rows, so that rows are under
way together and a segment of very many is no one lane's; what the teams have met then meets in the block's memory, in the teams' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from suture.codegen.ragged.domain import RaggedLane
from suture.codegen.ragged.features import on_cpu, on_gpu
from suture.codegen.ragged.grouping import RaggedGroup, operand_of
from suture.codegen.ragged.pieces import Pieces
from suture.codegen.ragged.writer import COMBINING, RaggedWriter, neutral, wide
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Survey
from suture.ir.graph import Node
from suture.ir.kernel import (
    Branch,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    cast,
)

_FEW = 16  # features of which what passes need again may lie in memory of its own
_DEAR = 4  # what costs as many additions is computed once a segment
_BLOCK = 256  # lanes of a GPU's block
_MOST = 1024  # lanes that it may have
_TEAMS = 16


class WideWriter(RaggedWriter):
    """Lanes over features."""

    def __init__(
        self, group: RaggedGroup, context: Context, found: Survey, pieces: Pieces | None = None, only: int | None = None
    ) -> None:
        super().__init__(group, context, found, "segments", pieces, only)
        self.beside = isinstance(group.width, int) and group.width <= _FEW
        if context.target == "cuda":
            self.features = on_gpu(self.builder, found, Name("side"))
            lanes = self.features.lanes
            rows = max(1, min(_TEAMS, _BLOCK // lanes))
        else:
            self.features, rows = on_cpu(self.builder, found), 1
            lanes = self.features.lanes
        chosen = self.choose(lanes, rows)
        self.teams = max(1, min(chosen.rows, _MOST // lanes)) if context.target == "cuda" else 1
        self.at_once, self.schedule = self.teams, replace(chosen, lanes=lanes, rows=self.teams)

    def write(self) -> KernelStep:
        """The kernel."""
        self.kept = self.keep()
        first = self.passes.kept()
        regions: list[list[Statement]] = []
        for number in range(self.count):
            self.now = {value: home for value, home in self.kept.items() if first[value] == number}
            before = self._of_segments(number)
            rows, *together = self._pass(number)
            regions += [[*before, *rows], *together]
        last = self._results() if self.only is None else self.features.over(self.left(self.met))
        return self.finish(self._regions([each for each in regions if each], last), self.features.runs, self.schedule)

    def _regions(self, regions: Sequence[list[Statement]], last: list[Statement]) -> list[Statement]:
        """The regions of a block: on a CPU all is one."""
        features = self.features
        if self.context.target != "cuda":
            body = [*features.once(), *(statement for each in regions for statement in each), *last]
            return [Threads(features.lane, features.lanes, tuple(body))]
        lane, count = Name("t"), features.lanes * self.teams
        sides = [Let(Name("team"), lane // features.lanes), Let(features.lane, lane % features.lanes)]
        made: list[Statement] = [Threads(lane, count, (*sides, *features.once(), *each)) for each in regions]
        if last:
            own = (Let(features.lane, lane), *features.once(), *last)
            made.append(Threads(lane, count, (Branch(lane < features.lanes, own),)))
        return made

    def _results(self) -> list[Statement]:
        """What is written once a segment."""
        lane = self.lane()
        for value in self.of_segments():
            lane.store(value, self.places[value], self.element(lane, value))
        return self.features.over(lane.statements) if lane.statements else []

    def _own(self, node: Node, what: str) -> Load:
        buffer = self.builder.local(f"{what}{len(self.builder.locals)}", wide(node), self.features.shape, Scope.THREAD)
        return Load(buffer, tuple(self.features.index))

    def _of_segments(self, number: int) -> list[Statement]:
        """What is dear and the same for all rows is computed once a segment."""
        lane = self.lane()
        made = {}
        for value in self.passes.rows(number):
            node = value.producer
            if node is not None and value in self.places and self.passes.cost(value, []) >= _DEAR:
                own = self._own(node, "segment")
                element = cast(self.element(lane, value), own.dtype)
                lane.statements.append(Store(own.buffer, own.index, element))
                made[value] = own
        self.registers |= made
        return self.features.over(lane.statements) if lane.statements else []

    def _pass(self, number: int) -> list[list[Statement]]:
        """One pass over the segment's rows, and how teams meet behind it."""
        reductions = self.passes.reductions(number)
        parts = [self._own(node, "met") for node in reductions]
        lane = self.lane()
        if self.reads_rows(number):
            self._of_row(lane, number, parts, reductions)
        self.registers |= {value: cast(home, compute_type(value.dtype)) for value, home in self.now.items()}
        for part, node in zip(parts, reductions, strict=True):
            self.registers[node.output] = self.result(node, part)
        self.met = [*zip(reductions, parts, strict=True)]
        turn, team = Name("step"), Name("team") if self.teams > 1 else None
        loops = [self.over_rows(turn, self.features.over(lane.statements), team)] if lane.statements else []
        pieces = self.of_piece(number, self.met)
        loops += [self.over_pieces(turn, self.features.over(pieces), team)] if pieces else []
        if not loops:
            return [[]]
        start = [Store(part.buffer, part.index, neutral(node)) for part, node in zip(parts, reductions, strict=True)]
        rows = [*(self.features.over(start) if start else []), *loops]
        if self.teams == 1 or not parts:
            return [rows]
        sent, met = self._meeting(parts, reductions)
        return [[*rows, *sent], met]

    def _of_row(self, lane: RaggedLane, number: int, parts: Sequence[Load], reductions: Sequence[Node]) -> None:
        """What is done for each row in a pass."""
        for part, node in zip(parts, reductions, strict=True):
            element = cast(self.element(lane, operand_of(node)), part.dtype)
            lane.statements.append(Update(part.buffer, part.index, COMBINING[node.operator.name], element))
        for value in self.passes.stored(number):
            lane.store(value, self.places[value], self.element(lane, value))
        for value, home in self.now.items():
            lane.statements.append(Store(home.buffer, home.index, cast(self.element(lane, value), home.dtype)))

    def _meeting(self, parts: Sequence[Load], reductions: Sequence[Node]) -> tuple[list[Statement], list[Statement]]:
        """Each team leaves what it has met; then each lane takes that of all teams."""
        sent: list[Statement] = []
        met: list[Statement] = []
        other = Name("other")
        for part, node in zip(parts, reductions, strict=True):
            shape = (self.teams, *self.features.shape, self.features.lanes)
            stage = self.builder.local(f"stage{len(self.builder.locals)}", part.dtype, shape, Scope.SHARED)
            sent.append(Store(stage, (Name("team"), *part.index, self.features.lane), part))
            met.append(Store(part.buffer, part.index, neutral(node)))
            theirs = Load(stage, (other, *part.index, self.features.lane))
            update = Update(part.buffer, part.index, COMBINING[node.operator.name], theirs)
            met.append(Loop(other, Literal(0), Literal(self.teams), (update,)))
        return self.features.over(sent), self.features.over(met)
