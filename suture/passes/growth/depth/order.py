"""In which order the blocks of a stack stand after it has grown: block indices of the small model, one for each block of the large one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from suture.ir.errors import Code, SutureError

Order = tuple[int, ...]
How = Literal["stack", "interpolate", "gradual", "upscale"]


def chosen_order(
    count: int,
    where: str,
    *,
    times: float | None,
    to: int | None,
    order: Sequence[int] | None,
    how: How,
    drop: int | None,
) -> Order:
    """The order that options ask for: an explicit one, or a way of stacking and a size.

    :param count: how many blocks there are
    :raises SutureError: GROWTH, if the options contradict one another, or give no such order
    """
    if order is not None:
        if times is not None or to is not None or drop is not None:
            raise SutureError(
                Code.GROWTH, "an order says already how deep", where=where, remedy="leave out times, to and drop"
            )
        require_order(order, count, where)
        return tuple(order)
    if how == "upscale":
        return upscaled(count, _dropped(count, where, times, to, drop))
    if drop is not None:
        raise SutureError(Code.GROWTH, f"nothing is dropped by {how}", where=where, remedy="give how=upscale")
    return {"stack": stacked, "interpolate": interpolated, "gradual": gradual}[how](
        count, target_depth(count, times, to)
    )


def insertion_order(
    count: int, where: str, *, after: Sequence[int] | None, new: int | None
) -> tuple[Order, tuple[int, ...]]:
    """The order in which new blocks stand behind some, each named by the block before it, and the places of the new ones.

    :param after: behind which blocks; a number may repeat
    :param new: instead, how many, evenly spread; as many as there are blocks if neither is given
    :raises SutureError: GROWTH, if both are given, or there are no such blocks
    """
    if after is not None and new is not None:
        raise SutureError(
            Code.GROWTH, "after and count both say where", where=where, remedy="one of them would be right"
        )
    if new is not None and new < 1:
        raise SutureError(
            Code.GROWTH, f"{new} blocks cannot be inserted", where=where, remedy="1 or more would be right"
        )
    behind = spread(count, count if new is None else new) if after is None else tuple(after)
    require_order(behind, count, where)
    order: list[int] = []
    places: list[int] = []
    for index in range(count):
        order.append(index)
        for _ in range(behind.count(index)):
            places.append(len(order))
            order.append(index)
    return tuple(order), tuple(places)


def stacked(count: int, to: int) -> Order:
    """Copies of the whole stack on top of one another: block i is `i mod count` (G_stack, Du et al. 2024, section 3.1)."""
    return tuple(index % count for index in range(to))


def interpolated(count: int, to: int) -> Order:
    """Every block followed by its copies: block i is `floor(i * count / to)` (Chang et al. 2018; floor(i / g) for a factor g)."""
    return tuple(index * count // to for index in range(to))


def gradual(count: int, to: int) -> Order:
    """Copies of the top blocks on top: new block j is `2 * count - to + j` (gradual stacking, Reddi et al. 2023; at most twice the depth).

    :raises SutureError: GROWTH, if more blocks are asked for than there are to copy
    """
    if to > 2 * count:
        raise SutureError(
            Code.GROWTH, f"gradual stacking cannot make {to} blocks of {count} at once",
            remedy=f"at most {2 * count}, then again, would be right",
        )  # fmt: skip
    return (*range(count), *range(2 * count - to, count))


def upscaled(count: int, drop: int) -> Order:
    """Two copies of the stack without `drop` blocks on either side of the seam (depth up-scaling, Kim et al. 2023, section 2): `2 * (count - drop)`.

    :raises SutureError: GROWTH, if nothing is left of a copy
    """
    if not 0 <= drop < count:
        raise SutureError(
            Code.GROWTH,
            f"{drop} blocks cannot be dropped at the seam of {count}",
            remedy=f"0 to {count - 1} would be right",
        )
    return (*range(count - drop), *range(drop, count))


def _dropped(count: int, where: str, times: float | None, to: int | None, drop: int | None) -> int:
    if times is not None or (drop is None) == (to is None):
        raise SutureError(
            Code.GROWTH,
            "upscaling needs to know how many blocks go at the seam",
            where=where,
            remedy="give drop, or to",
        )
    if drop is not None:
        return drop
    assert to is not None
    if to % 2:
        raise SutureError(
            Code.GROWTH, f"{to} blocks are not two equal copies", where=where, remedy="give an even number"
        )
    return count - to // 2


def spread(count: int, new: int) -> Order:
    """After which of `count` blocks each of `new` further ones stands, evenly spread: with as many as there are, one after each."""
    return tuple((index + 1) * count // new - 1 if new <= count else index * count // new for index in range(new))


def target_depth(count: int, times: float | None, to: int | None) -> int:
    """How many blocks a stack gets, from a factor or a number; twice as many without either.

    :raises SutureError: GROWTH, if both are given, the factor does not give whole blocks, or the stack would shrink
    """
    if to is not None:
        if times is not None:
            raise SutureError(
                Code.GROWTH, f"times={times:g} and to={to} both say how deep", remedy="one of them would be right"
            )
        depth = to
    else:
        factor = 2.0 if times is None else float(times)
        if not math.isfinite(factor) or not (factor * count).is_integer():
            whole = ", ".join(f"{k / count:g}" for k in range(count + 1, 2 * count + 1)[:3])
            raise SutureError(
                Code.GROWTH, f"{count} blocks {factor:g} times are no whole blocks", remedy=f"{whole} would be right"
            )
        depth = int(factor * count)
    if depth < count:
        raise SutureError(
            Code.GROWTH, f"{count} blocks do not grow to {depth}",
            remedy=f"{count + 1} or more would be right; an explicit order may drop blocks",
        )  # fmt: skip
    return depth


def require_order(order: Sequence[int], count: int, where: str) -> None:
    """:raises SutureError: GROWTH, if an explicit order is empty or names a block that does not exist"""
    if not order:
        raise SutureError(
            Code.GROWTH, "the order names no block", where=where, remedy=f"numbers from 0 to {count - 1} would be right"
        )
    for index in order:
        if not 0 <= index < count:
            raise SutureError(
                Code.GROWTH,
                f"the order names block {index} of {count}",
                where=where,
                remedy=f"0 to {count - 1} would be right",
            )
