"""Small anchors that stitching tests share: vision transformers and staged convolutional networks, with what a hand-written stitch needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import suture

CLASSES, SIZE = 5, 16


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, width: int, depth: int = 3, heads: int = 2, patch: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.pos = nn.Parameter(torch.randn(1, (SIZE // patch) ** 2 + 1, width) * 0.1)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1) + self.pos

    def top(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x)[:, 0])

    def run(self, x: torch.Tensor, first: int, end: int) -> torch.Tensor:
        for block in self.blocks[first:end]:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.run(self.stem(x), 0, len(self.blocks)))


class Residual(nn.Module):
    """A residual block of two convolutions; the first may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


class StagedNet(nn.Module):
    """A residual network of two stages and more."""

    def __init__(self, width: int, depths: Sequence[int] = (2, 3, 1), classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        inputs = width
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            outputs = width * 2**stage
            blocks = []
            for k in range(depth):
                blocks.append(Residual(inputs, outputs, 2 if stage and not k else 1))
                inputs = outputs
            self.stages.append(nn.ModuleList(blocks))
        self.head = nn.Linear(inputs, classes)

    @property
    def chain(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage]

    def top(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3)))

    def run(self, x: torch.Tensor, first: int, end: int) -> torch.Tensor:
        for block in self.chain[first:end]:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.run(self.stem(x), 0, len(self.chain)))


def make(kind: type[nn.Module], *options: object, seed: int = 0, **more: object) -> nn.Module:
    """A module in evaluation mode, its statistics and weights made by the seed."""
    torch.manual_seed(seed)
    module = kind(*options, **more)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return module.eval()


def traced(module: nn.Module, name: str = "anchor") -> suture.Graph:
    """The module's graph with a dynamic batch."""
    return suture.trace(module, (torch.zeros(2, 3, SIZE, SIZE),), dynamic={"x": {0: "batch"}}, name=name)


@cache
def vit_graph(width: int, depth: int = 3, seed: int = 0, patch: int = 4, classes: int = CLASSES) -> suture.Graph:
    """A transformer's graph, traced once for all tests that only read it."""
    return traced(make(ViT, width, depth, seed=seed, patch=patch, classes=classes))


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Random images."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
