"""Putting a change of basis into parameters, each of which has one use (`suture.passes.symmetry.ties`)."""

from __future__ import annotations

import torch

from suture.ir.axes import AxisTable
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.linear_maps import LinearMap, map_dimension
from suture.passes.symmetry.reach import Reach


def apply_map(graph: Graph, table: AxisTable, found: Reach, write: LinearMap, read: LinearMap, mark: str) -> None:
    """Change the basis within a reach: parameters take the map or its inverse transposed, changed values another name.

    :param write: the map
    :param read: its inverse, transposed
    :param mark: what is appended to the names of values that hold something new
    """
    for (use, dim), side in found.parameters.items():
        parameter = use.node.inputs[use.index]
        assert isinstance(parameter, Parameter)
        if not side or parameter.data.is_meta:
            continue
        maps = {found.atom: write if side > 0 else read}
        data = parameter.data.detach().to(torch.float64)
        parameter.assign(like(map_dimension(data, dim, table.axis(parameter, dim), maps), parameter))
    for value in dict.fromkeys(place.value for place in found.changed()):
        graph.rename_result(value, f"{value.name}_{mark}")


def like(data: torch.Tensor, old: Parameter) -> torch.Tensor:
    """New numbers for a parameter: of its type, contiguous, trained if it was."""
    made = data.to(old.data.dtype).contiguous()
    return made.requires_grad_(old.data.requires_grad) if made.is_floating_point() else made


def free_name(graph: Graph, base: str) -> str:
    """A parameter name that is not taken: the base itself, else with a number."""
    name, count = base, 1
    while name in graph.parameters:
        name, count = f"{base}_{count}", count + 1
    return name


def beside(graph: Graph, weight: Value | None, node: Node, kind: str) -> str:
    """A name for a new parameter beside a layer's weight: `fc1.weight` has `fc1.bias`."""
    if isinstance(weight, Parameter):
        stem, _, last = weight.name.partition("@")[0].rpartition(".")
        if last == "weight":
            return free_name(graph, f"{stem}.{kind}" if stem else kind)
    return free_name(graph, f"{node.path}.{kind}" if node.path else f"{node.outputs[0].name}_{kind}")


def set_operand(node: Node, index: int, value: Value | None) -> None:
    """Give a node an optional operand, or take it away."""
    if index >= len(node.inputs):
        node.extend_inputs(index + 1)
    node.replace_input(index, value)
