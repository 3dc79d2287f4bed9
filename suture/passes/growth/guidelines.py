"""When to grow a language model, and by how much: the guidelines of "Stacking Your Transformers" (Du et al. 2024, arXiv 2405.15319, section 4.2).

They are fitted to decoders trained on web text; the speed-ups that a plan cites are the paper's measurements, not predictions of this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError

SIZE, COMPUTE, OFFSET = 0.88, 163.27, -5.74
"""log10(d) = SIZE * log10(N) + COMPUTE / log10(C) + OFFSET: tokens d for the small model, parameters N and training FLOPs C of the large one."""

FACTOR = 4
"""The growth factor that the paper recommends; it finds 2 to 4 best."""

FACTORS = (2, 4)
SIZES = (4.1e8, 7e10)
"""From the smallest model that the paper trains to the largest that its authors tabulate."""

MEASURED = (
    ("3B", "180B", 0.486),
    ("3B", "240B", 0.545),
    ("7B", "194B", 0.546),
)
"""Model, tokens, measured speed-up in FLOPs: training from scratch takes so much more to reach the same loss."""


@dataclass(frozen=True)
class GrowthPlan:
    """When a language model grows, by how much, and what both phases cost.

    :param parameters: of the large model
    :param tokens: that training the large model from scratch would take
    :param factor: how many times as deep the large model is
    :param small_tokens: for how many tokens the small model trains
    """

    parameters: float
    tokens: float
    factor: int
    small_tokens: float

    @property
    def flops(self) -> float:
        """Of the large model from scratch: 6 N D."""
        return 6 * self.parameters * self.tokens

    @property
    def small_flops(self) -> float:
        """Of the small model until it grows: 6 (N / g) d, counting blocks only."""
        return 6 * self.parameters / self.factor * self.small_tokens

    def large_tokens(self, speedup: float) -> float:
        """How many tokens the large model trains for, if all in all scratch takes `1 + speedup` times the FLOPs."""
        return (self.flops / (1 + speedup) - self.small_flops) / (6 * self.parameters)

    def lines(self) -> tuple[str, ...]:
        """The plan line by line."""
        whole, depth = _count(self.tokens), f"{self.factor} times as deep"
        share = self.small_flops / self.flops
        rows = [
            f"grow {depth} after {_count(self.small_tokens)} tokens of {whole}, to {_count(self.parameters)} parameters",
            f"small model: {self.small_flops:.3g} FLOPs, {share:.2%} of the large one's from scratch ({self.flops:.3g})",
        ]
        rows += [
            f"at the speed-up of {speedup:.1%} measured by the paper for {size} at {tokens} tokens: "
            f"{_count(self.large_tokens(speedup))} tokens more, {1 - 1 / (1 + speedup):.1%} of the FLOPs saved"
            for size, tokens, speedup in MEASURED
        ]
        if not SIZES[0] <= self.parameters <= SIZES[1]:
            rows.append(_outside(self.parameters))
        return tuple(rows)

    def __str__(self) -> str:
        return "\n".join(self.lines())


def growth_timing(parameters: float, flops: float, *, extrapolate: bool = False) -> float:
    """For how many tokens the small model trains before it is stacked (equation 2 of the paper).

    :param parameters: of the large model, N
    :param flops: that training the large model from scratch takes, C = 6 N D
    :param extrapolate: whether to answer for sizes that the guideline was not made for, too
    :raises SutureError: GROWTH, if a number is not positive, the size is outside of what the guideline was made for, or it asks for as many
        tokens as there are
    """
    for name, value in (("parameters", parameters), ("flops", flops)):
        if not (math.isfinite(value) and value > 1):
            raise SutureError(
                Code.GROWTH, f"{name}={value:g} is no size of a training", remedy="a number above 1 would be right"
            )
    if not extrapolate and not SIZES[0] <= parameters <= SIZES[1]:
        raise SutureError(
            Code.GROWTH,
            _outside(parameters),
            remedy="extrapolate=True asks all the same; try some timings at this size",
        )
    tokens = 10 ** (SIZE * math.log10(parameters) + COMPUTE / math.log10(flops) + OFFSET)
    available = flops / (6 * parameters)
    if tokens >= available:
        raise SutureError(
            Code.GROWTH, f"the guideline asks for {_count(tokens)} tokens of {_count(available)}",
            remedy="it does not hold for so little compute: try some timings, a tenth of the tokens to begin with",
        )  # fmt: skip
    return tokens


def growth_plan(parameters: float, tokens: float, *, factor: int = FACTOR, extrapolate: bool = False) -> GrowthPlan:
    """When to grow, by how much, and the cost of both phases, for a decoder of so many parameters and tokens.

    :raises SutureError: GROWTH, as `growth_timing` does, or if the factor is not one that the guideline was made for
    """
    if not FACTORS[0] <= factor <= FACTORS[1] and not extrapolate:
        raise SutureError(
            Code.GROWTH, f"a growth factor of {factor}", remedy=f"{FACTORS[0]} to {FACTORS[1]} would be right, {FACTOR} best"
        )  # fmt: skip
    timing = growth_timing(parameters, 6 * parameters * tokens, extrapolate=extrapolate)
    return GrowthPlan(parameters, tokens, factor, timing)


def _outside(parameters: float) -> str:
    return f"{_count(parameters)} parameters are outside of what the guideline was made for, {_count(SIZES[0])} to {_count(SIZES[1])}"


def _count(number: float) -> str:
    """A count as people write it: 7B, 11.1B, 2T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


__all__ = ["FACTOR", "FACTORS", "MEASURED", "GrowthPlan", "growth_plan", "growth_timing"]
