"""quantise: static 8-bit integers after training, calibrated on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.quantise.calibration import feeds
from suture.passes.quantise.mixed_precision import sweep
from suture.passes.quantise.observers import Method
from suture.passes.quantise.placement import Placement
from suture.passes.quantise.recipe import Query, Recipe, Scheme, make_recipe
from suture.passes.quantise.sensitivity import SensitivityTable
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def quantise(
    graph: Graph,
    notes: Notes,
    *,
    data: Mapping[str, torch.Tensor] | tuple[Any, ...] | None = None,
    at: tuple[str, ...] | None = None,
    operator: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    observer: Method = "min_max",
    percent: float = 99.99,
    search_weights: bool = False,
    per_channel: bool = True,
    reduce_range: bool = False,
    correct_bias: bool = True,
    error: float | None = None,
    size: int | None = None,
    trainable: bool = False,
) -> Graph:
    """Compute in 8-bit integers what pays: activations unsigned with a zero point, weights signed, one scale per output channel.

    :param data: calibration inputs by name, all examples of each (in a script: an .npz or .safetensors file), or a sequence of batches
    :param at: module paths or weights whose operators are quantised, as patterns; all if absent
    :param operator: operators that are quantised; those with a weight if absent
    :param exclude: module paths or weights that stay in floats, as patterns
    :param observer: how ranges of activations are chosen: min_max, percentile, entropy or mse
    :param percent: the share of values, in percent, that the percentile observer covers
    :param search_weights: choose the weights' ranges by least squared error, channel by channel
    :param per_channel: one scale per output channel of a weight; else one per weight
    :param reduce_range: 7 bits for weights: on processors without VNNI products of 8 bits overflow the 16 bits that they are added up in
    :param correct_bias: take what quantisation shifts on average back in the biases
    :param error: leave the sites that cost most in floats until the outputs deviate no more than this on the data (root mean square, relative)
    :param size: the most bytes that the parameters may take; the sites that cost most stay in floats as far as that allows
    :param trainable: keep weights as floats behind quantisers, so that what to_torch makes trains on
    """
    scheme = Scheme(observer, percent, search_weights, per_channel, 7 if reduce_range else 8, correct_bias)
    recipe = make_recipe(graph, Query(at, operator, exclude), scheme, data)
    for text in recipe.left:
        notes.note(text)
    if not recipe.sites:
        notes.not_applicable("no operator that is left runs in integers" if recipe.left else "no operator has integers")
        return graph
    kept = list(range(len(recipe.sites)))
    planned = any(parameter.data.is_meta for parameter in graph.parameters.values())
    if (error is not None or size is not None) and not planned:
        kept, table = sweep(recipe, feeds(graph, data), error, size)
        _say(notes, table)
        if not kept:
            notes.not_applicable("within these bounds every site stays in floats")
            return graph
    result, placement = recipe.apply(kept, trainable=trainable)
    notes.note(_described(recipe, placement))
    return result


def _say(notes: Notes, table: SensitivityTable) -> None:
    for row in table.rows[: table.dropped]:
        notes.note(f"{row.site} stays in floats: alone in integers it costs {row.deviation:.2g}")
    integer = len(table.rows) - table.dropped
    notes.note(f"mixed precision: {integer} of {len(table.rows)} sites in integers deviate by {table.deviation:.2g}")


def _described(recipe: Recipe, placement: Placement) -> str:
    """What runs in integers, by operator."""
    counts: dict[str, int] = {}
    for node in (*(site.node for site in placement.sites), *placement.joined):
        counts[node.operator.name] = counts.get(node.operator.name, 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"in integers: {listed}; {len(dict.fromkeys(placement.quantised()))} values have quantisers"
