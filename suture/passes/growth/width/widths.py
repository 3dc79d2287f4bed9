"""How wide axes become, and the index maps that take them there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times
from suture.ir.axes import AxisInfo
from suture.ir.errors import Code, SutureError

_WHOLE = 1e-9


def require_target(to: int | None, factor: float | None) -> None:
    """Check that a size or a factor is asked for, and not both.

    :raises SutureError: GROWTH
    """
    if (to is None) == (factor is None):
        what = "neither a size nor a factor" if to is None else "both a size and a factor"
        raise SutureError(Code.GROWTH, f"{what} to widen to", remedy="give to=, or factor=")
    if factor is not None and not 1 <= factor < float("inf"):
        raise SutureError(
            Code.GROWTH, f"factor={factor:g} widens nothing", remedy="a factor of 1 or more would be right"
        )


def target_size(info: AxisInfo, to: int | None, factor: float | None) -> int:
    """The size that an axis gets.

    :raises SutureError: GROWTH, if it would shrink, or the factor does not give a whole number of heads, groups or features
    """
    before = info.size
    assert isinstance(before, int)
    if to is not None:
        if to < before:
            raise SutureError(
                Code.GROWTH,
                f"to={to} is less than the {before} that {info.name} has",
                remedy="prune makes axes narrower",
            )
        return to
    assert factor is not None
    wanted = before * factor
    if abs(wanted - round(wanted)) > _WHOLE * wanted:
        below, above = int(wanted), int(wanted) + 1
        what = {"head": "heads", "group": "groups"}.get(info.kind, "indices")
        near = f"{below / before:.6g} or {above / before:.6g}" if below > before else f"{above / before:.6g}"
        raise SutureError(
            Code.GROWTH,
            f"factor={factor:g} makes {wanted:g} {what} of the {before} of {info.name}",
            remedy=f"{near} would be right",
        )
    return round(wanted)


def copies(before: int, after: int) -> torch.Tensor:
    """Which old index each new one copies: all of them in turn, again and again. Shape `[after]`."""
    return torch.arange(after) % before


def shares_of(index: torch.Tensor, before: int, split: Literal["even", "uneven"], alpha: float) -> torch.Tensor:
    """The share of the old weight that each copy gets; the shares of the copies of one index add up to 1. Shape `[after]`, float64.

    Uneven: the first copy gets `alpha`, the next `alpha` of what is left, and so on; the last gets the rest.

    :raises SutureError: GROWTH, if `alpha` leaves a copy nothing
    """
    if not 0 < alpha < 1:
        raise SutureError(
            Code.GROWTH, f"alpha={alpha:g} leaves a copy nothing", remedy="a share between 0 and 1 would be right"
        )
    counts = torch.bincount(index, minlength=before)
    if split == "even":
        return 1 / counts.to(torch.float64)[index]
    rank = torch.zeros_like(index)
    seen = torch.zeros(before, dtype=torch.int64)
    for j, i in enumerate(index.tolist()):
        rank[j] = seen[i]
        seen[i] += 1
    last = rank == counts[index] - 1
    left = (1 - alpha) ** rank.to(torch.float64)
    return torch.where(last, left, alpha * left)


def equal_multiplicity(axis: Axis, counts: Mapping[Atom, torch.Tensor]) -> int | None:
    """How often every index of an axis is copied, from how often those of its atoms are; None if not equally often."""
    match axis:
        case Atom():
            found = counts.get(axis)
            if found is None:
                return 1
            return int(found[0]) if bool((found == found[0]).all()) else None
        case Times(factors):
            product = 1
            for factor in factors:
                inner = equal_multiplicity(factor, counts)
                if inner is None:
                    return None
                product *= inner
            return product
        case Chain(parts):
            each = {equal_multiplicity(part, counts) for part in parts}
            return each.pop() if len(each) == 1 else None
