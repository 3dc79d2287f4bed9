"""How the lanes of a kernel over segments stand over features.

On a CPU they are the features that lie side by side, so that a row is whole vectors and what is the same for several features is one number. A GPU's
are all features, in whole warps where there are as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from suture.codegen.builder import KernelBuilder
from suture.codegen.traversal.domain import Run, Survey, join
from suture.ir.kernel import Branch, Expression, Let, Literal, Loop, Name, Statement, apply

_EXACT = 256  # features of which a CPU's lanes may be all
_WARP = 32
_MOST = 256  # lanes of a GPU
_TURNS = 8  # features that a lane has at most
_OUTER = 32  # other runs of features that a block takes, at most


@dataclass
class Features:
    """How the lanes of a block take features.

    :param lanes: how many there are
    :param lane: which one it is
    :param loops: what each lane loops over, outermost first
    :param lets: where in the features it then is
    :param index: which of its own numbers a lane has at hand
    :param shape: how many these are
    :param runs: axes that one variable stands for
    :param guard: where there is a feature
    """

    lanes: int
    lane: Name
    loops: list[tuple[Name, Expression]] = field(default_factory=list)
    lets: list[Statement] = field(default_factory=list)
    index: list[Expression] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    runs: tuple[Run, ...] = ()
    guard: Expression | None = None

    def once(self) -> list[Statement]:
        """What stands before all of a lane's statements."""
        return [] if self.loops else list(self.lets)

    def over(self, body: Sequence[Statement]) -> list[Statement]:
        """Statements for each feature of a lane."""
        inside = [*body] if self.guard is None else [Branch(self.guard, tuple(body))]
        made: list[Statement] = [*(self.lets if self.loops else ()), *inside]
        for name, stop in reversed(self.loops):
            made = [Loop(name, Literal(0), stop, tuple(made))]
        return made


def on_cpu(builder: KernelBuilder, found: Survey) -> Features:
    """Lanes over what lies side by side; loops over the rest."""
    runs = join(found) or (Run(()),)
    lane, others = runs[-1], runs[:-1]
    size = lane.size if lane.axes else 1
    lanes = size if isinstance(size, int) and 0 < size <= _EXACT else 64
    features = Features(lanes, Name("t"), runs=runs)
    room = _OUTER
    for run in others:
        if isinstance(run.size, int) and run.size <= room:
            room //= run.size
            features.loops.append((Name(run.name), Literal(run.size)))
            features.index.append(Name(run.name))
            features.shape.append(run.size)
        else:
            builder.grid(run.name, builder.size(run.size))
    if size == lanes:
        features.lane = Name(lane.name)
        return features
    place = _strided(builder, features, builder.size(lane.size), size if isinstance(size, int) else None)
    features.lets.append(Let(Name(lane.name), place))
    return features


def on_gpu(builder: KernelBuilder, found: Survey, lane: Name) -> Features:
    """Lanes over all features."""
    axes = found.domain.axes
    sizes = [axis.size for axis in axes]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) < len(sizes):  # a size that is not known: lanes take the last axis alone
        for axis in axes[:-1]:
            builder.grid(axis.name, builder.size(axis.size))
        features, last = Features(2 * _WARP, lane), axes[-1]
        tile = builder.grid("tile", (builder.size(last.size) + (features.lanes - 1)) // features.lanes)
        features.lets.append(Let(Name(last.name), tile * features.lanes + lane))
        features.guard = Name(last.name) < builder.size(last.size)
        return features
    count = math.prod(fixed)
    lanes = 1 << (count - 1).bit_length() if count < _WARP else min(-(-count // _WARP) * _WARP, _MOST)
    features = Features(lanes, lane)
    whole, place = Name("feature"), _turned(builder, features, count)
    builder.variable(whole.name, Literal(0), Literal(count))
    features.lets.append(Let(whole, place))
    digits = builder.indices.digits(whole, fixed)
    features.lets += [Let(Name(axis.name), digit) for axis, digit in zip(axes, digits, strict=True)]
    return features


def _turned(builder: KernelBuilder, features: Features, count: int) -> Expression:
    """Lanes take turns at so many features; of what is more, blocks take tiles.

    :returns: which feature a lane is at
    """
    turns = min(-(-count // features.lanes), _TURNS)
    tile = turns * features.lanes
    place: Expression = features.lane
    if turns > 1:
        turn = Name("turn")
        features.loops.append((turn, Literal(turns)))
        features.index.append(turn)
        features.shape.append(turns)
        place = turn * features.lanes + place
    if count > tile:
        place = builder.grid("tile", Literal(-(-count // tile))) * tile + place
    if count % tile:
        features.guard = Name("feature") < count
    return place


def _strided(builder: KernelBuilder, features: Features, size: Expression, known: int | None) -> Expression:
    """Lanes stride over features, as many turns as they have; of what is more, blocks take tiles.

    :returns: which feature a lane is at
    """
    lanes, turn = features.lanes, Name("turn")
    turns = min(-(-known // lanes), _TURNS) if known is not None else 1
    start: Expression = Literal(0)
    if known is None or known > turns * lanes:
        start = builder.grid("tile", (size + (turns * lanes - 1)) // (turns * lanes)) * (turns * lanes)
    if known is not None and known % (turns * lanes) == 0:
        stop: Expression = Literal(turns)
    else:
        stop = (size - start - features.lane + (lanes - 1)) // lanes
        stop = stop if start == Literal(0) else apply("min", stop, Literal(turns))
    features.loops.append((turn, stop))
    features.index.append(turn)
    features.shape.append(turns)
    return start + turn * lanes + features.lane
