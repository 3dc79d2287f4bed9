"""Pairs of layers that share a channel axis up to a positive scale: what writes it, what reads it, and nothing between that minds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suture.ir.algebra import Atom, atoms_of
from suture.ir.axes import AxisTable, Place
from suture.ir.graph import Node, Parameter, Use, Value
from suture.passes.exactness import PRODUCTS, constant_values
from suture.passes.symmetry.basis import Kind, meetings
from suture.passes.symmetry.reach import Blame, Reach, reach

_NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class Pair:
    """A scale that layers share: how far it reaches, and the weights that write and read it, each with its dimension.

    :param gains: gains of batch norms that write it
    """

    reader: Node
    found: Reach
    writers: tuple[tuple[Parameter, int], ...]
    gains: tuple[Use, ...]
    readers: tuple[tuple[Parameter, int], ...]

    def tensors_written(self) -> list[Parameter]:
        """The weights and gains that write the channels."""
        gains = [use.node.inputs[use.index] for use in self.gains]
        return [parameter for parameter, _ in self.writers] + [g for g in gains if isinstance(g, Parameter)]


@dataclass(frozen=True)
class Refused:
    """A layer whose input has no scale to share along an axis, and why."""

    reader: Node
    atom: Atom
    blame: Blame


def find_pairs(table: AxisTable) -> tuple[list[Pair], list[Refused]]:
    """All pairs of a graph whose parameters have one use each; the layers whose input has no scale to share, with the reason."""
    pairs: list[Pair] = []
    refused: list[Refused] = []
    for node, place, atom in _inputs_of_layers(table):
        if any(pair.found.atom is atom and pair.found.values.get(place) for pair in pairs):
            continue
        found = reach(table, place, Kind.POSITIVE, atom=atom)
        pair = found if isinstance(found, Blame) else _pair(node, found)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            refused.append(Refused(node, atom, pair))
    return pairs, refused


def _inputs_of_layers(table: AxisTable) -> Iterator[tuple[Node, Place, Atom]]:
    """Every axis that a layer's data and weights share."""
    weights = constant_values(table)
    for node in table.graph.nodes:
        if node.operator.name not in PRODUCTS and node.operator.name != "einsum":
            continue
        for k, value in enumerate(node.inputs):
            if value is None or value in weights:
                continue
            for dim in range(value.rank):
                atoms = list(dict.fromkeys(atoms_of(table.axis(value, dim))))
                for atom in atoms:
                    if len(atoms) > 1 and atom.pin is not None:
                        continue  # the positions of channels that were laid out in a row
                    if atom.size != 1 and _meets_weights(table, node, k, dim, atom, weights):
                        yield node, Place(value, dim), atom


def _meets_weights(table: AxisTable, node: Node, operand: int, dim: int, atom: Atom, weights: set[Value]) -> bool:
    for meeting in meetings(table, node, atom):
        slots = meeting.operands()
        here = any(slot.index == operand and slot.dim == dim for slot in slots)
        factors = PRODUCTS.get(node.operator.name, range(len(node.inputs)))
        if here and any(node.inputs[slot.index] in weights for slot in slots if slot.index in factors):
            return True
    return False


def _pair(reader: Node, found: Reach) -> Pair | Blame:
    writers: list[tuple[Parameter, int]] = []
    readers: list[tuple[Parameter, int]] = []
    gains: list[Use] = []
    for (use, dim), side in found.parameters.items():
        parameter = use.node.inputs[use.index]
        assert isinstance(parameter, Parameter)
        if not side:
            continue
        if use.node.operator.name in _NORMS:
            return Blame(use.node.where(), "a norm writes it, whose gain has no range to share", use.node)
        if use.node.operator.name == "batch_norm":
            if use.index == 1 and side > 0:
                gains.append(use)
        elif parameter.rank > 1 and use.node.operator.name not in ("minimum", "maximum"):
            (writers if side > 0 else readers).append((parameter, dim))
    if not (writers or gains) or not readers:
        return Blame(reader.where(), "no weights write it" if readers else "no weights read it", reader)
    return Pair(reader, found, tuple(writers), tuple(gains), tuple(readers))
