"""How many singular values to keep: by their share of the energy, or by what each is worth for the elements it costs."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from suture.ir.errors import Code, SutureError


def rank_by_energy(values: torch.Tensor, share: float) -> int:
    """The least rank that keeps a share of the sum of the squared singular values; 0 for a matrix of zeros.

    :raises SutureError: RANK, if the share is not above 0 and at most 1
    """
    require_share(share, "energy")
    running = values.to(torch.float64).square().cumsum(0)
    if not len(running) or not float(running[-1]):
        return 0
    return int((running < share * running[-1]).sum()) + 1


def require_share(share: float, name: str) -> None:
    """:raises SutureError: RANK, if a share is not above 0 and at most 1"""
    if not 0 < share <= 1:
        raise SutureError(
            Code.RANK, f"no rank keeps the share {share:g}", where=name, remedy="above 0 and at most 1 would be right"
        )


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
