"""R-GCN: a matrix for every relation (Schlichtkrull et al. 2018, arXiv 1703.06103, equations 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suture.relational import MessageGraph, OneHot


class RGCN(nn.Module):
    """`x'_v = sum over relations r of the mean (or sum) of x_u W_r over the edges u -r-> v, + x_v W_0 + b`.

    :param bases: W_r is a mix of so many matrices that all relations share (basis decomposition)
    :param blocks: W_r has so many blocks on its diagonal and nothing else (block-diagonal decomposition)
    :param aggregation: `mean`, over the edges of each relation, or `sum`
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        relations: int,
        *,
        bases: int | None = None,
        blocks: int | None = None,
        aggregation: str = "mean",
    ) -> None:
        super().__init__()
        self.blocks, self.aggregation = blocks, aggregation
        shape = (inputs, outputs) if blocks is None else (blocks, inputs // blocks, outputs // blocks)
        self.weight = nn.Parameter(torch.empty(bases or relations, *shape))
        self.mix = nn.Parameter(torch.empty(relations, bases)) if bases else None
        self.root = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for matrix in (self.weight, self.root, *([] if self.mix is None else [self.mix])):
            nn.init.xavier_uniform_(matrix)

    def forward(self, g: MessageGraph, x: Tensor | OneHot) -> Tensor:
        """Features of the nodes `x[nodes, inputs]`, which may be one-hot -> `[nodes, outputs]`."""
        e = g.edges
        weight = self.weight if self.mix is None else torch.einsum("rb,b...->r...", self.mix, self.weight)
        if self.blocks is None:
            messages = x[e.src] @ weight[e.type]
        else:
            messages = (x.unflatten(-1, (self.blocks, -1))[e.src] @ weight[e.type]).flatten(1)
        gathered = g.mean(messages, per_relation=True) if self.aggregation == "mean" else g.sum(messages)
        return gathered + x @ self.root + self.bias
