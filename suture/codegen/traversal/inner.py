"""Traversals that only sum short rows, such as inner products head by head: a block takes several rows, its lanes stand over what is summed.

Lanes do not wait in memory for one another: each row's sums meet in registers, and what later rows look up can be fetched ahead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from suture.codegen.access import Index
from suture.codegen.builder import KernelBuilder
from suture.codegen.groups import Group
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Domain, PassLane, Run, Survey, place_values
from suture.codegen.traversal.passes import Passes
from suture.codegen.traversal.writer import COMBINING, Writer, fixed, neutral, wide
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
    apply,
    cast,
)

_LEAST, _LONGEST = 4, 256  # numbers that lanes sum
_HEADS = 16  # sums that a row has side by side, at most
_LANES = 64
_TILE, _ROWS = 4096, 64  # numbers, and rows, of a block


@dataclass(frozen=True)
class _Beside(Domain):
    """A domain at one of the sums that stand side by side.

    :param chosen: the axes that say which
    """

    chosen: Mapping[str, Expression] = field(default_factory=dict)

    def index(self, builder: KernelBuilder) -> Index:
        """The index of an element, over the variables of the other axes."""
        return tuple(
            builder.indices.horner(
                [self.chosen.get(axis.name, Name(axis.name)) for axis in dim], [builder.size(axis.size) for axis in dim]
            )
            for dim in self.dims
        )


def beside(group: Group, runs: Sequence[Run], lane: Run) -> tuple[Run, tuple[Run, ...]] | None:
    """Over which run a block goes row by row, and the runs whose sums it has side by side; None of a group that does more than to sum short rows."""
    length = fixed(lane)
    kept = [run for run in runs if not run.reduced]
    if length is None or not _LEAST <= length <= _LONGEST or len(runs) != len(kept) + 1 or not kept:
        return None
    if any(COMBINING[node.operator.name] != "+" for node in group.reductions):
        return None
    together: list[Run] = []
    while len(kept) > 1 and math.prod(fixed(run) or _HEADS + 1 for run in [*together, kept[-1]]) <= _HEADS:
        together.insert(0, kept.pop())
    return kept[-1], tuple(together)


def only_sums(passes: Passes) -> bool:
    """Whether rows are gone through once, and nothing is written but their numbers."""
    return passes.count == 2 and not any(passes.stored(number) for number in range(passes.count))


def sums_schedule(lane: Run) -> TraversalSchedule:
    """Lanes for what is summed, and some rows for a block."""
    length = fixed(lane)
    assert length is not None
    return TraversalSchedule(min(length, _LANES), rows=max(min(_TILE // length, _ROWS), 1))


class InnerWriter(Writer):
    """Lanes over what is summed, row after row."""

    def __init__(
        self, group: Group, context: Context, found: Survey, runs: Sequence[Run], lane: Run, schedule: TraversalSchedule
    ) -> None:
        super().__init__(group, context, found, runs, lane, schedule)
        self.found = found
        chosen = beside(group, runs, lane)
        assert chosen is not None
        self.rows, self.together = chosen

    def write(self) -> KernelStep:
        """The kernel."""
        for run in self.runs:
            if not run.reduced and run is not self.rows and run not in self.together:
                self.builder.grid(run.name, self.size(run))
        axes = [axis for run in self.together for axis in run.axes]
        sizes = [axis.size for axis in axes if isinstance(axis.size, int)]
        starts: list[Statement] = []
        inside: list[Statement] = []
        reduces: list[Statement] = []
        behind: list[Statement] = []
        for at in itertools.product(*map(range, sizes)):
            head = {axis.name: Literal(each) for axis, each in zip(axes, at, strict=True)}
            places = place_values(self.group, _Beside(self.found.domain.dims, head), self.builder)
            lane = PassLane(self.builder, {})
            registers: dict[Value, Expression] = {}
            for node in self.group.reductions:
                operand = node.inputs[0]
                assert operand is not None
                part = self.builder.local(f"part{len(self.builder.locals)}", wide(node), (), Scope.THREAD)
                total = self.builder.local(f"met{len(self.builder.locals)}", wide(node), (), Scope.UNIFORM)
                starts.append(Store(part, (), neutral(node)))
                element = cast(lane.value(operand, places[operand]), part.dtype)
                lane.statements.append(Update(part, (), "+", element))
                reduces.append(Reduce(total, "+", part, self.lanes))
                registers[node.output] = self.result(node, Load(total, ()))
            inside += lane.statements
            last = PassLane(self.builder, registers)
            for value in self.group.outputs:
                last.store(value, places[value], last.value(value, places[value]))
            behind += last.statements
        t, count, size = Name("t"), self.schedule.rows, self.size(self.rows)
        first = self.builder.grid("block", (size + (count - 1)) // count) * count
        row = Name("row")
        here = Let(Name(self.rows.name), first + row)
        body = (
            Threads(t, self.lanes, (*starts, here, *self.over_lanes(inside))),
            *reduces,
            Threads(t, self.lanes, (Branch(t < 1, (here, *behind)),)),
        )
        return self.finish([Loop(row, Literal(0), apply("min", size - first, Literal(count)), body)])
