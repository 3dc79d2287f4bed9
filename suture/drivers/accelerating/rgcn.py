"""PyTorch Geometric's RGCNConv and FastRGCNConv: a matrix for each relation.

Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional Networks", 2018. Basis decomposition is their equation 3, block-diagonal
decomposition their equation 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from suture.drivers.accelerating.aggregation import reduction_of
from suture.drivers.accelerating.program import Program, Reduction, Rows, Weights, reduce_messages
from suture.drivers.accelerating.structures import Ends, edges_of, is_index, numbers, one_hot
from suture.drivers.accelerating.swapping import Programs, Uncovered, is_kind
from suture.frontends.messages.graph import MessageGraph


class Convolution(Program):
    """Each edge sends its source's features, times the matrix of its relation.

    :param weights: `weight[relations, i, o]`, or `[bases, i, o]` with `comp[relations, bases]`, or `[relations, blocks, i/blocks, o/blocks]`;
        `root[i, o]`; `bias[o]`
    :param how: how messages meet within their relation; these are added up then
    """

    def __init__(self, weights: Weights, *, how: Reduction) -> None:
        super().__init__(weights)
        self.how: Reduction = how

    def forward(self, g: MessageGraph, x: Rows, ends: Rows | None = None) -> Rows:
        """`x[sources, i]`, and `ends[targets, i']` where these are other nodes -> `[targets, o]`."""
        matrices = relation_matrices(self)
        rows = x.unflatten(-1, matrices.shape[1:3]) if matrices.ndim == 4 else x
        sums = self.sums(g, rows, matrices)
        result = sums.flatten(1) if matrices.ndim == 4 else sums
        return with_root(self, result, None if self.root is None else (x if ends is None else ends) @ self.root)

    def sums(self, g: MessageGraph, rows: Rows, matrices: Rows) -> Rows:
        """What comes to each node: a sum and a mean are the same before and behind a matrix, a maximum is not."""
        e = g.edges
        if self.how in ("sum", "mean"):
            messages = rows[e.src] @ matrices[e.type]
            return g.mean(messages, per_relation=True) if self.how == "mean" else g.sum(messages)
        met = reduce_messages(g.relations, rows[e.src], self.how)
        return g.relations.into_nodes(met @ matrices[g.relations.type])


class Embedding(Convolution):
    """The same over nodes without features, whose rows are one-hot; what meets within a relation are the rows of its matrix.

    :param weights: as of `Convolution`, without blocks
    """

    def sums(self, g: MessageGraph, rows: Rows, matrices: Rows) -> Rows:
        """What comes to each node, first within relations and then from all."""
        if self.how in ("sum", "mean"):
            return super().sums(g, rows, matrices)
        messages = rows[g.edges.src] @ matrices[g.edges.type]
        return g.relations.into_nodes(reduce_messages(g.relations, messages, self.how))


def relation_matrices(program: Any) -> Rows:
    """The matrices of all relations: as they are, or combined from bases."""
    weight: Rows = program.weight
    if program.comp is None:
        return weight
    return (program.comp @ weight.reshape(weight.shape[0], -1)).reshape(program.comp.shape[0], *weight.shape[1:])


def with_root(program: Any, result: torch.Tensor, root: torch.Tensor | None) -> Rows:
    """What the nodes themselves and the bias add."""
    result = result if root is None else result + root
    return result if program.bias is None else result + program.bias


class RelationalConvolutions:
    """RGCNConv and FastRGCNConv."""

    LIBRARY = "torch_geometric"
    NAMES = ("RGCNConv", "FastRGCNConv")

    @staticmethod
    def refuse(layer: Any) -> str:
        """Other aggregations than a sum, a mean, a maximum and a minimum are not covered."""
        how = reduction_of(layer)
        return "" if how is not None else f"the aggregation {layer.aggr!r}"

    @staticmethod
    def forward(
        layer: Any, programs: Programs, x: Any, edge_index: Any, edge_type: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The layer's forward; `x` is features, numbers of rows, None for all rows, or a pair of these."""
        fast, how = is_kind(layer, "FastRGCNConv"), reduction_of(layer)
        begins, ends = x if isinstance(x, tuple) else (x, None)
        if edge_type is None or not is_index(edge_index) or (isinstance(x, tuple) and ends is None):
            raise Uncovered
        if how is None or (fast and how not in ("sum", "mean")):
            raise Uncovered
        flipped = layer.flow == "target_to_source"
        if flipped and ends is not None:
            raise Uncovered("edges against the flow between two sets of nodes")
        sources = layer.in_channels_l if begins is None else len(begins)
        lies = Ends(sources, None if ends is None else len(ends), layer.num_relations, flipped)
        graph = edges_of(edge_index, edge_type, lies)
        nodes = [numbers(graph, sources) if begins is None else begins, *([] if ends is None else [ends])]
        program = _program(layer, nodes)
        if (
            fast and program is Embedding and begins is not None
        ):  # its messages go by the edges' own numbers, whatever x says
            nodes = [numbers(graph, sources), nodes[-1]]
        rows: list[Rows] = nodes
        if program is Embedding:  # what edges lead to matters to the root alone
            widths = [layer.in_channels_l, *([] if layer.root is None else [len(layer.root)])]
            rows = [one_hot(each, width) for each, width in zip(nodes, widths, strict=False)]
        form = (program.__name__, how, len(rows))
        weights = {name: getattr(layer, name) for name in ("weight", "comp", "root", "bias")}
        made: torch.Tensor = programs.run(form, partial(program, how=how), weights, graph, *rows)
        # RGCNConv adds its relations up in torch's default type.
        return made if fast else made.to(torch.promote_types(made.dtype, torch.get_default_dtype()))


def _program(layer: Any, nodes: list[torch.Tensor]) -> type[Convolution]:
    """The program for what is known about nodes: features, or rows of weights."""
    if all(each.dim() == 2 and each.is_floating_point() for each in nodes):
        return Convolution
    if layer.num_blocks is not None or any(each.dim() != 1 or each.is_floating_point() for each in nodes):
        raise Uncovered
    return Embedding
