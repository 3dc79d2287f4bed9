"""HGT: transformer-like attention over nodes and edges of many types (Hu et al. 2020, arXiv 2003.01332, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture.relational import MessageGraph


class HGT(nn.Module):
    """Keys, queries and values by the type of a node, attention and message matrices and a prior by the type of an edge, a gated skip.

    :param outputs: the width of all heads together
    :param kinds: how many types of nodes there are
    :param relations: how many types of edges
    """

    def __init__(self, inputs: int, outputs: int, kinds: int, relations: int, *, heads: int = 1) -> None:
        super().__init__()
        self.heads, width = heads, outputs // heads
        self.key, self.query, self.value = (nn.Parameter(torch.empty(kinds, inputs, outputs)) for _ in range(3))
        self.key_bias, self.query_bias, self.value_bias = (nn.Parameter(torch.zeros(kinds, outputs)) for _ in range(3))
        self.attention, self.message = (nn.Parameter(torch.empty(relations, heads, width, width)) for _ in range(2))
        self.prior = nn.Parameter(torch.ones(relations, heads))
        self.output = nn.Parameter(torch.empty(kinds, outputs, outputs))
        self.output_bias = nn.Parameter(torch.zeros(kinds, outputs))
        self.skip = nn.Parameter(torch.ones(kinds))
        for matrix in (self.key, self.query, self.value, self.attention, self.message, self.output):
            nn.init.xavier_uniform_(matrix)

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        """Features of the nodes `x[nodes, inputs]` -> `[nodes, outputs]`."""
        e, n = g.edges, g.nodes
        key, query, value = (
            (x @ weight[n.type] + bias[n.type]).unflatten(-1, (self.heads, -1))
            for weight, bias in (
                (self.key, self.key_bias),
                (self.query, self.query_bias),
                (self.value, self.value_bias),
            )
        )
        scores = ((key[e.src] @ self.attention[e.type]) * query[e.dst]).sum(-1) * self.prior[e.type]
        attention = g.softmax(scores / math.sqrt(query.shape[-1]))
        gathered = g.sum(attention.unsqueeze(-1) * (value[e.src] @ self.message[e.type])).flatten(1)
        y = F.gelu(gathered) @ self.output[n.type] + self.output_bias[n.type]
        if y.shape[-1] != x.shape[-1]:
            return y
        gate = torch.sigmoid(self.skip)[n.type].unsqueeze(-1)
        return gate * y + (1 - gate) * x
