"""A layer's ways to be a product of smaller ones: what each choice of ranks costs, and how much of the weight it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.types import Attribute
from suture.passes.low_rank.layers import Layer

Count = Literal["parameters", "macs"]
Ranks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Factor:
    """One of the layers that take a layer's place: its operator, weight and attributes, and what it is called below the layer."""

    leaf: str
    operator: str
    weight: torch.Tensor
    attributes: dict[str, Attribute]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer and all its ranks: of a product of two factors one number, of a Tucker decomposition two.

    :param shares: the share of the energy that ranks keep: entry `[r - 1]`, or `[r - 1, q - 1]`, in float64
    :param parameters: what they cost in elements, in the same places
    :param macs: and in multiply-accumulates
    :param dense: elements and multiply-accumulates of the layer as it is
    :param make: the factors for ranks, first to last
    """

    layer: Layer
    shares: torch.Tensor
    parameters: torch.Tensor
    macs: torch.Tensor
    dense: tuple[int, int]
    make: Callable[[Ranks], list[Factor]]

    def cost(self, count: Count) -> torch.Tensor:
        """What ranks cost."""
        return self.parameters if count == "parameters" else self.macs

    def dense_cost(self, count: Count) -> int:
        """What the layer costs as it is."""
        return self.dense[0] if count == "parameters" else self.dense[1]

    def saves(self, count: Count) -> torch.Tensor:
        """Where ranks cost less than the layer as it is."""
        return self.cost(count) < self.dense_cost(count)

    @property
    def full(self) -> Ranks:
        """The largest ranks that there are."""
        return tuple(self.shares.shape)

    def share(self, ranks: Ranks) -> float:
        """The share of the energy that ranks keep."""
        return float(self.shares[tuple(rank - 1 for rank in ranks)])


def energy_shares(values: torch.Tensor) -> torch.Tensor:
    """The share of the squared singular values that each rank keeps; of a matrix of zeros every rank keeps all."""
    running = values.square().cumsum(0)
    total = running[-1]
    return running / total if bool(total > 0) else torch.ones_like(running)
