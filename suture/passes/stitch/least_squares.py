"""Least squares from streamed sums: the affine map that takes one model's features to another's, without keeping the features.

For features A (rows x d) and B (rows x m), `SN-Net` (Pan et al. 2023, section 3.2) sets a stitching layer to argmin ||A M - B||. The normal
equations need the sums of products only, d*d and d*m numbers, accumulated in float64 batch by batch; so the number of rows does not matter, and
all stitches that leave one point share the sum of that point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError

RIDGE = 1e-4
"""The ridge where there are fewer rows than unknowns, as a share of the mean diagonal of the sums of products."""

_SLIGHT_RIDGE = 1e-8  # where rows are enough but features depend on one another, as behind a layer norm: it only makes the solution unique

_WORST_CONDITION = 1e12


class Gram:
    """Sums of products of features with themselves, and with a column of ones: [A 1]'[A 1]."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.matrix = torch.zeros(width + 1, width + 1, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Add rows of features, [rows, width].

        :raises SutureError: CALIBRATION, if a feature is infinite or NaN
        """
        wide = with_ones(rows)
        if not bool(wide.isfinite().all()):
            raise SutureError(
                Code.CALIBRATION, "calibration features are infinite or NaN", remedy="give data the models can take"
            )
        self.matrix += (wide.T @ wide).cpu()

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return int(self.matrix[-1, -1])

    @property
    def energy(self) -> float:
        """The sum of squares about the mean."""
        total = self.matrix[-1, :-1]
        diagonal = self.matrix.diagonal()[:-1]
        return max(float(diagonal.sum()) - float(total @ total) / max(self.rows, 1), 0.0)


def with_ones(rows: torch.Tensor) -> torch.Tensor:
    """Rows in float64 with a column of ones behind them, where they are."""
    wide = rows.detach().to(torch.float64)
    return torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1)


@dataclass(frozen=True)
class Moments:
    """The sums that a fit needs: [A 1]'[A 1], [A 1]'B, and the sum of squares of B about its mean, or sums of several such, to fit jointly."""

    gram: torch.Tensor  # [d + 1, d + 1]
    cross: torch.Tensor  # [d + 1, m]
    energy: float

    @classmethod
    def of(cls, rows: torch.Tensor, targets: torch.Tensor) -> Moments:
        """The moments of features that are at hand, [rows, d] and [rows, m]."""
        source, target = Gram(rows.shape[1]), Gram(targets.shape[1])
        source.add(rows)
        target.add(targets)
        return cls(source.matrix, (with_ones(rows).T @ targets.detach().to(torch.float64)).cpu(), target.energy)

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return int(self.gram[-1, -1])

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows; their targets may have means of their own."""
        means = self.cross[-1] / self.rows, other.cross[-1] / other.rows
        both = (self.cross[-1] + other.cross[-1]) / (self.rows + other.rows)
        shift = sum(n * float(((m - both) ** 2).sum()) for n, m in zip((self.rows, other.rows), means, strict=True))
        return Moments(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy + shift)


@dataclass(frozen=True)
class Solution:
    """An affine map y = W x + b.

    :param weight: [m, d], as `torch.nn.Linear` has it
    :param residual: ||A M - B|| / ||B - mean B||, on the rows of the fit; 0 is perfect, 1 what the mean of B achieves
    :param ridge: what was added to the diagonal, as a share of its mean; 0 where nothing was needed
    :param factors: (up [m, r], down [r, d]), whose product is the weight, where a rank was asked for
    :param reason: why the fit was regularised
    """

    weight: torch.Tensor
    bias: torch.Tensor
    residual: float
    ridge: float = 0.0
    factors: tuple[torch.Tensor, torch.Tensor] | None = None
    reason: str = ""


