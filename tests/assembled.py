"""A small U-Net of residual blocks, as diffusion models have them: what tests drop, share, swap and cache parts of."""

from __future__ import annotations

import torch
from torch import nn
from zoo import randomise

import suture
from suture.ir.graph import Graph


class Residual(nn.Module):
    """Norm, activation, convolution, the step's embedding added in between; the input added at the end."""

    def __init__(self, inputs: int, outputs: int, embedding: int = 6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.step = nn.Linear(embedding, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        y = self.first(torch.nn.functional.silu(self.norm(x))) + self.step(step)[:, :, None, None]
        return self.skip(x) + self.second(torch.nn.functional.silu(y))


class Sequence(nn.Sequential):
    """Blocks that also take the step's embedding."""

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = block(x, step)
        return x


class StepUNet(nn.Module):
    """Two levels down and up with skip connections; a middle between them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 6)
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.down = nn.ModuleList(
            [
                Sequence(*(Residual(width, width) for _ in range(2))),
                Sequence(*(Residual(width, width) for _ in range(2))),
            ]
        )
        self.middle = Sequence(Residual(width, width), Residual(width, width))
        self.up = nn.ModuleList([Sequence(Residual(2 * width, width), Residual(width, width)) for _ in range(2)])
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        step = torch.tanh(self.embed(time))
        x, skips = self.stem(x), []
        for level in self.down:
            x = level(x, step)
            skips.append(x)
            x = torch.nn.functional.avg_pool2d(x, 2)
        x = self.middle(x, step)
        for level, skip in zip(self.up, reversed(skips), strict=True):
            x = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = level(torch.cat([x, skip], dim=1), step)
        return self.head(x)


class Passing(nn.Module):
    """What is left where a block was dropped."""

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return x


def unet(seed: int = 0) -> StepUNet:
    torch.manual_seed(seed)
    module = randomise(StepUNet(), seed).double().eval()
    with torch.no_grad():  # blocks of clearly different influence
        for k, block in enumerate(m for m in module.modules() if isinstance(m, Residual)):
            block.second.weight *= 0.05 * (1 + (3 * k) % 7)
            block.second.bias *= 0.05 * (1 + (3 * k) % 7)
    return module


def inputs(batch: int = 3, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 2, 8, 8, generator=generator, dtype=torch.float64),
        torch.rand(batch, 1, generator=generator, dtype=torch.float64),
    )


def trace_unet(module: nn.Module) -> Graph:
    return suture.trace(module, inputs(), dynamic=[{0: "batch"}, {0: "batch"}])
