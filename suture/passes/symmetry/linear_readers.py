"""The layers that read a value linearly, and moving a scale and a shift of it into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from suture.ir.algebra import Atom, Chain
from suture.ir.axes import AxisTable, Place, analyse
from suture.ir.graph import Graph, Node
from suture.passes.exactness import PRODUCTS
from suture.passes.linear_maps import diagonal, fixed_size
from suture.passes.symmetry.basis import Kind
from suture.passes.symmetry.constant_fields import change_bias, laid_out, refuse_shift, response
from suture.passes.symmetry.parameters import apply_map
from suture.passes.symmetry.reach import Blame, Reach, reach


@dataclass(frozen=True)
class Reader:
    """A layer that sums a value with weights: which operand holds it, and the dimension that holds its last axis."""

    node: Node
    operand: int
    dim: int


@dataclass(frozen=True)
class Readers:
    """All that reads the last axis of a value: the layers, and how far a scale of each part of the axis reaches."""

    table: AxisTable
    layers: tuple[Reader, ...]
    parts: tuple[tuple[slice, Reach], ...]


def linear_readers(graph: Graph, node: Node, *, shifted: bool = True, dim: int = -1) -> Readers | Blame:
    """The layers that read a node's result (a norm's, say) along an axis, if all that reads it is linear; else what does not allow it.

    What only moves elements about may lie between (reshape, permute, split, dropout, a mean over other axes, ...).

    :param shifted: whether a shift is to reach the layers too, which padding with zeros and the like does not let through
    :param dim: the dimension of the result
    """
    value = node.output
    if not value.rank or not isinstance(value.shape[dim], int):
        return Blame(node.where(), "the size of its axis is known only when the model runs", node)
    table = analyse(graph, apart={value})
    place = Place(value, dim % value.rank)
    axis = table.axis(*place)
    parts: list[tuple[slice, Reach]] = []
    offset = 0
    for atom in axis.parts if isinstance(axis, Chain) else (axis,):
        if not isinstance(atom, Atom) or any(found.atom is atom for _, found in parts):
            return Blame(node.where(), "what reads it divides its axis into rows", node)
        found = reach(table, place, Kind.AFFINE if shifted else Kind.DIAGONAL, atom=atom, stop={value})
        if isinstance(found, Blame):
            return found
        if writers := found.uses(1):
            writer = writers[0][0].node
            return Blame(writer.where(), "it changes what the readers read as well", writer)
        size = fixed_size(atom.size)
        parts.append((slice(offset, offset + size), found))
        offset += size
    layers = tuple(dict.fromkeys(_layers(way for _, way in parts)))
    if not layers:
        return Blame(node.where(), "no layer with weights reads it", node)
    refusals = ((layer.node, refuse_shift(layer.node) if shifted else "") for layer in layers)
    refused = next(((layer, reason) for layer, reason in refusals if reason), None)
    return (
        Readers(table, layers, tuple(parts)) if refused is None else Blame(refused[0].where(), refused[1], refused[0])
    )


def move_into_readers(graph: Graph, found: Readers, scale: torch.Tensor, shift: torch.Tensor | None, mark: str) -> None:
    """Let the layers expect `(y + shift) / scale` instead of `y`; what writes it is left to the caller.

    :param scale: float64, one number for each index of the axis
    :param shift: likewise
    :param mark: what is appended to the names of the values between
    """
    if shift is not None:
        changes = [(layer.node, _bias_change(found, layer, shift)) for layer in found.layers]
        for node, change in changes:
            change_bias(graph, node, change)
    for part, way in found.parts:
        apply_map(graph, found.table, way, diagonal(1 / scale[part]), diagonal(scale[part]), mark)


def _bias_change(found: Readers, layer: Reader, shift: torch.Tensor) -> torch.Tensor:
    """`-W shift`."""
    operand, node = layer.node.inputs[layer.operand], layer.node
    assert operand is not None
    if any(parameter.data.is_meta for parameter in found.table.graph.parameters.values()):
        return torch.zeros(fixed_size(node.output.shape[1 if node.operator.name == "conv" else -1]), device="meta")
    axis, total = found.table.axis(operand, layer.dim), torch.zeros((), dtype=torch.float64)
    for part, way in found.parts:
        if way.values.get(Place(operand, layer.dim)):
            total = total - response(node, layer.operand, layer.dim, laid_out(axis, way.atom, shift[part]))
    return total if node.operator.name == "matmul" else total.reshape(-1)


def _layers(ways: Iterable[Reach]) -> Iterable[Reader]:
    for way in ways:
        for place, side in way.values.items():
            for node, index in place.value.uses if side > 0 else ():
                if node in way.nodes and (node.operator.name in PRODUCTS or node.operator.name == "einsum"):
                    yield Reader(node, index, place.dim)
