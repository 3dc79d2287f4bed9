"""PyTorch Geometric's SAGEConv: neighbours are aggregated and projected.

Hamilton et al., "Inductive Representation Learning on Large Graphs", 2017, algorithm 1; the projection before aggregation is their equation 3.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from suture.drivers.accelerating.aggregation import reduction_of
from suture.drivers.accelerating.program import Program, Reduction, Rows, Weights, reduce_messages
from suture.drivers.accelerating.structures import Ends, edges_of, is_index
from suture.drivers.accelerating.swapping import Programs, Uncovered
from suture.frontends.messages.graph import MessageGraph


class Aggregation(Program):
    """Neighbours' features, aggregated and projected, and the node's own.

    :param weights: `before[i, i]`, `before_bias` for a projection of the sources; `weight[o, i]`, `bias[o]`; `own[o, i']`
    """

    def __init__(self, weights: Weights, *, how: Reduction) -> None:
        super().__init__(weights)
        self.how: Reduction = how

    def forward(self, g: MessageGraph, x: Rows, ends: Rows | None = None) -> Rows:
        """`x[sources, i]`, and `ends[targets, i']` where these are other nodes -> `[targets, o]`."""
        rows: Rows = x if self.before is None else functional.linear(x, self.before, self.before_bias).relu()
        met = reduce_messages(g, rows[g.edges.src], self.how)
        result = functional.linear(met, self.weight, self.bias)
        return result if self.own is None else result + functional.linear(x if ends is None else ends, self.own)


class Aggregations:
    """SAGEConv."""

    LIBRARY = "torch_geometric"
    NAMES = ("SAGEConv",)

    @staticmethod
    def refuse(layer: Any) -> str:
        """Other aggregations than the four usual ones are not covered."""
        return "" if reduction_of(layer) is not None else f"the aggregation {layer.aggr!r}"

    @staticmethod
    def forward(layer: Any, programs: Programs, x: Any, edge_index: Any, size: Any = None) -> torch.Tensor:
        """The layer's forward."""
        if not is_index(edge_index):
            raise Uncovered("a sparse adjacency: edge indices are covered")
        begins, ends = (x, None) if isinstance(x, torch.Tensor) else x
        nodes = [begins] if ends is None else [begins, ends]
        if any(not isinstance(each, torch.Tensor) or each.dim() != 2 for each in nodes):
            raise Uncovered("features that are no matrix")
        flipped = layer.flow == "target_to_source"
        if flipped and not isinstance(x, torch.Tensor):
            raise Uncovered("edges against the flow between two sets of nodes")
        counts = tuple(size) if size is not None else (None, None)
        targets = len(begins) if ends is None and counts[1] is None else counts[1] if ends is None else len(ends)
        if any(
            given is not None and given != count for given, count in zip(counts, (len(begins), targets), strict=True)
        ):
            raise Uncovered
        if ends is None and targets != len(begins):
            raise Uncovered("destinations without features")
        how = reduction_of(layer) or "mean"
        form = (how, len(nodes), not isinstance(x, torch.Tensor))
        graph = edges_of(edge_index, None, Ends(len(begins), None if ends is None else len(ends), None, flipped))
        own = layer.root_weight and (isinstance(x, torch.Tensor) or ends is not None)
        made = programs.run(form, partial(Aggregation, how=how), _weights(layer, own=own), graph, *nodes)
        return functional.normalize(made, p=2.0, dim=-1) if layer.normalize else made


def _weights(layer: Any, *, own: bool) -> Weights:
    before = layer.lin if layer.project and hasattr(layer, "lin") else None
    return {
        "before": None if before is None else before.weight,
        "before_bias": None if before is None else before.bias,
        "weight": layer.lin_l.weight,
        "bias": layer.lin_l.bias,
        "own": layer.lin_r.weight if own else None,
    }
