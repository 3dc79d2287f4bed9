"""PyTorch Geometric's GATConv and GATv2Conv: attention over a node's neighbours.

Veličković et al., "Graph Attention Networks", 2018, equations 1 to 6; Brody et al., "How Attentive are Graph Attention Networks?", 2022, equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from suture.drivers.accelerating.aggregation import reduction_of
from suture.drivers.accelerating.loops import loop_features
from suture.drivers.accelerating.program import Program, Reduction, Rows, Weights, reduce_messages
from suture.drivers.accelerating.structures import Ends, edges_of, is_index, looped
from suture.drivers.accelerating.swapping import Programs, Uncovered, is_kind
from suture.frontends.messages.graph import MessageGraph


@dataclass(frozen=True)
class Form:
    """What changes the program.

    :param bipartite: whether the nodes that edges end in have features of their own
    :param edges: whether edges have features
    :param mask: whether attentions are dropped
    :param asked: whether the attentions are a result
    """

    heads: int
    width: int
    slope: float
    concat: bool
    reduction: Reduction
    bipartite: bool
    edges: bool
    mask: bool
    asked: bool


class _Attention(Program):
    """What both layers share.

    :param weights: `begin[h*o, i]`, `end[h*o, i']` for sources and destinations, with `begin_bias`, `end_bias`; `edge[h*o, edge width]`;
        `res[., i']`; `bias`
    """

    def __init__(self, weights: Weights, *, form: Form) -> None:
        super().__init__(weights)
        self.form = form

    def forward(self, g: MessageGraph, x: Rows, *others: Rows) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """`x[sources, i]`, `[targets, i']`, the edges' features and the mask, where the form has them -> nodes' values, attentions `[edges, h]`."""
        form = self.form
        given = iter(others)
        ends = next(given) if form.bipartite else x
        features = next(given) if form.edges else None
        mask = next(given) if form.mask else None
        begin = self.project(x, self.begin, self.begin_bias)
        end = begin if self.end is None else self.project(ends, self.end, self.end_bias)
        attention = g.softmax(
            self.score(g, begin, end, None if features is None else self.project(features, self.edge, None))
        )
        weight = attention if mask is None else attention * mask
        summed = reduce_messages(g, begin[g.edges.src] * weight.unsqueeze(-1), form.reduction)
        result = summed.flatten(1) if form.concat else summed.mean(1)
        result = result if self.res is None else result + functional.linear(ends, self.res)
        result = result if self.bias is None else result + self.bias
        return (result, weight) if form.asked else result

    def project(self, x: Rows, weight: Rows, bias: torch.Tensor | None) -> Rows:
        """`x[n, i]` -> `[n, h, o]`."""
        projected: Rows = functional.linear(x, weight, bias)
        return projected.unflatten(-1, (self.form.heads, self.form.width))

    def score(self, g: MessageGraph, begin: Rows, end: Rows, features: Rows | None) -> Rows:
        """What the softmax is taken of: `[edges, h]`."""
        raise NotImplementedError


class Attention(_Attention):
    """A source's and a destination's scores are added.

    :param weights: besides, `att_src`, `att_dst` and `att_edge`, each `[1, h, o]`
    """

    def score(self, g: MessageGraph, begin: Rows, end: Rows, features: Rows | None) -> Rows:
        """LeakyReLU of the sum of three inner products."""
        summed = (begin * self.att_src).sum(-1)[g.edges.src] + (end * self.att_dst).sum(-1)[g.edges.dst]
        summed = summed if features is None else summed + (features * self.att_edge).sum(-1)
        return functional.leaky_relu(summed, self.form.slope)


class DynamicAttention(_Attention):
    """Sources and destinations are added, and then scored.

    :param weights: besides, `att[1, h, o]`
    """

    def score(self, g: MessageGraph, begin: Rows, end: Rows, features: Rows | None) -> Rows:
        """An inner product with the LeakyReLU of the sum of all."""
        summed = begin[g.edges.src] + end[g.edges.dst]
        summed = summed if features is None else summed + features
        return (functional.leaky_relu(summed, self.form.slope) * self.att).sum(-1)


class Attentions:
    """GATConv and GATv2Conv."""

    LIBRARY = "torch_geometric"
    NAMES = ("GATConv", "GATv2Conv")

    @staticmethod
    def refuse(layer: Any) -> str:
        """Other aggregations than the four usual ones are not covered."""
        return "" if reduction_of(layer) is not None else f"the aggregation {layer.aggr!r}"

    @staticmethod
    def forward(
        layer: Any, programs: Programs, x: Any, edge_index: Any, edge_attr: Any = None, *rest: Any, **named: Any
    ) -> Any:
        """The layer's forward. GATConv takes a size besides."""
        second = is_kind(layer, "GATv2Conv")
        names = ("return_attention_weights",) if second else ("size", "return_attention_weights")
        options = {**dict.fromkeys(names), **dict(zip(names, rest, strict=False)), **named}
        if len(options) != len(names) or len(rest) > len(names):
            raise Uncovered
        if not is_index(edge_index):
            raise Uncovered("a sparse adjacency: edge indices are covered")
        nodes = _nodes(layer, x, second=second)
        size = options.get("size")
        flipped = layer.flow == "target_to_source"
        if len(nodes) > 1 and flipped:
            raise Uncovered("edges against the flow between two sets of nodes")
        if size is not None and tuple(size) != (len(nodes[0]), len(nodes[-1])):
            raise Uncovered("a size that is not that of x")
        ends = Ends(len(nodes[0]), len(nodes[1]) if len(nodes) > 1 else None, None, flipped)
        graph, index, features = _edges(layer, edge_index, _features(layer, edge_attr, second=second), ends)
        others = [] if features is None else [features]
        dropped = layer.training and layer.dropout > 0
        if dropped:
            others.append(functional.dropout(nodes[0].new_ones(index.shape[1], layer.heads), layer.dropout))
        form = Form(
            layer.heads, layer.out_channels, layer.negative_slope, layer.concat, reduction_of(layer) or "sum", len(nodes) > 1,
            features is not None, dropped, bool(options["return_attention_weights"]),
        )  # fmt: skip
        weights = _second_weights(layer, form) if second else _first_weights(layer, form)
        build = partial(DynamicAttention if second else Attention, form=form)
        results = programs.run(form, build, weights, graph, *nodes, *others)
        return (results[0], (index, results[1])) if form.asked else results


