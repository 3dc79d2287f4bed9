"""What `stitch_digits.py` trains: scikit-learn's digits, small vision transformers and residual CNNs, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, SIZE = 10, 8


@dataclass(frozen=True)
class Digits:
    """The data: images [n, 1, 8, 8] of values from 0 to 1, and classes [n]."""

    images: Tensor
    classes: Tensor
    test_images: Tensor
    test_classes: Tensor


def load_digits(test: int = 600) -> Digits:
    """1797 handwritten digits; `test` of them, drawn once for all seeds, are for testing alone."""
    from sklearn.datasets import load_digits as load

    found = load()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    classes = torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, rest = order[:test], order[test:]
    return Digits(images[rest], classes[rest], images[held], classes[held])


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer on patches of 2 x 2, with a class token."""

    def __init__(self, width: int, depth: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, (SIZE // 2) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, width // 8) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Residual(nn.Module):
    """Two convolutions with group norm beside the identity; the first block of the second stage halves the image.

    Group norm, since a block is on many routes, and running statistics of one batch norm cannot be those of all of them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(2, outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(2, outputs)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


class CNN(nn.Module):
    """Two stages of residual blocks, 8 x 8 and 4 x 4."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.GroupNorm(2, width), nn.ReLU())
        second = [Residual(width, 2 * width, 2), *(Residual(2 * width, 2 * width) for _ in range(depth - 1))]
        self.blocks = nn.Sequential(*(Residual(width, width) for _ in range(depth)), *second)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def batches(digits: Digits, steps: int, seed: int, size: int = 64) -> Iterator[Tensor]:
    """The indices of each step's examples: epochs in random order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < size:
            left = torch.cat([left, torch.randperm(len(digits.images), generator=generator)])
        yield left[:size]
        left = left[size:]


def train(
    module: nn.Module, digits: Digits, steps: int, seed: int, rate: float, loss: Callable[[int, Tensor], Tensor]
) -> None:
    """AdamW, the rate warmed up over a tenth of the steps and then falling along a cosine to none."""
    optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    module.train()
    for step, chosen in enumerate(batches(digits, steps, seed)):
        optimizer.zero_grad()
        loss(step, chosen).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    module.eval()


def train_alone(make: Callable[[], nn.Module], digits: Digits, steps: int, seed: int, rate: float) -> nn.Module:
    """A model of its own, trained on the classes."""
    torch.manual_seed(seed)
    module = make()

    def loss(step: int, chosen: Tensor) -> Tensor:
        return F.cross_entropy(module(digits.images[chosen]), digits.classes[chosen])

    train(module, digits, steps, seed, rate, loss)
    return module


def accuracy(module: nn.Module, digits: Digits) -> float:
    """The share of test images classified rightly."""
    with torch.no_grad():
        return float((module(digits.test_images).argmax(1) == digits.test_classes).double().mean())