def solve(moments: Moments, *, rank: int | None = None, ridge: float | None = None) -> Solution:
    """The affine map of the least squared error.

    Where there are fewer rows than the features need, or the features are linearly dependent, a ridge makes the solution unique, and the solution
    says so. The bias is never regularised.

    :param rank: the largest rank of the weight: reduced-rank regression, the best map of that rank on the data (not of the weight alone)
    :param ridge: the ridge, as a share of the mean diagonal; as much as is needed, if absent
    :raises SutureError: CALIBRATION, if there are no rows; RANK, if the rank is none or beyond the matrix
    """
    rows = moments.rows
    width, outputs = moments.cross.shape[0] - 1, moments.cross.shape[1]
    if rows < 1:
        raise SutureError(Code.CALIBRATION, "there are no calibration rows", remedy="give one example at least")
    if rank is not None and not 1 <= rank <= min(width, outputs):
        raise SutureError(
            Code.RANK, f"rank {rank} of a {outputs} x {width} stitching layer",
            remedy=f"1 to {min(width, outputs)} would be right",
        )  # fmt: skip
    mean_source, mean_target = moments.gram[-1, :-1] / rows, moments.cross[-1] / rows
    gram = moments.gram[:-1, :-1] - rows * torch.outer(mean_source, mean_source)
    cross = moments.cross[:-1] - rows * torch.outer(mean_source, mean_target)
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    needed, reason = _need_of_ridge(values, rows, width)
    share = needed if ridge is None else ridge
    mean_diagonal = float(values.clamp_min(0).mean())
    damped = values.clamp_min(0) + share * mean_diagonal
    inverse = torch.where(damped > 0, 1 / damped.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(damped))
    solution = vectors @ (inverse[:, None] * (vectors.T @ cross))  # [d, m]
    factors = None
    if rank is not None:
        fitted = vectors.T @ solution
        main = torch.linalg.eigh(fitted.T @ (damped[:, None] * fitted)).eigenvectors[:, -rank:].flip(1)  # [m, r]
        factors = (main, (solution @ main).T)
        solution = solution @ main @ main.T
    weight = solution.T.contiguous()
    error = moments.energy - 2 * float((solution * cross).sum()) + float((solution * (gram @ solution)).sum())
    residual = (max(error, 0.0) / moments.energy) ** 0.5 if moments.energy > 0 else 0.0
    return Solution(weight, mean_target - weight @ mean_source, residual, share, factors, reason if share else "")


def _need_of_ridge(values: torch.Tensor, rows: int, width: int) -> tuple[float, str]:
    """The ridge that a system needs, and why; 0 where it has a stable solution of its own."""
    if rows <= width:
        return RIDGE, f"{rows} calibration rows are fewer than the {width + 1} unknowns of each output"
    largest = float(values[-1])
    if largest <= 0 or float(values[0]) < largest / _WORST_CONDITION:
        return _SLIGHT_RIDGE, "the features are linearly dependent on the calibration data"
    return 0.0, ""


def average(solutions: list[Solution]) -> Solution:
    """The mean of several maps, as SN-Net initialises a shared layer; `solve` of the sum of their moments fits them jointly instead."""
    weight = torch.stack([s.weight for s in solutions]).mean(0)
    bias = torch.stack([s.bias for s in solutions]).mean(0)
    reasons = [s.reason for s in solutions if s.reason]
    return Solution(weight, bias, float("nan"), max(s.ridge for s in solutions), None, reasons[0] if reasons else "")


def residual_of(moments: Moments, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """The relative residual of any affine map on the rows of the moments: ||A M - B|| / ||B - mean B||."""
    full = torch.cat([weight.T, bias[None]]).to(torch.float64)
    mean = moments.cross[-1] / moments.rows
    squares = moments.energy + moments.rows * float(mean @ mean)
    error = squares - 2 * float((full * moments.cross).sum()) + float((full * (moments.gram @ full)).sum())
    return (max(error, 0.0) / moments.energy) ** 0.5 if moments.energy > 0 else 0.0
