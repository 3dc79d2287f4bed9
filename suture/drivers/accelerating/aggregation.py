"""How messages meet, read off a layer's aggregation module."""

from __future__ import annotations

from typing import Any

from suture.drivers.accelerating.program import Reduction

_REDUCTIONS: dict[str, Reduction] = {
    "SumAggregation": "sum",
    "MeanAggregation": "mean",
    "MaxAggregation": "max",
    "MinAggregation": "min",
}


def reduction_of(layer: Any) -> Reduction | None:
    """The reduction that a message-passing layer uses; None, if it is another than a sum, a mean, a maximum or a minimum."""
    module = layer.aggr_module
    if not type(module).__module__.startswith("torch_geometric."):
        return None
    return _REDUCTIONS.get(type(module).__name__)
