"""What range of a value integers are to cover: watched over calibration batches, one at a time.

An observer sees tensors (`observe`) and then says a range (`range`): the extremes, percentiles, the range that loses least information, or the one
of least squared error. The last three keep a histogram whose bins are as wide as a power of two, and merge in pairs when the values outgrow it: so
the order of the batches does not matter, and no batch is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from suture.passes.quantise.histogram import Histogram
from suture.passes.quantise.parameters import Range

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Method: TypeAlias = Literal["min_max", "percentile", "entropy", "mse"]
_CANDIDATES = 96  # ranges tried by a search
_LEAST = 0.2  # the narrowest range tried, as a share of the extremes


class Observer(Protocol):
    """Watches a value and says what range of it matters."""

    def observe(self, tensor: torch.Tensor) -> None:
        """See one batch."""
        ...

    def range(self) -> Range:
        """The range that integers are to cover, by what was seen so far."""
        ...


@dataclass
class MinMax:
    """The extremes; with `axis` one range per index of that dimension."""

    axis: int | None = None
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def observe(self, tensor: torch.Tensor) -> None:
        """See one batch; an empty one says nothing."""
        if not tensor.numel():
            return
        flat = _rows(tensor, self.axis)
        low, high = flat.amin(-1).to(torch.float64), flat.amax(-1).to(torch.float64)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self) -> Range:
        """The extremes so far."""
        if self.low is None or self.high is None:
            return Range(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
        return Range(self.low, self.high)


@dataclass
class _OfHistogram:
    """An observer that keeps a histogram of the whole tensor."""

    histogram: Histogram = field(default_factory=Histogram)

    def observe(self, tensor: torch.Tensor) -> None:
        """See one batch."""
        self.histogram.add(tensor)

    def range(self) -> Range:
        """The range chosen from what was seen."""
        seen = self.histogram
        if seen.broken:
            return Range.of(-abs(seen.broken), abs(seen.broken))
        if not len(seen.counts) or seen.low == seen.high:
            return Range.of(min(seen.low, 0.0), max(seen.high, 0.0)) if len(seen.counts) else Range.of(0.0, 0.0)
        return self.choose(seen)

    def choose(self, seen: Histogram) -> Range:
        """The range of a histogram of several values."""
        raise NotImplementedError


@dataclass
class Percentile(_OfHistogram):
    """The range that holds `percent` of the values; what is cut is cut in equal shares from both ends."""

    percent: float = 99.99

    def choose(self, seen: Histogram) -> Range:
        """The two quantiles."""
        cut = (1 - self.percent / 100) / 2
        return Range.of(seen.quantile(cut), seen.quantile(1 - cut))


@dataclass
class Entropy(_OfHistogram):
    """The range that loses least information: the least Kullback-Leibler divergence of the quantised from the clipped values.

    As by Migacz (8-bit inference with TensorRT, 2017), for a range on both sides of zero: both ends are drawn in by the same factor. Exact zeros,
    of which a ReLU makes many, lose nothing and are left out: their peak would speak for far too narrow a range.
    """

    bits: int = 8

    def choose(self, seen: Histogram) -> Range:
        """The factor of least divergence."""
        centres, counts = seen.centres().numpy(), seen.without_zeros().numpy()
        return _best(seen, lambda low, high: _divergence(centres, counts, low, high, 2**self.bits))


@dataclass
class LeastSquares(_OfHistogram):
    """The range of least mean squared error: both ends are drawn in by one factor, then each by its own."""

    bits: int = 8

    def choose(self, seen: Histogram) -> Range:
        """The ranges of least error among those tried."""
        centres, counts = seen.centres().numpy(), seen.without_zeros().numpy()

        def error(low: float, high: float) -> float:
            return _squared_error(centres, counts, low, high, 2**self.bits - 1)

        together = _best(seen, error)
        low, high = float(together.low), float(together.high)
        lower = [low * share for share in _shares(low, seen.low)]
        low = min(lower, key=lambda found: error(found, high))
        upper = [high * share for share in _shares(high, seen.high)]
        return Range.of(low, min(upper, key=lambda found: error(low, found)))


def _shares(end: float, extreme: float) -> list[float]:
    """Factors around 1 that keep an end within the extreme."""
    most = extreme / end if end else 1.0
    return [1.0, *(min(_LEAST + k / 16, most) for k in range(1, 17))]


def _best(seen: Histogram, loss: Callable[[float, float], float]) -> Range:
    """The common factor of both ends with the least loss; of equal ones the largest."""
    factors = [1 - (1 - _LEAST) * k / _CANDIDATES for k in range(_CANDIDATES)]
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    best = min(factors, key=lambda factor: loss(low * factor, high * factor))
    return Range.of(low * best, high * best)


def _squared_error(centres: Numbers, counts: Numbers, low: float, high: float, steps: int) -> float:
    """What rounding to the steps of a range and saturation at its ends cost, summed."""
    scale = (high - low) / steps
    if scale <= 0:
        return float((counts * centres**2).sum())
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(centres / scale) + zero, 0, steps) - zero) * scale
    return float((counts * (rounded - centres) ** 2).sum())


def _divergence(centres: Numbers, counts: Numbers, low: float, high: float, levels: int) -> float:
    """KL(P || Q): P the values with outliers moved to the ends, Q what is left of those inside when each level is one number."""
    inside = (centres >= low) & (centres <= high)
    chosen = counts[inside]
    if len(chosen) < 2:
        return math.inf
    clipped = chosen.copy()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    level = np.arange(len(chosen)) * levels // len(chosen)
    filled = chosen > 0
    sums = np.bincount(level, weights=chosen, minlength=levels)
    sizes = np.maximum(np.bincount(level, weights=filled, minlength=levels), 1)
    spread = (sums / sizes)[level] * filled
    if not clipped.sum() or not spread.sum():
        return math.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    held = p > 0
    return float((p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))).sum())


@dataclass
class PerChannel:
    """One observer per index of a dimension."""

    axis: int
    make: Callable[[], Observer]
    observers: list[Observer] = field(default_factory=list)

    def observe(self, tensor: torch.Tensor) -> None:
        """See one batch."""
        rows = _rows(tensor, self.axis)
        self.observers = self.observers or [self.make() for _ in rows]
        for observer, row in zip(self.observers, rows, strict=True):
            observer.observe(row)

    def range(self) -> Range:
        """The ranges, one per index."""
        ranges = [observer.range() for observer in self.observers]
        return Range(torch.stack([found.low for found in ranges]), torch.stack([found.high for found in ranges]))


def make_observer(method: Method, *, percent: float = 99.99, bits: int = 8) -> Observer:
    """An observer of a whole tensor, by the name of its method."""
    makers: dict[str, Callable[[], Observer]] = {
        "min_max": MinMax,
        "percentile": lambda: Percentile(percent=percent),
        "entropy": lambda: Entropy(bits=bits),
        "mse": lambda: LeastSquares(bits=bits),
    }
    return makers[method]()


def _rows(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The numbers flat, or one row per index of a dimension."""
    flat = tensor.detach()
    return flat.reshape(-1) if axis is None else flat.movedim(axis, 0).flatten(1)
