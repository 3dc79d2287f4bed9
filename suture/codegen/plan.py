"""Memory planned ahead: one arena, in which values lie that are not needed at the same time.

Offsets follow from sizes in bytes and lifetimes: the largest value first, each at the lowest offset where nothing lies that lives when it does
("greedy by size", Pisarchyk and Lee 2020, Efficient Memory Management for Deep Neural Net Inference, section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.graph import Value
from suture.ir.sizes import Dim, product

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Lifetime:
    """A value that lies in the arena from one step to another, both included."""

    value: Value
    first: int
    last: int

    @property
    def size(self) -> Dim:
        """Its bytes."""
        return product(self.value.shape) * self.value.dtype.itemsize


def place(lifetimes: Sequence[Lifetime], sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each value lies, and how long the arena is, in bytes.

    :param sizes: the bytes of each
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        mine, size = lifetimes[index], aligned(sizes[index])
        taken = sorted(
            (offsets[k], offsets[k] + aligned(sizes[k])) for k in placed
            if lifetimes[k].first <= mine.last and mine.first <= lifetimes[k].last
        )  # fmt: skip
        at = 0
        for start, stop in taken:
            if at + size <= start:
                break
            at = max(at, stop)
        offsets[index] = at
        placed.append(index)
    return offsets, max((offset + aligned(size) for offset, size in zip(offsets, sizes, strict=True)), default=0)


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
