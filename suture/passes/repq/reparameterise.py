"""From one quantiser a channel to one for the tensor: the norm before it takes up what the channels' quantisers differ by.

RepQ-ViT (Li et al. 2023, section 3.2), for scales s and zero points z of the channels: with s' = mean s, z' = mean z rounded, r1 = s / s' and
r2 = z - z', the norm's gain becomes gain / r1 and its bias (bias + s r2) / r1, the weights that read it W diag(r1) and their biases
b - W (s r2). The integers are those that the channels' quantisers give, and the function is the same. Since z' is rounded and r2 whole,
integers of a plain quantiser say it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.repq.ranges import ChannelQuantiser
from suture.passes.symmetry.norm_affine import shift_and_scale


@dataclass(frozen=True)
class Reparameterisation:
    """The shared quantiser s', z' (numbers) and what the norm takes up: r1 and s r2 [channels], float64."""

    scale: float
    zero: int
    bits: int
    factor: torch.Tensor
    shift: torch.Tensor

    def quantiser(self) -> QuantiserParameters:
        """The shared quantiser."""
        zero = torch.tensor(self.zero, dtype=torch.uint8)
        return QuantiserParameters(torch.tensor(self.scale, dtype=torch.float32), zero, self.bits)

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """The integers that the shared quantiser gives [any shape], int64."""
        last = (1 << self.bits) - 1
        return ((x.double() / self.scale).round() + self.zero).clamp(0, last).to(torch.int64)


def shared(quantiser: ChannelQuantiser) -> Reparameterisation:
    """The quantiser that all channels can share, and what it asks of the norm."""
    # the scale as a file holds it, so that the integers stay the same there
    scale = float(quantiser.scale.mean().float())
    zero = int(quantiser.zero.mean().round().clamp(0, (1 << quantiser.bits) - 1))
    return Reparameterisation(
        scale, zero, quantiser.bits, quantiser.scale / scale, quantiser.scale * (quantiser.zero - zero)
    )


def reparameterise(graph: Graph, norm: Node, quantiser: ChannelQuantiser) -> tuple[Reparameterisation, list[str]]:
    """Let a norm and its readers take up what the channels' quantisers differ by, in place; and what had to be untied for it.

    :raises SutureError: SYMMETRY, if a reader is not linear, or the norm has no bias and the zero points differ
    """
    found = shared(quantiser)
    notes = shift_and_scale(graph, norm, found.factor, found.shift)
    return found, notes
