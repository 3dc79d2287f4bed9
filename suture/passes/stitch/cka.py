"""Linear CKA and least squares between two values, from sums over their rows that are streamed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from suture.ir.errors import Code, SutureError
from suture.passes.stitch.adapters import Adapter
from suture.passes.stitch.least_squares import Moments, with_ones


@dataclass
class _Side:
    """Sums over the rows x of one side, with k = |x|^2."""

    product: torch.Tensor  # x x'
    total: torch.Tensor  # x
    weighted: torch.Tensor  # x k
    norm: float = 0.0  # k
    square: float = 0.0  # k^2


@dataclass
class PairSums:
    """All that both measures need of one pair of values."""

    adapter: Adapter
    rows: int = 0
    sides: list[_Side] = field(default_factory=list)
    cross: torch.Tensor = field(init=False)  # x y'
    x_l: torch.Tensor = field(init=False)  # x |y|^2
    y_k: torch.Tensor = field(init=False)  # y |x|^2
    k_l: float = 0.0

    def __post_init__(self) -> None:
        d, m = self.adapter.source.channels, self.adapter.target.channels
        self.sides = [_Side(_zeros(n, n), _zeros(n), _zeros(n)) for n in (d, m)]
        self.cross, self.x_l, self.y_k = _zeros(d, m), _zeros(d), _zeros(m)

    def add(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Add what the two values are on a batch."""
        x = with_ones(self.adapter.rows(source))[:, :-1].cpu()
        y = with_ones(self.adapter.target.rows(target))[:, :-1].cpu()
        k, l_ = (x * x).sum(1), (y * y).sum(1)
        self.rows += len(x)
        for half, side, norms in zip(self.sides, (x, y), (k, l_), strict=True):
            half.product += side.T @ side
            half.total += side.sum(0)
            half.weighted += side.T @ norms
            half.norm += float(norms.sum())
            half.square += float(norms @ norms)
        self.cross += x.T @ y
        self.x_l += x.T @ l_
        self.y_k += y.T @ k
        self.k_l += float(k @ l_)

    def moments(self) -> Moments:
        """What the least-squares fit needs."""
        x, y = self.sides
        rows = torch.tensor([[float(self.rows)]], dtype=torch.float64)
        gram = torch.cat([torch.cat([x.product, x.total[:, None]], 1), torch.cat([x.total[None], rows], 1)])
        energy = max(y.norm - float(y.total @ y.total) / self.rows, 0.0)
        return Moments(gram, torch.cat([self.cross, y.total[None]]), energy)

    def cka(self, debiased: bool) -> float:
        """Linear CKA: the covariance of both kernels over the product of their deviations.

        :raises SutureError: CALIBRATION, if it is to be debiased and there are fewer than 4 rows
        """
        x, y = self.sides
        if debiased:
            if self.rows < 4:
                raise SutureError(
                    Code.CALIBRATION, f"debiased CKA of {self.rows} rows", remedy="4 rows at least would be right"
                )
            both = self._unbiased(x, y, self.cross, self.x_l, self.y_k, self.k_l)
            own = [self._unbiased(h, h, h.product, h.weighted, h.weighted, h.square) for h in (x, y)]
        else:
            both = _centred(self.cross, x.total, y.total, self.rows)
            own = [_centred(h.product, h.total, h.total, self.rows) for h in (x, y)]
        scale = math.sqrt(max(own[0], 0.0) * max(own[1], 0.0))
        return both / scale if scale > 0 else math.nan

    def _unbiased(
        self, x: _Side, y: _Side, cross: torch.Tensor, x_l: torch.Tensor, y_k: torch.Tensor, k_l: float
    ) -> float:
        """The unbiased estimate of HSIC for linear kernels K = X X', L = Y Y' with their diagonals left out."""
        n = self.rows
        trace = float((cross * cross).sum()) - k_l
        sums = (float(x.total @ x.total) - x.norm) * (float(y.total @ y.total) - y.norm)
        mixed = float(x.total @ cross @ y.total) - float(x.total @ x_l) - float(y.total @ y_k) + k_l
        return (trace + sums / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)) / (n * (n - 3))


def _centred(product: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: int) -> float:
    centred = product - torch.outer(a, b) / rows
    return float((centred * centred).sum())


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64)
