"""Traversals whose lanes run along a row that is reduced: partial results in registers, met by all lanes together."""

from __future__ import annotations

from suture.codegen.step import KernelStep
from suture.codegen.traversal.writer import COMBINING, Writer, fixed, neutral, wide
from suture.ir.graph import Value
from suture.ir.kernel import Branch, Expression, Load, Name, Reduce, Scope, Statement, Store, Threads, cast


class RowWriter(Writer):
    """One block for each row."""

    def write(self) -> KernelStep:
        """The kernel."""
        for run in self.runs:
            if not run.reduced:
                self.builder.grid(run.name, self.size(run))
        self.outer = [run for run in self.runs if run.reduced and run is not self.lane]
        length = fixed(self.lane)
        turns = None if length is None else -(-length // self.lanes)
        index: list[Expression] = [*(Name(run.name) for run in self.outer), self.turn]
        self.kept = self.keep(self.runs, index, [*map(fixed, self.outer), turns])
        self.rows = self.new_lane()
        body: list[Statement] = []
        for number in range(self.passes.count):
            body += self._row_numbers(number)
            body += self._pass(number)
        return self.finish(body)

    def _row_numbers(self, number: int) -> list[Statement]:
        """What follows from rows' numbers alone is computed once a row."""
        before = len(self.rows.statements)
        for value in self.passes.rows(number):
            self.registers[value] = self.element(self.rows, value)
        made = self.rows.statements[before:]
        for value in self.group.outputs:
            if self.passes.number[value] == number and self.passes.is_row(value):
                made.append(self._stored_once(value))
        return made

    def _stored_once(self, value: Value) -> Statement:
        """One lane writes a row's number."""
        lane = self.new_lane()
        lane.store(value, self.places[value], self.element(lane, value))
        return Threads(Name("t"), self.lanes, (Branch(Name("t") < 1, tuple(lane.statements)),))

    def _pass(self, number: int) -> list[Statement]:
        """One pass over the row, and the reductions that it feeds."""
        reductions = self.passes.reductions(number)
        parts = self.parts(reductions)
        lane = self.new_lane()
        self.met(lane, parts, reductions)
        for value in self.passes.stored(number):
            lane.store(value, self.places[value], self.element(lane, value))
        self.store_kept(lane, self.kept, number)
        self.remember(self.kept, number)
        body: list[Statement] = []
        if lane.statements:
            start = [Store(part.buffer, (), neutral(node)) for part, node in zip(parts, reductions, strict=True)]
            loops = self.over(self.outer, self.over_lanes(lane.statements))
            body.append(Threads(Name("t"), self.lanes, (*start, *loops)))
        for part, node in zip(parts, reductions, strict=True):
            target = self.builder.local(f"row{len(self.builder.locals)}", wide(node), (), Scope.UNIFORM)
            body.append(Reduce(target, COMBINING[node.operator.name], part.buffer, self.lanes))
            total = Load(target, ())
            result = self.result(node, total)
            if result != total:
                body.append(Store(target, (), cast(result, target.dtype)))
            self.registers[node.output] = total
        return body
