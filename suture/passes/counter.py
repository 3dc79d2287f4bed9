"""Randomness keyed by seed, tensor name and index: element `i` is a function of the three, so threads, order and sizes cannot change it."""

from __future__ import annotations

import hashlib
import math

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_DOUBLE_BITS = 53


def counter_bits(seed: int, name: str, count: int, *, start: int = 0) -> torch.Tensor:
    """`count` 64-bit words, as int64: SplitMix64 of the index, keyed by seed and name."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    index = torch.arange(start + 1, start + count + 1, dtype=torch.int64)
    word = index * _signed(_GOLDEN) + _signed(key)  # int64 wraps around, as the algorithm wants
    for shift, factor in _MIX:
        word = (word ^ _shift_right(word, shift)) * _signed(factor)
    return word ^ _shift_right(word, _LAST_SHIFT)


def counter_uniform(seed: int, name: str, count: int, *, start: int = 0) -> torch.Tensor:
    """`count` float64 numbers, uniform in [0, 1)."""
    return (
        _shift_right(counter_bits(seed, name, count, start=start), 64 - _DOUBLE_BITS).to(torch.float64)
        * 2.0**-_DOUBLE_BITS
    )


def counter_normal(seed: int, name: str, count: int, *, start: int = 0) -> torch.Tensor:
    """`count` float64 numbers, standard normal (Box and Muller's transform of two uniform streams)."""
    radius = torch.sqrt(-2.0 * torch.log1p(-counter_uniform(seed, f"{name}/radius", count, start=start)))
    return radius * torch.cos(2.0 * math.pi * counter_uniform(seed, f"{name}/angle", count, start=start))


def counter_integers(seed: int, name: str, count: int, high: int, *, start: int = 0) -> torch.Tensor:
    """`count` int64 numbers in [0, high)."""
    return (counter_uniform(seed, name, count, start=start) * high).to(torch.int64).clamp_(max=high - 1)


def _shift_right(word: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
