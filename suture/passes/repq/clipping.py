"""Dual clipping: each channel of a norm's output has a learnt factor on the lower end of its range and another on the upper one.

RepQuant (Li et al. 2024, section 3.4): the outliers of a channel lie on one side, so that one factor for both ends cuts what matters on the other.
The loss is what the layers after the norm see: the squared error of W x, which is the quadratic form of W^T W in the error of x.
"""

from __future__ import annotations

import torch

from suture.passes.repq.ranges import ChannelQuantiser, channels_of, squared_error

_STEPS = 60
_RATE = 0.02
_SEARCHED = tuple(1 - k / 16 for k in range(10))
_MOST_SAMPLES = 4096
_LEAST, _MOST = 0.2, 1.2  # how far a factor may go


def dual_clipping(
    rows: torch.Tensor, gram: torch.Tensor, start: ChannelQuantiser, *, symmetric: bool = False
) -> ChannelQuantiser:
    """Quantisers of rows [channels, n] whose ranges are clipped at both ends: a search channel by channel, then gradients for all together.

    Never worse by the loss than `start`.

    :param gram: W^T W of the layers that read the channels [channels, channels]
    """
    bits = start.bits
    taken = rows.double()[:, :: max(1, -(-rows.shape[1] // _MOST_SAMPLES))]
    low, high = rows.double().amin(1), rows.double().amax(1)
    found = [start]
    lower, upper = _searched(taken, low, high, bits, symmetric)
    found.append(channels_of(low * lower, high * upper, bits, symmetric=symmetric))
    if not symmetric:
        found += _learnt(taken, gram, low, high, lower, upper, bits)
    losses = [_loss(taken, gram, made) for made in found]
    return found[losses.index(min(losses))]


def _searched(
    rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of least squared error, each channel by itself: one end, the other, and the first again."""
    factors = [torch.ones_like(low), torch.ones_like(high)]
    for end in (0, 1, 0):
        least = torch.full_like(low, torch.inf)
        best = factors[end]
        for share in _SEARCHED:
            tried = list(factors)
            tried[end] = torch.full_like(low, share)
            made = channels_of(low * tried[0], high * tried[1], bits, symmetric=symmetric)
            error = squared_error(rows, made)
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, tried[end], best)
        factors[end] = best
    return factors[0], factors[1]


def _learnt(
    rows: torch.Tensor,
    gram: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    bits: int,
) -> list[ChannelQuantiser]:
    """What gradients make of the factors; roundings pass them straight through. The last and the best on the way."""
    factors = torch.stack([lower, upper]).clone().requires_grad_()
    optimizer = torch.optim.Adam([factors], lr=_RATE)
    values, last = rows.T, (1 << bits) - 1
    best, least = factors.detach().clone(), float("inf")
    with torch.enable_grad():
        for _ in range(_STEPS):
            scale = ((high * factors[1] - low * factors[0]) / last).clamp(min=1e-12)
            zero = _straight(-low * factors[0] / scale)
            integers = (_straight(values / scale) + zero).clamp(0, last)
            error = (integers - zero) * scale - values
            loss = ((error @ gram) * error).mean()
            if float(loss.detach()) < least:
                best, least = factors.detach().clone(), float(loss.detach())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                factors.clamp_(_LEAST, _MOST)
    return [channels_of(low * pair[0], high * pair[1], bits) for pair in (best, factors.detach())]


def _straight(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def _loss(rows: torch.Tensor, gram: torch.Tensor, quantiser: ChannelQuantiser) -> float:
    values = rows.T
    error = quantiser.numbers(quantiser.integers(values)) - values
    return float(((error @ gram) * error).sum())
