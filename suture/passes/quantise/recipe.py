"""A recipe: the sites of one graph and all numbers of their quantisers, from which graphs with any choice of these sites are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.ir.graph import Graph
from suture.passes.quantise.bias_correction import mean_errors
from suture.passes.quantise.calibration import Feed, feeds
from suture.passes.quantise.insertion import Quantisers, insert
from suture.passes.quantise.observers import Method, make_observer
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.quantise.placement import Placement, Site, find_sites, place
from suture.passes.quantise.ranges import (
    activation_quantisers,
    corrected_biases,
    plain_biases,
    planned_quantisers,
    weight_quantisers,
)


@dataclass(frozen=True)
class Query:
    """Which sites: patterns of module paths or weights, operators, and patterns of what stays in floats."""

    at: tuple[str, ...] | None = None
    operator: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scheme:
    """How numbers are chosen; see the pass `quantise`."""

    observer: Method = "min_max"
    percent: float = 99.99
    search_weights: bool = False
    per_channel: bool = True
    bits: int = 8
    correct_bias: bool = True


@dataclass(frozen=True)
class Recipe:
    """A graph, its sites in order, and their numbers: quantisers of values by name, of weights and biases by the site's position."""

    graph: Graph
    query: Query
    sites: tuple[Site, ...]
    left: tuple[str, ...]
    activations: dict[str, QuantiserParameters]
    weights: tuple[QuantiserParameters | None, ...]
    biases: tuple[torch.Tensor | None, ...]

    def apply(self, kept: Sequence[int], *, trainable: bool = False) -> tuple[Graph, Placement]:
        """A copy of the graph in which the sites at these positions run in integers, and where its quantisers stand."""
        copy = self.graph.copy()
        found, _ = find_sites(copy, at=self.query.at, operator=self.query.operator, exclude=self.query.exclude)
        chosen = {found[position]: position for position in kept}
        placement = place(copy, chosen)
        weights = {site: self.weights[position] for site, position in chosen.items()}
        quantisers = Quantisers(
            {placement.leader(value): self.activations[value.name] for value in placement.quantised()},
            {site: weight for site, weight in weights.items() if weight is not None},
            {site: self.biases[position] for site, position in chosen.items()},
        )
        insert(copy, placement, quantisers, trainable=trainable)
        return copy, placement


def make_recipe(graph: Graph, query: Query, scheme: Scheme, data: Any) -> Recipe:
    """Find the sites and choose all numbers; of a graph that holds shapes only, shapes.

    :raises SutureError: QUANTISER, if an operator has no integers or a weight is not finite; SITE, if a pattern matches nothing; CALIBRATION, if
        there are no data or a value is not finite on them
    """
    sites, left = find_sites(graph, at=query.at, operator=query.operator, exclude=query.exclude)
    if not sites:
        return Recipe(graph, query, (), tuple(left), {}, (), ())
    placement = place(graph, sites)
    planned = any(parameter.data.is_meta for parameter in graph.parameters.values())
    batches: list[Feed] = [] if planned else feeds(graph, data)
    if planned:
        activations = planned_quantisers(placement)
    else:
        activations = activation_quantisers(
            graph, batches, placement, lambda: make_observer(scheme.observer, percent=scheme.percent)
        )
    weights = weight_quantisers(
        placement, activations, bits=scheme.bits, per_channel=scheme.per_channel, search=scheme.search_weights and not planned
    )  # fmt: skip
    biases = plain_biases(placement)
    if scheme.correct_bias and not planned:
        biases = corrected_biases(placement, mean_errors(graph, batches, placement, activations, weights))
    by_name = {value.name: activations[placement.leader(value)] for value in placement.quantised()}
    return Recipe(
        graph, query, tuple(sites), tuple(left), by_name, tuple(weights.get(site) for site in sites),
        tuple(biases.get(site) for site in sites),
    )  # fmt: skip
