"""Tensors of several blocks that become one: what the shared one begins as, and what each block loses by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.graph import Graph, Node, Parameter
from suture.passes.sharing.low_rank import Decomposition
from suture.passes.sharing.low_rank_adapters import as_matrix

Initialise = Literal["stepwise", "average", "lower"]


@dataclass(frozen=True, eq=False)
class TiedMatrix:
    """A block's own matrix that gives way to a shared one, and the decomposition of what it loses; None on a graph without weights."""

    own: Parameter
    shared: Parameter
    node: Node
    shape: tuple[int, int]
    residual: Decomposition | None
    scale: float

    @property
    def largest_rank(self) -> int:
        """The largest rank of an adapter."""
        return min(self.shape)

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B."""
        if self.residual is None:
            data = self.own.data
            return data.new_empty((rank, self.shape[1])), data.new_empty((self.shape[0], rank))
        return self.residual.factors(rank)


def tied_matrix(member: Parameter, shared: Parameter, original: torch.Tensor) -> TiedMatrix:
    """What a block's matrix loses when it gives way to a shared one.

    :param original: the tensor that it had before the shared one was assigned
    """
    node = member.uses[0].node
    own = as_matrix(original.detach(), node)
    shape = (own.shape[0], own.shape[1])
    if own.is_meta:
        return TiedMatrix(member, shared, node, shape, None, 0.0)
    wide = own.to(torch.float64)
    residual = wide - as_matrix(shared.data.detach(), node).to(torch.float64)
    return TiedMatrix(member, shared, node, shape, Decomposition.of(residual), float(wide.norm()))


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
