"""A sub-network as a graph: prefixes of axes are cut out, blocks of stacks are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, size_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Value
from suture.ir.regions import Region, Stack
from suture.ir.splice import arrange, remove
from suture.passes.axis_map import AxisMap, Twin, apply_to
from suture.passes.elastic.dimensions import Choice, ElasticDepth, ElasticWidth
from suture.passes.linear_maps import Gather


@dataclass(frozen=True)
class _Place:
    """Where a block stands: the positions of its nodes, and one operand that reads its stream."""

    nodes: tuple[int, ...]
    reader: int
    operand: int


class StackPlaces:
    """Where the blocks of a stack stand, so that they can be found in copies whose widths differ."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        position = {node: k for k, node in enumerate(stack.graph.nodes)}
        self.places = [self._place(block, position) for block in stack.blocks]

    @staticmethod
    def _place(block: Region, position: Mapping[Node, int]) -> _Place:
        node, operand = next(
            (node, k) for node in block.nodes for k, value in enumerate(node.inputs) if value is block.entry
        )
        return _Place(tuple(position[node] for node in block.nodes), position[node], operand)

    def find(self, nodes: Sequence[Node]) -> Stack:
        """The stack in a copy, given the nodes that the copy began with."""
        blocks = []
        for place, block in zip(self.places, self.stack.blocks, strict=True):
            stream = nodes[place.reader].inputs[place.operand]
            blocks.append(Region(nodes[place.reader].graph, [nodes[k] for k in place.nodes], block.name, stream))
        return Stack(self.stack.name, tuple(blocks), self.stack.numbering)


def kept_sizes(widths: Sequence[ElasticWidth], choice: Choice) -> dict[Atom, int]:
    """How many indices stay of the atoms that do not stay whole."""
    sizes = {atom: size for width in widths for atom, size in width.sizes(choice[width.name]).items()}
    return {atom: size for atom, size in sizes.items() if size != atom.size}


def reduce_graph(
    graph: Graph,
    table: AxisTable,
    sizes: Mapping[Atom, int],
    factors: Mapping[str, float],
    depths: Sequence[tuple[ElasticDepth, StackPlaces]],
    choice: Choice,
    *,
    empty: bool,
) -> Graph:
    """A copy of which prefixes of axes and some blocks are left.

    :param factors: by name, what weights are multiplied by
    :param empty: whether it is to be without weights, its blocks keeping their names; else they are numbered on without gaps
    """
    twin = Twin.of(graph)
    if empty:
        for parameter in twin.graph.parameters.values():
            parameter.assign(parameter.data.detach().to("meta"))
    first = {atom: Gather(torch.arange(size)) for atom, size in sizes.items()}
    apply_to(twin, table, {atom: AxisMap(chosen, chosen) for atom, chosen in first.items()})
    result, nodes = twin.graph, twin.graph.nodes
    for name, factor in factors.items():
        weight = result.parameters[name]
        weight.assign((weight.data.detach() * factor).requires_grad_(weight.data.requires_grad))
    for depth, places in depths:
        kept = depth.blocks(choice[depth.name])
        if len(kept) == len(depth.order):
            continue
        if empty:
            for index in set(range(len(depth.order))) - set(kept):
                remove(places.find(nodes).blocks[index])
        else:
            arrange(places.find(nodes), kept)
    return result


def prefix(data: torch.Tensor, dim: int, axis: Axis, sizes: Mapping[Atom, int]) -> torch.Tensor:
    """The part of a tensor that prefixes of an axis's atoms leave: a view of it, unless an atom lies inside a product or in several parts."""
    if all(atom not in sizes for atom in atoms_of(axis)):
        return data
    match axis:
        case Atom():
            return data.narrow(dim, 0, sizes[axis])
        case Times(factors):
            sizes_apart = [_number(factor) for factor in factors]
            apart = data.reshape([*data.shape[:dim], *sizes_apart, *data.shape[dim + 1 :]])
            for k, factor in enumerate(factors):
                apart = prefix(apart, dim + k, factor, sizes)
            return apart.flatten(dim, dim + len(factors) - 1)
        case Chain(parts):
            pieces = torch.split_with_sizes(data, [_number(part) for part in parts], dim)
            return torch.cat([prefix(piece, dim, part, sizes) for piece, part in zip(pieces, parts, strict=True)], dim)


def slices(
    table: AxisTable, sizes: Mapping[Atom, int], factors: Mapping[str, float]
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """By name, how the parameters that hold an atom of another size are made of the whole ones."""
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for name, parameter in table.graph.parameters.items():
        axes = [(dim, table.axis(parameter, dim)) for dim in range(parameter.rank)]
        touched = [(dim, axis) for dim, axis in axes if any(atom in sizes for atom in atoms_of(axis))]
        if touched:
            found[name] = partial(_sliced, axes=touched, sizes=sizes, factor=factors.get(name, 1.0))
    return found


def _sliced(
    data: torch.Tensor, *, axes: Sequence[tuple[int, Axis]], sizes: Mapping[Atom, int], factor: float
) -> torch.Tensor:
    for dim, axis in axes:
        data = prefix(data, dim, axis, sizes)
    return data if factor == 1.0 else data * factor


def keep_outputs(graph: Graph, names: Sequence[str]) -> None:
    """Let a graph return some of its outputs only; what then nothing reads is gone, tensors included."""
    pairs = dict(zip(graph.output_names, graph.outputs, strict=True))
    values: list[Value] = [pairs[name] for name in names]
    if list(names) == graph.output_names:
        return
    graph.set_outputs(values, names)
    graph.structure = None
    graph.remove_dead()
    for parameter in list(graph.parameters.values()):
        if not parameter.uses and not parameter.is_graph_output():
            graph.remove_parameter(parameter)


def _number(axis: Axis) -> int:
    size = size_of(axis)
    assert isinstance(size, int)
    return size
