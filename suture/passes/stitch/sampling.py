"""Which stitch is trained at a step: drawn at random, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError
from suture.passes.counter import counter_uniform


@dataclass(frozen=True)
class Sampler:
    """Draws route numbers: step `n` of a seed is always the same route.

    :param groups: routes that are drawn alike; a group is drawn by its weight, then a route inside it evenly
    """

    groups: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    seed: int = 0

    def __call__(self, step: int) -> int:
        """The route of a step."""
        which, inside = counter_uniform(self.seed, "stitch", 2, start=2 * step).tolist()
        group = self.groups[self._group(which)]
        return group[min(int(inside * len(group)), len(group) - 1)]

    def _group(self, share: float) -> int:
        total, reached = sum(self.weights), 0.0
        for k, weight in enumerate(self.weights):
            reached += weight / total
            if share < reached:
                return k
        return len(self.weights) - 1

    def __iter__(self) -> Iterator[int]:
        """The routes of step 0, 1, 2, ... without end."""
        step = 0
        while True:
            yield self(step)
            step += 1


def uniform_sampler(routes: Sequence[int], seed: int = 0) -> Sampler:
    """Every route as likely as any other (SN-Net)."""
    return Sampler((tuple(routes),), (1.0,), seed)


def resource_sampler(
    macs: Sequence[int], bins: int = 10, seed: int = 0, *, weights: Sequence[float] | None = None
) -> Sampler:
    """Routes grouped by cost into bins of equal width; the bin is drawn first (SN-Netv2, section 3.3).

    Drawn evenly from all routes, the middle of the range of costs would be trained most, as most routes lie there.

    :param macs: the cost of every route
    :param bins: how many bins the range of costs is cut into; empty ones are left out
    :param weights: the weight of every bin that is not empty, from cheap to dear; all alike if absent
    :raises SutureError: STITCH, if there is no bin, or another number of weights than bins
    """
    if bins < 1:
        raise SutureError(Code.STITCH, f"{bins} bins hold no route", remedy="1 or more would be right")
    low, high = min(macs), max(macs)
    width = (high - low) / bins or 1.0
    held: dict[int, list[int]] = {}
    for route, cost in enumerate(macs):
        held.setdefault(min(int((cost - low) / width), bins - 1), []).append(route)
    groups = tuple(tuple(held[k]) for k in sorted(held))
    chosen = tuple(weights) if weights is not None else (1.0,) * len(groups)
    if len(chosen) != len(groups) or min(chosen) < 0 or sum(chosen) <= 0:
        raise SutureError(
            Code.STITCH, f"{len(chosen)} weights for {len(groups)} bins", remedy="one weight a bin, none negative"
        )
    return Sampler(groups, chosen, seed)
