"""A coarser model and the way back: groups of indices and of blocks become one, by averaging what writes and summing what reads.

Zou et al. 2024, section 3: in width `W' = F W G` with F a group's average and G its sum, which are one map on each atom here, so that embeddings,
norms and tied tables follow from what they do to the axis; in depth a block is the average of its group. The way back copies: with the maps
transposed and weighted, coarsening what was refined gives what it was, to the last bit for groups of a power of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, resolve
from suture.ir.axes import AxisInfo, AxisTable, Place
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter
from suture.ir.regions import correspondence, stacks
from suture.ir.splice import arrange
from suture.passes.axis_map import AxisMap, Twin, apply_to, dimension_maps
from suture.passes.axis_walk import uses_of
from suture.passes.exactness import Correction, constant_values
from suture.passes.growth.width.duplication import Duplication
from suture.passes.growth.width.shares import share
from suture.passes.growth.width.widths import equal_multiplicity
from suture.passes.linear_maps import Gather, Scatter, map_dimension


@dataclass(eq=False)
class Coarsening:
    """How a graph becomes coarser.

    :param groups: for every atom, the coarse index of each fine one
    :param depth: how many blocks of a stack become one
    """

    table: AxisTable
    groups: dict[Atom, torch.Tensor]
    depth: int
    reads: dict[Atom, frozenset[Place]] = field(default_factory=dict)
    corrections: list[Correction] = field(default_factory=list)
    exact: bool = True

    @classmethod
    def of(cls, table: AxisTable, sites: list[AxisInfo], width: int, depth: int) -> Coarsening:
        """Groups of `width` indices of every site, and of `depth` blocks of every stack that they divide."""
        groups, counts = {}, {}
        for info in sites:
            size = _fixed(info.atom)
            groups[info.atom] = torch.arange(size) % (size // width)
            counts[info.atom] = torch.full((size // width,), width)
        plan, weights = cls(table, groups, depth), constant_values(table)

        def multiplicity(node: Node, letter: str) -> int | None:
            return equal_multiplicity(resolve(table.letters[node][letter]), counts)

        for info in sites:
            uses = uses_of(table, info, weights)
            plan.reads[info.atom] = uses.reads - uses.writes
            walk = Duplication(table, info, weights, uses, multiplicity, even=True)
            plan.corrections += walk.corrections
            plan.exact = plan.exact and not walk.blame
        return plan

    def coarsen(self) -> Coarse:
        """The coarse graph, and what is needed to come back from one."""
        return self._coarsened(Twin.of(self.table.graph))

    def refine(self, coarse: Graph) -> Graph:
        """The fine graph with its parameters refined from those of a coarse one.

        :raises SutureError: GROWTH, if the coarse graph is not what this one coarsens to
        """
        fine = self.table.graph
        twin = Twin.of(fine)
        for parameter in twin.graph.parameters.values():
            parameter.data = torch.empty_like(parameter.data, device="meta")
        shape = self._coarsened(twin)
        result = fine.copy()
        dimensions = dimension_maps(self.table, self._maps(), self.reads)
        clones = {atom: Atom(atom.number, int(index.max()) + 1) for atom, index in self.groups.items()}
        for name, parameter in result.parameters.items():
            if parameter.role == "constant" or name not in shape.names:
                continue
            data = _require(coarse, shape.graph.parameters[shape.names[name]])
            factor = shape.factors.get(shape.origin[shape.names[name]])
            if factor is not None:
                data = data / factor.to(data.device, data.dtype)
            for dimension in dimensions.get(name, ()):
                maps = {clones[atom]: self._copies(atom, m) for atom, m in dimension.value.items()}
                data = map_dimension(data, dimension.dim, _renamed(dimension.axis, clones), maps)
            parameter.assign(data.detach().contiguous().requires_grad_(parameter.data.requires_grad))
        return result

    def _copies(self, atom: Atom, down: object) -> Gather:
        """Copy what was averaged; share what was summed."""
        index = self.groups[atom]
        summed = isinstance(down, Scatter) and down.scale is None
        return Gather(index, self._average(atom) if summed else None)

    def _average(self, atom: Atom) -> torch.Tensor:
        index = self.groups[atom]
        return 1 / torch.bincount(index).to(torch.float64)[index]

    def _maps(self) -> dict[Atom, AxisMap]:
        maps = {}
        for atom, index in self.groups.items():
            size = int(index.max()) + 1
            maps[atom] = AxisMap(Scatter(index, size, self._average(atom)), Scatter(index, size))
        return maps

    def _coarsened(self, twin: Twin) -> Coarse:
        apply_to(twin, self.table, self._maps(), self.reads)
        counts = {}
        for atom, index in self.groups.items():
            each = torch.bincount(index).to(torch.float64)
            counts[atom] = Gather(torch.arange(len(each)), each)
        factors = share(twin, self.table, counts, self.corrections)
        coarse = Coarse(
            twin.graph, {n: n for n in self.table.graph.parameters}, {n: n for n in twin.graph.parameters}, factors
        )
        for k in reversed(range(len(stacks(twin.graph)) if self.depth > 1 else 0)):
            coarse.merge_blocks(k, self.depth)
        return coarse


@dataclass(eq=False)
class Coarse:
    """A coarse graph on its way.

    :param names: for every fine parameter the name of the coarse one that holds it
    :param origin: for every parameter of the coarse graph the fine one in whose place it stands
    :param factors: what coarse parameters took up, by the fine name
    """

    graph: Graph
    names: dict[str, str]
    origin: dict[str, str]
    factors: Mapping[str, torch.Tensor]
    merged: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def merge_blocks(self, number: int, depth: int) -> None:
        """Average every `depth` blocks of a stack."""
        stack = stacks(self.graph)[number]
        if len(stack) % depth:
            self.left.append(f"{stack.name} left alone: {len(stack)} blocks are no multiple of {depth}")
            return
        tensors: dict[str, torch.Tensor] = {}  # of every parameter, by its name before
        for first in range(0, len(stack), depth):
            blocks = stack.blocks[first : first + depth]
            own = set(blocks[0].own_parameters())
            pairs = [correspondence(blocks[0], block).parameters for block in blocks[1:]]
            for parameter in blocks[0].parameters:
                others = [pair[parameter] for pair in pairs if pair.get(parameter, parameter) is not parameter]
                if parameter not in own or not others:
                    continue
                _average_into(parameter, others)
                for other in others:
                    tensors[other.name] = parameter.data
        before = {name: tensors.get(name, parameter.data) for name, parameter in self.graph.parameters.items()}
        kept = {id(p.data): self.origin[name] for name, p in self.graph.parameters.items() if name not in tensors}
        count = len(stack)
        arrange(stack, range(0, count, depth))
        now = {id(parameter.data): name for name, parameter in self.graph.parameters.items()}
        # a tensor that nothing reads may correspond to none, and is gone
        self.names = {fine: now[id(before[name])] for fine, name in self.names.items() if id(before[name]) in now}
        self.origin = {name: kept[tensor] for tensor, name in now.items()}
        self.merged.append(f"{stack.name}: {count} -> {count // depth} blocks, averaged")


def _average_into(parameter: Parameter, others: list[Parameter]) -> None:
    """Give a parameter the mean of itself and others; integers stay."""
    if not parameter.dtype.is_floating_point:
        return
    with torch.no_grad():
        total = parameter.data.detach()
        for other in others:
            total = total + other.data.detach()
        mean = total / (1 + len(others))
    parameter.assign(mean.requires_grad_(parameter.data.requires_grad))


def _renamed(axis: Axis, clones: Mapping[Atom, Atom]) -> Axis:
    """An axis over coarse atoms."""
    match axis:
        case Atom():
            return clones.get(axis, axis)
        case Times(factors):
            return Times(tuple(_renamed(factor, clones) for factor in factors))
        case Chain(parts):
            return Chain(tuple(_renamed(part, clones) for part in parts))


def _require(coarse: Graph, expected: Parameter) -> torch.Tensor:
    found = coarse.parameters.get(expected.name)
    if found is None or found.data.shape != expected.data.shape:
        what = "is missing" if found is None else f"has shape {list(found.data.shape)}"
        raise SutureError(
            Code.GROWTH, f"{expected.name} of the coarse model {what}", where=coarse.name,
            remedy=f"shape {list(expected.data.shape)} would be right: take the model and the options that were coalesced",
        )  # fmt: skip
    return found.data.detach()


def _fixed(atom: Atom) -> int:
    assert isinstance(atom.size, int)
    return atom.size
