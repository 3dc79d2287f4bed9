"""Elastic networks from end to end: the family of sub-networks, the module that trains them, and what its training needs.

elastic = Elastic(graph, [Width("layers.*.feed.up", (0.25, 0.5)), Depth("layers", (2, 4))])
module = elastic.module()
for choices in elastic.sandwich(seed=0):
    sandwich(module, choices, loss, logits)
small = elastic.extract(elastic.best(budget=10_000_000))
"""

from __future__ import annotations

from suture.backends.elastic_module import ElasticModule
from suture.passes.elastic import (
    Branches,
    Choice,
    Cost,
    Depth,
    Family,
    Width,
    accumulate,
    distillation,
    evenly,
    sandwich,
)

__all__ = [
    "Branches", "Choice", "Cost", "Depth", "Elastic", "ElasticModule", "Width", "accumulate", "distillation", "evenly", "sandwich",
]  # fmt: skip


class Elastic(Family):
    """A graph, and the dimensions along which sub-networks of it may be smaller; see `suture.passes.elastic.Family`."""

    def module(self) -> ElasticModule:
        """A module that trains the family: its weights are the graph's own, and a choice is set at run time without copying them."""
        return ElasticModule(self)
