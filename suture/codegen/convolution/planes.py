"""Depthwise convolutions of images that lie plane by plane: lanes run over columns, and rows come into shared memory with zeros around them.

Where neither the input nor the result has its channels innermost, bringing both there and back costs more than the convolution does.
"""

from __future__ import annotations

from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.sources import guarded, readable, result
from suture.codegen.convolution.windows import both, first, fixed, index_of
from suture.codegen.convolution.writer import ConvolutionWriter
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
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

_LANES = (64, 48, 32, 16)
_ROWS = 4  # output rows whose windows share what they read
_NEAR = 8192  # elements of a plane that stay in the nearest cache


def fits_planes(group: Group, context: Context) -> bool:
    """Whether a depthwise convolution would have to be brought to channels-last and back, and can be taken plane by plane."""
    node = group.anchor
    assert node is not None
    value = first(node)
    sizes = [fixed(size) for size in (*value.shape[2:], *node.output.shape[2:])]
    if value.rank != 4 or None in sizes or readable(value, context, group.nodes):
        return False
    if not all(result(each, context)[1] for each in group.outputs):
        return False
    builder = KernelBuilder(context, group.nodes, "probe")
    names = [builder.variable(f"at_{dim}", Literal(0), builder.size(size)) for dim, size in enumerate(value.shape)]
    return builder.locate(value, index_of(value, names)) is not None


