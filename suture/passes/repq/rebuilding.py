"""Weights that make up for what rounding their inputs lost: least squares first, then rounding column by column on the same data.

With X what a layer reads in the real model and X^ what it reads once everything before it is rounded, the weight of least
|W X + b - (W' X^ + b')|^2 + damping |W' - W|^2 has a closed form; it is then rounded by `reconstruct` on the second moments of X^ (RepQuant, Li et
al. 2024, section 3.5, rebuilds weights layer by layer against the same loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.ir.graph import Use
from suture.passes.quantise_weights.gptq import Rounding, reconstruct
from suture.passes.quantise_weights.grid import Scheme
from suture.passes.quantise_weights.inputs import data_rows


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of X and X^, [columns] and [columns, columns], by the number of rows."""

    real_mean: torch.Tensor
    mean: torch.Tensor
    cross: torch.Tensor
    own: torch.Tensor


def moments_of(
    real: Use, real_tensors: Sequence[torch.Tensor], use: Use, tensors: Sequence[torch.Tensor], *, centred: bool
) -> Moments:
    """The moments over all batches of what a weight meets in the real model and in the rounded one.

    :param centred: whether means are taken out, as a bias can
    """
    before = torch.cat([data_rows(real, tensor) for tensor in real_tensors])
    after = torch.cat([data_rows(use, tensor) for tensor in tensors])
    real_mean, mean = before.mean(0), after.mean(0)
    if not centred:
        real_mean, mean = torch.zeros_like(real_mean), torch.zeros_like(mean)
    before, after = before - real_mean, after - mean
    count = max(len(after), 1)
    return Moments(real_mean, mean, before.T @ after / count, after.T @ after / count)


def rebuilt_weight(weight: torch.Tensor, found: Moments, damping: float) -> torch.Tensor:
    """The weight [rows, columns] of least error before it is rounded."""
    ridge = damping * float(found.own.diagonal().mean()) or 1.0
    eye = ridge * torch.eye(len(found.own), dtype=torch.float64)
    # W' (own + ridge) = W (cross + ridge)
    solved: torch.Tensor = torch.linalg.solve(found.own + eye, (found.cross + eye).T @ weight.T)
    return solved.T


def rebuilt_bias(weight: torch.Tensor, rounded: torch.Tensor, bias: torch.Tensor, found: Moments) -> torch.Tensor:
    """The bias that keeps the mean of what the layer writes [rows]."""
    return bias + weight @ found.real_mean - rounded @ found.mean


def rebuild(weight: torch.Tensor, found: Moments, scheme: Scheme, damping: float) -> Rounding:
    """The rounded weight [rows, columns] of small error."""
    wanted = rebuilt_weight(weight, found, damping)
    return reconstruct(wanted, 2 * found.own, scheme, damping=damping, search=True)
