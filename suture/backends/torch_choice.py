"""What a branch does when a module runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def choose(
    predicate: torch.Tensor,
    then: nn.Module,
    then_reads: Sequence[Any],
    otherwise: nn.Module,
    otherwise_reads: Sequence[Any],
) -> Any:
    """Run one of two modules: gradients reach what it reads, and nothing that the other does."""
    return then(*then_reads) if bool(predicate) else otherwise(*otherwise_reads)
