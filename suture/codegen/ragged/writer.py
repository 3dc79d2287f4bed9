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
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import Schedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.traversal.domain import Axis, Run, Survey
from suture.codegen.traversal.join import join_variables
from suture.codegen.traversal.passes import Passes
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Literal, Load, Statement, apply
from suture.ir.sizes import Dim

COMBINING = {"csr_sum": "+", "csr_max": "max", "sum": "+", "mean": "+"}


class RaggedWriter:
    """Writes the kernel of a group.

    :param found: its features
    :param index: of the features of the widest value; over their axes if None
    """

    def __init__(self, group: RaggedGroup, context: Context, found: Survey, name: str) -> None:
        self.group, self.context, self.found = group, context, found
        self.builder = KernelBuilder(context, group.nodes, name)
        pointers = group.pointers
        assert pointers is not None
        self.builder.grid(SEGMENT.name, self.builder.size(pointers.shape[0] - 1))
        self.ends = enter(group, self.builder)
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

    def keep(self, *, beside: bool) -> dict[Value, Load]:
        """Where each value is kept that later passes need again: in a result that is written last, or in memory of its own.

        :param beside: whether there may be memory of its own
        """
        found: dict[Value, Load] = {}
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
            if home is None and not beside:
                continue
            home = home or self.context.temporary(dtype, value.shape, "kept")
            taken[home] = max((self.passes.number[each] for each in readers), default=last)
            found[value] = self.builder.place(home, self.places[value])
        return found

    def of_segments(self) -> list[Value]:
        """What is written once a segment."""
        return [value for value in self.group.outputs if self.passes.is_row(value)]

    def finish(self, body: Sequence[Statement], runs: Sequence[Run], schedule: Schedule | None) -> KernelStep:
        """The kernel, joined axes as one variable."""
        step = self.builder.finish([*self.ends, *body], str(self.group), schedule)
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
