"""Matrices of low rank: the truncated singular value decomposition, and how many singular values to keep.

By Eckart and Young the best approximation of rank r drops the smallest singular values, and its squared error in the Frobenius norm is the sum of
their squares: a number that is known before anything runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The singular value decomposition of a matrix `[m, n]`, in float64: `left [m, k]`, `values [k]` descending, `right [k, n]`, k = min(m, n)."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Decomposition:
        """Decompose a matrix of any floating-point type."""
        left, values, right = torch.linalg.svd(matrix.detach().to(torch.float64), full_matrices=False)
        return cls(left, values, right)

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`a [rank, n]` and `b [m, rank]`, the right singular vectors and the left ones times the values: `b a` is the best of that rank."""
        return self.right[:rank], self.left[:, :rank] * self.values[:rank]

    def error(self, rank: int) -> float:
        """The squared Frobenius norm of what the best approximation of that rank leaves out."""
        return float(self.values[rank:].square().sum())

    @property
    def full_rank(self) -> int:
        """The largest rank that there is."""
        return len(self.values)

    def numerical_rank(self, scale: float, dtype: torch.dtype) -> int:
        """How many singular values are more than rounding, in a type, of matrices whose largest one is `scale`."""
        floor = scale * max(self.left.shape[0], self.right.shape[1]) * torch.finfo(dtype).eps
        return int((self.values > floor).sum())


def rank_by_energy(values: torch.Tensor, share: float) -> int:
    """The least rank that keeps a share of the sum of the squared singular values; 0 for a matrix of zeros.

    :raises SutureError: RANK, if the share is not above 0 and at most 1
    """
    if not 0 < share <= 1:
        raise SutureError(
            Code.RANK, f"no rank keeps the share {share:g}", remedy="above 0 and at most 1 would be right"
        )
    running = values.to(torch.float64).square().cumsum(0)
    if not len(running) or not float(running[-1]):
        return 0
    return int((running < share * running[-1]).sum()) + 1


def ranks_by_budget(matrices: Sequence[tuple[torch.Tensor, int]], budget: int) -> list[int]:
    """The ranks that leave out least for a number of elements: the singular values are taken by what their square is worth per element.

    :param matrices: for each matrix its singular values, descending, and how many elements one more rank costs
    :raises SutureError: RANK, if the budget is negative
    """
    if budget < 0:
        raise SutureError(Code.RANK, f"a budget of {budget} elements", remedy="0 or more would be right")
    ranks = [0] * len(matrices)
    waiting = [(-_worth(values, 0, cost), k) for k, (values, cost) in enumerate(matrices) if len(values)]
    heapq.heapify(waiting)
    while waiting:
        worth, k = heapq.heappop(waiting)
        values, cost = matrices[k]
        if worth == 0 or cost > budget:
            continue
        budget -= cost
        ranks[k] += 1
        if ranks[k] < len(values):
            heapq.heappush(waiting, (-_worth(values, ranks[k], cost), k))
    return ranks


def _worth(values: torch.Tensor, index: int, cost: int) -> float:
    return float(values[index]) ** 2 / cost
