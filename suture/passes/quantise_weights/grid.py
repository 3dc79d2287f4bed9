"""Grids of integers for weights: one scale, and perhaps one zero point, for every row of a matrix or for every block of columns in a row.

A weight is looked at as a matrix [rows, columns]: rows are output channels, columns what is summed over. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError

BITS = (2, 3, 4, 5, 6, 7, 8)
"""The widths that a weight may have; files hold 4 and 8."""

_CLIPS = 24  # ranges tried by the search, from the whole down to the smallest share
_SMALLEST = 0.35  # share of the whole range


@dataclass(frozen=True)
class Scheme:
    """How a weight becomes integers.

    :param bits: width of an integer
    :param block: columns that share a scale; the whole row if None
    :param symmetric: signed integers without a zero point, else unsigned ones with
    :param held: the element type that the scales have to be numbers of
    """

    bits: int = 4
    block: int | None = None
    symmetric: bool = True
    held: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """:raises SutureError: QUANTISER, for bits or blocks that cannot be"""
        if self.bits not in BITS:
            raise SutureError(
                Code.QUANTISER, f"{self.bits} bits for a weight", remedy=f"{BITS[0]} to {BITS[-1]} would be right"
            )
        if self.block is not None and (self.block < 16 or self.block > 256 or self.block & (self.block - 1)):
            raise SutureError(
                Code.QUANTISER, f"blocks of {self.block}", remedy="a power of two from 16 to 256 would be right"
            )

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The element type that holds the integers."""
        return torch.int8 if self.symmetric else torch.uint8

    def block_of(self, columns: int) -> int:
        """How many columns share a scale.

        :raises SutureError: QUANTISER, if blocks do not divide the columns
        """
        if self.block is None:
            return max(columns, 1)
        if columns % self.block:
            raise SutureError(
                Code.QUANTISER, f"{columns} columns in blocks of {self.block}", remedy="the block must divide them"
            )
        return self.block


@dataclass(frozen=True)
class Grid:
    """Scales and zero points [rows, blocks], both float64; a zero point is a whole number."""

    scheme: Scheme
    scale: torch.Tensor
    zero: torch.Tensor

    def integers(self, matrix: torch.Tensor, first: int = 0) -> torch.Tensor:
        """The nearest integers of columns `first` and on (halves to even), saturated; [rows, n] in, float64 out."""
        scale, zero = self._spread(matrix, first)
        return ((matrix / scale).round() + zero).clamp(self.scheme.lowest, self.scheme.highest)

    def numbers(self, integers: torch.Tensor, first: int = 0) -> torch.Tensor:
        """What the integers stand for."""
        scale, zero = self._spread(integers, first)
        return (integers - zero) * scale

    def rounded(self, matrix: torch.Tensor, first: int = 0) -> torch.Tensor:
        """The nearest numbers of the grid."""
        return self.numbers(self.integers(matrix, first), first)

    def _spread(self, matrix: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.scale.shape[1] == 1:
            return self.scale, self.zero
        assert self.scheme.block is not None
        index = torch.arange(first, first + matrix.shape[1]) // self.scheme.block
        return self.scale[:, index], self.zero[:, index]


def fit(matrix: torch.Tensor, scheme: Scheme, *, search: bool = False, importance: torch.Tensor | None = None) -> Grid:
    """The grid of a matrix [rows, columns]: it spans the range of every block of a row.

    Scales are rounded to `scheme.held`, so that a file or a module has them as they are.

    :param search: whether to narrow the range where that lowers the squared error
    :param importance: what an error of each column [columns] weighs in the search
    :raises SutureError: QUANTISER, if blocks do not divide the columns or the matrix is not finite
    """
    if not bool(matrix.isfinite().all()):
        raise SutureError(Code.QUANTISER, "the weight holds numbers that are not finite", remedy="mend it first")
    rows, columns = matrix.shape
    block = scheme.block_of(columns)
    parts = matrix.double().reshape(rows, -1, block)
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    best_scale, best_zero = _spanning(low, high, scheme)
    if search:
        weights = torch.ones(1, columns, dtype=torch.float64) if importance is None else importance.double()[None]
        weights = weights.reshape(1, -1, block)
        least = _error(parts, best_scale, best_zero, scheme, weights)
        for share in torch.linspace(1, _SMALLEST, _CLIPS, dtype=torch.float64)[1:]:
            scale, zero = _spanning(low * share, high * share, scheme)
            error = _error(parts, scale, zero, scheme, weights)
            better = error < least
            least = torch.where(better, error, least)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return Grid(scheme, best_scale, best_zero)


def _spanning(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of ranges that hold zero; a range of nothing gets scale 1."""
    if scheme.symmetric:
        scale = _held(torch.maximum(high / scheme.highest, low / scheme.lowest), scheme)
        zero = torch.zeros_like(low)
    else:
        scale = _held((high - low) / (scheme.highest - scheme.lowest), scheme)
        zero = (scheme.lowest - low / scale).round()
    return scale, zero.clamp(scheme.lowest, scheme.highest)


def _held(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A scale that its type can hold, rounded up so that the range still fits; one that is denormal, and has no reciprocal, as 1."""
    rounded = scale.to(scheme.held).double()
    rounded = torch.where(rounded < scale, rounded * (1 + torch.finfo(scheme.held).eps), rounded).to(scheme.held)
    return torch.where(rounded > torch.finfo(scheme.held).tiny, rounded.double(), 1.0)


def _error(
    parts: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme, weights: torch.Tensor
) -> torch.Tensor:
    """The weighted squared error of each block [rows, blocks]."""
    scale, zero = scale[..., None], zero[..., None]
    integers = ((parts / scale).round() + zero).clamp(scheme.lowest, scheme.highest)
    return (((integers - zero) * scale - parts).square() * weights).sum(2)
