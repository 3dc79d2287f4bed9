"""Small programs that several tests trace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Program(nn.Module):
    """A module around a function of the module and its input; children by name."""

    def __init__(self, forward: Callable[..., torch.Tensor], **children: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def shuffle(x: torch.Tensor, groups: int = 2) -> torch.Tensor:
    """Interleave groups of channels (Zhang et al. 2018, section 3.1)."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
