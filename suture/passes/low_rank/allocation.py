"""Ranks for all layers at once: a budget is spent where it keeps most energy for what it costs.

Each layer has choices, pairs of a cost and a share of its energy, its dense weight among them. The best for every exchange rate lie on the upper
concave hull of these pairs, so that going along all hulls in the order of their slopes is optimal for every budget that it meets; what is left
over then buys the best choice that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from suture.ir.errors import Code, SutureError
from suture.passes.low_rank.candidate import Candidate, Count, Ranks

_GRID = 64
"""How many ranks of each of two sides are choices."""


@dataclass(frozen=True)
class _Choice:
    cost: float
    share: float
    ranks: Ranks | None  # None is the dense weight


def allocate(candidates: Sequence[Candidate], count: Count, budget: int) -> list[Ranks | None]:
    """The ranks of each layer, None where it stays as it is, such that all together cost no more than the budget.

    :raises SutureError: RANK, if the least ranks cost more
    """
    hulls = [_hull(_choices(candidate, count)) for candidate in candidates]
    spent = sum(hull[0].cost for hull in hulls)
    if spent > budget:
        raise SutureError(
            Code.RANK, f"the layers may have {budget:,} {count}, and at their least ranks have {int(spent):,}",
            remedy="a larger budget, or fewer layers, would be right",
        )  # fmt: skip
    at = [0] * len(hulls)
    steps = [(-_slope(a, b), k, j) for k, hull in enumerate(hulls) for j, (a, b) in enumerate(pairwise(hull))]
    stuck: set[int] = set()
    for _, k, j in sorted(steps):
        price = hulls[k][j + 1].cost - hulls[k][j].cost
        if k in stuck or spent + price > budget:
            stuck.add(k)
            continue
        at[k], spent = j + 1, spent + price
    chosen = [hull[j] for hull, j in zip(hulls, at, strict=True)]
    for k, candidate in enumerate(candidates):
        room = chosen[k].cost + budget - spent
        better = max((c for c in _choices(candidate, count) if c.cost <= room), key=lambda c: (c.share, -c.cost))
        if better.share > chosen[k].share:
            spent += better.cost - chosen[k].cost
            chosen[k] = better
    return [choice.ranks for choice in chosen]


def _choices(candidate: Candidate, count: Count) -> list[_Choice]:
    """What a layer may be: its ranks that save something, of two-sided ones a grid, and its dense weight."""
    saves, cost = candidate.saves(count), candidate.cost(count)
    steps = [
        range(size) if saves.ndim == 1 else sorted({*range(0, size, -(-size // _GRID)), size - 1})
        for size in saves.shape
    ]
    places = torch.cartesian_prod(*(torch.tensor(list(step)) for step in steps)).reshape(-1, saves.ndim)
    index = tuple(places.T)
    rows = zip(
        cost[index].tolist(), candidate.shares[index].tolist(), places.tolist(), saves[index].tolist(), strict=True
    )
    found = [_Choice(c, s, tuple(r + 1 for r in place)) for c, s, place, pays in rows if pays]
    return [*found, _Choice(float(candidate.dense_cost(count)), 1.0, None)]


def _hull(choices: Sequence[_Choice]) -> list[_Choice]:
    """The upper concave hull, from the cheapest choice to the one that keeps most."""
    hull: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, -c.share)):
        if hull and choice.share <= hull[-1].share:
            continue
        while len(hull) > 1 and _slope(hull[-1], choice) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(a: _Choice, b: _Choice) -> float:
    return (b.share - a.share) / (b.cost - a.cost)
