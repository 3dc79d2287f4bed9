"""Putting a rounded weight into a graph: integers, scales and zero points in the weight's place, and one dequantiser that its readers read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Value
from suture.passes.quantise_weights.gptq import Rounding
from suture.passes.quantise_weights.grid import Scheme
from suture.passes.quantise_weights.sites import WeightSite


@dataclass(frozen=True)
class Stored:
    """A weight as a file holds it: integers of the weight's shape, scales and zero points."""

    integers: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    scheme: Scheme


def stored(site: WeightSite, rounding: Rounding) -> Stored:
    """A rounding of a site's matrix in the shapes that a dequantiser takes."""
    scheme = rounding.grid.scheme
    integers = site.unfolded(rounding.integers).to(scheme.dtype)
    scale, zero = rounding.grid.scale.to(scheme.held), rounding.grid.zero.to(scheme.dtype)
    if scheme.block is None:
        scale, zero = scale[:, 0], zero[:, 0]
    else:
        scale, zero = scale.movedim(0, site.axis), zero.movedim(0, site.axis)
    device, dtype = site.parameter.data.device, site.parameter.dtype
    kept = None if scheme.symmetric else zero.contiguous().to(device)
    return Stored(integers.to(device), scale.contiguous().to(device, dtype), kept, scheme)


def planned(site: WeightSite, scheme: Scheme) -> Stored:
    """The shapes alone, for a weight without numbers."""
    rows, blocks = site.parameter.data.shape[site.axis], site.columns // scheme.block_of(site.columns)
    scale = torch.empty(rows, blocks, dtype=site.parameter.dtype, device="meta")
    scale = scale[:, 0] if scheme.block is None else scale.movedim(0, site.axis)
    integers = torch.empty(site.parameter.data.shape, dtype=scheme.dtype, device="meta")
    return Stored(integers, scale, None if scheme.symmetric else scale.to(scheme.dtype), scheme)


def store(graph: Graph, site: WeightSite, made: Stored) -> Node:
    """Let everything that reads the weight read its dequantised integers; the weight itself goes."""
    parameter, scheme = site.parameter, made.scheme
    first = next(node for node in graph.nodes if any(use.node is node for use in parameter.uses))
    operands: list[Value | None] = [
        graph.add_parameter(free_name(graph, f"{parameter.name}_integers"), made.integers, "buffer"),
        graph.add_parameter(
            free_name(graph, f"{parameter.name}_scale"), made.scale, "parameter", requires_grad=parameter.requires_grad
        ),
    ]
    if made.zero is not None:
        operands.append(graph.add_parameter(free_name(graph, f"{parameter.name}_zero"), made.zero, "buffer"))
    blocked = scheme.block is not None
    attributes = {
        "axis": 1 - site.axis if blocked else site.axis, "block": scheme.block, "bits": scheme.bits, "signed": scheme.symmetric,
    }  # fmt: skip
    name = f"{parameter.name.replace('.', '_')}_dequantised"
    node = graph.add("dequantise", operands, attributes, path=first.path, name=name, before=first)
    graph.replace_uses(parameter, node.output)
    graph.remove_parameter(parameter)
    return node


def free_name(graph: Graph, base: str) -> str:
    """A parameter name that is not taken: the base itself, else with a number."""
    name, count = base, 1
    while name in graph.parameters:
        name, count = f"{base}_{count}", count + 1
    return name
