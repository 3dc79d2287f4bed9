"""A width surgery is one linear map on one atom: the one place where widths change.

A selection prunes, a duplication widens, an averaging matrix coalesces. What writes the atom takes the map `write`, what reads it takes
`read`: the two are inverse to each other (`read^T write = 1`) where the surgery is to keep the function. `apply` gives every dimension whose
axis holds a mapped atom its new size and, where it belongs to a parameter, its new entries. Axis expressions are composed, so that heads,
groups, channel shuffle and flatten need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from suture.ir.algebra import Atom, Axis, atoms_of, resolve, size_of
from suture.ir.axes import AxisTable, Place
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import TensorType
from suture.passes.linear_maps import (
    LinearMap,
    Noise,
    Pad,
    fixed_size,
    is_noisy,
    map_dimension,
    mapped_size,
    touches_none,
)


@dataclass(frozen=True, eq=False)
class AxisMap:
    """What happens to one atom: the map of what writes it, and the map of what reads it.

    `special` gives some parameters' dimensions a map of their own (a norm's bias under padding, say).
    """

    write: LinearMap
    read: LinearMap
    special: Mapping[Place, LinearMap] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The size after the map."""
        return self.write.size


@dataclass(frozen=True, eq=False)
class DimensionMap:
    """What happens to one dimension of a parameter: its axis, and a map for some of the axis's atoms.

    `gradient` says how the loss's derivative by the new parameter follows from that by the old one: what reads takes what the writers take, and
    the other way round, as in any change of coordinates.
    """

    dim: int
    axis: Axis
    value: Mapping[Atom, LinearMap]
    gradient: Mapping[Atom, LinearMap] = field(default_factory=dict)

    def apply(self, data: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """The tensor with this dimension mapped."""
        return map_dimension(data, self.dim, self.axis, self.value, noise)

    def is_new(self, shape: torch.Size, atoms: Container[Atom]) -> torch.Tensor:
        """Where some of the atoms have indices that they did not have before, in the mapped tensor's shape; broadcasts with it."""
        marks = {
            atom: Pad(fixed_size(atom.size), m.size - fixed_size(atom.size), float(atom in atoms))
            for atom, m in self.value.items()
        }
        new = map_dimension(torch.zeros(fixed_size(size_of(self.axis))), 0, self.axis, marks) > 0
        return new.reshape([-1 if k == self.dim else 1 for k in range(len(shape))])


Maps: TypeAlias = Mapping[Atom, AxisMap]
Reads: TypeAlias = Mapping[Atom, frozenset[Place]]


@dataclass(frozen=True)
class Twin:
    """A copy of a graph, and what stands in it for the values and nodes of the original."""

    graph: Graph
    values: Mapping[Value, Value]
    nodes: Mapping[Node, Node]

    @classmethod
    def of(cls, graph: Graph) -> Twin:
        """Copy a graph; tensors are shared."""
        copy = graph.copy()
        values = dict(zip(graph.values(), copy.values(), strict=True))
        return cls(copy, values, dict(zip(graph.nodes, copy.nodes, strict=True)))


def apply(graph: Graph, table: AxisTable, maps: Maps, reads: Reads | None = None, *, seed: int = 0) -> Graph:
    """A copy of the graph in which every atom is mapped.

    :param table: the axes of `graph`
    :param reads: the parameters' dimensions that read an atom; all others write it
    :param seed: the key of noise in new entries
    """
    twin = Twin.of(graph)
    apply_to(twin, table, maps, reads, seed=seed)
    return twin.graph


def apply_to(twin: Twin, table: AxisTable, maps: Maps, reads: Reads | None = None, *, seed: int = 0) -> None:
    """`apply`, on a copy that is there already, and may have been edited."""
    for name, dimensions in dimension_maps(table, maps, reads or {}).items():
        parameter = twin.graph.parameters[name]
        parameter.assign(mapped_parameter(parameter, dimensions, seed))
    _resize(twin, table, {atom: m.size for atom, m in maps.items()})


def dimension_maps(table: AxisTable, maps: Maps, reads: Reads) -> dict[str, tuple[DimensionMap, ...]]:
    """For every parameter that holds a mapped atom, what happens to its dimensions; noise comes first, so that later maps act on it too."""
    found: dict[str, tuple[DimensionMap, ...]] = {}
    for parameter in table.graph.parameters.values():
        dimensions = []
        for dim in range(parameter.rank):
            axis, place = table.axis(parameter, dim), Place(parameter, dim)
            held = [atom for atom in dict.fromkeys(atoms_of(axis)) if atom in maps]
            if not held:
                continue
            value, gradient = {}, {}
            for atom in held:
                reading = place in reads.get(atom, ())
                ends = (maps[atom].read, maps[atom].write) if reading else (maps[atom].write, maps[atom].read)
                value[atom], gradient[atom] = maps[atom].special.get(place, ends[0]), ends[1]
            dimensions.append(DimensionMap(dim, axis, value, gradient))
        if dimensions:
            found[parameter.name] = tuple(sorted(dimensions, key=lambda each: not is_noisy(each.axis, each.value)))
    return found


def mapped_parameter(parameter: Parameter, dimensions: tuple[DimensionMap, ...], seed: int = 0) -> torch.Tensor:
    """The parameter's new tensor: contiguous, of the same type, trained if the old one was."""
    with torch.no_grad():
        data, noise = parameter.data, Noise(parameter, seed)
        for dimension in dimensions:
            data = dimension.apply(data, noise)
        data = data.contiguous()
    return data.detach().requires_grad_(parameter.data.requires_grad) if data.dtype.is_floating_point else data


def _resize(twin: Twin, table: AxisTable, sizes: Mapping[Atom, int]) -> None:
    """Give the values between the parameters, and the attributes that are sizes, what follows from the atoms' new sizes."""
    touched = set(sizes)
    for value, axes in table.dims.items():
        copy = twin.values[value]
        resolved = [resolve(axis) for axis in axes]
        if isinstance(copy, Parameter) or all(touched.isdisjoint(atoms_of(axis)) for axis in resolved):
            continue
        shape = tuple(
            size if touches_none(axis, sizes) else mapped_size(axis, sizes)
            for size, axis in zip(value.shape, resolved, strict=True)
        )
        copy.type = TensorType(value.type.dtype, shape)
    for node, letters in table.letters.items():
        for attribute, letter in node.operator.letters.items():
            if letter in letters and not touched.isdisjoint(atoms_of(resolve(letters[letter]))):
                twin.nodes[node].attributes[attribute] = mapped_size(resolve(letters[letter]), sizes)
