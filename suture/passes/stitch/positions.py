"""Where two anchors may be stitched: pairs of a block after which the front is left and a block before which the back is entered.

An anchor is described by its depths: the number of blocks of each stage, `(12,)` for a plain transformer, `(2, 2, 6, 2)` for a staged network.
Blocks are numbered through all stages. Position `(i, k)` means blocks 0 to i of the front, a stitching layer, blocks k and on of the back; so k may
be the number of blocks, and then only the back's head follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from suture.ir.errors import Code, SutureError

Scheme = Literal["windows", "lockstep"]


@dataclass(frozen=True, order=True)
class Position:
    """One place to stitch: after block `exit` of the front, before block `entry` of the back, by stitching layer `layer` of this pair."""

    exit: int
    entry: int
    layer: int


@dataclass(frozen=True)
class Windows:
    """How positions are chosen (SN-Net, section 3.3).

    :param kernel: the number of neighbouring blocks that a window spans; all positions in a window share a stitching layer
    :param stride: how far apart windows start
    :param skipped_stages: stages of a staged network in which nothing is stitched, negative ones from the end
    """

    kernel: int = 2
    stride: int = 1
    skipped_stages: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        """:raises SutureError: STITCH, if a number is not positive"""
        for name, value in (("kernel", self.kernel), ("stride", self.stride)):
            if value < 1:
                raise SutureError(Code.STITCH, f"{name}={value} gives no windows", remedy="1 or more would be right")


def positions(front: Sequence[int], back: Sequence[int], windows: Windows) -> tuple[Position, ...]:
    """The positions between two anchors of these depths, in order.

    Plain networks of equal depth take every position of every window, one that several windows hold in the first of them. Where depths differ, the
    shallower network's blocks are stretched over the deeper one's by nearest interpolation, and only positions that go forwards are taken: `k > i`.
    Staged networks are stitched inside stages of the same number, forwards as well.

    :raises SutureError: STITCH, if the anchors have another number of stages
    """
    if len(front) != len(back):
        raise SutureError(
            Code.STITCH,
            f"anchors of {len(front)} and {len(back)} stages, {tuple(front)} and {tuple(back)} blocks",
            remedy="anchors of as many stages would be right, or blocks named so that there are",
        )
    staged = len(front) > 1
    skipped = {stage % len(front) for stage in windows.skipped_stages} if staged else set()
    found: list[Position] = []
    layers = 0
    for stage, (front_depth, back_depth) in enumerate(zip(front, back, strict=True)):
        if stage in skipped:
            continue
        if front_depth == back_depth:
            local = paired(front_depth, windows.kernel, windows.stride, forwards=staged)
        else:
            local = unpaired(front_depth, back_depth)
        start_front, start_back = sum(front[:stage]), sum(back[:stage])
        found += [Position(start_front + p.exit, start_back + p.entry, layers + p.layer) for p in local]
        layers += 1 + max((p.layer for p in local), default=-1)
    return tuple(found)


def paired(depth: int, kernel: int = 2, stride: int = 1, *, forwards: bool = False) -> tuple[Position, ...]:
    """The positions between anchors of equal depth: all pairs of blocks inside a sliding window.

    A position of several windows belongs to the first of them; a window without positions of its own has no layer.

    :param forwards: leave out those that run a block of the back whose counterpart in the front has run
    """
    found: dict[tuple[int, int], int] = {}
    layers = 0
    for start in range(0, depth, stride):
        window = range(start, min(start + kernel, depth))
        new = [(i, k) for i in window for k in window if (i, k) not in found and (k > i or not forwards)]
        found |= dict.fromkeys(new, layers)
        layers += bool(new)
    return tuple(Position(i, k, layer) for (i, k), layer in sorted(found.items()))


def unpaired(front: int, back: int) -> tuple[Position, ...]:
    """The positions between anchors of different depths, by nearest interpolation of the shallower one's block numbers; one layer for each
    block of the shallower one.

    Into a deeper anchor, block i of the front may lead to each block k > i of the back that lies beside it. Into a shallower one, the last of the
    front's blocks that lie beside block m of the back leads to block m + 1 (SN-Netv2's way back).
    """
    if front <= back:
        beside = nearest_blocks(front, back)
        return tuple(Position(beside[k], k, beside[k]) for k in range(back) if beside[k] < k)
    beside = nearest_blocks(back, front)
    lasts = [i for i in range(front) if i + 1 == front or beside[i + 1] != beside[i]]
    return tuple(Position(i, beside[i] + 1, beside[i]) for i in lasts if beside[i] + 1 < back)


def nearest_blocks(shallow: int, deep: int) -> tuple[int, ...]:
    """For each block of the deep anchor, the block of the shallow one that lies beside it: nearest interpolation."""
    return tuple(k * shallow // deep for k in range(deep))


def lockstep(front: int, back: int, *, to_head: bool = False) -> tuple[Position, ...]:
    """SN-Netv2's positions: leave after a block, go on with what follows its counterpart; every position has a stitching layer of its own.

    :param to_head: also stitch the front's last output to the back's head
    :raises SutureError: STITCH, if no depth divides the other
    """
    shallow, deep = sorted((front, back))
    if deep % shallow:
        raise SutureError(
            Code.STITCH,
            f"{deep} blocks do not run in step with {shallow}",
            remedy="two-way stitching takes depths of which one divides the other",
        )
    ratio = deep // shallow
    places = range(shallow if to_head else shallow - 1)
    if front <= back:
        return tuple(Position(i, (i + 1) * ratio, i) for i in places)
    return tuple(Position((i + 1) * ratio - 1, i + 1, i) for i in places)
