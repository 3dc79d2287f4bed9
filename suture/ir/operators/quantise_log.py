"""Quantisers of logarithms, for what is positive and spans orders of magnitude: the probabilities of a softmax.

    log2_quantise      x[*d], scale[] -> q[*d]      q = clip(round(-steps log2(x / scale)), 0, 2^bits - 1)
    log2_dequantise    q[*d], scale[] -> x[*d]      x = scale 2^(-q / steps), and 0 for the last integer

With one step an octave the numbers are powers of two; with two they are powers of the square root of two, which is the same with a scale that
depends on the integer's parity: 2^(-q/2) = 2^(-ceil(q/2)) times 1 for an even q, sqrt(2) for an odd one. So a multiplication by x is a shift
and one of two scales (RepQ-ViT, Li et al. 2023, section 3.3). The last integer stands for everything too small for the others.
"""

from __future__ import annotations

import math

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.operator import Call, declare

BITS = range(2, 9)
"""The widths of integers that a quantiser of logarithms may have."""

_STEPS = (1, 2)


def log2_quantise(x: torch.Tensor, scale: torch.Tensor, *, bits: int = 4, steps: int = 2) -> torch.Tensor:
    """clip(round(-steps log2(x / scale)), 0, 2^bits - 1) as uint8. What is not positive, or no number, becomes the last integer."""
    last = (1 << bits) - 1
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    octaves = -torch.log2((x.detach().to(wide) / scale.detach().to(wide)).clamp(min=0))
    return torch.nan_to_num((steps * octaves).round(), nan=last, posinf=last, neginf=0).clamp(0, last).to(torch.uint8)


def log2_dequantise(q: torch.Tensor, scale: torch.Tensor, *, bits: int = 4, steps: int = 2) -> torch.Tensor:
    """scale 2^(-q / steps), as a shift and a scale chosen by parity; 0 for the last integer."""
    shift = torch.div(q.to(torch.int32) + (steps - 1), steps, rounding_mode="floor")
    by_parity = torch.stack([scale, scale * math.sqrt(2.0)])[(q % steps).to(torch.int64)]
    number = torch.ldexp(by_parity, -shift)
    return torch.where(q == (1 << bits) - 1, torch.zeros((), dtype=scale.dtype, device=q.device), number)


def _integers(call: Call) -> torch.dtype:
    _check(call)
    if not call.type(0).dtype.is_floating_point:
        raise SutureError(
            Code.DTYPE, f"the operand is {call.type(0).dtype}", where=call.where, remedy="floats would be right"
        )
    return torch.uint8


def _reals(call: Call) -> torch.dtype:
    _check(call)
    if call.type(0).dtype != torch.uint8:
        raise SutureError(
            Code.DTYPE, f"the operand is {call.type(0).dtype}", where=call.where, remedy="uint8 would be right"
        )
    return call.type(1).dtype


def _check(call: Call) -> None:
    bits, steps = call.attributes["bits"], call.attributes["steps"]
    if bits not in BITS or steps not in _STEPS:
        raise SutureError(
            Code.QUANTISER, f"a quantiser of logarithms with {bits} bits and {steps} steps an octave", where=call.where,
            remedy=f"{BITS[0]} to {BITS[-1]} bits and 1 or 2 steps would be right",
        )  # fmt: skip
    if not call.type(1).dtype.is_floating_point:
        raise SutureError(
            Code.DTYPE, f"the scale is {call.type(1).dtype}", where=call.where, remedy="floats would be right"
        )


_ATTRIBUTES = {"bits": 4, "steps": 2}
declare("log2_quantise", "x[*d], scale[] -> q[*d]", log2_quantise, attributes=_ATTRIBUTES, dtype=_integers)
declare("log2_dequantise", "q[*d], scale[] -> x[*d]", log2_dequantise, attributes=_ATTRIBUTES, dtype=_reals)
