"""Depthwise convolutions: lanes run over channels, and each holds a few neighbouring output pixels, so that what it reads serves several windows.

Which taps of the last dimension meet zeros is known when the kernel is written where sizes are numbers: pixels at the left and right edge have code
of their own. In the other dimensions the loops over taps begin and end where the window meets the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from suture.codegen.convolution.sources import guarded
from suture.codegen.convolution.windows import both, first, fixed, index_of, inside, window_ends
from suture.codegen.convolution.writer import ConvolutionWriter
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
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

_LANES = 64


def default_schedule(node: Node) -> ConvolutionSchedule:
    """Eight pixels at a time, or an equal share of a row; as many channels as fill whole blocks."""
    return ConvolutionSchedule(_pixels(node.output.shape[-1], 8), _lanes(node.output.shape[1]))


def candidates(node: Node) -> tuple[ConvolutionSchedule, ...]:
    """Schedules worth measuring, the default first."""
    start = default_schedule(node)
    found = [start]
    for pixels in (4, 6, 8, 12):
        for channels in sorted({start.channels, 16, 32, 64}):
            found.append(ConvolutionSchedule(_pixels(node.output.shape[-1], pixels), channels))
    return tuple(dict.fromkeys(found))


def _pixels(width: Dim, most: int) -> int:
    number = fixed(width)
    return most if not number else -(-number // -(-number // most))


def _lanes(channels: Dim) -> int:
    number = fixed(channels)
    assert number is not None
    exact = [lanes for lanes in range(16, _LANES + 1, 8) if number % lanes == 0]
    if exact:
        return max((lanes for lanes in exact if lanes % 16 == 0), default=max(exact))
    return min(-(-number // 8) * 8, _LANES // 2)


def lower_depthwise(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a convolution in which every output channel reads one input channel."""
    assert group.anchor is not None
    return _Depthwise(group, context, context.schedule(group, default_schedule(group.anchor))).lower()


