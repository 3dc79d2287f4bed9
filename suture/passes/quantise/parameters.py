"""From a range to a scale and a zero point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.operators.quantise import dequantise, integer_range, integer_type, quantise

_LEAST_SCALE = 2.0**-100
"""Smaller scales, of values that are all but zero, would vanish in the product with another."""


@dataclass(frozen=True)
class Range:
    """What integers are to cover: two float64 tensors of rank 0, or of rank 1 with one entry per channel."""

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """A range of two numbers."""
        return cls(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))

    def is_finite(self) -> bool:
        """Whether both ends are numbers."""
        return bool(self.low.isfinite().all() and self.high.isfinite().all())


@dataclass(frozen=True)
class QuantiserParameters:
    """A quantiser: scale (float32) and zero point (of the integers' type), rank 0, or rank 1 along `axis`."""

    scale: torch.Tensor
    zero: torch.Tensor
    bits: int = 8
    signed: bool = False
    axis: int | None = None

    def quantise(self, x: torch.Tensor) -> torch.Tensor:
        """The integers."""
        scale = self.scale.to(x.dtype)
        return quantise(x, scale, self.zero, axis=self.axis, bits=self.bits, signed=self.signed)

    def dequantise(self, q: torch.Tensor) -> torch.Tensor:
        """What the integers stand for."""
        return dequantise(q, self.scale, self.zero, axis=self.axis, bits=self.bits, signed=self.signed)

    def round_trip(self, x: torch.Tensor) -> torch.Tensor:
        """What is left of a tensor, in its own element type."""
        return self.dequantise(self.quantise(x)).to(x.dtype)


def parameters_of(
    covered: Range, *, bits: int = 8, signed: bool = False, symmetric: bool = False, axis: int | None = None
) -> QuantiserParameters:
    """The quantiser that covers a range, with zero in it: so zero is exact, as padding and ReLU want.

    A symmetric one has its zero point in the middle: at 0 if signed, where the least integer stays unused. A range of nothing but zero gets scale 1.

    :raises SutureError: QUANTISER, if there is no integer type of those bits
    """
    least, largest = integer_range(bits, signed)
    low, high = covered.low.clamp_max(0.0), covered.high.clamp_min(0.0)
    if symmetric:
        middle = 0 if signed else 2 ** (bits - 1)
        scale = torch.maximum(-low, high) / (largest - middle)
        zero = torch.full_like(scale, middle)
    else:
        scale = (high - low) / (largest - least)
    empty = scale == 0
    single = torch.where(empty, torch.ones_like(scale), scale.clamp_min(_LEAST_SCALE)).to(torch.float32)
    if not symmetric:
        zero = torch.round(least - low / single.to(torch.float64)).clamp(least, largest)
    return QuantiserParameters(single, zero.to(integer_type(bits, signed)), bits, signed, axis)


def weight_parameters(
    weight: torch.Tensor, axis: int | None, *, bits: int = 8, search: bool = False
) -> QuantiserParameters:
    """Signed symmetric quantisers of a weight, one per index of `axis`, or one.

    :param search: of 80 narrower ranges take the one of least squared error, channel by channel
    """
    rows = weight.detach().to(torch.float64)
    rows = rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).flatten(1)
    most = rows.abs().amax(1) if rows.shape[1] else torch.zeros(len(rows), dtype=torch.float64)
    if search:
        most = most * _best_shares(rows, most, 2 ** (bits - 1) - 1)
    if axis is None:
        most = most.reshape(())
    return parameters_of(Range(-most, most), bits=bits, signed=True, symmetric=True, axis=axis)


def _best_shares(rows: torch.Tensor, most: torch.Tensor, largest: int) -> torch.Tensor:
    """Per row the share of its largest magnitude whose quantiser has the least squared error."""
    best, least = torch.ones_like(most), torch.full_like(most, torch.inf)
    for step in range(80):
        share = 1 - step / 100
        scale = (most * share / largest).clamp_min(_LEAST_SCALE)[:, None]
        error = ((torch.round(rows / scale).clamp(-largest, largest) * scale - rows) ** 2).sum(1)
        better = error < least
        best, least = torch.where(better, share, best), torch.where(better, error, least)
    return best
