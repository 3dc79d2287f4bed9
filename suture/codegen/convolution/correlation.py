"""Convolutions whose windows are images: what the derivative of a convolution in its weights is.

The result has few positions, each a sum over nearly all of both images. For each position that is a product of matrices: rows are samples of the
input, columns those of the weights, and the contracted dimension runs over channels and places of the window as far as it meets the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.sources import guarded, moved
from suture.codegen.convolution.windows import first, fixed, index_of, window_ends
from suture.codegen.convolution.writer import ConvolutionWriter
from suture.codegen.cpp.strides import stride_of_load
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Buffer,
    Expression,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)

_ROWS = 12  # of a register tile
_LEAST = 16  # places of a window from which on it is an image


def is_correlation(node: Node) -> bool:
    """Whether a convolution's window has more places than its result, and it is worth a kernel of its own."""
    sizes = [fixed(size) for size in (*first(node).shape, *_weight(node).shape, *node.output.shape)]
    if node.operator.name != "conv" or None in sizes or node.attributes["groups"] != 1 or node.output.rank != 4:
        return False
    window, result = ([fixed(size) or 0 for size in value.shape[2:]] for value in (_weight(node), node.output))
    return math.prod(window) >= max(_LEAST, math.prod(result))


def lower_correlation(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a convolution whose windows are images."""
    assert group.anchor is not None
    return _Correlation(group, context, context.schedule(group, default_schedule(group.anchor))).lower()


def default_schedule(node: Node) -> ConvolutionSchedule:
    """Tiles of 12 rows, as wide as fills most."""
    columns = fixed(node.output.shape[1])
    assert columns is not None
    wide = -(-columns // 32) * 32 == -(-columns // 16) * 16
    return ConvolutionSchedule(_ROWS, 32 if wide else 16)


def candidates(node: Node) -> tuple[ConvolutionSchedule, ...]:
    """Schedules worth measuring, the default first."""
    start = default_schedule(node)
    return tuple(
        dict.fromkeys(
            (start, *(ConvolutionSchedule(rows, width) for rows in (_ROWS, 2 * _ROWS) for width in (16, 32, 64)))
        )
    )


def _read(value: Value, dim: int) -> int:
    """How many indices of a dimension somebody reads: a derivative cuts off what its windows have room for beyond the kernel."""
    size, read = fixed(value.shape[dim]) or 0, 0
    for node, _ in value.uses:
        cuts = node.operator.name == "slice" and node.attributes["start"] == 0 and node.attributes["step"] == 1
        if not cuts:
            return size
        read = max(read, _read(node.output, dim))
    return size if value.is_graph_output() else read


def _weight(node: Node) -> Value:
    weight = node.inputs[1]
    assert weight is not None
    return weight


class _Correlation(ConvolutionWriter):
    """Rows of samples times columns of samples, for each position of the result."""

    name = "correlation"

    def settle(self) -> None:
        self.width = self.schedule.channels
        self.weights = _weight(self.node)
        if not self._side_by_side(self.weights):
            copy = self.context.temporary(self.weights.dtype, self.weights.shape, f"{self.weights.name}_by_sample")
            self.context.storage[copy] = (1, 2, 3, 0)
            self.packing.append(moved(self.weights, copy, self.context))
            self.weights = copy

    def reads(self) -> tuple[Value, list[KernelStep]]:
        """The input where it lies; a copy of it where it is computed."""
        value = first(self.node)
        builder = KernelBuilder(self.context, self.group.nodes, "probe")
        names = [builder.variable(f"at_{dim}", Literal(0), builder.size(size)) for dim, size in enumerate(value.shape)]
        if builder.locate(value, index_of(value, names)) is not None:
            return value, []
        copy = self.context.temporary(value.dtype, value.shape, f"{value.name}_copy")
        self.context.storage[copy] = (1, 2, 3, 0)
        return copy, [moved(value, copy, self.context)]

    def _side_by_side(self, value: Value) -> bool:
        """Whether neighbouring samples are neighbours in memory."""
        builder = KernelBuilder(self.context, self.group.nodes, "probe")
        names = [builder.variable(f"at_{dim}", Literal(0), builder.size(size)) for dim, size in enumerate(value.shape)]
        found = builder.locate(value, index_of(value, names))
        return found is not None and stride_of_load(found, "at_0") == Literal(1)

    def kernel(self) -> KernelStep:
        builder, made, width = self.builder, self.node.output, self.width
        samples, columns = (fixed(size) or 0 for size in made.shape[:2])
        position = [
            builder.grid(f"at_{dim}", Literal(_read(made, dim))) if _read(made, dim) > 1 else Literal(0)
            for dim in (2, 3)
        ]
        panels, tiles = -(-columns // width), -(-samples // self.schedule.pixels)
        panel = builder.grid("panel", Literal(panels)) if panels > 1 else Literal(0)
        tile = builder.grid("tile", Literal(tiles)) if tiles > 1 else Literal(0)
        rows = -(-samples // tiles)
        many: Expression = (
            Literal(rows) if samples % rows == 0 else apply("min", Literal(rows), Literal(samples) - tile * rows)
        )
        there: Expression = (
            Literal(width) if columns % width == 0 else apply("min", Literal(width), Literal(columns) - panel * width)
        )
        sum_ = builder.local("sum", self.weights.dtype, (rows, 1), Scope.THREAD)
        body = (self._clear(sum_, rows), self._products(sum_, position, (tile * rows, panel * width), many, there))
        lane = builder.variable("lane", Literal(0), Literal(width))
        done = builder.variable("result", Literal(0), many)
        own = panel * width + lane
        index = index_of(made, (tile * rows + done, own, *position))
        behind = self.behind(Load(sum_, (done, Literal(0))), own, index)
        stored = guarded(None if columns % width == 0 else own < columns, behind)
        epilogue = Threads(lane, width, (Loop(done, Literal(0), many, stored),))
        why = f"{self.group}; its windows are images: tiles of {rows} x {width} for each position"
        return builder.finish((*body, epilogue), why, self.schedule)

    def _clear(self, sum_: Buffer, rows: int) -> Statement:
        at = Name("start_row")
        clear = Store(sum_, (at, Literal(0)), Literal(0.0, sum_.dtype))
        return Threads(Name("start_lane"), self.width, (Loop(at, Literal(0), Literal(rows), (clear,)),))

    def _products(
        self, sum_: Buffer, position: Sequence[Expression], corner: tuple[Expression, Expression], many: Expression, there: Expression
    ) -> Statement:  # fmt: skip
        """For each channel and row of the window, the places of the row that meet the input.

        :param corner: the first sample of the input and of the weights
        :param many: how many of the input there are
        :param there: how many of the weights
        """
        top, left = corner
        builder, (down, across) = self.builder, self.windows
        channels, high, wide = (fixed(size) or 0 for size in self.origin.shape[1:])
        channel = builder.variable("channel", Literal(0), Literal(channels)) if channels > 1 else Literal(0)
        starts = [at * window.stride - window.padding for at, window in zip(position, self.windows, strict=True)]
        ends = [
            window_ends(builder, start, Literal(size), window)
            for start, size, window in zip(starts, (high, wide), self.windows, strict=True)
        ]
        tap = builder.variable("tap", *ends[0])
        low, stop = ends[1]
        depth = builder.indices.short(stop - low)
        row = builder.variable("row", Literal(0), many)
        column = builder.variable("column", Literal(0), there)
        inner = builder.variable("inner", Literal(0), depth)
        place = [
            builder.indices.short(starts[0] + tap * down.dilation),
            builder.indices.short(starts[1] + (low + inner) * across.dilation),
        ]
        one = builder.locate(self.origin, index_of(self.origin, (top + row, channel, *place)))
        other = builder.locate(self.weights, index_of(self.weights, (left + column, channel, tap, low + inner)))
        assert one is not None and other is not None
        product: Statement = MultiplyAccumulate(
            sum_, cast(one, sum_.dtype), other, row, column, inner, many, there, depth, self.width, self.width, adds=True,
        )  # fmt: skip
        product = Loop(tap, ends[0][0], ends[0][1], (product,))
        return Loop(channel, Literal(0), Literal(channels), (product,)) if isinstance(channel, Name) else product


__all__ = ["candidates", "default_schedule", "is_correlation", "lower_correlation"]
