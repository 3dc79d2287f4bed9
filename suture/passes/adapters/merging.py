"""Adapters become part of their weights: W + s B A in place of W, exactly, to the rounding of the weight's type."""

from __future__ import annotations

import fnmatch

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Parameter
from suture.passes.adapters.adapter import Adapter, find_adapters, remove_adapter
from suture.passes.contract import Contract
from suture.passes.low_rank.weights import WEIGHT
from suture.passes.registry import Notes, register


@register(contract=Contract.EXACT)
def merge_adapters(graph: Graph, notes: Notes, *, at: tuple[str, ...] | None = None, thaw: bool = True) -> Graph:
    """Add every low-rank adapter to the weight that it stands beside; nodes and names are then those from before it was attached.

    :param at: module paths of the layers, as patterns; all that have adapters if absent
    :param thaw: whether all parameters train again, once no adapter is left
    """
    result = graph.copy()
    adapters = find_adapters(result)
    for pattern in at or ():
        if not any(fnmatch.fnmatchcase(adapter.node.path, pattern) for adapter in adapters):
            raise SutureError(
                Code.ADAPTER, f"the pattern {pattern!r} matches no layer with an adapter",
                remedy=nearest(pattern, [adapter.node.path for adapter in adapters], what="layer"),
            )  # fmt: skip
    chosen = [a for a in adapters if at is None or any(fnmatch.fnmatchcase(a.node.path, p) for p in at)]
    if not chosen:
        notes.not_applicable("no layer has an adapter")
        return result
    before = result.stats().parameters
    for adapter in chosen:
        merge_adapter(result, adapter)
    result.sort()
    if thaw and len(chosen) == len(adapters):
        for parameter in result.parameters.values():
            parameter.requires_grad = parameter.role == "parameter"
    notes.note(
        f"{len(chosen)} adapters are part of their weights: {before:,} parameters, now {result.stats().parameters:,}"
    )
    return result


def merge_adapter(graph: Graph, adapter: Adapter) -> Parameter:
    """Put the product of an adapter into its weight, in place; a weight that others read too becomes a tensor of this place."""
    weight, node = adapter.weight, adapter.node
    wide = weight.data.detach().to(torch.float64) + adapter.product()
    data = wide.to(weight.dtype).contiguous()
    data.requires_grad_(weight.data.requires_grad)
    name = adapter.name
    remove_adapter(graph, adapter)
    if len(weight.uses) == 1:
        weight.assign(data)
        return weight
    free = name if name not in graph.parameters else f"{name}_{len(graph.parameters)}"
    own = graph.add_parameter(free, data, weight.role, requires_grad=weight.requires_grad)
    node.replace_input(WEIGHT[node.operator.name], own)
    return own
