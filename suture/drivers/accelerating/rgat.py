"""PyTorch Geometric's RGATConv: attention over edges of many relations.

Busbridge et al., "Relational Graph Attention Networks", 2019: additive attention is their equations 5 and 6, attention within and across relations
their equations 7 and 8. The ways to keep the number of neighbours (`mod`) are of Zhang and Xie, "Improving Attention Mechanism in
Graph Neural Networks via Cardinality Preservation", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from suture.drivers.accelerating.aggregation import reduction_of
from suture.drivers.accelerating.program import Program, Reduction, Rows, Weights, reduce_messages
from suture.drivers.accelerating.structures import Ends, edges_of, is_index, one_hot
from suture.drivers.accelerating.swapping import Programs, Uncovered
from suture.frontends.messages.graph import MessageGraph


@dataclass(frozen=True)
class Form:
    """What changes the program.

    :param dim: how many attentions each head has
    :param within: whether a softmax runs over the edges of one relation only
    :param multiplied: whether queries and keys are multiplied instead of added
    :param mod: how the number of neighbours comes in
    :param edges: whether edges have features
    :param mask: whether attentions are dropped
    :param asked: whether the attentions are a result
    """

    heads: int
    width: int
    dim: int
    within: bool
    multiplied: bool
    mod: str | None
    slope: float
    concat: bool
    reduction: Reduction
    edges: bool
    mask: bool
    asked: bool


class RelationalAttention(Program):
    """Each edge sends its source's features, times its relation's matrix and its attention.

    :param weights: `weight[relations, i, h*o]`, or `basis[bases, i, h*o]` with `att[relations, bases]`, or blocks as of RGCN;
        `q[h*o, h*dim]`, `k[h*o, h*dim]`; `edge[h*o, edge width]`, `e[h*o, h*dim]`; `w`, `l1`, `b1`, `l2`, `b2`; `bias`
    """

    def __init__(self, weights: Weights, *, form: Form) -> None:
        super().__init__(weights)
        self.form = form

    def forward(self, g: MessageGraph, x: Rows, *others: Rows) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """`x[nodes, i]`, the edges' features and the mask where the form has them -> `[nodes, ...]` and the attentions `[edges, h*dim]`."""
        form, e = self.form, g.edges
        given = iter(others)
        features = next(given) if form.edges else None
        mask = next(given) if form.mask else None
        begin, end = self.project(x, e.src, e.type), self.project(x, e.dst, e.type)
        scores = self.score(end @ self.q, begin @ self.k, features)
        attention = g.softmax(scores, per_relation=form.within)
        weight = attention if mask is None else attention * mask
        several = (
            form.dim > 1 or form.mod is not None
        )  # numbers of attention for each head, and as many copies of its features
        rows = begin.unflatten(-1, (form.heads, 1, form.width) if several else (form.heads, form.width))
        weight = weight.unflatten(-1, (form.heads, form.dim, 1) if several else (form.heads, 1))
        summed = reduce_messages(g, self.message(g, rows, weight), form.reduction)
        result = (summed if form.concat else summed.mean(1)).flatten(1)
        result = result if self.bias is None else result + self.bias
        return (result, attention) if form.asked else result

    def project(self, x: Rows, nodes: Any, types: Any) -> Rows:
        """The features of edges' ends, times their relations' matrices: `[edges, h*o]`."""
        matrices = self.matrices()
        if matrices.ndim == 3:
            return x[nodes] @ matrices[types]
        return (x.unflatten(-1, matrices.shape[1:3])[nodes] @ matrices[types]).flatten(1)

    def matrices(self) -> Rows:
        """The matrices of all relations."""
        if self.att is None:
            return self.weight
        return (self.att @ self.basis.flatten(1)).unflatten(-1, self.basis.shape[1:])

    def score(self, query: Rows, key: Rows, features: Rows | None) -> Rows:
        """What the softmax is taken of: `[edges, h*dim]`."""
        third = None if features is None else (features @ self.edge.t()) @ self.e
        if self.form.multiplied:
            return query * key if third is None else query * key * third
        return functional.leaky_relu(query + key if third is None else query + key + third, self.form.slope)

    def message(self, g: MessageGraph, rows: Rows, weight: Rows) -> Rows:
        """What edges send: `rows[edges, h, 1, o]` by `weight[edges, h, dim, 1]`, with the number of neighbours."""
        form = self.form
        match form.mod:
            case "additive":
                return rows * weight + rows * self.w
            case "scaled":
                degree = g.in_degree().to(rows.dtype).unsqueeze(-1)
                scale: Rows = (degree @ self.l1 + self.b1).relu() @ self.l2 + self.b2
                return rows * weight * scale[:, None, None][g.edges.dst]
            case "f-additive":
                return torch.where(weight > 0, weight + 1, weight) * rows
            case "f-scaled":
                neighbours: Rows = g.in_degree().to(rows.dtype)[:, None, None, None]
                return weight * neighbours[g.edges.dst] * rows
        return weight * rows


