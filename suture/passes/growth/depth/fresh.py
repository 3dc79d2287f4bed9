"""New random weights for a copy of a block: as a model begins, at the scale of the weights that it copies."""

from __future__ import annotations

import torch

from suture.ir.graph import Graph, Parameter
from suture.passes.counter import counter_normal
from suture.passes.exactness import BIAS
from suture.passes.growth.depth.silence import NORMS

_STARTS = {"gain": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}


def redraw(piece: Graph, seed: int, key: str) -> None:
    """Draw a block's weights anew: matrices and kernels normal with the deviation of those they replace, gains one, biases zero, statistics reset.

    Vectors of another use (layer scales) and tables of indices stay. An element depends on the seed, the key, the parameter's name and its index.
    """
    for parameter in piece.parameters.values():
        data = _drawn(parameter, seed, f"{key}/{parameter.name}")
        if data is not None:
            parameter.assign(data.requires_grad_(parameter.data.requires_grad))


def _drawn(parameter: Parameter, seed: int, name: str) -> torch.Tensor | None:
    data = parameter.data.detach()
    use = _use(parameter)
    if use in _STARTS:
        return torch.full_like(data, _STARTS[use])
    if not data.is_floating_point():
        return torch.zeros_like(data) if not parameter.uses else None  # counters of batches
    if parameter.role != "parameter" or data.ndim < 2:
        return None
    if data.is_meta:
        return torch.empty_like(data)
    deviation = data.to(torch.float64).std(correction=0)
    drawn = counter_normal(seed, name, data.numel()).reshape(data.shape).to(data.device) * deviation
    return drawn.to(data.dtype)


def _use(parameter: Parameter) -> str:
    """What a tensor is to the layer that reads it."""
    for node, operand in parameter.uses:
        name = node.operator.name
        if name in NORMS and operand > 0:
            return ("gain", "bias", "mean", "var")[operand - 1]
        if BIAS.get(name) == operand:
            return "bias"
    return ""
