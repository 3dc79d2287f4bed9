"""Convolutions as products of matrices that are never written out.

Rows are output pixels, columns output channels, and the contracted dimension runs over the window's taps and the input channels: for each tap, the
row of a pixel begins at the element of the input that the tap meets there, or among zeros (indirect convolution: Dukhan 2019, "The Indirect
Convolution Algorithm"; the register tile is that of a matrix product). Where there are few input channels, the row of a window is contracted as a
whole, from a copy of the input with zeros around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from suture.codegen.convolution.packing import pack_panels
from suture.codegen.convolution.sources import guarded, padded_rows
from suture.codegen.convolution.weights import groups_of, panels
from suture.codegen.convolution.windows import both, first, fixed, index_of, inside, turned, windows_of
from suture.codegen.convolution.writer import ConvolutionWriter
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Parameter, Value
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
from suture.ir.sizes import Dim

_SHALLOW = 16  # with fewer input channels, rows of the window are contracted as a whole


def default_schedule(node: Node) -> ConvolutionSchedule:
    """Channels are taken by 32 if that fills no more than 16 would; weights stay in the cache if they are smaller than an image."""
    groups = groups_of(node)
    wide = -(-groups.outputs // 32) * 32 == -(-groups.outputs // 16) * 16
    sizes = [fixed(size) for size in first(node).shape[1:]]
    image = math.prod(size for size in sizes if size is not None) if None not in sizes else math.inf
    weight = node.inputs[1]
    assert weight is not None
    weights = math.prod(size for size in weight.shape if isinstance(size, int))
    return ConvolutionSchedule(64, 32 if wide else 16, panels_outside=weights > image)


def candidates(node: Node) -> tuple[ConvolutionSchedule, ...]:
    """Schedules worth measuring, the default first."""
    start = default_schedule(node)
    found = [start]
    for pixels in (24, 48, 64, 112):
        for channels in sorted({start.channels, 32, 64}):
            for outside in (False, True):
                found.append(ConvolutionSchedule(pixels, channels, outside))
    return tuple(dict.fromkeys(found))


def lower_dense(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a convolution whose channels are contracted."""
    assert group.anchor is not None
    return _Dense(group, context, context.schedule(group, default_schedule(group.anchor))).lower()


@dataclass(frozen=True)
class _Tile:
    """The output pixels that a block takes: `rows` whole rows of the last dimension, or a part of one.

    :param images: how many images, where each has a single pixel
    """

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


