"""What range of an activation integers cover: of a few percentiles, the one of least squared error (RepQ-ViT, Li et al. 2023, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.passes.quantise.parameters import QuantiserParameters, Range, parameters_of

SHARES = (0.999, 0.9999, 0.99999)
"""The percentiles that are tried."""

_FLOOR = 0.01  # of the median scale: a channel that hardly varies gets no smaller one


@dataclass(frozen=True)
class ChannelQuantiser:
    """One unsigned quantiser a channel: scales and zero points [channels], float64; zero points are whole, and may lie beyond the integers' range."""

    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """clip(round(x / scale) + zero) of [..., channels], halves to even; int64."""
        return ((x.double() / self.scale).round() + self.zero).clamp(0, (1 << self.bits) - 1).to(torch.int64)

    def numbers(self, integers: torch.Tensor) -> torch.Tensor:
        """(q - zero) scale."""
        return (integers - self.zero) * self.scale


def percentile_quantiser(values: torch.Tensor, bits: int) -> QuantiserParameters:
    """The quantiser of a whole tensor (any shape): zero is one of its numbers."""
    rows = values.detach().double().reshape(1, -1)
    best, least = parameters_of(Range.of(0.0, 0.0), bits=bits), float("inf")
    if not rows.numel():
        return best
    for low, high in _candidates(rows):
        made = parameters_of(Range(low[0], high[0]), bits=bits)
        error = float((made.round_trip(rows) - rows).square().sum())
        if error < least:
            best, least = made, error
    return best


def channel_quantisers(rows: torch.Tensor, bits: int, *, symmetric: bool = False) -> ChannelQuantiser:
    """The quantisers of rows [channels, n].

    :param symmetric: whether all have the zero point in the middle, for norms that have no shift to take up another
    """
    best: ChannelQuantiser | None = None
    least = torch.full(rows.shape[:1], torch.inf, dtype=torch.float64)
    for low, high in _candidates(rows):
        made = channels_of(low, high, bits, symmetric=symmetric)
        error = squared_error(rows, made)
        if best is None:
            best, least = made, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = ChannelQuantiser(
            torch.where(better, made.scale, best.scale), torch.where(better, made.zero, best.zero), bits
        )
    assert best is not None
    return best


def channels_of(low: torch.Tensor, high: torch.Tensor, bits: int, *, symmetric: bool = False) -> ChannelQuantiser:
    """The quantisers that cover ranges [channels], which need not hold zero."""
    last = (1 << bits) - 1
    middle = 1 << (bits - 1)
    scale = torch.maximum(-low / middle, high / (last - middle)) if symmetric else (high - low) / last
    floor = _FLOOR * float(scale[scale > 0].median()) if bool((scale > 0).any()) else 1.0
    scale = scale.clamp(min=floor)
    zero = torch.full_like(low, middle) if symmetric else (-low / scale).round()
    return ChannelQuantiser(scale, zero, bits)


def squared_error(rows: torch.Tensor, quantiser: ChannelQuantiser) -> torch.Tensor:
    """The squared error of each channel [channels] of rows [channels, n]."""
    values = rows.T.double()
    return (quantiser.numbers(quantiser.integers(values)) - values).square().sum(0)


def log2_scale(values: torch.Tensor, bits: int) -> float:
    """The scale of a quantiser of logarithms for what is positive: of the percentiles, that of least squared error."""
    from suture.ir.operators.quantise_log import log2_dequantise, log2_quantise

    flat = values.detach().double().reshape(-1)
    best, least = 1.0, float("inf")
    if not flat.numel():
        return best
    for _, high in _candidates(flat[None]):
        scale = torch.where(high[0] > 0, high[0], 1.0).float().double()
        error = float((log2_dequantise(log2_quantise(flat, scale, bits=bits), scale, bits=bits) - flat).square().sum())
        if error < least:
            best, least = float(scale), error
    return best


def _candidates(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each percentile, and the extremes, the lower and upper ends of rows [channels, n]."""
    ordered = rows.double().sort(1).values
    found = [(ordered[:, 0], ordered[:, -1])]
    last = ordered.shape[1] - 1
    for share in SHARES:
        found.append((_quantile(ordered, (1 - share) * last), _quantile(ordered, share * last)))
    return found


def _quantile(ordered: torch.Tensor, place: float) -> torch.Tensor:
    """The value at a place between two of the ordered ones."""
    below = min(int(place), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below] + (ordered[:, above] - ordered[:, below]) * (place - below)