def default_schedule(node: Node) -> ConvolutionSchedule:
    """Lanes that waste the fewest columns."""
    width = fixed(node.output.shape[-1])
    assert width is not None
    return ConvolutionSchedule(_ROWS, min(_LANES, key=lambda each: (-(-width // each) * each, -each)))


def lower_planes(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a depthwise convolution whose planes lie one behind the other."""
    assert group.anchor is not None
    return _Planes(group, context, default_schedule(group.anchor)).lower()


class _Planes(ConvolutionWriter):
    """A block takes some rows of a channel of an image."""

    name = "depthwise_planes"

    def settle(self) -> None:
        node, (down, across) = self.node, self.windows
        self.lanes = self.schedule.channels
        self.weights = self.taps_of()
        height, width = (fixed(size) or 0 for size in node.output.shape[2:])
        self.turns = -(-width // self.lanes)
        self.columns = -(-across.reach(self.turns * self.lanes) // 16) * 16
        near = max((_NEAR // self.columns - down.kernel * down.dilation) // down.stride, _ROWS)
        bands = -(-height // near)
        self.band = -(-height // max(bands, 1) // _ROWS) * _ROWS or _ROWS

    def reads(self) -> tuple[Value, list[KernelStep]]:
        return first(self.node), []

    def place_of(self, value: Value) -> tuple[Value, list[KernelStep]]:
        return value, []

    def kernel(self) -> KernelStep:
        builder, made = self.builder, self.node.output
        channels, read = fixed(made.shape[1]), fixed(self.origin.shape[1])
        assert channels is not None and read is not None
        height = fixed(made.shape[2]) or 0
        self.image = builder.grid("image", builder.size(made.shape[0]))
        self.channel = builder.grid("channel", Literal(channels))
        bands = -(-height // self.band)
        band: Expression = builder.grid("band", Literal(bands)) if bands > 1 else Literal(0)
        self.top = builder.indices.short(band * self.band)
        self.read = self.channel if channels == read else self.channel // (channels // read)
        self.lane = builder.variable("lane", Literal(0), Literal(self.lanes))
        rows = self.windows[0].reach(self.band)
        self.near = builder.local("near", self.weights.dtype, (rows, self.columns), Scope.SHARED)
        self.sums = builder.local("sums", self.weights.dtype, (_ROWS,), Scope.THREAD)
        ahead = self._loaded()
        clear, bring, sum_up = (
            Threads(self.lane, self.lanes, part)
            for part in (self._cleared(rows), self._brought(rows), self._rows(height))
        )
        body = [clear, bring, *ahead, sum_up]
        why = f"{self.group}; {self.band} rows of a plane at a time"
        return builder.finish(body, why, self.schedule)

    def _loaded(self) -> list[Statement]:
        """The channel's weights and bias, which all lanes share."""
        builder, node = self.builder, self.node
        packed = builder.buffer(self.weights)
        taps = self.windows[0].kernel * self.windows[1].kernel
        self.taps = [Name(builder.fresh(), packed.dtype) for _ in range(taps)]
        found: list[Statement] = [
            Let(name, Load(packed, (Literal(tap), self.channel))) for tap, name in enumerate(self.taps)
        ]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            reader, at = builder.lane(), index_of(bias, (self.channel,))
            self.known[bias, at] = reader.value(bias, at)
            found += reader.statements
        return found

    def _cleared(self, rows: int) -> tuple[Statement, ...]:
        """Zeros everywhere."""
        builder = self.builder
        row = builder.variable("cleared", Literal(0), Literal(rows))
        turns = -(-self.columns // self.lanes)
        turn = builder.variable("clearing", Literal(0), Literal(turns))
        own = turn * self.lanes + self.lane
        store = Store(self.near, (row, own), Literal(0.0, self.near.dtype))
        fill = guarded(None if self.columns % self.lanes == 0 else own < self.columns, [store])
        return (Loop(row, Literal(0), Literal(rows), (Loop(turn, Literal(0), Literal(turns), fill),)),)

    def _brought(self, rows: int) -> tuple[Statement, ...]:
        """The rows that the band's windows meet, as far as they are in the plane."""
        builder, (down, across) = self.builder, self.windows
        high, wide = (fixed(size) or 0 for size in self.origin.shape[2:])
        above = self.top * down.stride - down.padding  # the plane's row that is the first near
        first_row = builder.indices.short(apply("max", Literal(0), Literal(0) - above))
        last_row = builder.indices.short(apply("min", Literal(rows), Literal(high) - above))
        row = builder.variable("row", first_row, last_row)
        turns = -(-wide // self.lanes)
        turn = builder.variable("turn", Literal(0), Literal(turns))
        own = turn * self.lanes + self.lane
        at = builder.indices.short(above + row)
        found = builder.locate(self.origin, index_of(self.origin, (self.image, self.read, at, own)))
        assert found is not None
        place = (row, own + across.padding)
        inside_plane = None if wide % self.lanes == 0 else own < wide
        room = None if turns * self.lanes + across.padding <= self.columns else own + across.padding < self.columns
        body = guarded(both(inside_plane, room), [Store(self.near, place, cast(found, self.near.dtype))])
        return (Loop(row, first_row, last_row, (Loop(turn, Literal(0), Literal(turns), body),)),)

    def _rows(self, height: int) -> tuple[Statement, ...]:
        """The band's results, some rows at a time."""
        builder, (down, across), made = self.builder, self.windows, self.node.output
        width = fixed(made.shape[3]) or 0
        piece = builder.variable("piece", Literal(0), Literal(self.band // _ROWS))
        turn = builder.variable("turn", Literal(0), Literal(self.turns))
        column = turn * self.lanes + self.lane
        start = builder.indices.short(piece * (_ROWS * down.stride))
        zero = Literal(0.0, self.sums.dtype)
        body: list[Statement] = [Store(self.sums, (Literal(k),), zero) for k in range(_ROWS)]
        for right in range(across.kernel):
            elements: dict[int, Name] = {}
            for below in range(down.kernel):
                weight = self.taps[below * across.kernel + right]
                for k in range(_ROWS):
                    at = k * down.stride + below * down.dilation
                    if at not in elements:
                        elements[at] = Name(builder.fresh(), self.near.dtype)
                        place = (start + at, column * across.stride + right * across.dilation)
                        body.append(Let(elements[at], Load(self.near, place)))
                    body.append(Update(self.sums, (Literal(k),), "+", elements[at] * weight))
        for k in range(_ROWS):
            row = builder.indices.short(self.top + piece * _ROWS + k)
            index = index_of(made, (self.image, self.channel, row, column))
            behind = self.behind(Load(self.sums, (Literal(k),)), self.channel, index)
            low = None if height % self.band == 0 else row < height
            body += guarded(both(low, None if width % self.lanes == 0 else column < width), behind)
        loop = Loop(turn, Literal(0), Literal(self.turns), tuple(body))
        return (Loop(piece, Literal(0), Literal(self.band // _ROWS), (loop,)),)


__all__ = ["default_schedule", "fits_planes", "lower_planes"]
