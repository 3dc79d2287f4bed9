"""What the layers' programs have in common: weights by name, which stand for the layer's own and are given anew at every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from suture.frontends.messages.graph import MessageGraph
from suture.frontends.messages.groups import Groups

Weights = Mapping[str, torch.Tensor | None]

Reduction = Literal["sum", "mean", "max", "min"]

Rows = Any
"""A tensor with a row for each node or edge; torch's own types do not know that it takes an `Index`."""


class Program(nn.Module):
    """A message-passing program over weights that belong to somebody else.

    :param weights: the tensors by name; an absent one is None
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        for name, weight in weights.items():
            # Memory is shared; gradients flow by the tensors that a call gives in this one's place.
            self.register_parameter(name, None if weight is None else nn.Parameter(weight.detach()))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def reduce_messages(g: MessageGraph | Groups, messages: torch.Tensor, how: Reduction) -> torch.Tensor:
    """Messages `[edges, ...]` that meet in a node, or a group, as one value `[nodes, ...]`; zero where no edge ends."""
    match how:
        case "sum":
            return g.sum(messages)
        case "mean":
            return g.mean(messages)
        case "max":
            return g.max(messages)
        case "min":
            return -g.max(-messages)
