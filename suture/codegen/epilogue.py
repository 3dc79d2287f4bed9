"""The pointwise nodes behind an anchor, on one element of its result; reshapes may stand between, which cost nothing there."""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.access import Index, is_regrouping, regrouped
from suture.codegen.builder import Lane
from suture.codegen.groups import Group
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression


def store_results(lane: Lane, group: Group, index: Sequence[Expression], total: Expression) -> None:
    """Store what a group makes of one element of its anchor's result.

    :param index: which element
    :param total: the element, in the type that it is computed in
    """
    assert group.anchor is not None
    places = _Places(lane, group.anchor.outputs[0], tuple(index), total)
    for node in group.nodes:
        if node is not group.anchor:
            places.enter(node)
    for value in group.outputs:
        lane.store(value, places.at[value], lane.value(value, places.at[value]))


def index_of_result(lane: Lane, group: Group, value: Value, index: Sequence[Expression]) -> Index:
    """Where the element stands in a value of the group that an element of the anchor's result becomes.

    :param index: which element of the anchor's result
    """
    assert group.anchor is not None
    places = _Places(lane, group.anchor.outputs[0], tuple(index), None)
    for node in group.nodes:
        if node is not group.anchor:
            places.enter(node)
    return places.at[value]


class _Places:
    """Where one element stands in each value of a group."""

    def __init__(self, lane: Lane, result: Value, index: Index, total: Expression | None) -> None:
        self.lane, self.known = lane, total is not None
        self.at: dict[Value, Index] = {result: index}
        if total is not None:
            lane.know(result, index, total)

    def enter(self, node: Node) -> None:
        """A node behind has the element where its operands of the group have it."""
        for operand in node.inputs:
            if operand is not None and self._sees(operand):
                self.at[node.output] = self.at[operand]

    def _sees(self, value: Value) -> bool:
        """Whether a value is one of the group's, or a regrouping of one."""
        view = value.producer
        if value in self.at or view is None or not is_regrouping(view):
            return value in self.at
        source = view.inputs[0]
        assert source is not None
        if not self._sees(source):
            return False
        index = regrouped(self.lane.access, view, self.at[source], forwards=True)
        if self.known:
            self.lane.know(value, index, self.lane.value(source, self.at[source]))
        self.at[value] = index
        return True


__all__ = ["index_of_result", "store_results"]
