"""The Tucker decomposition of a kernel along its output and input channels: a convolution of size 1, a small core, and another of size 1.

After Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications" (arXiv 1511.06530), section 3.1. The
channel bases are the leading singular vectors of the two unfoldings (the higher-order singular value decomposition); sweeps of alternating least
squares (higher-order orthogonal iteration) then fit each basis to the other.
"""

from __future__ import annotations

import math

import torch

from suture.ir.types import Attribute
from suture.passes.low_rank.candidate import Candidate, Factor, Ranks
from suture.passes.low_rank.decomposition import principal_basis
from suture.passes.low_rank.layers import Layer
from suture.passes.low_rank.splitting import EXPAND, REDUCE

CORE = "core"


def tucker(layer: Layer, *, sweeps: int = 0) -> Candidate:
    """The ways of a convolution in one group to be a Tucker decomposition: its ranks are those of the outputs and of the inputs.

    :param sweeps: how many sweeps of alternating least squares follow; the shares are those before them, of which no sweep keeps less
    """
    kernel = layer.weight.data.detach()
    outputs, inputs = kernel.shape[:2]
    window = math.prod(layer.window)
    out = torch.arange(1, outputs + 1, dtype=torch.int64)[:, None]
    into = torch.arange(1, inputs + 1, dtype=torch.int64)[None, :]
    parts = (inputs * into, window * out * into, outputs * out)
    parameters = parts[0] + parts[1] + parts[2]
    entries = sum(math.prod(entry) for entry, _ in layer.spaces())
    results = sum(math.prod(result) for _, result in layer.spaces())
    macs = parts[0] * entries + (parts[1] + parts[2]) * results
    dense = (layer.elements, layer.elements * results)
    if kernel.is_meta:
        shares = (out / outputs * (into / inputs)).to(torch.float64)

        def planned(ranks: Ranks) -> list[Factor]:
            p, q = ranks
            core = kernel.new_empty(p, q, *layer.window)
            return _factors(layer, kernel.new_empty(outputs, p), core, kernel.new_empty(inputs, q))

        return Candidate(layer, shares, parameters, macs, dense, planned)
    wide = kernel.to(torch.float64)
    left, right = principal_basis(wide.flatten(1)), principal_basis(wide.transpose(0, 1).flatten(1))

    def make(ranks: Ranks) -> list[Factor]:
        p, q = ranks
        u, v = left[:, :p], right[:, :q]
        for _ in range(sweeps):
            u = principal_basis(torch.einsum("oi...,iq->oq...", wide, v).flatten(1))[:, :p]
            v = principal_basis(torch.einsum("oi...,op->ip...", wide, u).flatten(1))[:, :q]
        return _factors(layer, u, _core(wide, u, v), v)

    return Candidate(layer, _shares(_core(wide, left, right)), parameters, macs, dense, make)


def _core(kernel: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The kernel `[o, i, *r]` in the bases `[o, p]` and `[i, q]`: `[p, q, *r]`."""
    return torch.einsum("oi...,op,iq->pq...", kernel, left, right)


def _shares(core: torch.Tensor) -> torch.Tensor:
    """The share of the energy in every leading part of a core."""
    energy = core.square().flatten(2).sum(2).cumsum(0).cumsum(1)
    total = energy[-1, -1]
    return energy / total if bool(total > 0) else torch.ones_like(energy)


def _factors(layer: Layer, left: torch.Tensor, core: torch.Tensor, right: torch.Tensor) -> list[Factor]:
    dtype, flat = layer.weight.dtype, [1] * len(layer.window)
    pointwise: dict[str, Attribute] = {
        "stride": tuple(flat), "padding": (0,) * len(flat), "dilation": tuple(flat), "groups": 1,
    }  # fmt: skip
    first = right.T.reshape(right.shape[1], right.shape[0], *flat)
    last = left.reshape(left.shape[0], left.shape[1], *flat)
    return [
        Factor(REDUCE, "conv", first.to(dtype), pointwise),
        Factor(CORE, "conv", core.to(dtype), dict(layer.nodes[0].attributes)),
        Factor(EXPAND, "conv", last.to(dtype), pointwise),
    ]
