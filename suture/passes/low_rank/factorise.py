"""factorise: layers become products of smaller ones, by decompositions of low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.low_rank.building import put_factors
from suture.passes.low_rank.candidate import Candidate, Count, Factor, Ranks
from suture.passes.low_rank.choosing import Choice, sizes
from suture.passes.low_rank.covariance import By, metrics
from suture.passes.low_rank.layers import Layer, find_layers
from suture.passes.low_rank.splitting import split as split_layer
from suture.passes.low_rank.tucker import tucker
from suture.passes.registry import Notes, register

Split = Literal["channel", "spatial", "tucker"]


@register(contract=Contract.APPROXIMATE)
def factorise(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    expect: int | str | None = None,
    rank: int | float | None = None,
    energy: float | None = None,
    budget: float | None = None,
    ranks: Mapping[str, float] | None = None,
    by: By = "svd",
    split: Split = "channel",
    count: Count = "parameters",
    data: Mapping[str, torch.Tensor] | None = None,
    alpha: float = 0.5,
    sweeps: int = 0,
    always: bool = False,
) -> Graph:
    """Replace linear maps and convolutions by products of smaller ones: y = U (V x), V of few outputs.

    A layer for which that saves nothing stays as it is. The bias goes to the last factor. Full ranks keep the function.

    :param at: module paths of the layers, as patterns; all linear maps and convolutions if absent
    :param exclude: module paths of layers that stay as they are, as patterns
    :param expect: how many layers this should select: a number, or a bound such as ">=3"
    :param rank: the rank of every layer: a number, or a share of each layer's full rank
    :param energy: instead, the share of each weight's squared singular values that stays
    :param budget: instead, the share of the whole model's cost that is left, spent on the layers where it keeps most
    :param ranks: the ranks of single layers, by patterns of module paths
    :param by: what is kept best: the weight (svd), or its results on calibration data: asvd scales inputs by their size, whitened is the optimum for
        the mean squared error of each layer, corda weighs inputs by their covariance
    :param split: how a convolution is divided: channel (into few channels, then a kernel of size 1), spatial (an upright kernel, then a level one),
        tucker (size 1, a small core, size 1)
    :param count: what ranks must save and a budget counts: parameters or macs
    :param data: calibration inputs by name (in a script: an .npz or .safetensors file that holds them)
    :param alpha: the power of the inputs' sizes, for asvd
    :param sweeps: how many sweeps of alternating least squares refine a tucker decomposition
    :param always: whether to factorise where that saves nothing, too
    """
    choice = Choice(rank, energy, budget, dict(ranks or {}), count, always)
    choice.require()
    _require_data(by, split, data)
    _require_numbers(split, alpha, sweeps)
    result = graph.copy()
    layers = [layer for layer in find_layers(result, at, exclude, expect, notes) if choice.concerns(layer, notes)]
    choice.require_matches(result, layers)
    if split == "tucker":
        layers = _in_one_group(layers, notes)
    before = result.stats()
    done: list[tuple[Layer, list[Factor]]] = []
    exact = True
    candidates = _candidates(
        result, layers, notes, by=by, split=split, data=data, alpha=alpha, sweeps=sweeps, every=always
    )
    for candidate, chosen in choice.decide(
        candidates, before.parameters if count == "parameters" else before.macs, notes
    ):
        exact = exact and chosen == candidate.full
        done.append((candidate.layer, [replace(f, weight=f.weight.clone()) for f in candidate.make(chosen)]))
        notes.note(_told(candidate, chosen))
    for layer, factors in done:
        put_factors(result, layer, factors)
    if not done:
        notes.not_applicable(
            "no layer is left to factorise" if notes.texts else "the graph has no linear map or convolution"
        )
        return result
    after = result.stats()
    notes.note(
        f"{len(done)} layers are products: {before.parameters:,} parameters, now {after.parameters:,}; {before.macs:,} MACs, now {after.macs:,}"
    )
    if exact:
        notes.claim(Contract.EXACT)
    return result


def _candidates(
    graph: Graph,
    layers: Sequence[Layer],
    notes: Notes,
    *,
    by: By,
    split: Split,
    data: Mapping[str, torch.Tensor] | None,
    alpha: float,
    sweeps: int,
    every: bool,
) -> Iterator[Candidate]:
    planned = any(parameter.data.is_meta for parameter in graph.parameters.values())
    if planned:
        notes.note("estimated: the weights decide what ranks keep; here every singular value counts alike")
    if data is None or planned:
        pairs: Iterator[tuple[Layer, torch.Tensor | None]] = ((layer, None) for layer in layers)
    else:
        pairs = metrics(graph, layers, data, by, alpha=alpha)
    for layer, metric in pairs:
        if data is not None and metric is None and not planned:
            notes.note(f"{layer.name}: all that it reads is zero on the data, so its weight alone decides")
        if split == "tucker" and len(layer.window) and max(layer.window) > 1:
            yield tucker(layer, sweeps=sweeps)
        else:
            yield split_layer(layer, "channel" if split == "tucker" else split, metric, every=every)


def _in_one_group(layers: Sequence[Layer], notes: Notes) -> list[Layer]:
    """The layers without the convolutions that have no Tucker decomposition."""
    found = []
    for layer in layers:
        if layer.groups != 1 or layer.operator == "conv_transpose":
            what = f"it has {layer.groups} groups" if layer.groups != 1 else "it is an adjoint convolution"
            notes.note(f"{layer.name} left alone: {what}")
        else:
            found.append(layer)
    return found


def _require_data(by: By, split: Split, data: Mapping[str, torch.Tensor] | None) -> None:
    if by == "svd" and data is not None:
        raise SutureError(
            Code.OPTION, "calibration data, which svd does not read", remedy="by='whitened' would read them"
        )
    if by == "svd":
        return
    if data is None:
        raise SutureError(Code.CALIBRATION, f"{by} has no calibration inputs", remedy="give data")
    if split != "channel":
        raise SutureError(
            Code.OPTION, f"{by} with split={split!r}", remedy="split='channel', or by='svd', would be right"
        )


def _require_numbers(split: Split, alpha: float, sweeps: int) -> None:
    if not 0 <= alpha < math.inf:
        raise SutureError(Code.OPTION, f"alpha={alpha:g}", remedy="0 or more would be right")
    if sweeps < 0 or (sweeps and split != "tucker"):
        raise SutureError(
            Code.OPTION, f"{sweeps} sweeps, split={split!r}", remedy="0 or more, of split='tucker', would be right"
        )


def _told(candidate: Candidate, chosen: Ranks) -> str:
    index = tuple(rank - 1 for rank in chosen)
    return (
        f"{candidate.layer.name}: rank {sizes(chosen)} of {sizes(candidate.full)} keeps {candidate.share(chosen):.4f} of the energy in "
        f"{int(candidate.parameters[index]):,} of {candidate.dense[0]:,} parameters"
    )
