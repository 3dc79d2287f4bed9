"""Reductions over the edges of a graph, in groups: by the node they go to, or by that and their type."""

from __future__ import annotations

from typing import Any

import torch

from suture.frontends.messages.lookups import Index, Lazy
from suture.frontends.messages.operators import segment_max, segment_softmax, segment_sum


class Groups:
    """Edges in groups, by the node they go to or by that and their type: what can be reduced over.

    :param index: the group of each edge
    """

    def __init__(self, index: Index) -> None:
        self.index = index

    def sum(self, messages: torch.Tensor) -> torch.Tensor:
        """The sum of the messages `[e, *f]` of each group: `[groups, *f]`."""
        return segment_sum(rows_of(messages), self.index.tensor, self.index.size)

    def mean(self, messages: torch.Tensor) -> torch.Tensor:
        """Their mean; zero where there are none."""
        rows = rows_of(messages)
        return self.sum(rows) * reciprocal(self.sizes().clamp(min=1), rows)

    def max(self, messages: torch.Tensor) -> torch.Tensor:
        """Their maximum, element by element; zero where there are none."""
        return segment_max(rows_of(messages), self.index.tensor, self.index.size)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """The softmax of the scores `[e, *f]` within each group: `[e, *f]`. The maximum is taken off first."""
        return segment_softmax(rows_of(scores), self.index.tensor, self.index.size)

    def sizes(self) -> torch.Tensor:
        """How many edges each group has: int64[groups]."""
        return segment_sum(torch.ones_like(self.index.tensor), self.index.tensor, self.index.size)


class Relations(Groups):
    """Edges in groups of one destination and one type, as `g.relations`; what is computed for each goes on to the destination.

    :param index: the group of each edge
    :param type: the type of each group, so that `g.relations.max(m) @ W[g.relations.type]` is a product for each group
    :param dst: the node that each group's edges go to
    """

    def __init__(self, index: Index, type: Index, dst: Index) -> None:
        super().__init__(index)
        self.type = type
        self.dst = dst

    def into_nodes(self, values: torch.Tensor) -> torch.Tensor:
        """The sum, for each node, of the values `[groups, *f]` of its groups: `[nodes, *f]`."""
        return segment_sum(rows_of(values), self.dst.tensor, self.dst.size)


def rows_of(messages: Any) -> torch.Tensor:
    """The messages as a tensor with a row for every edge."""
    return messages.rows() if isinstance(messages, Lazy) else messages


def reciprocal(counts: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One over each count, in the element type of `rows` and with as many dimensions."""
    return counts.to(rows.dtype).reciprocal().reshape([-1, *[1] * (rows.ndim - 1)])
