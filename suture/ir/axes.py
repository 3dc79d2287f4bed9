"""The axes of a graph: which dimensions of which values change together, what each operator does with them, and what is pinned and why.

`analyse` walks the nodes once. The index notation gives every dimension a term over letters; dimensions that meet in a letter are unified, dimensions
of results are made from the letters. What comes out is an `AxisTable`: an axis expression for every dimension of every value, and per atom every
place that touches it with the role it plays there.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from suture.ir.algebra import UNIT, Algebra, Atom, Axis, Chain, Pin, atoms_of, chain, resolve, times
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.notation import Instance, Join, Product, Role, Term, letters_of
from suture.ir.operator import FunctionClass
from suture.ir.sizes import Dim

_PINNING = {
    Role.ORDERED: "order matters in",
    Role.LOOKUP: "looked up by data in",
    Role.CONDITIONAL: "decided at run time by",
}


class Touch(NamedTuple):
    """A letter of a node that holds an atom, and its role there."""

    node: Node
    letter: str
    role: Role
    instance: Instance


class Place(NamedTuple):
    """A dimension of a value."""

    value: Value
    dim: int

    def __str__(self) -> str:
        return f"{self.value.name}[{self.dim}]"


@dataclass(eq=False)
class AxisInfo:
    """What is known of one atom."""

    atom: Atom
    places: list[Place] = field(default_factory=list)  # parameters' dimensions that hold it
    touches: list[Touch] = field(default_factory=list)
    writers: list[Node] = field(default_factory=list)  # nodes that make it from a parameter
    readers: list[Node] = field(default_factory=list)  # nodes that sum over it with a parameter
    suffixes: dict[Place, str] = field(default_factory=dict)  # which of several atoms of a dimension it is

    @property
    def size(self) -> Dim:
        """How many indices the atom has."""
        return self.atom.size

    @property
    def pin(self) -> Pin | None:
        """Why it may not change, or None."""
        return self.atom.pin

    @property
    def name(self) -> str:
        """A name that stays the same from run to run: the first parameter dimension that holds it."""
        if not self.places:
            return f"a{self.atom.number}"
        owner = next(
            (place for place in self.places if any(place.value in node.inputs for node in self.writers)), self.places[0]
        )
        return f"{owner}{self.suffixes.get(owner, '')}"

    @property
    def kind(self) -> str:
        """`head`, `head_width`, `group` or `feature`, by what contractions do with it."""
        for node, letter, role, instance in self.touches:
            if node.operator.function is not FunctionClass.LINEAR or node.operator.pointwise:
                continue
            activations = [
                {x for term in dims or () for x in letters_of(term)}
                for value, dims in zip(node.inputs, instance.inputs, strict=False)
                if value is not None and not isinstance(value, Parameter)
            ]
            if len(activations) < 2 or node.operator.name in ("concat",):
                continue
            count = sum(letter in letters for letters in activations)
            if count >= 2:
                return "head" if role is Role.FREE else "head_width"
            if count == 1 and role is Role.FREE and letter not in activations[0]:
                return "head_width"
        if any(
            node.operator.letters.get("groups") == letter and instance.sizes.get("i", 1) != 1
            for node, letter, _, instance in self.touches
        ):
            return "group"
        return "feature"


class AxisTable:
    """The axes of a graph. Printing it shows one line per atom."""

    def __init__(self, graph: Graph, algebra: Algebra, apart: Container[Value] = ()) -> None:
        self.graph = graph
        self.algebra = algebra
        self.apart = apart  # results whose dimensions are axes of their own
        self.dims: dict[Value, list[Axis]] = {}
        self.letters: dict[Node, dict[str, Axis]] = {}
        self.instances: dict[Node, Instance] = {}
        self.reads: dict[Node, tuple[frozenset[str], ...]] = {}  # the letters of every operand
        self.makes: dict[Node, frozenset[str]] = {}  # the letters of the results
        self._infos: dict[Atom, AxisInfo] | None = None

    def axis(self, value: Value, dim: int) -> Axis:
        """The axis expression of a dimension."""
        return resolve(self.dims[value][dim])

    def letter(self, node: Node, letter: str) -> Axis:
        """The axis expression of a letter at a node."""
        return resolve(self.letters[node][letter])

    @property
    def infos(self) -> Mapping[Atom, AxisInfo]:
        """What is known of every atom that a parameter holds or a node touches, in order of appearance."""
        if self._infos is None:
            self._infos = self._collect()
        return self._infos

    def free(self) -> list[AxisInfo]:
        """The atoms that a parameter holds and nothing pins."""
        return [info for info in self.infos.values() if info.pin is None and info.places and info.size != 1]

    def find(self, name: str) -> AxisInfo | None:
        """The atom of that name, or the one that a place such as `fc1.weight[0]` holds alone."""
        for info in self.infos.values():
            if any(f"{place}{info.suffixes.get(place, '')}" == name for place in info.places):
                return info
        return None

    def _collect(self) -> dict[Atom, AxisInfo]:
        infos: dict[Atom, AxisInfo] = {}
        for parameter in self.graph.parameters.values():
            for dim in range(parameter.rank):
                held = list(dict.fromkeys(atoms_of(self.axis(parameter, dim))))
                for position, atom in enumerate(held):
                    info, place = infos.setdefault(atom, AxisInfo(atom)), Place(parameter, dim)
                    info.places.append(place)
                    if len(held) > 1:
                        info.suffixes[place] = f".{position}"
        for node, letters in self.letters.items():
            instance = self.instances[node]
            from_parameters, read = set[str](), set[str]()
            for value, operand in zip(node.inputs, self.reads[node], strict=False):
                if value is not None:
                    (from_parameters if isinstance(value, Parameter) else read).update(operand)
            made = self.makes[node]
            for letter, axis in letters.items():
                role = instance.roles[letter]
                for atom in dict.fromkeys(atoms_of(resolve(axis))):
                    info = infos.setdefault(atom, AxisInfo(atom))
                    info.touches.append(Touch(node, letter, role, instance))
                    if (
                        letter in from_parameters
                        and letter in made
                        and (letter not in read or node.operator.name in _RECURRENT)
                    ):
                        if node not in info.writers:
                            info.writers.append(node)
                    elif letter in from_parameters and role is Role.CONTRACTED and node not in info.readers:
                        info.readers.append(node)
        return infos

    def __str__(self) -> str:
        rows = [("axis", "size", "kind", "written by", "read by", "state")]
        for info in self.infos.values():
            if not info.places or info.size == 1:
                continue
            state = "free" if info.pin is None else f"pinned: {info.pin}"
            rows.append((info.name, str(info.size), info.kind, _names(info.writers), _names(info.readers), state))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)), row[5]]).rstrip()
            for row in rows
        )


_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _names(nodes: Sequence[Node]) -> str:
    shown = [node.path or node.outputs[0].name for node in nodes[:2]]
    return ", ".join(shown) + (f" +{len(nodes) - 2}" if len(nodes) > 2 else "")


def analyse(graph: Graph, apart: Container[Value] = ()) -> AxisTable:
    """Find the axes of a graph. One pass over the nodes; the table is not updated when the graph changes.

    :param apart: results whose dimensions are axes of their own, whatever made them: a change of basis may begin there
    """
    algebra = Algebra()
    table = AxisTable(graph, algebra, apart)
    for value in (*graph.inputs, *graph.parameters.values()):
        table.dims[value] = [_axis_of_size(algebra, size) for size in value.shape]
    for value in graph.inputs:
        for dim, axis in enumerate(table.dims[value]):
            algebra.pin(axis, Pin(f"dimension {dim} of input {value.name}"))
    for node in graph.nodes:
        _visit(table, node)
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        for dim, axis in enumerate(table.dims[value]):
            algebra.pin(axis, Pin(f"it reaches dimension {dim} of output {name}"))
    return table


def _letters(dims: Sequence[Term]) -> frozenset[str]:
    return frozenset(letter for term in dims for letter in letters_of(term))


def _axis_of_size(algebra: Algebra, size: Dim) -> Axis:
    return UNIT if size == 1 else algebra.atom(size)


def _visit(table: AxisTable, node: Node) -> None:
    instance = node.operator.instance(node)
    letters: dict[str, Axis] = {}
    table.letters[node], table.instances[node] = letters, instance
    where = node.path or node.outputs[0].name

    def axis_of(term: Term) -> Axis:
        match term:
            case int():
                return UNIT
            case str():
                if term not in letters:
                    letters[term] = _axis_of_size(table.algebra, instance.sizes[term])
                return letters[term]
            case Product(terms):
                return times([resolve(axis_of(part)) for part in terms])
            case Join(terms):
                return chain([resolve(axis_of(part)) for part in terms])

    for value, dims in zip(node.inputs, instance.inputs, strict=False):
        if value is None or dims is None:
            continue
        for dim, term in enumerate(dims):
            known = table.dims[value][dim]
            if isinstance(term, str) and term not in letters:
                letters[term] = known
            else:
                table.algebra.unify(known, axis_of(term), where)
    for value, dims in zip(node.outputs, instance.outputs, strict=True):
        own = value in table.apart
        table.dims[value] = [
            _axis_of_size(table.algebra, size) if own else axis_of(term)
            for size, term in zip(value.shape, dims, strict=True)
        ]
    table.reads[node] = tuple(_letters(dims or ()) for dims in instance.inputs)
    table.makes[node] = frozenset().union(*(_letters(dims) for dims in instance.outputs))
    for letter, axis in letters.items():
        role = instance.roles[letter]
        if role in _PINNING:
            table.algebra.pin(axis, Pin(f"{_PINNING[role]} {node.operator.name}", where))


__all__ = ["AxisInfo", "AxisTable", "Chain", "Place", "Touch", "analyse"]
