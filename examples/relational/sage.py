"""GraphSAGE: the mean of the neighbours beside the node itself (Hamilton et al. 2017, arXiv 1706.02216, algorithm 1)."""

from __future__ import annotations

from torch import Tensor, nn

from suture.relational import MessageGraph


class SAGE(nn.Module):
    """`x'_v = W (mean of x_u over the edges that come to v) + R x_v`.

    :param aggregation: `mean` or `max`
    """

    def __init__(self, inputs: int, outputs: int, *, aggregation: str = "mean") -> None:
        super().__init__()
        self.aggregation = aggregation
        self.neighbours = nn.Linear(inputs, outputs)
        self.root = nn.Linear(inputs, outputs, bias=False)

    def forward(self, g: MessageGraph, x: Tensor) -> Tensor:
        """Features of the nodes `x[nodes, inputs]` -> `[nodes, outputs]`."""
        messages = x[g.edges.src]
        gathered = g.max(messages) if self.aggregation == "max" else g.mean(messages)
        return self.neighbours(gathered) + self.root(x)