def tile_of(images: Dim, spatial: Sequence[Dim], most: int) -> _Tile:
    """As many pixels as fit, of about equal share for every block."""
    if all(size == 1 for size in spatial):
        number = fixed(images)
        return _Tile(most if number is None else max(min(number, most), 1), 1, 1)
    width = fixed(spatial[-1])
    if width is None:
        return _Tile(1, 1, most // 12 * 12 or most)
    if width > most:
        return _Tile(1, 1, -(-width // -(-width // most)))
    height = fixed(spatial[-2]) if len(spatial) > 1 else 1
    rows = max((k for k in range(1, (height or 1) + 1) if (height or 1) % k == 0 and k * width <= most), default=1)
    return _Tile(1, rows if height is not None else 1, max(width, 1))


def takes_rows(node: Node) -> bool:
    """Whether a window's rows are contracted as a whole, from a copy of the input."""
    groups, columns = groups_of(node), windows_of(node)[-1]
    return groups.count == 1 and groups.inputs < _SHALLOW and columns.kernel > 1 and columns.dilation == 1


class _Dense(ConvolutionWriter):
    """Rows of pixels times panels of channels."""

    name = "convolution"

    def settle(self) -> None:
        node, context = self.node, self.context
        if node.operator.name == "conv_transpose":
            self.windows = turned(self.windows)
        self.groups = groups_of(node)
        self.width = self.schedule.channels or default_schedule(node).channels
        self.tile = tile_of(node.output.shape[0], node.output.shape[2:], self.schedule.pixels)
        self.by_row = takes_rows(self.node)
        self.computed = not isinstance(node.inputs[1], Parameter)
        if self.computed:
            self.weights, step = pack_panels(node, self.groups, self.width, context, by_row=self.by_row)
            self.packing.append(step)
        else:
            self.weights = panels(node, self.groups, self.width, context, by_row=self.by_row)

    def reads(self) -> tuple[Value, list[KernelStep]]:
        if not self.by_row:
            return super().reads()
        origin, step = padded_rows(first(self.node), self.windows, self.context, self.group.front)
        return origin, [step]

    def kernel(self) -> KernelStep:
        builder, result_ = self.builder, self.node.output
        count = -(-self.groups.outputs // self.width)
        images = (builder.size(result_.shape[0]) + (self.tile.images - 1)) // self.tile.images
        outer: list[tuple[str, Expression]] = [("image", images)]
        spatial = result_.shape[2:]
        outer += [(f"at_{k}", builder.size(size)) for k, size in enumerate(spatial[:-2])]
        if len(spatial) > 1:
            outer.append(("row", builder.size(spatial[-2]) // self.tile.rows))
        outer.append(("column", (builder.size(spatial[-1]) + (self.tile.columns - 1)) // self.tile.columns))
        channels: list[tuple[str, Expression]] = [("part", Literal(self.groups.count)), ("panel", Literal(count))]
        order = [*channels, *outer] if self.schedule.panels_outside else [*outer, *channels]
        self.at: dict[str, Expression] = {
            name: builder.grid(name, size) if size != Literal(1) else Literal(0)
            for name, size in [(name, builder.indices.short(size)) for name, size in order]
        }
        sum_ = builder.local("sum", self.weights.dtype, (self.tile.pixels, 1), Scope.THREAD)
        self.rows = self._rows()
        body = (*self._products(sum_), self._epilogue(sum_))
        why = f"{self.group}; tiles of {self.tile.pixels} pixels by {self.width} channels" + (
            ", a row of the window at a time" if self.by_row else ""
        )
        return builder.finish(body, why, self.schedule)

    def _rows(self) -> Expression:
        """How many pixels of the tile there are."""
        builder, tile, shape = self.builder, self.tile, self.node.output.shape
        if tile.images > 1:
            return apply("min", Literal(tile.images), builder.size(shape[0]) - self.at["image"] * tile.images)
        width = fixed(shape[-1])
        if width is not None and width % tile.columns == 0:
            return Literal(tile.pixels)
        return apply("min", Literal(tile.columns), builder.size(shape[-1]) - self.at["column"] * tile.columns)

    def _pixel(self, number: Name) -> tuple[Expression, list[Expression]]:
        """The image and the output position of a pixel of the tile."""
        tile, spatial = self.tile, self.node.output.shape[2:]
        positions: list[Expression] = [self.at[f"at_{k}"] for k in range(len(spatial) - 2)]
        if tile.images > 1:
            return self.at["image"] * tile.images + number, [*positions, *[Literal(0)] * min(len(spatial), 2)]
        whole = tile.rows == 1
        if len(spatial) > 1:
            start = self.at["row"] * tile.rows
            positions.append(start if whole else start + number // tile.columns)
        positions.append(self.at["column"] * tile.columns + (number if whole else number % tile.columns))
        return self.at["image"], positions

    # the products

    def _products(self, sum_: Buffer) -> tuple[Statement, ...]:
        """For each tap of the window, the pixels' rows times its weights."""
        builder, window = self.builder, self.windows[:-1] if self.by_row else self.windows
        loops = [(f"tap_{k}", each.kernel) for k, each in enumerate(window)]
        taps: list[Expression] = [
            builder.variable(name, Literal(0), Literal(count)) if count > 1 else Literal(0) for name, count in loops
        ]
        depth = Literal(self.groups.inputs * (self.windows[-1].kernel if self.by_row else 1))
        row, column = (
            builder.variable("pixel", Literal(0), self.rows),
            builder.variable("channel", Literal(0), Literal(self.width)),
        )
        inner = builder.variable("inner", Literal(0), depth)
        packed = builder.buffer(self.weights)
        turns = (inner, *taps) if self.computed and not self.by_row else (*taps, inner)
        right = Load(packed, (self.at["part"], self.at["panel"], *turns, column))
        single = all(count == 1 for _, count in loops)
        product: Statement = MultiplyAccumulate(
            sum_, self._left(row, inner, taps), right, row, column, inner, self.rows, Literal(self.width), depth, self.width, self.width,
            adds=not single,
        )  # fmt: skip
        for (_, count), tap in reversed(list(zip(loops, taps, strict=True))):
            if isinstance(tap, Name):
                product = Loop(tap, Literal(0), Literal(count), (product,))
        if single:
            return (product,)
        lane, at = Name("start_lane"), Name("start_pixel")
        clear = Store(sum_, (at, Literal(0)), Literal(0.0, sum_.dtype))
        return (Threads(lane, self.width, (Loop(at, Literal(0), Literal(self.tile.pixels), (clear,)),)), product)

    def _left(self, pixel: Name, inner: Name, taps: Sequence[Expression]) -> Expression:
        """The input's element that a tap of a pixel's window meets; zero outside."""
        builder = self.builder
        image, positions = self._pixel(pixel)
        if self.by_row:
            inputs, last = self.groups.inputs, self.windows[-1]
            starts = [
                at * window.stride + tap * window.dilation
                for at, window, tap in zip(positions[:-1], self.windows[:-1], taps, strict=True)
            ]
            place = positions[-1] * (last.stride * inputs) + inner
            return cast(builder.place(self.origin, (image, *starts, place)), self.weights.dtype)
        at = [window.start(each, tap) for each, window, tap in zip(positions, self.windows, taps, strict=True)]
        sizes = [builder.size(size) for size in self.origin.shape[2:]]
        condition = both(*(inside(builder, each, size) for each, size in zip(at, sizes, strict=True)))
        channel = self.at["part"] * self.groups.inputs + inner
        found = builder.locate(self.origin, index_of(self.origin, (image, channel, *at)))
        assert found is not None
        element = cast(found, self.weights.dtype)
        return element if condition is None else apply("select", condition, element, Literal(0.0, element.dtype))

    # what comes behind

    def _epilogue(self, sum_: Buffer) -> Statement:
        """The pointwise nodes behind, on the sums."""
        builder, node, width = self.builder, self.node, self.width
        lane = builder.variable("lane", Literal(0), Literal(width))
        pixel = builder.variable("result", Literal(0), self.rows)
        image, positions = self._pixel(pixel)
        own = self.at["panel"] * width + lane
        channel = self.at["part"] * self.groups.outputs + own
        index = index_of(node.output, (image, channel, *positions))
        behind = self.behind(Load(sum_, (pixel, Literal(0))), channel, index)
        full = self.groups.outputs % width == 0
        body = guarded(None if full else own < self.groups.outputs, behind)
        return Threads(lane, width, (Loop(pixel, Literal(0), self.rows, body),))


__all__ = ["candidates", "default_schedule", "lower_dense", "takes_rows", "tile_of"]
