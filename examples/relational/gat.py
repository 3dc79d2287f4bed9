"""GAT: attention over the edges that come to a node (Velickovic et al. 2018, arXiv 1710.10903, equations 3 to 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture.relational import MessageGraph


class GAT(nn.Module):
    """`x'_v = sum of a_uv x_u W + b`, with `a = softmax(leaky_relu(<x_u W, k> + <x_v W, q>))` over the edges that come to v.

    :param outputs: the width of each head; the heads' results stand beside each other
    """

    def __init__(self, inputs: int, outputs: int, *, heads: int = 1, slope: float = 0.2) -> None:
        super().__init__()
        self.heads, self.slope = heads, slope
        self.linear = nn.Linear(inputs, heads * outputs, bias=False)
        self.query = nn.Parameter(torch.empty(heads, outputs))
        self.key = nn.Parameter(torch.empty(heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))
        nn.init.xavier_uniform_(self.query)
        nn.init.xavier_uniform_(self.key)

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        """Features of the nodes `x[nodes, inputs]` -> `[nodes, heads * outputs]`."""
        e = g.edges
        z = self.linear(x).unflatten(-1, (self.heads, -1))
        key, query = (z * self.key).sum(-1), (z * self.query).sum(-1)
        attention = g.softmax(F.leaky_relu(key[e.src] + query[e.dst], self.slope))
        return g.sum(attention.unsqueeze(-1) * z[e.src]).flatten(1) + self.bias
