"""Tensors of several blocks that become one: what the shared one begins as, and what each block loses by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from suture.ir.graph import Graph, Node, Parameter
from suture.passes.low_rank.decomposition import Decomposition
from suture.passes.low_rank.weights import as_matrix

Initialise = Literal["stepwise", "average", "lower"]

_ROUNDINGS = 4.0  # by how many roundings an entry of the product of two factors may be off, for each term of its sum


@dataclass(frozen=True, eq=False)
class TiedMatrix:
    """A block's own matrix that gives way to a shared one: what it was, and what takes its place, as matrices `[m, n]`."""

    own: Parameter
    shared: Parameter
    node: Node
    original: torch.Tensor
    replacement: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """The sides of the matrix."""
        return self.original.shape[0], self.original.shape[1]

    @property
    def planned(self) -> bool:
        """Whether there are shapes only."""
        return self.original.is_meta

    @property
    def largest_rank(self) -> int:
        """The largest rank of an adapter."""
        return min(self.shape)

    def residual(self) -> torch.Tensor:
        """What the block loses, in float64."""
        return self.original.to(torch.float64) - self.replacement.to(torch.float64)

    @cached_property
    def loses(self) -> bool:
        """Whether it loses anything."""
        return self.planned or not torch.equal(self.original, self.replacement)

    @cached_property
    def decomposition(self) -> Decomposition:
        """The decomposition of what it loses; computed when a rank is asked for."""
        return Decomposition.of(self.residual())

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B."""
        if self.planned:
            data = self.own.data
            return data.new_empty((rank, self.shape[1])), data.new_empty((self.shape[0], rank))
        return self.decomposition.factors(rank)

    def left_out(self, rank: int) -> tuple[float, bool]:
        """The squared norm of what an adapter of that rank leaves out of the residual, and whether that is rounding."""
        missing = self.residual()
        if rank:
            a, b = self.factors(rank)
            missing -= b @ a
        lost = float(missing.square().sum())
        # the difference is rounded like its terms, either of which may be the larger
        size = sum(float(each.to(torch.float64).norm()) for each in (self.original, self.replacement))
        rounding = size * _ROUNDINGS * max(self.shape) * torch.finfo(torch.float64).eps
        return lost, lost <= rounding**2 * self.largest_rank


def tied_matrix(member: Parameter, shared: Parameter, original: torch.Tensor) -> TiedMatrix:
    """What a block's matrix loses when it gives way to a shared one.

    :param original: the tensor that it had before the shared one was assigned
    """
    node = member.uses[0].node
    return TiedMatrix(member, shared, node, as_matrix(original.detach(), node), as_matrix(shared.data.detach(), node))


def shared_values(family: Sequence[Parameter], blocks: int, initialise: Initialise) -> list[torch.Tensor]:
    """What the shared tensors of a family begin as, one for each of the first `blocks`."""
    if initialise == "average":
        return [_mean([p.data for p in family[first::blocks]]) for first in range(blocks)]
    chosen = range(blocks) if initialise == "lower" else stepwise(len(family), blocks)
    return [_copied(family[index].data) for index in chosen]


def stepwise(count: int, blocks: int) -> list[int]:
    """`blocks` of `count` indices at even steps, the first and the last among them."""
    if blocks == 1:
        return [0]
    return [(2 * k * (count - 1) + blocks - 1) // (2 * (blocks - 1)) for k in range(blocks)]


def tie(graph: Graph, own: Parameter, shared: Parameter) -> None:
    """Let everything read a shared parameter instead of another, whose names become further names of the shared one."""
    if own is shared:
        return
    graph.replace_uses(own, shared)
    shared.aliases = (*shared.aliases, own.name, *own.aliases)
    graph.remove_parameter(own)


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    first = tensors[0]
    wide = torch.stack([tensor.detach().to(torch.float64) for tensor in tensors]).mean(0)
    return wide.to(first.dtype).requires_grad_(first.requires_grad)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