def _nodes(layer: Any, x: Any, *, second: bool) -> Sequence[torch.Tensor]:
    """The features of the nodes: one tensor, or those of sources and of destinations."""
    if isinstance(x, torch.Tensor):
        if x.dim() != 2:
            raise Uncovered
        return [x]
    if not isinstance(x, (tuple, list)) or len(x) != 2 or any(each is not None and each.dim() != 2 for each in x):
        raise Uncovered
    if x[1] is None:
        raise Uncovered("" if second else "destinations without features")
    return x


def _features(layer: Any, edge_attr: Any, *, second: bool) -> torch.Tensor | None:
    """The edges' features, as far as the layer reads them."""
    if edge_attr is None or layer.lin_edge is None:
        if edge_attr is not None and second:
            raise Uncovered
        return None
    return edge_attr.reshape(-1, 1) if edge_attr.dim() == 1 else edge_attr  # type: ignore[no-any-return]


def _edges(
    layer: Any, edge_index: torch.Tensor, features: torch.Tensor | None, ends: Ends
) -> tuple[MessageGraph, torch.Tensor, torch.Tensor | None]:
    """The edges that the layer sees, with loops if it adds them: as a message graph and as they were given; and their features."""
    if not layer.add_self_loops:
        return edges_of(edge_index, None, ends), edge_index, features
    nodes = min(ends.sources, ends.sources if ends.targets is None else ends.targets)
    made = looped(edge_index, nodes, ends)
    if features is not None:
        features = loop_features(features, made, nodes, layer.fill_value)
    return made.graph, made.edge_index, features


def _first_weights(layer: Any, form: Form) -> Weights:
    one = layer.lin is not None
    end = None if one and not form.bipartite else (layer.lin if one else layer.lin_dst).weight
    weights = {
        "begin": (layer.lin if one else layer.lin_src).weight, "begin_bias": None, "end": end, "end_bias": None,
        "att_src": layer.att_src, "att_dst": layer.att_dst, "res": None if layer.res is None else layer.res.weight, "bias": layer.bias,
    }  # fmt: skip
    return weights | ({"edge": layer.lin_edge.weight, "att_edge": layer.att_edge} if form.edges else {})


def _second_weights(layer: Any, form: Form) -> Weights:
    shared = layer.share_weights and not form.bipartite
    weights = {
        "begin": layer.lin_l.weight, "begin_bias": layer.lin_l.bias,
        "end": None if shared else layer.lin_r.weight, "end_bias": None if shared else layer.lin_r.bias,
        "att": layer.att, "res": None if layer.res is None else layer.res.weight, "bias": layer.bias,
    }  # fmt: skip
    return weights | ({"edge": layer.lin_edge.weight} if form.edges else {})
