"""CompGCN: relations are vectors that messages are composed with (Vashishth et al. 2020, arXiv 1911.03082, equations 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suture.relational import Index, MessageGraph


class CompGCN(nn.Module):
    """`x'_v = mean over edges u -r-> v of (x_u o z_r) W_direction(r) + (x_v o z_self) W_self`, and `z'_r = z_r V`.

    :param relations: how many types of edges there are; the second half are the first half's reverses
    :param composition: `sub`, `mul`: what o is
    """

    def __init__(self, inputs: int, outputs: int, relations: int, *, composition: str = "sub") -> None:
        super().__init__()
        self.compose = {"sub": torch.sub, "mul": torch.mul}[composition]
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs))
        self.itself = nn.Parameter(torch.empty(inputs, outputs))
        self.loop = nn.Parameter(torch.empty(1, inputs))
        self.relation = nn.Parameter(torch.empty(inputs, outputs))
        self.register_buffer("direction", (torch.arange(relations) >= relations // 2).long(), persistent=False)
        for matrix in (self.weight, self.itself, self.loop, self.relation):
            nn.init.xavier_uniform_(matrix)

    def forward(self, g: MessageGraph, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the nodes `x[nodes, inputs]` and relations `z[relations, inputs]` -> those of the next layer."""
        e = g.edges
        direction = Index(self.direction, 2, "types")[e.type]
        gathered = g.mean(self.compose(x[e.src], z[e.type]) @ self.weight[direction])
        return gathered + self.compose(x, self.loop) @ self.itself, z @ self.relation
