"""Small networks of equal blocks that tests make deeper: residual or not, the norm on the branch or on the stream."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import growable
import torch
from torch import nn
from zoo import randomise

import suture
from suture import Graph


class PostBlock(growable.Block):
    """Norms on the stream itself, as in the first transformers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x + self.attention(x))
        return self.after(x + self.feed(x))


class ScaledBlock(growable.Block):
    """A gain on each branch (layer scale)."""

    def __init__(self, shape: growable.Shape) -> None:
        super().__init__(shape)
        self.scale = nn.Parameter(torch.full((shape.width,), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x)) * self.scale
        return self.feed(self.after(x)) * self.scale + x


def decoder(shape: growable.Shape, block: type[growable.Block] = growable.Block, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = growable.Decoder(shape)
    module.layers = nn.ModuleList([block(shape) for _ in range(shape.layers)])
    return randomise(module, seed).double().eval()


def trace_decoder(
    shape: growable.Shape | None = None, block: type[growable.Block] = growable.Block, seed: int = 0
) -> Graph:
    return _decoder_graph(shape or growable.Shape(layers=3), block, seed).copy()


@functools.cache
def _decoder_graph(shape: growable.Shape, block: type[growable.Block], seed: int) -> Graph:
    return suture.trace(decoder(shape, block, seed), growable.TOKENS)


@dataclass(frozen=True)
class Net:
    """What a convolutional network of equal blocks is like."""

    residual: str = (
        "after"  # where the second activation stands: before the addition, after it, or "none" without an addition
    )
    norm: bool = True
    activation: str = "relu"
    bias: bool = False
    groups: int = 1
    kernel: int = 3
    blocks: int = 3


ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "gelu": nn.GELU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "hardtanh": nn.Hardtanh,
}  # fmt: skip


class ConvBlock(nn.Module):
    def __init__(self, net: Net, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, net.kernel, padding=net.kernel // 2, groups=net.groups, bias=net.bias)
        self.second = nn.Conv2d(width, width, 1, groups=net.groups, bias=net.bias)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) if net.norm else nn.Identity() for _ in range(2)])
        self.activation = ACTIVATIONS[net.activation]()
        self.residual = net.residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.second(self.activation(self.norms[0](self.first(x)))))
        if self.residual == "before":
            return x + self.activation(y)
        return self.activation(x + y if self.residual == "after" else y)


class ConvNet(nn.Module):
    def __init__(self, net: Net, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.activation = ACTIVATIONS[net.activation]()
        self.blocks = nn.Sequential(*[ConvBlock(net, width) for _ in range(net.blocks)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.activation(self.stem(x))).mean((2, 3)))


def trace_net(net: Net, seed: int = 0) -> Graph:
    return _net_graph(net, seed).copy()


@functools.cache
def _net_graph(net: Net, seed: int) -> Graph:
    torch.manual_seed(seed)
    return suture.trace(randomise(ConvNet(net), seed).double().eval(), growable.IMAGES)
