"""What kinds of change of basis there are, and where a node meets one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from suture.ir.algebra import Atom, atoms_of, resolve
from suture.ir.axes import AxisTable
from suture.ir.graph import Node, Value
from suture.ir.notation import Role, letters_of


class Kind(Enum):
    """A family of linear maps along an axis; the value says it in messages."""

    POSITIVE = "a positive scale"  # a diagonal: commutes with positively homogeneous functions
    DIAGONAL = "a scale of any sign"  # commutes with linear functions, index by index
    AFFINE = (
        "a scale and a shift"  # `s x + t`: goes along with what moves elements about, until it is summed with weights
    )
    ORTHOGONAL = "a rotation"  # commutes with linear functions along other letters, and with RMS norms
    CENTRING = "taking away the mean"  # a projection: layer norms do not see it

    @property
    def is_diagonal(self) -> bool:
        """Whether indices do not mix."""
        return self in (Kind.POSITIVE, Kind.DIAGONAL, Kind.AFFINE)


@dataclass(frozen=True)
class Slot:
    """A dimension of an operand of a node, or of a result."""

    index: int
    dim: int
    result: bool = False


@dataclass(frozen=True)
class Meeting:
    """The dimensions of a node that hold an atom by one letter: whatever happens to one concerns the others."""

    node: Node
    atom: Atom
    letter: str
    role: Role
    slots: tuple[Slot, ...]

    @property
    def results(self) -> tuple[Slot, ...]:
        """The dimensions of results."""
        return tuple(slot for slot in self.slots if slot.result)

    def operands(self, *indices: int) -> tuple[Slot, ...]:
        """The dimensions of some operands; of all, if none are named."""
        return tuple(slot for slot in self.slots if not slot.result and (not indices or slot.index in indices))

    def value(self, slot: Slot) -> Value:
        """The value at a slot."""
        found = self.node.outputs[slot.index] if slot.result else self.node.inputs[slot.index]
        assert found is not None
        return found


def meetings(table: AxisTable, node: Node, atom: Atom) -> list[Meeting]:
    """Every letter of a node that holds an atom, with the dimensions that hold it by this letter."""
    instance, found = table.instances[node], []
    for letter, axis in table.letters[node].items():
        if atom not in set(atoms_of(resolve(axis))):
            continue
        slots = [
            Slot(k, dim)
            for k, dims in enumerate(instance.inputs)
            if k < len(node.inputs) and node.inputs[k] is not None
            for dim, term in enumerate(dims or ())
            if letter in letters_of(term)
        ]
        slots += [
            Slot(k, dim, result=True)
            for k, dims in enumerate(instance.outputs)
            for dim, term in enumerate(dims)
            if letter in letters_of(term) and atom in set(atoms_of(table.axis(node.outputs[k], dim)))
        ]
        found.append(Meeting(node, atom, letter, instance.roles[letter], tuple(slots)))
    return found
