"""The truncated singular value decomposition of a matrix, plain or in the metric of the inputs that it will see.

By Eckart and Young the best approximation of rank r drops the smallest singular values, and its squared error in the Frobenius norm is the sum of
their squares: a number that is known before anything runs. With a metric M, an invertible matrix on the side of the inputs, what is smallest is
|(W - W') M| instead: with U the left singular vectors of W M, the best W' is U_r U_r^T W, whatever M is, so no inverse is ever taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError

_DIRECT = 128
"""The longest shorter side of a matrix that is decomposed directly.

Of larger ones the Gram matrix of the shorter side is: several times faster, and singular values below about 1e-8 of the largest are then rounding.
"""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A matrix `[m, n]` as a sum of k = min(m, n) matrices of rank one, in float64, those that matter most first.

    :param columns: `[m, k]`
    :param values: `[k]`, the singular values in the metric, descending
    :param rows: `[k, n]`; columns times rows is the matrix
    """

    columns: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor, metric: torch.Tensor | None = None) -> Decomposition:
        """Decompose a matrix of any floating-point type.

        :param metric: an invertible matrix `[n, n]`, or the diagonal of one, `[n]`
        :raises SutureError: RANK, if the matrix holds what is not finite
        """
        wide = matrix.detach().to(torch.float64)
        if not bool(wide.isfinite().all()):
            raise SutureError(
                Code.RANK, "a matrix with values that are not finite", remedy="finite values would be right"
            )
        high = wide.shape[0] > wide.shape[1]
        if high and metric is None:
            basis, values = _left_vectors(wide.T)
            return cls(wide @ basis, values, basis.T)
        frame, core = torch.linalg.qr(wide) if high else (None, wide)
        seen = core if metric is None else core * metric if metric.ndim == 1 else core @ metric
        basis, values = _left_vectors(seen)
        return cls(basis if frame is None else frame @ basis, values, basis.T @ core)

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`a [rank, n]` with rows of length one and `b [m, rank]`: `b a` is the best of that rank."""
        return self.part(0, rank)

    def part(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the summands from `start` to `stop`, as `factors` gives them."""
        a, b = self.rows[start:stop], self.columns[:, start:stop]
        length = a.norm(dim=1)
        return a / torch.where(length > 0, length, 1.0)[:, None], b * length

    def error(self, rank: int) -> float:
        """The squared Frobenius norm, in the metric, of what the best approximation of that rank leaves out."""
        return float(self.values[rank:].square().sum())

    @property
    def full_rank(self) -> int:
        """The largest rank that there is."""
        return len(self.values)


def balanced(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product with rows of `a [rank, n]` and columns of `b [m, rank]` of equal length: half precision then loses least."""
    rows, columns = a.norm(dim=1), b.norm(dim=0)
    known = (rows > 0) & (columns > 0)
    factor = torch.where(known, (columns / torch.where(known, rows, 1.0)).sqrt(), 1.0)
    return a * factor[:, None], b / factor


def principal_basis(matrix: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis `[m, m]` of the columns' space of a matrix `[m, n]`, the directions of most energy first."""
    vectors: torch.Tensor = torch.linalg.eigh(matrix @ matrix.T)[1]
    return vectors.flip(1).contiguous()


def _left_vectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left singular vectors and singular values, descending, of a matrix that is no higher than wide."""
    if len(matrix) <= _DIRECT:
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return left, values
    squares, left = torch.linalg.eigh(matrix @ matrix.T)
    return left.flip(1).contiguous(), squares.flip(0).clamp_min(0).sqrt()
