"""Features of the self loops that a layer adds."""

from __future__ import annotations

from typing import Any

import torch

from suture.drivers.accelerating.structures import Looped
from suture.drivers.accelerating.swapping import Uncovered

_SCATTERS = {"max": "amax", "amax": "amax", "min": "amin", "amin": "amin", "mul": "prod"}


def loop_features(features: torch.Tensor, edges: Looped, nodes: int, fill: Any) -> torch.Tensor:
    """The features of the edges that stay, then those of the loops.

    :param features: `[edges, f]`, of all edges that were given
    :param fill: the loops' features: a number, a tensor, or how they are made of those of the edges that end in the node
    :returns: `[kept + nodes, f]`
    """
    kept = features[edges.staying]
    shape = (nodes, *features.shape[1:])
    if isinstance(fill, (int, float)):
        loops = features.new_full(shape, fill)
    elif isinstance(fill, torch.Tensor):
        loops = fill.to(features.device, features.dtype).expand(shape)
    else:
        loops = _gathered(kept, edges.edge_index[1, : len(kept)].long(), shape, str(fill))
    return torch.cat([kept, loops])


def _gathered(rows: torch.Tensor, ends: torch.Tensor, shape: tuple[int, ...], how: str) -> torch.Tensor:
    """The sum, mean, maximum, minimum or product of the rows that end in each node; what no edge ends in has zeros, or ones in a product."""
    if how in ("sum", "add", "mean"):
        total = rows.new_zeros(shape).index_add(0, ends, rows)
        if how != "mean":
            return total
        count = torch.bincount(ends, minlength=shape[0]).clamp(min=1).to(rows.dtype)
        return total / count.reshape(-1, *[1] * (rows.dim() - 1))
    if how not in _SCATTERS:
        raise Uncovered
    start = rows.new_ones(shape) if how == "mul" else rows.new_zeros(shape)
    spread = ends.reshape(-1, *[1] * (rows.dim() - 1)).expand_as(rows)
    return start.scatter_reduce(0, spread, rows, _SCATTERS[how], include_self=how == "mul")