class RelationalAttentions:
    """RGATConv. Where its documentation takes numbers of rows for features, its own forward fails; they are one-hot features here."""

    LIBRARY = "torch_geometric"
    NAMES = ("RGATConv",)

    @staticmethod
    def refuse(layer: Any) -> str:
        """Other aggregations than the four usual ones are not covered."""
        return "" if reduction_of(layer) is not None else f"the aggregation {layer.aggr!r}"

    @staticmethod
    def forward(
        layer: Any,
        programs: Programs,
        x: Any,
        edge_index: Any,
        edge_type: torch.Tensor | None = None,
        edge_attr: torch.Tensor | None = None,
        size: Any = None,
        return_attention_weights: Any = None,
    ) -> Any:
        """The layer's forward."""
        if not isinstance(x, torch.Tensor) or edge_type is None or not is_index(edge_index):
            raise Uncovered
        numbered = x.dim() == 1 and not x.is_floating_point() and layer.num_blocks is None
        if x.dim() != 2 and not numbered:
            raise Uncovered
        if size is not None and tuple(size) != (len(x), len(x)):
            raise Uncovered("a size that is not that of x")
        if edge_attr is not None and layer.lin_edge is None:
            raise Uncovered
        ends = Ends(len(x), None, layer.num_relations, layer.flow == "target_to_source")
        others = [] if edge_attr is None else [edge_attr.reshape(-1, 1) if edge_attr.dim() == 1 else edge_attr]
        dropped = (
            layer.training and layer.dropout > 0 and layer.mod not in ("additive", "scaled", "f-additive", "f-scaled")
        )
        if dropped:
            others.append(
                functional.dropout(layer.q.new_ones(edge_index.shape[1], layer.heads * layer.dim), layer.dropout)
            )
        form = Form(
            layer.heads, layer.out_channels, layer.dim, layer.attention_mechanism == "within-relation",
            layer.attention_mode.startswith("multiplicative"), layer.mod, layer.negative_slope, layer.concat,
            reduction_of(layer) or "sum", edge_attr is not None, dropped,
            isinstance(return_attention_weights, bool),
        )  # fmt: skip
        graph = edges_of(edge_index, edge_type, ends)
        build = partial(RelationalAttention, form=form)
        rows: Rows = one_hot(x, layer.in_channels) if numbered else x
        results = programs.run(form, build, _weights(layer, form), graph, rows, *others)
        return (results[0], (edge_index, results[1])) if form.asked else results


def _weights(layer: Any, form: Form) -> Weights:
    bases, other = ("att", "basis"), ("weight",)
    names = ["q", "k", "bias", *(bases if layer.num_bases is not None else other)]
    names += ["e"] if form.edges else []
    names += {"additive": ["w"], "scaled": ["l1", "b1", "l2", "b2"]}.get(form.mod or "", [])
    weights = {name: getattr(layer, name) for name in names}
    weights |= {"edge": layer.lin_edge.weight} if form.edges else {}
    return {"att": None, **weights}
