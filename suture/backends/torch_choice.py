"""What a branch is in a module: a child that holds both bodies, and runs one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Choice(nn.Module):
    """Two modules without tensors, of which one runs: gradients reach what it reads, and nothing that the other does."""

    def __init__(self, then: nn.Module, otherwise: nn.Module) -> None:
        super().__init__()
        self.then = then
        self.otherwise = otherwise

    def forward(self, predicate: torch.Tensor, then_reads: Sequence[Any], otherwise_reads: Sequence[Any]) -> Any:
        """Run `then` on what it reads where the predicate holds, else `otherwise`."""
        return self.then(*then_reads) if bool(predicate) else self.otherwise(*otherwise_reads)
