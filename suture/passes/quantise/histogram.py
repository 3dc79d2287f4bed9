"""Counting values as they come, without knowing their range beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

_BINS = 2048  # at most; at least half as many once there are several values


@dataclass
class Histogram:
    """Counts of values in bins [k w, (k + 1) w) of one width w, a power of two, for k from `first` on."""

    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    first: int = 0
    exponent: int = -1074
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0  # exact ones, which every quantiser keeps
    broken: float = 0.0  # what was seen and is no finite number

    def add(self, tensor: torch.Tensor) -> None:
        """Count a batch's values; those that are not finite are only remembered."""
        flat = tensor.detach().reshape(-1).to(torch.float64)
        finite = flat.isfinite()
        if not bool(finite.all()):
            self.broken = math.nan if bool(flat.isnan().any()) or math.isnan(self.broken) else math.inf
            flat = flat[finite]
        if not len(flat):
            return
        self.zeros += int((flat == 0).sum())
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self._widen(self._needed())
        index = torch.floor(flat / 2.0**self.exponent).to(torch.int64)
        start, end = int(index.min()), int(index.max())
        self._extend(start, end)
        self.counts += torch.bincount(index - self.first, minlength=len(self.counts)).to(torch.float64)

    def centres(self) -> torch.Tensor:
        """The middle of every bin, within the extremes."""
        index = torch.arange(self.first, self.first + len(self.counts), dtype=torch.float64)
        return ((index + 0.5) * 2.0**self.exponent).clamp(self.low, self.high)

    def without_zeros(self) -> torch.Tensor:
        """The counts of values other than zero."""
        counts, index = self.counts.clone(), -self.first
        if 0 <= index < len(counts):
            counts[index] -= self.zeros
        return counts

    def quantile(self, share: float) -> float:
        """The value below which a share of the values lies: linear within a bin, and never beyond the extremes."""
        total = torch.cumsum(self.counts, 0)
        wanted = share * float(total[-1])
        index = min(int(torch.searchsorted(total, torch.tensor(wanted, dtype=torch.float64))), len(total) - 1)
        below = float(total[index - 1]) if index else 0.0
        inside = (wanted - below) / max(float(self.counts[index]), 1.0)
        found = (self.first + index + min(max(inside, 0.0), 1.0)) * 2.0**self.exponent
        return min(max(found, self.low), self.high)

    def _needed(self) -> int:
        """The exponent of the narrowest bins of which few enough cover the extremes."""
        largest = max(self.high - self.low, max(abs(self.low), abs(self.high)) * 2.0**-40, 2.0**-1000)
        return math.frexp(largest / (_BINS - 2))[1]

    def _widen(self, exponent: int) -> None:
        """Merge bins in pairs until they are that wide."""
        if not len(self.counts):
            self.exponent = exponent
        while self.exponent < exponent:
            padded = torch.nn.functional.pad(self.counts, (self.first % 2, (self.first + len(self.counts)) % 2))
            self.counts = padded.reshape(-1, 2).sum(1)
            self.first //= 2
            self.exponent += 1

    def _extend(self, start: int, end: int) -> None:
        if not len(self.counts):
            self.first, self.counts = start, torch.zeros(end - start + 1, dtype=torch.float64)
            return
        before, after = max(0, self.first - start), max(0, end - (self.first + len(self.counts) - 1))
        self.counts = torch.nn.functional.pad(self.counts, (before, after))
        self.first -= before
