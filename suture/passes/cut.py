"""Applying a selection to atoms: the axis map that prunes.

`cut(graph, table, keep)` takes, for some atoms, the indices that stay; writers and readers take the same selection. Before it, constants
that the doomed columns would have contributed go into their readers' biases; after it, statistics that saw the width are restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.algebra import Atom, Axis, atoms_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.axis_map import AxisMap, Twin, apply_to
from suture.passes.exactness import Correction
from suture.passes.linear_maps import Gather, composed
from suture.passes.statistics import restore_statistics

Keep = Mapping[Atom, Sequence[int]]


def kept_indices(axis: Axis, keep: Keep) -> torch.Tensor:
    """The indices of a dimension that stay, from those of its atoms. Shape `[size after]`, int64."""
    return composed(axis, {atom: _selection(keep[atom]) for atom in atoms_of(axis) if atom in keep}).index


def cut(graph: Graph, table: AxisTable, keep: Keep, corrections: Sequence[Correction] = ()) -> Graph:
    """A copy of the graph in which only the given indices of the given atoms are left.

    :param table: the axes of `graph`
    :param keep: for every atom to cut, the indices that stay, ascending
    :param corrections: what restores the function after the cut
    """
    twin = Twin.of(graph)
    selections = {atom: _selection(indices) for atom, indices in keep.items()}
    _absorb(table, keep, corrections, twin.nodes, twin.graph)
    apply_to(twin, table, {atom: AxisMap(chosen, chosen) for atom, chosen in selections.items()})
    restore_statistics(twin, table, {atom: len(indices) for atom, indices in keep.items()}, corrections)
    return twin.graph


def _selection(indices: Sequence[int]) -> Gather:
    return Gather(torch.tensor(indices, dtype=torch.int64))


def _resized(data: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    shape = list(data.shape)
    shape[dim] = size
    return torch.empty(shape, dtype=data.dtype, device="meta")


def _absorb(
    table: AxisTable,
    keep: Keep,
    corrections: Sequence[Correction],
    nodes: Mapping[Node, Node],
    result: Graph,
) -> None:
    """Add what the doomed columns would have contributed to the readers' biases, before anything is cut."""
    counted: dict[Node, dict[Atom, Sequence[int]]] = {}
    shifts: dict[Node, torch.Tensor] = {}
    stays: dict[Node, torch.Tensor] = {}
    for correction in corrections:
        if correction.kind != "absorb" or correction.atom not in keep:
            continue
        node = correction.node
        operand = 2 if node.operator.name == "addmm" else 1
        weight, terms = node.inputs[operand], table.instances[node].inputs[operand]
        assert isinstance(weight, Parameter) and terms is not None
        data = weight.data.detach()
        dim = next(k for k, term in enumerate(terms) if term == correction.letter)
        # A column that two atoms doom is absorbed once: what earlier atoms removed is not there any more.
        earlier = counted.setdefault(node, {})
        gone = torch.zeros(data.shape[dim], dtype=torch.bool)
        gone[kept_indices(table.axis(weight, dim), earlier)] = True
        earlier[correction.atom] = keep[correction.atom]
        gone[kept_indices(table.axis(weight, dim), earlier)] = False
        axes = [k for k, term in enumerate(terms) if k != dim and k >= 2] if node.operator.name == "conv" else []
        lost = data.to(torch.float64) if data.device.type != "meta" else data
        lost = lost.index_select(dim, gone.nonzero()[:, 0].to(data.device)) * correction.value
        shift = lost.sum([dim, *axes])
        if node.operator.name == "conv" and shift.ndim > 1:
            shift = shift.reshape(-1)
        shifts[node] = shifts[node] + shift if node in shifts else shift
        written = next(k for k, term in enumerate(terms) if k != dim)  # conv and linear: the output features; addmm: n
        stays[node] = kept_indices(table.axis(weight, written), keep)
    for node, shift in shifts.items():
        _shift_bias(result, nodes[node], shift, stays[node])


def _shift_bias(graph: Graph, node: Node, shift: torch.Tensor, stays: torch.Tensor) -> None:
    """Add to a node's bias, before it is cut; one that is not there, or that others read too, becomes a new parameter, cut already."""
    index, weight = (0, node.inputs[2]) if node.operator.name == "addmm" else (2, node.inputs[1])
    held = node.inputs[index] if index < len(node.inputs) else None
    assert isinstance(weight, Parameter) and (held is None or isinstance(held, Parameter))
    if held is not None and len(held.uses) == 1:
        data = (held.data.detach().to(shift.dtype) + shift).to(held.dtype)
        held.assign(data.requires_grad_(held.data.requires_grad))
        return
    data = (shift if held is None else held.data.detach().to(shift.dtype) + shift).to(weight.dtype)
    last = data.ndim - 1
    meta = data.device.type == "meta"
    data = _resized(data, last, len(stays)) if meta else data.index_select(last, stays.to(data.device))
    base = f"{weight.name.removesuffix('weight')}bias" if weight.name.endswith("weight") else f"{weight.name}_bias"
    names = (base, *(f"{base}_absorbed_{k}" for k in range(1, len(graph.parameters) + 2)))
    name = next(name for name in names if name not in graph.parameters)
    _set_operand(node, index, graph.add_parameter(name, data.requires_grad_(weight.data.requires_grad)))


def _set_operand(node: Node, index: int, value: Value) -> None:
    if index >= len(node.inputs):
        node.extend_inputs(index + 1)
    node.replace_input(index, value)