class _Depthwise(ConvolutionWriter):
    """Channels side by side, pixels in registers."""

    name = "depthwise"

    def settle(self) -> None:
        self.pixels = self.schedule.pixels
        self.weights = self.taps_of()

    def kernel(self) -> KernelStep:
        builder, made, lanes = (
            self.builder,
            self.node.output,
            self.schedule.channels or _lanes(self.node.output.shape[1]),
        )
        channels = fixed(made.shape[1])
        assert channels is not None
        self.image = builder.grid("image", builder.size(made.shape[0]))
        self.rows = [builder.grid(f"at_{k}", builder.size(size)) for k, size in enumerate(made.shape[2:-1])]
        block = builder.grid("block", Literal(-(-channels // lanes)))
        lane = builder.variable("lane", Literal(0), Literal(lanes))
        self.sums = builder.local("sums", self.weights.dtype, (self.pixels,), Scope.THREAD)
        self.channel = block * lanes + lane
        read = fixed(self.origin.shape[1])
        assert read is not None
        self.read = self.channel if channels == read else self.channel // (channels // read)
        self.mask = both(inside(builder, self.channel, Literal(channels)), inside(builder, self.read, Literal(read)))
        width = fixed(made.shape[-1])
        pieces = self._along_symbolic() if width is None else self._along(width)
        why = f"{self.group}; {self.pixels} pixels of {lanes} channels at a time"
        return builder.finish([Threads(lane, lanes, tuple(pieces))], why, self.schedule)

    # pieces of a row

    def _along(self, width: int) -> list[Statement]:
        """A row's pieces; those whose windows meet the edges alike share a loop."""
        starts = range(0, width, self.pixels)
        size = fixed(first(self.node).shape[-1])
        assert size is not None
        found: list[Statement] = []
        for taps, same in itertools.groupby(starts, key=lambda start: self._taps(start, width, size)):
            pieces = [start // self.pixels for start in same]
            if len(pieces) == 1:
                found += self._piece(Literal(pieces[0] * self.pixels), taps)
                continue
            name = f"piece_{pieces[0]}"
            piece = self.builder.variable(name, Literal(pieces[0]), Literal(pieces[-1] + 1))
            body = tuple(self._piece(piece * self.pixels, taps))
            found.append(Loop(piece, Literal(pieces[0]), Literal(pieces[-1] + 1), body))
        return found

    def _taps(self, start: int, width: int, size: int) -> tuple[tuple[int, ...], ...]:
        """For each pixel of a piece the taps of the last dimension that meet the input."""
        window = self.windows[-1]
        return tuple(
            tuple(
                tap for tap in range(window.kernel)
                if 0 <= at * window.stride + tap * window.dilation - window.padding < size
            )
            for at in range(start, min(start + self.pixels, width))
        )  # fmt: skip

    def _along_symbolic(self) -> list[Statement]:
        """A row of unknown length: pieces inside have no conditions."""
        builder, made, window = self.builder, self.node.output, self.windows[-1]
        width, size = builder.size(made.shape[-1]), builder.size(first(self.node).shape[-1])
        count = (width + (self.pixels - 1)) // self.pixels
        piece = builder.variable("piece", Literal(0), count)
        start = piece * self.pixels
        low, high = window.start(start, 0), window.start(start + (self.pixels - 1), window.kernel - 1)
        whole = both(Literal(0) <= low, high < size, start + self.pixels <= width)
        assert whole is not None
        every = tuple(tuple(range(window.kernel)) for _ in range(self.pixels))
        interior = tuple(self._piece(start, every))
        edge = tuple(self._piece(start, every, size, width))
        return [Loop(piece, Literal(0), count, (Branch(whole, interior, edge),))]

    def _piece(
        self, start: Expression, taps: Sequence[Sequence[int]], size: Expression | None = None, width: Expression | None = None
    ) -> list[Statement]:  # fmt: skip
        """A few pixels: sums from zero, the taps, what comes behind.

        :param size: the input's size, where elements may lie outside of it
        :param width: the result's size, where pixels may
        """
        zero = Literal(0.0, self.sums.dtype)
        clear = [Store(self.sums, (Literal(k),), zero) for k in range(len(taps))]
        return [*clear, *self._outer(start, taps, size), *self._behind(start, len(taps), width)]

    # taps

    def _outer(
        self, start: Expression, taps: Sequence[Sequence[int]], size: Expression | None
    ) -> tuple[Statement, ...]:
        """Loops over the taps of all dimensions but the last."""
        builder = self.builder
        loops: list[tuple[Name, Expression, Expression]] = []
        at: list[Expression] = []
        conditions: list[Expression | None] = []
        number: Expression = Literal(0)
        for k, (window, row) in enumerate(zip(self.windows[:-1], self.rows, strict=True)):
            extent = builder.size(self.origin.shape[2 + k])
            low, high = window_ends(builder, window.start(row, 0), extent, window)
            tap: Expression = Literal(0)
            if window.kernel > 1:
                name = builder.fresh()
                variable = builder.variable(f"tap_{name}", low, high)
                loops.append((variable, low, high))
                tap = variable
            place = window.start(row, tap)
            conditions.append(inside(builder, place, extent))
            at.append(place)
            number = number * window.kernel + tap
        body = guarded(both(self.mask, *conditions), self._line(start, taps, at, number, size))
        for variable, low, high in reversed(loops):
            body = (Loop(variable, low, high, body),)
        return body

    def _line(
        self, start: Expression, taps: Sequence[Sequence[int]], at: Sequence[Expression], number: Expression, size: Expression | None
    ) -> list[Statement]:  # fmt: skip
        """The taps of the last dimension, for all pixels of the piece."""
        builder, window = self.builder, self.windows[-1]
        weights, elements, statements = {}, {}, list[Statement]()
        packed = builder.buffer(self.weights)
        for tap in sorted({tap for each in taps for tap in each}):
            weights[tap] = Name(builder.fresh(), packed.dtype)
            statements.append(Let(weights[tap], Load(packed, (number * window.kernel + tap, self.channel))))
        for pixel, each in enumerate(taps):
            for tap in each:
                offset = pixel * window.stride + tap * window.dilation
                if offset not in elements:
                    elements[offset] = Name(builder.fresh(), packed.dtype)
                    statements.append(Let(elements[offset], self._element(start, offset, at, size)))
        for pixel, each in enumerate(taps):
            total: Expression | None = None
            for tap in each:
                product = elements[pixel * window.stride + tap * window.dilation] * weights[tap]
                total = product if total is None else total + product
            if total is not None:
                statements.append(Update(self.sums, (Literal(pixel),), "+", total))
        return statements

    def _element(self, start: Expression, offset: int, at: Sequence[Expression], size: Expression | None) -> Expression:
        """The input some places behind the first tap of the piece's first pixel; zero outside."""
        builder, window = self.builder, self.windows[-1]
        place = builder.indices.short(start * window.stride + (offset - window.padding))
        found = builder.locate(self.origin, index_of(self.origin, (self.image, self.read, *at, place)))
        assert found is not None
        element = cast(found, self.sums.dtype)
        if size is None:
            return element
        condition = both(Literal(0) <= place, place < size)
        assert condition is not None
        return apply("select", condition, element, Literal(0.0, element.dtype))

    # what comes behind

    def _behind(self, start: Expression, count: int, width: Expression | None) -> list[Statement]:
        """The pointwise nodes behind, on the sums."""
        builder, node = self.builder, self.node
        found: list[Statement] = []
        for pixel in range(count):
            at = builder.indices.short(start + pixel)
            index = index_of(node.output, (self.image, self.channel, *self.rows, at))
            behind = self.behind(Load(self.sums, (Literal(pixel),)), self.channel, index)
            found += guarded(both(self.mask, None if width is None else at < width), behind)
        return found


__all__ = ["candidates", "default_schedule", "lower_depthwise"]
