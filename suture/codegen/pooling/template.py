"""Pools and resampling as kernels of their own, in whatever order values lie.

Lanes run over the result's innermost dimension. Where that is channels, a window has the same ends for all lanes, and loops run over the part of it
that meets the input; along a spatial dimension each lane has a window of its own, and what lies outside is left out element by element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from suture.codegen.builder import KernelBuilder, Lane
from suture.codegen.convolution.sources import guarded, lanes_for
from suture.codegen.convolution.windows import both, first, fixed, index_of, inside, window_ends, windows_of
from suture.codegen.groups import Group
from suture.codegen.pooling.resample import refuses_resampling, resampled
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node
from suture.ir.kernel import (
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    apply,
    cast,
)
from suture.ir.sizes import Dim

_UNROLLED = 8  # taps of the last dimension that stand side by side where the whole window meets the input


def refuses(node: Node, context: Context) -> str | None:
    """Why a pool is left to the library; None if it is not."""
    if not node.output.dtype.is_floating_point:
        return f"its element type is {node.output.dtype}"
    if any(size == 0 for size in first(node).shape[-_rank(node) :]):
        return "it has no input"
    return None


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a pool or of resampling, and of what is pointwise behind it."""
    assert group.anchor is not None
    return [_Pool(group, group.anchor, context).lower()]


def _rank(node: Node) -> int:
    """How many of the last dimensions are spatial."""
    rank = node.attributes.get("rank")
    return rank if isinstance(rank, int) else len(windows_of(node))


