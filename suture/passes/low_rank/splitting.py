"""Layers as products of two: a matrix of low rank is one map into `rank` features and one out of them.

A linear map is that matrix. A kernel is one in two ways: `channel` takes its outputs as rows and its inputs and offsets as columns, so that a
convolution into few channels is followed by one of size 1 (Zhang et al., "Accelerating Very Deep Convolutional Networks", arXiv 1505.06798, without
its activations); `spatial` takes outputs and all offsets but the first as rows, so that an upright kernel is followed by a level one (Jaderberg et
al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", arXiv 1405.3866). Groups have a matrix each, and one rank.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from suture.ir.types import Attribute
from suture.passes.low_rank.candidate import Candidate, Factor, Ranks, energy_shares
from suture.passes.low_rank.decomposition import Decomposition, balanced
from suture.passes.low_rank.layers import Layer
from suture.passes.low_rank.weights import as_matrix

Way = Literal["channel", "spatial"]
REDUCE, EXPAND = "reduce", "expand"


def split(layer: Layer, way: Way, metric: torch.Tensor | None, *, every: bool) -> Candidate:
    """The ways of a layer to be a product of two.

    :param metric: of the inputs, `[groups, n, n]` or its diagonals `[groups, n]`
    :param every: whether factors of every rank will be made, or of those only that save something
    """
    chosen: Way = way if layer.operator == "conv" and len(layer.window) > 1 and max(layer.window) > 1 else "channel"
    matrices = _matrices(layer.weight.data.detach(), layer, chosen)
    groups, rows, columns = matrices.shape
    full = min(rows, columns)
    ranks = torch.arange(1, full + 1, dtype=torch.int64)
    first, second = groups * columns, groups * rows
    before, after = _positions(layer, chosen)
    dense = (layer.elements, layer.elements * sum(map(math.prod, _inner(layer))))
    cost = ranks * (first + second)
    macs = ranks * (first * before + second * after)
    kept = full if every else max(1, int(((cost < dense[0]) | (macs < dense[1])).sum()))
    if matrices.is_meta:
        values, a, b = (
            torch.ones(full, dtype=torch.float64),
            matrices.new_empty(groups, kept, columns),
            matrices.new_empty(groups, rows, kept),
        )
    else:
        values, a, b = _decomposed(matrices, metric, kept)

    def make(chosen_ranks: Ranks) -> list[Factor]:
        (rank,) = chosen_ranks
        return _factors(layer, chosen, a[:, :rank], b[:, :, :rank])

    return Candidate(layer, energy_shares(values), cost, macs, dense, make)


def _decomposed(
    matrices: torch.Tensor, metric: torch.Tensor | None, kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The singular values of all groups, as one, and the factors of the first ranks, in the matrices' type."""
    energy, first, second = torch.zeros((), dtype=torch.float64), [], []
    for k, matrix in enumerate(matrices):
        found = Decomposition.of(matrix, None if metric is None else metric[k])
        energy = energy + found.values.square()
        a, b = balanced(*found.factors(kept))
        first.append(a.to(matrix.dtype))
        second.append(b.to(matrix.dtype))
    return energy.sqrt(), torch.stack(first), torch.stack(second)


def _matrices(weight: torch.Tensor, layer: Layer, way: Way) -> torch.Tensor:
    """A weight as a matrix `[outputs, inputs]` for each group."""
    if not layer.spatial:
        return as_matrix(weight, layer.nodes[0])[None]
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    if layer.operator == "conv_transpose":
        return grouped.flatten(2).transpose(1, 2)  # [g, o * r, i]
    if way == "channel":
        return grouped.flatten(2)  # [g, o, i * r]
    others = range(4, grouped.ndim)
    turned = grouped.permute(0, 1, *others, 2, 3)
    return turned.flatten(1, -3).flatten(2)  # [g, o * the other offsets, i * the first]


def _factors(layer: Layer, way: Way, a: torch.Tensor, b: torch.Tensor) -> list[Factor]:
    """The two layers for `a [g, rank, n]` and `b [g, m, rank]`."""
    groups, rank, _ = a.shape
    if not layer.spatial:
        return [Factor(REDUCE, "linear", a[0], {}), Factor(EXPAND, "linear", b[0], {})]
    attributes, window = dict(layer.nodes[0].attributes), layer.window
    flat = [1] * len(window)
    pointwise = _attributes(groups, flat, [0] * len(window), flat)
    if layer.operator == "conv_transpose":
        kernel = b.transpose(1, 2).reshape(groups * rank, -1, *window)
        return [
            Factor(REDUCE, "conv", a.reshape(groups * rank, -1, *flat), pointwise),
            Factor(EXPAND, "conv_transpose", kernel, attributes),
        ]
    if way == "channel":
        return [
            Factor(REDUCE, "conv", a.reshape(groups * rank, -1, *window), attributes),
            Factor(EXPAND, "conv", b.reshape(-1, rank, *flat), pointwise),
        ]
    stride, padding, dilation = (_each(attributes[name], len(window)) for name in ("stride", "padding", "dilation"))
    first, *others = window
    upright = a.reshape(groups * rank, -1, first, *flat[1:])
    level = b.reshape(-1, math.prod(others), rank).transpose(1, 2).reshape(-1, rank, 1, *others)
    return [
        Factor(
            REDUCE,
            "conv",
            upright,
            _attributes(groups, [stride[0], *flat[1:]], [padding[0], *[0] * len(others)], [dilation[0], *flat[1:]]),
        ),
        Factor(EXPAND, "conv", level, _attributes(groups, [1, *stride[1:]], [0, *padding[1:]], [1, *dilation[1:]])),
    ]


def _inner(layer: Layer) -> list[tuple[int, ...]]:
    """For each node of a layer, the positions at which its weight is multiplied by."""
    return [entry if layer.operator == "conv_transpose" else result for entry, result in layer.spaces()]


def _positions(layer: Layer, way: Way) -> tuple[int, int]:
    """At how many positions the first and the second factor work, in all nodes."""
    before = after = 0
    for (entry, result), inner in zip(layer.spaces(), _inner(layer), strict=True):
        between = inner if way == "channel" else (result[0], result[1], *entry[2:])
        before += math.prod(between)
        after += math.prod(inner)
    return before, after


def _attributes(groups: int, stride: list[int], padding: list[int], dilation: list[int]) -> dict[str, Attribute]:
    return {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}


def _each(values: Attribute, rank: int) -> list[int]:
    """An attribute of a convolution, one number a spatial dimension."""
    found = [int(value) for value in (values if isinstance(values, tuple) else (values,))]  # type: ignore[arg-type]
    return found * rank if len(found) == 1 else found
