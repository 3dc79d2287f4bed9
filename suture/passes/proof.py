"""The zero-then-cut check: proves on numbers what `exactness` claims by reasoning.

Take the graph in float64. In a copy, set every parameter element that a plan removes to zero. Run it, cut it and run it again: equal
outputs mean that the cut, its corrections included, removed nothing that the function needs. Done twice: once with all doomed elements
zeroed, once with those that only read a doomed axis left as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.algebra import atoms_of
from suture.ir.graph import Graph, Parameter
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType
from suture.passes.cut import kept_indices
from suture.passes.plan import Plan, Resolved, apply_plan, resolve_plan


@dataclass(frozen=True)
class Proof:
    """Relative deviations of the cut graph from the zeroed original, the largest over all outputs."""

    all_zeroed: float
    writers_zeroed: float

    def exact(self, tolerance: float = 1e-10) -> bool:
        """Whether both agree to a relative tolerance."""
        return self.all_zeroed <= tolerance and self.writers_zeroed <= tolerance


def zero_then_cut(graph: Graph, plan: Plan, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> Proof:
    """Compare the graph that a plan cuts with the original in which the doomed parameters are zero.

    :raises SutureError: PLAN or INPUT, if the plan or the inputs do not fit
    """
    double = in_double(graph)
    if isinstance(inputs, Mapping):
        named: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] = {
            name: _double(tensor) for name, tensor in inputs.items()
        }
    else:
        named = [_double(tensor) for tensor in inputs]
    resolved = resolve_plan(double, plan)
    with torch.no_grad():
        deviations = []
        for readers_too in (True, False):
            zeroed = _zeroed(double, resolved, readers_too=readers_too)
            original, slim = evaluate(zeroed, named), evaluate(apply_plan(zeroed, plan), named)
            deviations.append(max((_deviation(a, b) for a, b in zip(original, slim, strict=True)), default=0.0))
    return Proof(*deviations)


def _zeroed(graph: Graph, resolved: Resolved, *, readers_too: bool) -> Graph:
    """A copy in which the doomed elements of parameters are zero; those that only read a doomed axis stay unless `readers_too`."""
    result = graph.copy()
    for parameter in graph.parameters.values():
        if parameter.role != "parameter":
            continue
        data = parameter.data.detach()
        for dim in range(parameter.rank):
            axis = resolved.table.axis(parameter, dim)
            doomed = {
                atom: resolved.keep[atom]
                for atom in atoms_of(axis)
                if atom in resolved.keep and (readers_too or parameter not in resolved.verdicts[atom].readers)
            }
            if doomed:
                mask = torch.zeros(data.shape[dim], dtype=data.dtype)
                mask[kept_indices(axis, doomed)] = 1
                data = data * mask.reshape([-1 if k == dim else 1 for k in range(data.ndim)])
        result.parameters[parameter.name].assign(data)
    return result


def in_double(graph: Graph) -> Graph:
    """The graph in float64: parameters, constants and casts."""
    result = graph.copy()
    for value in result.values():
        if isinstance(value, Parameter):
            value.assign(_double(value.data.detach()))
        elif value.dtype.is_floating_point:
            value.type = TensorType(torch.float64, value.shape)
    for node in result.nodes:
        for name, attribute in node.attributes.items():
            if isinstance(attribute, torch.dtype) and attribute.is_floating_point:
                node.attributes[name] = torch.float64
            elif isinstance(attribute, Graph):
                node.attributes[name] = in_double(attribute)
    return result


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.dtype.is_floating_point else tensor


def _deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    if not a.dtype.is_floating_point:
        return float((a != b).any())
    scale = float(a.abs().max()) if a.numel() else 1.0
    return float((a - b).abs().max()) / (scale or 1.0) if a.numel() else 0.0
