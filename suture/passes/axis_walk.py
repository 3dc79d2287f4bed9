"""Walking along an atom: which parameters read it and which write it, and what becomes of its new indices from node to node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from suture.ir.algebra import Atom, atoms_of, resolve
from suture.ir.axes import AxisInfo, AxisTable, Place
from suture.ir.graph import Node, Parameter, Value
from suture.ir.notation import letters_of
from suture.passes.exactness import RECURRENT, Correction

State = TypeVar("State")


@dataclass(frozen=True)
class Uses:
    """The parameters' dimensions that read an atom (summed over against data), and those that write it. A tied table does both."""

    reads: frozenset[Place]
    writes: frozenset[Place]


def uses_of(table: AxisTable, info: AxisInfo, weights: set[Value]) -> Uses:
    """Which parameters read an atom and which write it, through whatever is computed from parameters alone.

    :param weights: the values that depend on no input
    """
    demands: dict[Place, set[str]] = {}
    for node, letters in reversed(touching(info).items()):
        constant = all(value in weights for value in node.outputs)
        for letter in letters:
            made = demands_made(table, node, letter, demands) if constant else {"write"}
            for k, value in enumerate(node.inputs):
                if value is None or value not in weights:
                    continue
                for dim in dims_of(table, node, k, letter):
                    if letter in table.makes[node] and not is_recurrence(node, value, dim):
                        found = made
                    elif node.operator.name == "attention" and letter == "s":
                        found = {"write"}  # keys meet no data along their own axis: softmax weighs them
                    elif constant:
                        found = {"read" if k == 0 else "write"}
                    else:
                        found = {"read"}
                    demands.setdefault(Place(value, dim), set()).update(found)
    reads = frozenset(p for p, found in demands.items() if isinstance(p.value, Parameter) and "read" in found)
    writes = frozenset(p for p, found in demands.items() if isinstance(p.value, Parameter) and "write" in found)
    return Uses(reads, writes)


def demands_made(table: AxisTable, node: Node, letter: str, demands: dict[Place, set[str]]) -> set[str]:
    """What the readers of a node's results demand of a letter."""
    found: set[str] = set()
    for index, value in enumerate(node.outputs):
        for dim in result_dims(table, node, index, letter):
            found |= demands.get(Place(value, dim), set())
    return found


def sources_of(table: AxisTable, value: Value, dim: int, atom: Atom) -> Iterator[Place]:
    """The parameters' dimensions that a dimension of a value computed from parameters comes from."""
    if isinstance(value, Parameter):
        yield Place(value, dim)
        return
    node = value.producer
    if node is None:
        return
    for term_letter in letters_of(table.instances[node].outputs[value.index][dim]):
        if atom not in set(atoms_of(resolve(table.letters[node][term_letter]))):
            continue
        for k, operand in enumerate(node.inputs):
            if operand is not None:
                for inner in dims_of(table, node, k, term_letter):
                    yield from sources_of(table, operand, inner, atom)


def touching(info: AxisInfo) -> dict[Node, list[str]]:
    """The nodes that touch an atom, in graph order, each with the letters that hold it."""
    found: dict[Node, list[str]] = {}
    for node, letter, _, _ in info.touches:
        found.setdefault(node, []).append(letter)
    return found


def dims_of(table: AxisTable, node: Node, operand: int, letter: str) -> list[int]:
    """The dimensions of an operand that hold a letter."""
    inputs = table.instances[node].inputs
    terms = inputs[operand] if operand < len(inputs) else None
    return [dim for dim, term in enumerate(terms or ()) if letter in letters_of(term)]


def result_dims(table: AxisTable, node: Node, result: int, letter: str) -> list[int]:
    """The dimensions of a result that hold a letter."""
    return [dim for dim, term in enumerate(table.instances[node].outputs[result]) if letter in letters_of(term)]


def is_recurrence(node: Node, value: Value, dim: int) -> bool:
    """Whether a dimension of a recurrent layer's weight reads what the layer wrote: its columns."""
    return node.operator.name in RECURRENT and isinstance(value, Parameter) and value.rank == 2 and dim == 1


class AtomWalk(ABC, Generic[State]):
    """One walk along the nodes that touch an atom, with a state for every dimension that holds it."""

    def __init__(self, table: AxisTable, info: AxisInfo, weights: set[Value]) -> None:
        self.table = table
        self.atom = info.atom
        self.weights = weights
        self.states: dict[Place, State] = {}
        self.corrections: list[Correction] = []
        self.blame: list[str] = []
        for node, letters in touching(info).items():
            for letter in letters:
                self._visit(node, letter)

    @abstractmethod
    def initial(self, place: Place) -> State:
        """The state of a parameter's dimension."""

    @abstractmethod
    def transfer(self, node: Node, letter: str, operands: Sequence[State | None]) -> State:
        """The state of the results along a letter, from those of the operands; None where an operand does not hold it."""

    @abstractmethod
    def reduce(self, node: Node, letter: str, operands: Sequence[State | None]) -> None:
        """The letter does not reach the results: check that what is summed stays what it was."""

    @abstractmethod
    def join(self, node: Node, first: State, second: State) -> State:
        """One dimension holds the atom twice, by two letters."""

    def _visit(self, node: Node, letter: str) -> None:
        operands: list[State | None] = []
        for k, value in enumerate(node.inputs):
            state: State | None = None
            for dim in [] if value is None else dims_of(self.table, node, k, letter):
                assert value is not None
                if is_recurrence(node, value, dim) and state is not None:
                    continue  # the recurrent weight's columns are the transfer's own business
                found = self.state(value, dim)
                state = found if state is None else self.join(node, state, found)
            operands.append(state)
        if letter not in self.table.makes[node]:
            self.reduce(node, letter, operands)
            return
        result = self.transfer(node, letter, operands)
        for index, value in enumerate(node.outputs):
            for dim in result_dims(self.table, node, index, letter):
                place = Place(value, dim)
                known = self.states.get(place)
                self.states[place] = result if known is None else self.join(node, known, result)

    def state(self, value: Value, dim: int) -> State:
        """The state of a dimension that holds the atom."""
        place = Place(value, dim)
        if place not in self.states:
            self.states[place] = self.initial(place)
        return self.states[place]

    def correct(self, kind: str, node: Node, letter: str, operand: int = 0) -> None:
        """Note what restores the function at a node."""
        self.corrections.append(Correction(kind, node, letter, self.atom, operand=operand))

    def blame_on(self, node: Node, reason: str) -> None:
        """Note where the function is not kept."""
        self.blame.append(f"{node.operator.name} {node.path or node.outputs[0].name}: {reason}")
