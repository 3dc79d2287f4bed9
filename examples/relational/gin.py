"""GIN: a network on the sum of a node and its neighbours (Xu et al. 2019, arXiv 1810.00826, equation 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suture.relational import MessageGraph


class GIN(nn.Module):
    """`x'_v = network((1 + epsilon) x_v + sum of x_u over the edges that come to v)`."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        self.epsilon = nn.Parameter(torch.zeros(1))

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        """Features of the nodes `x[nodes, inputs]` -> `[nodes, outputs]`."""
        return self.network((1 + self.epsilon) * x + g.sum(x[g.edges.src]))
