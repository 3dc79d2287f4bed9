"""Which sites of a recipe run in integers, under a bound on the deviation or on the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suture.ir.graph import Graph
from suture.passes.quantise.calibration import Feed, feeds
from suture.passes.quantise.recipe import Query, Recipe, Scheme, make_recipe
from suture.passes.quantise.sensitivity import (
    Deviation,
    Sensitivity,
    SensitivityTable,
    droppable,
    fewest_dropped,
    rank_sites,
)

SWEEP_BATCHES = 2
"""How many batches of calibration data (of 32 examples, if they are not batched already) the sweep looks at."""


def sensitivities(
    graph: Graph,
    *,
    data: Any,
    at: tuple[str, ...] | None = None,
    operator: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    scheme: Scheme | None = None,
    error: float | None = None,
    size: int | None = None,
) -> SensitivityTable:
    """What each site costs when it alone runs in integers, and which of them have to stay in floats.

    :param error: the largest deviation allowed
    :param size: the most bytes that the parameters may take
    :raises SutureError: QUANTISER, if the bounds cannot be met; CALIBRATION and SITE, as the pass `quantise`
    """
    recipe = make_recipe(graph, Query(at, operator, exclude), scheme or Scheme(), data)
    return sweep(recipe, feeds(graph, data), error, size)[1]


def sweep(
    recipe: Recipe, batches: Sequence[Feed], error: float | None, size: int | None
) -> tuple[list[int], SensitivityTable]:
    """The positions of the sites that run in integers, and the table that says why.

    Under a bound on the deviation as many as it allows; under a budget of bytes alone as few as it allows.
    """
    ranking = rank(recipe, batches)
    count = len(ranking.order)
    most = droppable(ranking.rows, ranking.graph(0).stats().bytes, size)
    if error is None:
        return ranking.result(most if size is not None else 0)
    dropped, _ = fewest_dropped(count, ranking.deviation_of, error=error, most=most)
    return ranking.result(dropped)


@dataclass(frozen=True)
class Ranking:
    """The sites of a recipe, the dearest first: `order` are their positions in the graph, `rows` what each costs."""

    recipe: Recipe
    order: tuple[int, ...]
    rows: tuple[Sensitivity, ...]
    deviation: Deviation

    def graph(self, dropped: int) -> Graph:
        """The graph with so many of the dearest sites in floats."""
        return self.recipe.apply(sorted(self.order[dropped:]))[0]

    def deviation_of(self, dropped: int) -> float:
        """How far that graph is from the floats."""
        return self.deviation.of(self.graph(dropped))

    def result(self, dropped: int) -> tuple[list[int], SensitivityTable]:
        """The positions of the sites that are left, and the table."""
        return sorted(self.order[dropped:]), SensitivityTable(self.rows, dropped, self.deviation_of(dropped))


def rank(recipe: Recipe, batches: Sequence[Feed]) -> Ranking:
    """Quantise each site alone and see what it costs."""
    deviation = Deviation(recipe.graph, batches[:SWEEP_BATCHES])
    position = {site: k for k, site in enumerate(recipe.sites)}
    ranked = rank_sites(recipe.sites, lambda site: recipe.apply([position[site]])[0], deviation)
    return Ranking(recipe, tuple(position[site] for site, _ in ranked), tuple(row for _, row in ranked), deviation)
