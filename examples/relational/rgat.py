"""RGAT: attention over edges of many relations (Busbridge et al. 2019, arXiv 1904.05811, section 2: additive, within and across relations)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture.relational import MessageGraph, OneHot


class RGAT(nn.Module):
    """`x'_v = sum over edges u -r-> v of a_uvr x_u W_r + b`, with `a = softmax(leaky_relu(<x_u W_r, k_r> + <x_v W_r, q_r>))`.

    :param outputs: the width of each head; the heads' results stand beside each other
    :param within: whether attention adds up to one over the edges of each relation, rather than over all edges that come to a node
    """

    def __init__(
        self, inputs: int, outputs: int, relations: int, *, heads: int = 1, within: bool = False, slope: float = 0.2
    ) -> None:
        super().__init__()
        self.heads, self.within, self.slope = heads, within, slope
        self.weight = nn.Parameter(torch.empty(relations, inputs, heads * outputs))
        self.query = nn.Parameter(torch.empty(relations, heads, outputs))
        self.key = nn.Parameter(torch.empty(relations, heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))
        for matrix in (self.weight, self.query, self.key):
            nn.init.xavier_uniform_(matrix)

    def forward(self, g: MessageGraph, x: Tensor | OneHot) -> Tensor:
        """Features of the nodes `x[nodes, inputs]`, which may be one-hot -> `[nodes, heads * outputs]`."""
        e = g.edges
        source = (x[e.src] @ self.weight[e.type]).unflatten(-1, (self.heads, -1))
        target = (x[e.dst] @ self.weight[e.type]).unflatten(-1, (self.heads, -1))
        scores = (target * self.query[e.type]).sum(-1) + (source * self.key[e.type]).sum(-1)
        attention = g.softmax(F.leaky_relu(scores, self.slope), per_relation=self.within)
        return g.sum(attention.unsqueeze(-1) * source).flatten(1) + self.bias
