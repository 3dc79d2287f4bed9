"""Kernels over segments in which features are summed within each row, such as the inner products of queries and keys.

A block takes a segment's rows one after the other: its lanes stand side by side over the features that are summed, and meet for each row. What the
segment has for all its rows (the query) stays near.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from suture.codegen.access import Index
from suture.codegen.groups import REDUCTIONS, reduced_dims
from suture.codegen.ragged.grouping import RaggedGroup, operand_of
from suture.codegen.ragged.pieces import Pieces
from suture.codegen.ragged.writer import COMBINING, RaggedWriter, neutral, wide
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Survey, mentions
from suture.ir.graph import Node, Value
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
    apply,
    cast,
)

_MOST = 16  # heads of which one block takes all
_CPU_LANES = 64
_WARP = 32
_BLOCK = 256
_TEAMS = 16


class DenseWriter(RaggedWriter):
    """Lanes over the features that are summed."""

    def __init__(
        self, group: RaggedGroup, context: Context, found: Survey, pieces: Pieces | None = None, only: int | None = None
    ) -> None:
        super().__init__(group, context, found, "row_sums", pieces, only)
        axes = found.domain.axes
        self.kept = [axis for axis in axes if not axis.reduced]
        self.summed = [axis for axis in axes if axis.reduced]
        self.length = math.prod(axis.size for axis in self.summed if isinstance(axis.size, int))
        self.gpu = context.target == "cuda"
        if self.gpu:
            self.lanes = min(1 << (self.length - 1).bit_length(), _WARP)
            self.teams = min(_BLOCK // self.lanes, _TEAMS)
        else:
            self.lanes, self.teams = min(self.length, _CPU_LANES), 1
        self.at_once = self.teams
        self.schedule = replace(self.choose(self.lanes), lanes=self.lanes, rows=1)

    def write(self) -> KernelStep:
        """The kernel."""
        heads = [axis.size for axis in self.kept if isinstance(axis.size, int)]
        spread = math.prod(heads) > _MOST
        if spread:
            for axis in self.kept:
                self.builder.grid(axis.name, self.builder.size(axis.size))
        counted = [()] if spread else list(itertools.product(*map(range, heads)))
        chosen: list[dict[str, Expression]] = [
            {axis.name: Literal(at) for axis, at in zip(self.kept, each, strict=False)} for each in counted
        ]
        known: list[dict[Value, Expression]] = [{} for _ in chosen]
        starts: list[Statement] = []
        inside: list[Statement] = []
        reduces: list[Statement] = []
        behind: list[Statement] = []
        for head, registers in zip(chosen, known, strict=True):
            self.set_places(self._index(head))
            self.registers = registers
            inside += self._sums(starts, reduces)
        for head, registers in zip(chosen, known, strict=True):
            self.set_places(self._index(head))
            self.registers = registers
            lane = self.lane()
            for value in self.group.outputs:
                if not self._is_wide(value):
                    lane.store(value, self.places[value], self.element(lane, value))
            behind += lane.statements
        made = self._in_teams if self.gpu else self._in_turn
        return self.finish([made([*starts, *self._over_summed(inside)], reduces, behind)], (), self.schedule)

    def _in_turn(self, sums: list[Statement], reduces: list[Statement], behind: list[Statement]) -> Statement:
        """All lanes sum up one row after the other."""
        t = Name("t")
        body: list[Statement] = [Threads(t, self.lanes, tuple(sums)), *reduces]
        if behind:
            body.append(Threads(t, self.lanes, (Branch(t < 1, tuple(behind)),)))
        return self.over_rows(Name("step"), body)

    def _in_teams(self, sums: list[Statement], reduces: list[Statement], behind: list[Statement]) -> Statement:
        """Teams of lanes take a row each."""
        t, step, side = Name("t"), Name("step"), Name("side")
        count = self.lanes * self.teams
        row, inside, start, stop = self.rows_of_block(step, t // self.lanes)
        clear = [each for each in sums if isinstance(each, Store) and each.buffer.scope is Scope.THREAD]
        rest = tuple(each for each in sums if each not in clear)
        sides = (row, Let(side, t % self.lanes))
        body: list[Statement] = [Threads(t, count, (*clear, *sides, Branch(inside, rest))), *reduces]
        if behind:
            one = apply("and", inside, side < 1)
            body.append(Threads(t, count, (*sides, Branch(one, tuple(behind)))))
        return Loop(step, start, stop, tuple(body))

    def _index(self, head: dict[str, Expression]) -> Index:
        """The index of the features for one head."""
        digits = self.found.domain.dims
        return tuple(
            self.builder.indices.horner(
                [head.get(axis.name, Name(axis.name)) for axis in dim], [axis.size for axis in dim]
            )
            for dim in digits
        )

    def _is_wide(self, value: Value) -> bool:
        """Whether a value of the group differs along what is summed."""
        return mentions(self.places[value], self.summed)

    def _sums(self, starts: list[Statement], reduces: list[Statement]) -> list[Statement]:
        """What a lane adds to its parts of one row and head; how these begin and meet is entered beside."""
        results: dict[Value, Expression] = {}
        lane = self.lane()
        for node in self.group.nodes:
            if node.operator.name not in REDUCTIONS:
                continue
            part = self.builder.local(f"part{len(self.builder.locals)}", wide(node), (), Scope.THREAD)
            scope = Scope.THREAD if self.gpu else Scope.UNIFORM
            total = self.builder.local(f"met{len(self.builder.locals)}", wide(node), (), scope)
            starts.append(Store(part, (), neutral(node)))
            element = cast(self.element(lane, operand_of(node)), part.dtype)
            lane.statements.append(Update(part, (), COMBINING[node.operator.name], element))
            width = self.lanes if self.gpu else 0
            reduces.append(Reduce(total, COMBINING[node.operator.name], part, self.lanes * self.teams, width))
            results[node.output] = self._mean(node, Load(total, ()))
        for value in self.group.outputs:
            if self._is_wide(value):
                lane.store(value, self.places[value], self.element(lane, value))
        self.registers |= results
        return lane.statements

    def _mean(self, node: Node, total: Expression) -> Expression:
        if node.operator.name != "mean":
            return total
        count = math.prod(size for dim in reduced_dims(node) if isinstance(size := operand_of(node).shape[dim], int))
        return apply("/", total, Literal(float(count), total.dtype))

    def _over_summed(self, inside: list[Statement]) -> list[Statement]:
        """The loop of a lane over the features that are summed."""
        lane, turn, whole = Name("side" if self.gpu else "t"), Name("turn"), Name("feature")
        turns = -(-self.length // self.lanes)
        once = self.lanes == self.length
        self.builder.variable(whole.name, Literal(0), Literal(self.length))
        digits = self.builder.indices.digits(whole, [axis.size for axis in self.summed])
        body = [
            Let(whole, lane if once else turn * self.lanes + lane),
            *(Let(Name(axis.name), digit) for axis, digit in zip(self.summed, digits, strict=True)),
            *inside,
        ]
        if once:
            return body
        whole_turns = turns * self.lanes == self.length
        if self.gpu and not whole_turns:
            body[len(body) - len(inside) :] = [Branch(whole < self.length, tuple(inside))]
        stop = (
            Literal(turns)
            if whole_turns or self.gpu
            else (Literal(self.length) - lane + (self.lanes - 1)) // self.lanes
        )
        return [Loop(turn, Literal(0), stop, tuple(body))]
