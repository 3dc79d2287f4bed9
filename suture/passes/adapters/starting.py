"""What adapters begin as: nothing, or components of the weight itself, of which the weight keeps the rest."""

from __future__ import annotations

import math
from typing import Literal

import torch

from suture.ir.graph import Node, Parameter
from suture.passes.adapters.adapter import NOLA_A, NOLA_B, A, Factor, Mixture, adapter_name
from suture.passes.counter import counter_normal, counter_uniform
from suture.passes.low_rank.decomposition import Decomposition, balanced
from suture.passes.low_rank.weights import as_matrix, from_matrix

Components = Literal["largest", "smallest"]


def zero_factors(weight: str, rank: int, sides: tuple[int, int], groups: int, seed: int) -> tuple[Factor, Factor]:
    """A uniform as `torch.nn.Linear` begins, B zero: nothing is added yet (Hu et al., "LoRA", arXiv 2106.09685, section 4.1).

    :param weight: the name of the weight, with the seed the key of what is drawn
    :param sides: outputs of a group, and inputs
    """
    outputs, inputs = sides
    a = _uniform(seed, adapter_name(weight, A), (groups * rank, inputs), inputs)
    return a, torch.zeros(groups * outputs, rank, dtype=torch.float64)


def mixed_factors(
    weight: str, rank: int, sides: tuple[int, int], groups: int, seed: int, bases: int
) -> tuple[Factor, Factor]:
    """Mixtures of `bases` random matrices each, fixed by the seed; B's coefficients are zero, so that nothing is added yet.

    Koohpayegani et al., "NOLA: Compressing LoRA using Linear Combination of Random Basis" (arXiv 2310.02556), equation 2.
    """
    outputs, inputs = sides
    a, b = adapter_name(weight, NOLA_A), adapter_name(weight, NOLA_B)
    first = Mixture(
        counter_normal(seed, a, bases) / math.sqrt(bases),
        _uniform(seed, f"{a}/basis", (bases, groups * rank, inputs), inputs),
    )
    second = Mixture(
        torch.zeros(bases, dtype=torch.float64), _uniform(seed, f"{b}/basis", (bases, groups * outputs, rank), rank)
    )
    return first, second


def component_factors(
    weight: Parameter, node: Node, rank: int, scale: float, metric: torch.Tensor | None, components: Components
) -> tuple[Factor, Factor, torch.Tensor]:
    """Factors that are the components of the weight that matter most, or least, and the weight without them.

    With the covariance of the inputs as the metric, CorDA (Yang et al., arXiv 2406.05223, section 3.2): the largest prepare for new instructions, the
    smallest leave what the weight knows untouched. Without a metric the largest are the principal components (PiSSA, arXiv 2404.02948).
    """
    matrix = as_matrix(weight.data.detach(), node)
    found = Decomposition.of(matrix, metric)
    start = 0 if components == "largest" else found.full_rank - rank
    a, b = balanced(*found.part(start, start + rank))
    held = matrix.to(torch.float64) - b @ a
    rest = from_matrix(held, node).to(weight.dtype).contiguous()
    return a, b / scale, rest


def empty_factors(rank: int, sides: tuple[int, int], groups: int, bases: int | None) -> tuple[Factor, Factor]:
    """Factors of a graph that has shapes only."""
    outputs, inputs = sides
    a = torch.empty(groups * rank, inputs, device="meta")
    b = torch.empty(groups * outputs, rank, device="meta")
    if bases is None:
        return a, b
    coefficients = torch.empty(bases, device="meta")
    return Mixture(coefficients, a.expand(bases, *a.shape)), Mixture(coefficients, b.expand(bases, *b.shape))


def _uniform(seed: int, name: str, shape: tuple[int, ...], fan: int) -> torch.Tensor:
    """Uniform between plus and minus one over the root of the number of inputs; float64."""
    drawn = counter_uniform(seed, name, math.prod(shape)) * 2 - 1
    return (drawn / math.sqrt(fan)).reshape(shape)
