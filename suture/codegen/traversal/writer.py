"""What the three ways of writing a traversal share: the builder, loops over axes, reductions' operations and where values are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from suture.codegen.builder import KernelBuilder
from suture.codegen.groups import Group, reduced_dims
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import PassLane, Run, Survey, place_values
from suture.codegen.traversal.join import join_variables
from suture.codegen.traversal.passes import Passes
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Let, Literal, Load, Loop, Name, Scope, Statement, Store, Update, apply, cast
from suture.ir.sizes import product

COMBINING: Mapping[str, str] = {"sum": "+", "mean": "+", "amax": "max", "amin": "min"}
"""Reduction -> how two elements meet."""

KEPT = 16384
"""Elements of a row that a block keeps, at most."""
KEPT_IN_REGISTERS = 32
"""Elements that a lane of a GPU keeps, at most."""


class Writer:
    """Writes the kernel of a group.

    :param lane: the run that lanes take
    """

    def __init__(
        self, group: Group, context: Context, found: Survey, runs: Sequence[Run], lane: Run, schedule: TraversalSchedule
    ) -> None:
        self.group, self.runs, self.lane, self.schedule = group, tuple(runs), lane, schedule
        self.builder = KernelBuilder(context, group.nodes, "traversal")
        for value in (*group.inputs, *group.outputs):
            for dim in value.shape:
                self.builder.size(dim)
        found.domain.bind(self.builder)
        self.sizes = {axis.name: self.builder.indices.dim(self.builder.size(axis.size)) for axis in found.domain.axes}
        self.places = place_values(group, found.domain, self.builder)
        reduced = tuple(axis for axis in found.domain.axes if axis.reduced)
        self.passes = Passes(group, self.places, reduced)
        self.first = self.passes.kept()
        self.registers: dict[Value, Expression] = {}
        self.turn = Name("j")

    @property
    def lanes(self) -> int:
        """The lanes of a block."""
        return self.schedule.lanes

    def new_lane(self) -> PassLane:
        """A lane that knows the registers."""
        return PassLane(self.builder, self.registers)

    def element(self, lane: PassLane, value: Value) -> Expression:
        """The element of a value at the axes' variables."""
        return lane.value(value, self.places[value])

    def finish(self, body: Sequence[Statement]) -> KernelStep:
        """The kernel, joined axes as one variable."""
        step = self.builder.finish(body, str(self.group), self.schedule)
        return replace(step, kernel=join_variables(step.kernel, self.runs, self.sizes, self.builder.indices))

    # loops

    def size(self, run: Run) -> Expression:
        """How many elements a run has."""
        return self.builder.size(run.size)

    def over_lanes(self, body: Sequence[Statement], tile: tuple[Name, int] | None = None) -> list[Statement]:
        """The loop of a lane over its elements of the lanes' run, or of a tile of that.

        :param tile: the tile's number, and how long tiles are
        """
        lane, size = Name("t"), self.size(self.lane)
        start: Expression = Literal(0) if tile is None else tile[0] * tile[1]
        whole = isinstance(size, Literal) and int(size.value) % (self.lanes if tile is None else tile[1]) == 0
        if whole:
            assert isinstance(size, Literal)
            turns: Expression = Literal((int(size.value) if tile is None else tile[1]) // self.lanes)
        else:
            left = size if tile is None else size - start
            turns = (left - lane + (self.lanes - 1)) // self.lanes
            if tile is not None:
                turns = apply("min", turns, Literal(tile[1] // self.lanes))
        place = start + self.turn * self.lanes + lane
        return [Loop(self.turn, Literal(0), turns, (Let(Name(self.lane.name), place), *body))]

    def over(self, runs: Sequence[Run], body: Sequence[Statement]) -> list[Statement]:
        """Loops over whole runs, the first outermost."""
        made = list(body)
        for run in reversed(runs):
            made = [Loop(Name(run.name), Literal(0), self.size(run), tuple(made))]
        return made

    # reductions

    def parts(self, reductions: Sequence[Node]) -> list[Load]:
        """A register for what each reduction has met so far."""
        return [
            Load(self.builder.local(f"part{len(self.builder.locals)}", wide(node), (), Scope.THREAD), ())
            for node in reductions
        ]

    def met(self, lane: PassLane, parts: Sequence[Load], reductions: Sequence[Node]) -> None:
        """Let each reduction meet the element."""
        for part, node in zip(parts, reductions, strict=True):
            operand = node.inputs[0]
            assert operand is not None
            element = cast(self.element(lane, operand), part.dtype)
            lane.statements.append(Update(part.buffer, (), COMBINING[node.operator.name], element))

    def result(self, node: Node, total: Expression) -> Expression:
        """What a reduction is, from the sum or extreme."""
        if node.operator.name != "mean":
            return total
        operand = node.inputs[0]
        assert operand is not None
        count = self.builder.size(product([operand.shape[dim] for dim in reduced_dims(node)]))
        if isinstance(count, Literal):
            return apply("/", total, Literal(float(count.value), total.dtype))
        return apply("/", total, cast(count, total.dtype))

    # what is kept from pass to pass

    def keep(self, shape: Sequence[Run], index: Sequence[Expression], sizes: Sequence[int | None]) -> dict[Value, Load]:
        """A place for each value that later passes need again.

        :param sizes: how many elements each dimension has, where that is known
        """
        found: dict[Value, Load] = {}
        spare = [
            value for value in self.group.outputs
            if not self.passes.is_row(value) and self.passes.number[value] == self.passes.count - 1
        ]  # fmt: skip
        known = [size for size in sizes if size is not None]
        most = KEPT if self.builder.context.target == "cpp" else KEPT_IN_REGISTERS
        room = most if len(known) == len(sizes) else 0
        for value in self.first:
            dtype = compute_type(value.dtype)
            elements = math.prod(known)
            if elements <= room:
                room -= elements
                buffer = self.builder.local(f"kept{len(found)}", dtype, known, Scope.THREAD)
                found[value] = Load(buffer, tuple(index))
                continue
            other = next((each for each in spare if each.dtype == dtype), None)
            if other is not None and self.first[value] == self.passes.count - 2 and not self._reads(other):
                spare.remove(other)
                found[value] = self.builder.place(other, self.places[other])
        return found

    def _reads(self, value: Value) -> bool:
        """Whether the group reads a value that it also writes."""
        return value in self.group.inputs

    def store_kept(self, lane: PassLane, kept: Mapping[Value, Load], number: int) -> None:
        """Keep what a pass is the first to compute."""
        for value, load in kept.items():
            if self.first[value] == number:
                lane.statements.append(Store(load.buffer, load.index, cast(self.element(lane, value), load.dtype)))

    def remember(self, kept: Mapping[Value, Load], number: int) -> None:
        """From now on, values that a pass has kept are read."""
        for value, load in kept.items():
            if self.first[value] == number:
                self.registers[value] = cast(load, compute_type(value.dtype))


def wide(node: Node) -> torch.dtype:
    """The type in which a reduction is computed."""
    return compute_type(node.output.dtype)


def neutral(node: Node) -> Expression:
    """What a reduction is of no elements."""
    dtype = wide(node)
    if node.operator.name in ("sum", "mean"):
        return Literal(0.0 if dtype.is_floating_point else 0, dtype)
    largest = node.operator.name == "amin"
    if dtype.is_floating_point:
        return Literal(math.inf if largest else -math.inf, dtype)
    if dtype == torch.bool:
        return Literal(largest, dtype)
    limits = torch.iinfo(dtype)
    # the least number has no literal in C
    return Literal(limits.max, dtype) if largest else apply("-", Literal(limits.min + 1, dtype), Literal(1, dtype))


def fixed(run: Run) -> int | None:
    """A run's size, where it is a number."""
    return run.size if isinstance(run.size, int) else None
