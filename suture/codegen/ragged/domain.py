"""The domain of a kernel over segments: a segment, its rows, and axes for the features of the widest value.

Rows and segments have a variable each, which index the first dimension of what lies there; features are cut and joined as in a dense traversal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from suture.codegen.access import Access, Index, is_regrouping
from suture.codegen.builder import KernelBuilder
from suture.codegen.groups import REDUCTIONS, origin_of, reduced_dims
from suture.codegen.ragged.grouping import MEETING, SPREAD, RaggedGroup, operand_of, pointers_of, width_of
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context
from suture.codegen.traversal.domain import (
    Axis,
    Domain,
    PassLane,
    Survey,
    collect,
    cuts,
    place_pointwise,
    place_reduction,
    place_view,
    views_between,
)
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Let, Literal, Name, Statement, cast
from suture.ir.sizes import symbol, symbols_of

ROW, SEGMENT = Name("row"), Name("segment")
FIRST, LAST = Name("first"), Name("last")
"""Where a segment's rows begin, and where they end."""
_CUTS = 16


class RaggedLane(PassLane):
    """A lane at a row or a segment: what is spread to a row is read at the row's segment."""

    def __init__(self, builder: KernelBuilder, registers: Mapping[Value, Expression], group: RaggedGroup) -> None:
        super().__init__(builder, registers)
        self.group = group

    def value(self, value: Value, index: Sequence[Expression]) -> Expression:
        """An element of a value, in the type that it is computed in."""
        node = value.producer
        if (
            node is not None
            and node in self.builder.nodes
            and value not in self.registers
            and node.operator.name == SPREAD
        ):
            return self.value(operand_of(node), (SEGMENT, *index[1:]))
        return super().value(value, index)


def start_of(group: RaggedGroup) -> Value:
    """A value of the most features."""
    found = [operand_of(node) if node.operator.name in (*MEETING, *REDUCTIONS) else node.output for node in group.nodes]
    return next(value for value in found if width_of(value) == group.width)


def features_of(group: RaggedGroup) -> Domain:
    """An axis for each dimension of features; those that are summed over say so."""
    start = start_of(group)
    reduced = {dim for node in group.nodes if node.operator.name in REDUCTIONS for dim in reduced_dims(node)}
    return Domain(
        tuple(
            () if size == 1 else (Axis(f"d{k}", size, k in reduced),)
            for k, size in enumerate(start.shape[1:], 1)
        )
    )  # fmt: skip


def place_values(group: RaggedGroup, index: Index, builder: KernelBuilder) -> dict[Value, Index]:
    """The index of each of the group's values, seen through views that only regroup.

    :param index: of the features of the widest value
    """
    start = start_of(group)
    places: dict[Value, Index] = {}
    access = Access(builder.indices, builder.size, builder.place, _no_guard)
    links = [*group.nodes, *views_between(group)]
    first = ROW if _is_of_rows(start, group) else SEGMENT
    places[start] = (first, *index)
    changed = True
    while changed:
        known = len(places)
        for node in links:
            if node.operator.name in (*MEETING, SPREAD):
                _place_over(node, places)
            elif node.operator.name in REDUCTIONS:
                place_reduction(node, places)
            elif is_regrouping(node):
                place_view(access, node, places)
            else:
                place_pointwise(node, places)
        changed = len(places) > known
    return places


def _is_of_rows(value: Value, group: RaggedGroup) -> bool:
    """Whether a value of the group has a number for each row."""
    if value.shape[0] != group.rows:
        return False
    anchor = group.anchor
    assert anchor is not None
    segments = anchor.output.shape[0] if anchor.operator.name in MEETING else operand_of(anchor).shape[0]
    return segments != group.rows or _reads_rows(value, group, set())


def _reads_rows(value: Value, group: RaggedGroup, seen: set[Node]) -> bool:
    """As many segments as rows: what a node is of says which are meant."""
    readers = {reader for reader, _ in value.uses}
    node = origin_of(value)
    if node is not None and node in group.nodes:
        if node.operator.name in (*MEETING, SPREAD):
            return node.operator.name == SPREAD
        seen.add(node)
        made = [
            each
            for each in node.inputs
            if each is not None and origin_of(each) in group.nodes and origin_of(each) not in seen
        ]
        if made:
            return _reads_rows(made[0], group, seen)
    return not any(reader in group.nodes and reader.operator.name == SPREAD for reader in readers)


def _place_over(node: Node, places: dict[Value, Index]) -> None:
    operand, result = operand_of(node), node.output
    inner, outer = (ROW, SEGMENT) if node.operator.name in MEETING else (SEGMENT, ROW)
    if operand in places and result not in places:
        places[result] = (outer, *places[operand][1:])
    elif result in places and operand not in places:
        places[operand] = (inner, *places[result][1:])


def _no_guard() -> AbstractContextManager[None]:
    raise AssertionError("a regrouping reads without a condition")


def enter(group: RaggedGroup, builder: KernelBuilder) -> list[Statement]:
    """Make the variables of segments and rows known to the builder.

    :returns: what says where the segment's rows begin and end
    """
    pointers = group.pointers
    assert pointers is not None
    builder.pointers(pointers, group.rows)
    builder.variable(SEGMENT.name, Literal(0), builder.size(pointers.shape[0] - 1))
    first, last = (cast(builder.place(pointers, (at,)), Literal(0).dtype) for at in (SEGMENT, SEGMENT + 1))
    builder.variable(ROW.name, first, last)
    ranges = builder.indices.ranges
    ranges.lets |= {name.name: ranges.dim(end) for name, end in ((FIRST, first), (LAST, last))}
    return [Let(FIRST, first), Let(LAST, last)]


def survey(group: RaggedGroup, context: Context) -> Survey:
    """Write the group down, cutting axes of features until no division is left that a cut would take away."""
    domain = features_of(group)
    for _ in range(_CUTS):
        found = _survey(group, context, domain)
        cut = next(cuts(found), None)
        if cut is None:
            return found
        domain = domain.cut(*cut)
    return found


def _survey(group: RaggedGroup, context: Context, domain: Domain) -> Survey:
    builder = KernelBuilder(context, group.nodes, "survey")
    enter(group, builder)
    found = Survey(domain)
    for axis in domain.axes:
        found.sizes[axis.name] = builder.indices.dim(builder.size(axis.size))
    domain.bind(builder)
    places = place_values(group, domain.index(builder), builder)
    ending = [node for node in group.nodes if node.operator.name in (*MEETING, *REDUCTIONS)]
    registers: dict[Value, Expression] = {
        node.output: Name(f"r{k}", compute_type(node.output.dtype)) for k, node in enumerate(ending)
    }
    lane = RaggedLane(builder, registers, group)
    for node in ending:
        operand = operand_of(node)
        lane.value(operand, places[operand])
    for value in group.outputs:
        lane.store(value, places[value], lane.value(value, places[value]))
    for name in {each for axis in domain.axes for each in symbols_of(axis.size)}:
        made = builder.size(symbol(name))
        assert isinstance(made, Name)
        found.symbols[made.name] = symbol(name)
    collect(lane, found)
    return found


def is_fixed(domain: Domain) -> bool:
    """Whether all features are numbers."""
    return all(isinstance(axis.size, int) for axis in domain.axes)


def count_of(domain: Domain) -> int:
    """How many features there are."""
    return math.prod(axis.size for axis in domain.axes if isinstance(axis.size, int))


__all__ = [
    "ROW", "SEGMENT", "RaggedLane", "count_of", "enter", "features_of", "is_fixed", "place_values", "pointers_of", "start_of", "survey",
]  # fmt: skip