@dataclass
class _Pool:
    """Writes the kernel of one node."""

    group: Group
    node: Node
    context: Context
    sizes: list[Expression] = field(default_factory=list)

    def lower(self) -> KernelStep:
        node, made = self.node, self.node.output
        self.rank = _rank(node)
        self.dtype = compute_type(made.dtype)
        self.builder = builder = KernelBuilder(self.context, self.group.nodes, node.operator.name)
        order = self.context.order(made)
        self.inner = inner = order[-1]
        along = order[-2] if made.rank > 1 else None
        places: dict[int, Expression] = {}
        for dim in order[:-2]:
            places[dim] = builder.grid(f"at_{dim}", builder.size(made.shape[dim]))
        lanes = lanes_for(made.shape[inner])
        size, turns = builder.size(made.shape[inner]), (builder.size(made.shape[inner]) + (lanes - 1)) // lanes
        loops: list[tuple[Name, Expression]] = []
        if along is not None:
            extent = builder.size(made.shape[along])
            places[along] = variable = builder.variable("along", Literal(0), extent)
            loops.append((variable, extent))
        turn, lane = builder.variable("turn", Literal(0), turns), builder.variable("lane", Literal(0), Literal(lanes))
        loops.append((turn, turns))
        places[inner] = builder.indices.short(turn * lanes + lane)
        self.mask = inside(builder, places[inner], size)
        body = self._element([places[dim] for dim in range(made.rank)])
        for each, end in reversed(loops):
            body = (Loop(each, Literal(0), end, tuple(body)),)
        return builder.finish(
            [Threads(lane, lanes, tuple(body))], f"{self.group}; {lanes} lanes along dimension {inner}"
        )

    def _element(self, index: Sequence[Expression]) -> Sequence[Statement]:
        """One element of the result."""
        name = self.node.operator.name
        if name == "interpolate":
            lane = self.builder.lane()
            found = resampled(self.builder, lane, self.node, index)
            spatial = first(self.node).shape[-self.rank :]
            there = [Literal(0) < self.builder.size(size) for size in spatial if fixed(size) is None]
            return guarded(both(self.mask, *there), self._behind(lane, index, found))
        self.sum = self.builder.local("sum", self.dtype, (), Scope.THREAD)
        largest = name in ("max_pool", "adaptive_max_pool")
        operation, neutral = ("max", -math.inf) if largest else ("+", 0.0)
        clear = Store(self.sum, (), Literal(neutral, self.dtype))
        lane = self.builder.lane()
        if name in ("max_pool", "avg_pool"):
            taps = self._windows(index, operation, neutral)
        else:
            taps = self._shares(index, operation)
        total: Expression = Load(self.sum, ())
        if not largest:
            total = total / self._count(index)
        return [clear, *taps, *guarded(self.mask, self._behind(lane, index, total))]

    def _behind(self, lane: Lane, index: Sequence[Expression], total: Expression) -> list[Statement]:
        """The pointwise nodes behind."""
        made = self.node.output
        at = index_of(made, index)
        known = Name(self.builder.fresh(), total.dtype)
        lane.statements.append(Let(known, total))
        lane.know(made, at, known)
        for value in self.group.outputs:
            lane.store(value, at, lane.value(value, at))
        return lane.statements

    # windows of fixed size

    def _windows(self, index: Sequence[Expression], operation: str, neutral: float) -> tuple[Statement, ...]:
        """The taps of a window: loops over those that meet the input, or conditions where lanes have windows of their own."""
        builder, outer = self.builder, self.node.output.rank - self.rank
        windows = windows_of(self.node)
        extents = [builder.size(size) for size in first(self.node).shape[outer:]]
        loops: list[tuple[Name, Expression, Expression]] = []
        taps: list[Expression] = []
        conditions: list[Expression | None] = []
        for k, (window, extent) in enumerate(zip(windows, extents, strict=True)):
            own = outer + k == self.inner
            start = window.start(index[outer + k], 0)
            low, high = (Literal(0), Literal(window.kernel)) if own else window_ends(builder, start, extent, window)
            name = builder.variable(f"tap_{k}", low, high)
            loops.append((name, low, high))
            taps.append(window.start(index[outer + k], name))
            conditions.append(inside(builder, taps[-1], extent))

        def turn(at: Sequence[Expression]) -> Expression:
            return self._input([*index[:outer], *at])

        element = turn(taps)
        condition = both(*conditions)
        if condition is not None:
            element = apply("select", both(self.mask, condition) or condition, element, Literal(neutral, self.dtype))
            update = (Update(self.sum, (), operation, element),)
            return _nested(loops, update)
        body = guarded(self.mask, (Update(self.sum, (), operation, element),))
        last, start = windows[-1], windows[-1].start(index[-1], 0)
        if not 1 < last.kernel <= _UNROLLED:
            return _nested(loops, body)
        met = both(*(inside(builder, at, extents[-1]) for at in (start, last.start(index[-1], last.kernel - 1))))
        side = [turn([*taps[:-1], last.start(index[-1], tap)]) for tap in range(last.kernel)]
        joined = side[0]
        for each in side[1:]:
            joined = apply(operation, joined, each)
        whole = _nested(loops[:-1], guarded(self.mask, (Update(self.sum, (), operation, joined),)))
        return whole if met is None else (Branch(met, whole, _nested(loops, body)),)

    # windows that share the input out

    def _shares(self, index: Sequence[Expression], operation: str) -> tuple[Statement, ...]:
        """From the first element of a share to before the end of its last."""
        outer = self.node.output.rank - self.rank
        loops = []
        for k in range(self.rank):
            low, high = self._share(k, index[outer + k])
            loops.append((self.builder.variable(f"tap_{k}", low, high), low, high))
        element = self._input([*index[:outer], *(name for name, _, _ in loops)])
        return _nested(loops, guarded(self.mask, (Update(self.sum, (), operation, element),)))

    def _share(self, k: int, at: Expression) -> tuple[Expression, Expression]:
        """The inputs that belong to one result along a spatial dimension: floor(at I / O) to ceil((at + 1) I / O)."""
        outer = self.node.output.rank - self.rank
        size, target = first(self.node).shape[outer + k], self.node.output.shape[outer + k]
        extent, parts = self.builder.size(size), self.builder.size(target)
        if target == 1:
            return Literal(0), extent
        whole = _quotient(size, target)
        if whole is not None and outer + k != self.inner:
            return at * whole, at * whole + whole
        low = (at * extent) // parts
        high = ((at + 1) * extent + (parts - 1)) // parts
        return low, apply("min", high, extent)

    # sums

    def _input(self, index: Sequence[Expression]) -> Expression:
        """An element of the input, in the type that is computed in."""
        lane = self.builder.lane()
        value = first(self.node)
        with lane.guarded():
            found = lane.value(value, index_of(value, index))
        return cast(found, self.dtype)

    def _count(self, index: Sequence[Expression]) -> Expression:
        """How many elements a mean is over."""
        builder, outer = self.builder, self.node.output.rank - self.rank
        extents = [builder.size(size) for size in first(self.node).shape[outer:]]
        if self.node.operator.name != "avg_pool":
            ends = [self._share(k, index[outer + k]) for k in range(self.rank)]
            return _number([high - low for low, high in ends], self.dtype)
        divisor = self.node.attributes["divisor"]
        if isinstance(divisor, int):
            return Literal(divisor, self.dtype)
        windows = windows_of(self.node)
        if self.node.attributes["count_padding"]:
            if not self.node.attributes["ceil"]:
                return Literal(math.prod(window.kernel for window in windows), self.dtype)
            reach = [
                apply("min", Literal(window.kernel), extent + 2 * window.padding - at * window.stride)
                for window, extent, at in zip(windows, extents, index[outer:], strict=True)
            ]
            return _number(reach, self.dtype)
        met = [
            window_ends(builder, window.start(at, 0), extent, window)
            for window, extent, at in zip(windows, extents, index[outer:], strict=True)
        ]
        return _number([high - low for low, high in met], self.dtype)


def _nested(loops: Sequence[tuple[Name, Expression, Expression]], body: Sequence[Statement]) -> tuple[Statement, ...]:
    for name, low, high in reversed(loops):
        body = (Loop(name, low, high, tuple(body)),)
    return tuple(body)


def _number(counts: Sequence[Expression], dtype: torch.dtype) -> Expression:
    """The product of counts as a number to divide by."""
    total: Expression = Literal(1)
    for count in counts:
        total = total * count
    return cast(total, dtype)


def _quotient(size: Dim, parts: Dim) -> int | None:
    number, count = fixed(size), fixed(parts)
    return number // count if number is not None and count and number % count == 0 else None


def _resampling(node: Node, context: Context) -> str | None:
    return refuses(node, context) or refuses_resampling(node)


TEMPLATES = {
    **dict.fromkeys(("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"), Template(lower, refuses)),
    "interpolate": Template(lower, _resampling),
}
"""Operator -> template."""

__all__ = ["TEMPLATES", "lower", "refuses"]
