"""Traversals whose lanes stand side by side over what is kept, each with a reduction of its own; and those that reduce nothing."""

from __future__ import annotations

from suture.codegen.step import KernelStep
from suture.codegen.traversal.domain import PassLane, Run
from suture.codegen.traversal.writer import Writer, fixed, neutral, wide
from suture.ir.kernel import Expression, Let, Literal, Loop, Name, Statement, Store, Threads, apply, cast


class ColumnWriter(Writer):
    """Lanes over columns; every pass loops over the reduced axes."""

    def write(self) -> KernelStep:
        """The kernel."""
        for run in self.runs:
            if not run.reduced and run is not self.lane:
                self.builder.grid(run.name, self.size(run))
        tile = max(self.schedule.tile // self.lanes, 1) * self.lanes
        number = self.builder.grid("tile", (self.size(self.lane) + (tile - 1)) // tile)
        self.reduced = [run for run in self.runs if run.reduced]
        index: list[Expression] = [Name(run.name) for run in self.reduced]
        self.kept = self.keep(self.reduced, index, [*map(fixed, self.reduced)])
        self.rows = self.new_lane()
        self.body: list[Statement] = []
        for each in range(self.passes.count):
            self._row_numbers(each)
            self._pass(each)
        return self.finish([Threads(Name("t"), self.lanes, tuple(self.over_lanes(self.body, (number, tile))))])

    def _row_numbers(self, number: int) -> None:
        """What follows from columns' numbers alone is computed once a column."""
        before = len(self.rows.statements)
        for value in self.passes.rows(number):
            self.registers[value] = self.element(self.rows, value)
        for value in self.group.outputs:
            if self.passes.number[value] == number and self.passes.is_row(value):
                self.rows.store(value, self.places[value], self.element(self.rows, value))
        self.body += self.rows.statements[before:]

    def _pass(self, number: int) -> None:
        """One pass over the reduced axes, and the reductions that it feeds."""
        reductions = self.passes.reductions(number)
        parts = self.parts(reductions)
        lane = self.new_lane()
        self.met(lane, parts, reductions)
        for value in self.passes.stored(number):
            lane.store(value, self.places[value], self.element(lane, value))
        self.store_kept(lane, self.kept, number)
        self.remember(self.kept, number)
        if lane.statements:
            self.body += [Store(part.buffer, (), neutral(node)) for part, node in zip(parts, reductions, strict=True)]
            self.body += self.over(self.reduced, lane.statements)
        for part, node in zip(parts, reductions, strict=True):
            name = Name(self.builder.fresh(), part.dtype)
            self.body.append(Let(name, cast(self.result(node, part), part.dtype)))
            self.registers[node.output] = name


class MapWriter(Writer):
    """Nothing is reduced: a block takes a tile of the lanes' run, and some rows of one other run."""

    def write(self) -> KernelStep:
        """The kernel."""
        others = [run for run in self.runs if run is not self.lane]
        length = fixed(self.lane)
        tile = max(self.schedule.tile // self.lanes, 1) * self.lanes
        rows = self.schedule.rows if others else 1
        chosen = self.second if self.second is not None else (others[-1] if others else None)
        for run in others:
            if run is not chosen or rows == 1:
                self.builder.grid(run.name, self.size(run))
        lane = self.new_lane()
        self._compute(lane)
        body: list[Statement]
        if length is not None and length <= tile:
            body = self.over_lanes(lane.statements)
        else:
            number = self.builder.grid("tile", (self.size(self.lane) + (tile - 1)) // tile)
            body = self.over_lanes(lane.statements, (number, tile))
        if chosen is not None and rows > 1:
            body = [self._over_rows(chosen, rows, body)]
        return self.finish([Threads(Name("t"), self.lanes, tuple(body))])

    second: Run | None = None
    """The run of which a block takes several rows; the innermost of the others if None."""

    def _compute(self, lane: PassLane) -> None:
        for node in self.group.reductions:  # over dimensions of size one: each is its operand
            operand = node.inputs[0]
            assert operand is not None
            self.registers[node.output] = cast(self.element(lane, operand), wide(node))
        for value in self.group.outputs:
            lane.store(value, self.places[value], self.element(lane, value))

    def _over_rows(self, run: Run, rows: int, body: list[Statement]) -> Statement:
        size = self.size(run)
        first = self.builder.grid(f"{run.name}_block", (size + (rows - 1)) // rows) * rows
        row = Name(f"{run.name}_row")
        whole = isinstance(size, Literal) and int(size.value) % rows == 0
        stop = Literal(rows) if whole else apply("min", size - first, Literal(rows))
        return Loop(row, Literal(0), stop, (Let(Name(run.name), first + row), *body))
