"""Applying a selection to atoms: the one place where widths change.

`cut(graph, table, keep)` takes, for some atoms, the indices that stay. Every dimension whose axis holds such an atom gets a new size and,
where it belongs to a parameter, the rows that the axis expression selects: products and concatenations are composed, so heads, groups,
channel shuffle and flatten need no rule of their own. Attributes that are sizes of letters (group counts, slice offsets) are read off the
letters again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, resolve, size_of
from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import Dim
from suture.ir.types import TensorType
from suture.passes.exactness import Correction

Keep = Mapping[Atom, Sequence[int]]


def kept_indices(axis: Axis, keep: Keep) -> torch.Tensor:
    """The indices of a dimension that stay, from those of its atoms. Shape `[size after]`, int64."""
    match axis:
        case Atom():
            chosen = keep.get(axis)
            return torch.arange(_fixed(axis.size)) if chosen is None else torch.tensor(chosen, dtype=torch.int64)
        case Times(factors):
            result = torch.zeros(1, dtype=torch.int64)
            for factor in factors:
                result = (result[:, None] * _fixed(size_of(factor)) + kept_indices(factor, keep)[None, :]).reshape(-1)
            return result
        case Chain(parts):
            offset, pieces = 0, []
            for part in parts:
                pieces.append(kept_indices(part, keep) + offset)
                offset += _fixed(size_of(part))
            return torch.cat(pieces)


def new_size(axis: Axis, keep: Keep) -> Dim:
    """The size of an axis after the cut."""
    match axis:
        case Atom():
            chosen = keep.get(axis)
            return axis.size if chosen is None else len(chosen)
        case Times(factors):
            result: Dim = 1
            for factor in factors:
                result = result * new_size(factor, keep)
            return result
        case Chain(parts):
            total: Dim = 0
            for part in parts:
                total = total + new_size(part, keep)
            return total


def cut(graph: Graph, table: AxisTable, keep: Keep, corrections: Sequence[Correction] = ()) -> Graph:
    """A copy of the graph in which only the given indices of the given atoms are left.

    :param table: the axes of `graph`
    :param keep: for every atom to cut, the indices that stay, ascending
    :param corrections: what restores the function after the cut
    """
    result = graph.copy()
    twins: dict[Value, Value] = dict(zip(graph.values(), result.values(), strict=True))
    nodes: dict[Node, Node] = dict(zip(graph.nodes, result.nodes, strict=True))
    _absorb(table, keep, corrections, nodes, result)
    touched = set(keep)
    for value, axes in table.dims.items():
        resolved = [resolve(axis) for axis in axes]
        changed = [dim for dim, axis in enumerate(resolved) if not touched.isdisjoint(atoms_of(axis))]
        if not changed:
            continue
        twin = twins[value]
        if isinstance(twin, Parameter):
            twin.assign(_selected(twin.data, [(dim, kept_indices(resolved[dim], keep)) for dim in changed]))
        else:
            shape = tuple(
                new_size(axis, keep) if dim in changed else value.shape[dim] for dim, axis in enumerate(resolved)
            )
            twin.type = TensorType(value.type.dtype, shape)
    for node, letters in table.letters.items():
        for attribute, letter in node.operator.letters.items():
            if letter in letters and not touched.isdisjoint(atoms_of(resolve(letters[letter]))):
                nodes[node].attributes[attribute] = new_size(resolve(letters[letter]), keep)
    _rescale(table, keep, corrections, nodes, result)
    return result


def _selected(data: torch.Tensor, cuts: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    gradient = data.requires_grad
    with torch.no_grad():
        for dim, index in cuts:
            data = (
                data.index_select(dim, index.to(data.device))
                if data.device.type != "meta"
                else _resized(data, dim, len(index))
            )
        data = data.contiguous()
    return data.detach().requires_grad_(gradient) if data.dtype.is_floating_point else data


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


def _rescale(
    table: AxisTable, keep: Keep, corrections: Sequence[Correction], nodes: Mapping[Node, Node], result: Graph
) -> None:
    """Give RMS norms and means the factor by which their width changed: once per node, whatever number of atoms it saw."""
    done: set[Node] = set()
    scaled: set[Parameter] = set()
    for correction in corrections:
        node = correction.node
        if correction.kind not in ("rms", "mean") or correction.atom not in keep or node in done:
            continue
        done.add(node)
        instance, letters = table.instances[node], table.letters[node]
        mixed = [x for x in letters if instance.roles[x].value == "mixed"]
        before = math.prod(_fixed(size_of(resolve(letters[x]))) for x in mixed)
        after = math.prod(_fixed(new_size(resolve(letters[x]), keep)) for x in mixed)
        twin = nodes[node]
        if correction.kind == "mean":
            _multiply_result(result, twin, after / before)
            continue
        eps = twin.attributes["eps"]
        floor = torch.finfo(twin.outputs[0].dtype).eps if eps is None else eps
        assert isinstance(floor, int | float)
        twin.attributes["eps"] = floor * before / after
        gain = twin.inputs[1] if len(twin.inputs) > 1 else None
        factor = math.sqrt(before / after)
        if isinstance(gain, Parameter) and all(use.node.operator.name == "rms_norm" for use in gain.uses):
            if gain not in scaled:
                gain.assign((gain.data.detach() * factor).requires_grad_(gain.data.requires_grad))
                scaled.add(gain)
        else:
            _multiply_result(result, twin, factor)


def _multiply_result(graph: Graph, node: Node, factor: float) -> None:
    order = graph.nodes
    position = order.index(node)
    follower = order[position + 1] if position + 1 < len(order) else None
    product = graph.add(
        "mul",
        [node.output, None],
        {"scalar": factor},
        path=node.path,
        name=f"{node.output.name}_rescaled",
        before=follower,
    )
    graph.replace_uses(node.output, product.output, keep=[product])


def _fixed(size: Dim) -> int:
    assert isinstance(size, int), f"a symbolic size {size} cannot be cut"
    return size
