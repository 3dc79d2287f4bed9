"""A character-level GPT: norms on the branches, learned positions, a feed-forward of four times the width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import suture
from suture import Graph

HEADS = 4
_DEVIATION = 0.1  # of the weights at first: about one over the square root of the width


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(batch, length, HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharGPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(context, width))
        self.layers = nn.ModuleList([Block(width, hidden) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                branch = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, std=_DEVIATION / (2 * depth) ** 0.5 if branch else _DEVIATION)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def char_graph(
    vocabulary: int, context: int, width: int, depth: int, *, hidden: int | None = None, seed: int = 0
) -> Graph:
    """A fresh model, traced."""
    torch.manual_seed(seed)
    module = CharGPT(vocabulary, context, width, depth, hidden or 4 * width)
    tokens = torch.zeros(2, context, dtype=torch.int64)
    return suture.trace(module, tokens, dynamic={"x": {0: "batch"}}, name="chars")
