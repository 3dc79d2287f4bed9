"""Small networks that are grown in tests: decoders with every choice of norm, bias, heads, position and head; convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """What a decoder is like."""

    norm: str = "layer"
    bias: bool = True
    heads: int = 4
    groups: int = 4
    rotary: bool = False
    gated: bool = False
    tied: bool = False
    hidden: int = 20
    width: int = 16
    layers: int = 2
    vocabulary: int = 11


def make_norm(shape: Shape) -> nn.Module:
    return nn.LayerNorm(shape.width, eps=1e-3) if shape.norm == "layer" else nn.RMSNorm(shape.width, eps=1e-3)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.groups, self.size = shape.heads, shape.groups, 4
        self.q = nn.Linear(shape.width, shape.heads * self.size, bias=shape.bias)
        self.k, self.v = (nn.Linear(shape.width, shape.groups * self.size, bias=shape.bias) for _ in range(2))
        self.o = nn.Linear(shape.heads * self.size, shape.width, bias=shape.bias)
        self.rotary = shape.rotary
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1], dtype=torch.float64), persistent=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.outer(torch.arange(x.shape[2], dtype=x.dtype), self.frequencies)
        angle = torch.cat([angle, angle], -1)
        first, second = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (layer(x).view(b, n, self.groups, self.size).transpose(1, 2) for layer in (self.k, self.v))
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.groups != self.heads)
        return self.o(y.transpose(1, 2).reshape(b, n, self.heads * self.size))


class Feed(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=shape.bias) if shape.gated else None
        self.down = nn.Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        return self.down(F.gelu(y) if self.gate is None else F.silu(self.gate(x)) * y)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before, self.after = make_norm(shape), make_norm(shape)
        self.attention, self.feed = Attention(shape), Feed(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.feed(self.after(x))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = make_norm(shape)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


TOKENS = torch.tensor([[1, 5, 2, 9, 3], [4, 4, 8, 0, 7]])


@dataclass(frozen=True)
class Channels:
    """What a convolutional network is like."""

    norm: str = "batch"
    groups: int = 1
    depthwise: bool = False
    activation: str = "relu"
    residual: bool = True
    bias: bool = False


class Convolutional(nn.Module):
    def __init__(self, shape: Channels) -> None:
        super().__init__()
        width = 8
        norms = {"batch": lambda: nn.BatchNorm2d(width), "group": lambda: nn.GroupNorm(2, width), "none": nn.Identity}
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=shape.bias)
        self.first = nn.Conv2d(
            width, width, 3, padding=1, groups=width if shape.depthwise else shape.groups, bias=shape.bias
        )
        self.second = nn.Conv2d(width, width, 1, bias=shape.bias)
        self.norms = nn.ModuleList([norms[shape.norm]() for _ in range(3)])
        self.activation = {"relu": nn.ReLU(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU()}[shape.activation]
        self.residual = shape.residual
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norms[0](self.stem(x)))
        y = self.activation(self.norms[1](self.first(x)))
        y = self.norms[2](self.second(y))
        return self.head((x + y if self.residual else y).mean((2, 3)))


IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
