"""Reconstruction: rounding a weight column by column, so that what is left of it makes up for the error (GPTQ, Frantar et al. 2022).

The loss is |(W - Q) X|^2 over calibration inputs X, so all that the data say is the Hessian 2 X X^T. Once a column is rounded, the columns
that are left move to their least-squares optimum; the Cholesky factor of the inverse Hessian holds all of these moves (section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.passes.quantise_weights.grid import Grid, Scheme, fit

_COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class Rounding:
    """A weight as integers [rows, columns] in the original order of its columns, and their grid."""

    integers: torch.Tensor
    grid: Grid

    def numbers(self) -> torch.Tensor:
        """What the integers stand for."""
        return self.grid.numbers(self.integers)


def round_to_nearest(
    matrix: torch.Tensor, scheme: Scheme, *, search: bool = False, importance: torch.Tensor | None = None
) -> Rounding:
    """Every number to the nearest of its grid. See `fit` for the parameters."""
    grid = fit(matrix, scheme, search=search, importance=importance)
    return Rounding(grid.integers(matrix.double()), grid)


def reconstruct(
    matrix: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    *,
    damping: float = 0.01,
    by_importance: bool = False,
    search: bool = False,
) -> Rounding:
    """Round a weight [rows, columns] so that its products with the data move least (GPTQ, algorithm 1).

    :param hessian: 2 X X^T [columns, columns]
    :param damping: share of the mean of the Hessian's diagonal that is added to the diagonal
    :param by_importance: whether columns go by falling diagonal of the Hessian instead of in order; the grid is then that of the weight as it was
    :param search: see `fit`
    """
    work = matrix.double().clone()
    diagonal = hessian.diagonal().double()
    factor_of = damped(hessian, damping)
    grid = fit(work, scheme, search=search, importance=diagonal)
    order = torch.argsort(diagonal, descending=True, stable=True) if by_importance else torch.arange(len(diagonal))
    factor = _upper_factor(factor_of[order][:, order])
    moved = work[:, order]
    integers = torch.zeros_like(moved)
    renewed = scheme.block if scheme.block is not None and not by_importance else None
    for start in range(0, moved.shape[1], _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, moved.shape[1])
        errors = torch.zeros_like(moved[:, start:stop])
        for column in range(start, stop):
            if renewed is not None and column % renewed == 0:
                grid = _renewed(grid, moved[:, column : column + renewed], column, search, diagonal)
            place = int(order[column])
            integers[:, column] = grid.integers(moved[:, column : column + 1], place)[:, 0]
            chosen = grid.numbers(integers[:, column : column + 1], place)[:, 0]
            error = (moved[:, column] - chosen) / factor[column, column]
            moved[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        moved[:, stop:] -= errors @ factor[start:stop, stop:]
    result = torch.empty_like(integers)
    result[:, order] = integers
    return Rounding(result, grid)


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """A Hessian that can be inverted: a share of its mean diagonal is added; columns that saw no data count as independent."""
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean()) if diagonal.numel() else 0.0
    diagonal += damping * mean if mean > 0 else 1.0
    return matrix


def _renewed(grid: Grid, moved: torch.Tensor, first: int, search: bool, importance: torch.Tensor) -> Grid:
    """The grid with one block fitted anew, to its columns as the errors before them left them.

    What moves them has reached all of them: blocks and the columns that are done at once nest.
    """
    size = moved.shape[1]
    block = fit(moved, grid.scheme, search=search, importance=importance[first : first + size])
    scale, zero = grid.scale.clone(), grid.zero.clone()
    scale[:, first // size], zero[:, first // size] = block.scale[:, 0], block.zero[:, 0]
    return Grid(grid.scheme, scale, zero)


def _upper_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse; the diagonal grows until there is one."""
    extra = 0.0
    while True:
        attempt = hessian + extra * torch.eye(len(hessian), dtype=torch.float64)
        lower, failed = torch.linalg.cholesky_ex(attempt)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                factor: torch.Tensor = upper
                return factor
        extra = max(extra * 10, 1e-10 * float(hessian.diagonal().mean()))
