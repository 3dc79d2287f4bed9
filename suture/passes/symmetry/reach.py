"""How far a change of basis reaches: from one dimension of one value through all that must change with it, to parameters that take it up."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from suture.ir.algebra import Atom, atoms_of
from suture.ir.axes import AxisTable, Place
from suture.ir.graph import Node, Parameter, Use, Value
from suture.passes.symmetry.basis import Kind, Meeting, Slot, meetings
from suture.passes.symmetry.commuting import Assignment, commuting

_MOST_ATTEMPTS = 64  # ways of dividing a scale among the factors of products that are tried


@dataclass(frozen=True)
class Blame:
    """Why a change of basis is not possible: the node that does not allow it, and the reason."""

    where: str
    reason: str
    node: Node | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass
class Reach:
    """What a change of basis along an atom changes.

    :param values: every dimension of a computed value that was looked at: 1 takes the map, -1 its inverse transposed, 0 stays
    :param parameters: every use of a parameter that takes the map or its inverse, and the dimension that does
    :param nodes: the nodes that were met, in the order of the walk
    """

    atom: Atom
    kind: Kind
    values: dict[Place, int] = field(default_factory=dict)
    parameters: dict[tuple[Use, int], int] = field(default_factory=dict)
    nodes: dict[Node, None] = field(default_factory=dict)

    def copy(self) -> Reach:
        """Another one that can go another way."""
        return Reach(self.atom, self.kind, dict(self.values), dict(self.parameters), dict(self.nodes))

    def changed(self) -> Iterator[Place]:
        """The dimensions of computed values that take the map or its inverse."""
        return (place for place, side in self.values.items() if side)

    def tensors(self) -> list[str]:
        """The names of the parameters that take the map or its inverse."""
        found = [node.inputs[index] for side in (1, -1) for (node, index), _ in self.uses(side)]
        return list(dict.fromkeys(name_of(value) for value in found if value is not None))

    def uses(self, side: int) -> list[tuple[Use, int]]:
        """The uses of parameters, with their dimensions, that take the map (side 1) or its inverse (side -1)."""
        return [key for key, found in self.parameters.items() if found == side]


def reach(
    table: AxisTable,
    seed: Place,
    kind: Kind,
    *,
    atom: Atom | None = None,
    stop: Container[Value] = (),
    taken_by: Container[Node] = (),
) -> Reach | Blame:
    """Where a change of basis at a dimension must be made as well, or why it cannot be.

    :param atom: which of the dimension's atoms; the only one if absent
    :param stop: values that are not followed to what made them
    :param taken_by: nodes that make up for the map by themselves: they are not asked
    """
    chosen = atom
    if chosen is None:
        held = set(atoms_of(table.axis(seed.value, seed.dim)))
        if len(held) != 1:
            return Blame(str(seed), "its axis is made of several, which change apart")
        (chosen,) = held
    if chosen.rigid:
        return Blame(_where(seed.value), f"its axis is fixed, {chosen.pin}")
    if not isinstance(chosen.size, int):
        return Blame(str(seed), f"its size {chosen.size} is known only when the model runs")
    walk = _Walk(table, stop, taken_by)
    return walk.run(Reach(chosen, kind), [(seed, 1)])


class _Walk:
    """A walk over the places that hold an atom; where a product leaves a choice, each way is tried in turn."""

    def __init__(self, table: AxisTable, stop: Container[Value], taken_by: Container[Node]) -> None:
        self.table = table
        self.stop = stop
        self.taken_by = taken_by
        self.attempts = 0

    def run(self, found: Reach, demands: Iterable[tuple[Place, int]]) -> Reach | Blame:
        pending: list[Meeting] = []
        for place, side in demands:
            blame = self._enter(found, place, side, pending)
            if blame is not None:
                return blame
        return self._settle(found, pending)

    def _settle(self, found: Reach, pending: list[Meeting]) -> Reach | Blame:
        open_: dict[tuple[Node, str], Meeting] = {}
        while pending:
            meeting = pending.pop()
            options, reason = self._options(found, meeting)
            if not options:
                return Blame(meeting.node.where(), reason, meeting.node)
            if len(options) > 1:
                open_[meeting.node, meeting.letter] = meeting
                continue
            open_.pop((meeting.node, meeting.letter), None)
            blame = self._take(found, meeting, options[0], pending)
            if blame is not None:
                return blame
        return self._branch(found, list(open_.values())) if open_ else found

    def _branch(self, found: Reach, open_: list[Meeting]) -> Reach | Blame:
        first, *rest = open_
        options, reason = self._options(found, first)
        failed: Blame = Blame(first.node.where(), reason, first.node)
        for option in options:
            self.attempts += 1
            if self.attempts > _MOST_ATTEMPTS:
                return failed
            way, pending = found.copy(), list(rest)
            blame = self._take(way, first, option, pending)
            result = blame if blame is not None else self._settle(way, pending)
            if isinstance(result, Reach):
                return result
            failed = result
        return failed

    def _options(self, found: Reach, meeting: Meeting) -> tuple[list[Assignment], str]:
        answer = commuting(self.table, meeting, found.kind)
        known = {slot: side for slot in meeting.slots if (side := self._side(found, meeting, slot)) is not None}
        fitting: list[Assignment] = []
        for assignment in answer.assignments:
            for sign in (1, -1):
                signed = {slot: sign * side for slot, side in assignment.items()}
                if all(signed[slot] == side for slot, side in known.items()) and signed not in fitting:
                    fitting.append(signed)
        clash = "part of what it reads would change and part of it not"
        return fitting, answer.reason or clash

    @staticmethod
    def _side(found: Reach, meeting: Meeting, slot: Slot) -> int | None:
        value = meeting.value(slot)
        if isinstance(value, Parameter):
            return found.parameters.get((Use(meeting.node, slot.index), slot.dim))
        return found.values.get(Place(value, slot.dim))

    def _take(self, found: Reach, meeting: Meeting, assignment: Assignment, pending: list[Meeting]) -> Blame | None:
        found.nodes[meeting.node] = None
        for slot, side in assignment.items():
            value = meeting.value(slot)
            if isinstance(value, Parameter):
                if side and not value.dtype.is_floating_point:
                    return Blame(name_of(value), "it holds whole numbers")
                found.parameters[Use(meeting.node, slot.index), slot.dim] = side
                continue
            blame = self._enter(found, Place(value, slot.dim), side, pending)
            if blame is not None:
                return blame
        return None

    def _enter(self, found: Reach, place: Place, side: int, pending: list[Meeting]) -> Blame | None:
        known = found.values.get(place)
        if known is not None:
            clash = f"{place.value} would have to change in two ways at once"
            return None if known == side else Blame(_where(place.value), clash)
        found.values[place] = side
        if not side:
            return None
        value = place.value
        if found.atom not in set(atoms_of(self.table.axis(*place))):
            return Blame(_where(value), "its axis is another than that of what reads it", value.producer)
        if value.is_graph_output():
            return Blame(_where(value), "it is an output of the graph", value.producer)
        if not value.dtype.is_floating_point:
            return Blame(_where(value), "it holds whole numbers", value.producer)
        if value.producer is None:
            return Blame(str(value), "it is an input of the graph")
        if value in self.table.apart and value not in self.stop:
            return Blame(_where(value), "another change of basis begins here", value.producer)
        around = [node for node, _ in value.uses if node not in self.taken_by]
        if value not in self.stop:
            around.append(value.producer)
        for node in dict.fromkeys(around):
            pending += [m for m in meetings(self.table, node, found.atom) if self._concerns(m, place)]
        return None

    @staticmethod
    def _concerns(meeting: Meeting, place: Place) -> bool:
        return any(meeting.value(slot) is place.value and slot.dim == place.dim for slot in meeting.slots)


def name_of(parameter: Value) -> str:
    """A parameter's name, without what tells the uses of a shared one apart."""
    return parameter.name.partition("@")[0]


def _where(value: Value) -> str:
    return value.producer.where() if value.producer is not None else str(value)
