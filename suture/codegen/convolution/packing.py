"""Weights of convolutions that are computed: a kernel brings them into the order in which the convolution reads them, at every call.

A register tile's channels lie side by side, for each input channel and tap in the order of the weights: bringing them there is a transposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from suture.codegen.convolution.weights import Groups
from suture.codegen.cpp.strides import replaced
from suture.codegen.merging import MergingBuilder
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)


def pack_panels(
    node: Node, groups: Groups, width: int, context: Context, *, by_row: bool = False
) -> tuple[Value, KernelStep]:
    """Computed weights as `[groups, panels, inputs, *window, width]`, zeros behind the last channel, and the kernel that brings them there.

    :param by_row: the last dimension of the window and the inputs are one, `[groups, panels, *rows, columns * inputs, width]`
    """
    weight = _weight(node)
    window = _window(weight)
    count = -(-groups.outputs // width)
    inner = (*window[:-1], window[-1] * groups.inputs) if by_row else (groups.inputs, *window)
    packed = context.temporary(weight.dtype, (groups.count, count, *inner, width), "panels")
    builder = MergingBuilder(context, (), "pack_weights")
    part = builder.grid("part", Literal(groups.count)) if groups.count > 1 else Literal(0)
    panel = builder.grid("panel", Literal(count)) if count > 1 else Literal(0)
    length = math.prod(inner)
    row = builder.variable("row", Literal(0), Literal(length))
    column = builder.variable("column", Literal(0), Literal(groups.outputs))
    if by_row:
        *rows, across, channel = _digits(builder, row, (*window, groups.inputs))
        taps: list[Expression] = [*rows, across]
    else:
        channel, *taps = _digits(builder, row, inner)
    lane, own = Name("t"), panel * width + Name("t")
    place = builder.place(packed, (part, panel, *_digits(builder, row, inner), lane))
    element = _element(builder, node, groups, part, column, channel, taps)
    if isinstance(element, Load):
        whole: tuple[Statement, ...] = (
            _loop(row, length, Store(place.buffer, place.index, replaced(element, {column.name: own}))),
        )
    else:
        whole = (Let(column, own), _loop(row, length, Store(place.buffer, place.index, element)))
    if groups.outputs % width:
        empty = _loop(row, length, Store(place.buffer, place.index, Literal(0.0, weight.dtype)))
        outputs = Literal(groups.outputs)
        last: tuple[Statement, ...] = (Branch(own < outputs, whole, (empty,)),)
        whole = (Branch(panel * width + width <= outputs, whole, last),) if count > 1 else last
    return packed, builder.finish([Threads(lane, width, whole)], f"{weight.name} in panels of {width} channels")


def pack_taps(node: Node, context: Context) -> tuple[Value, KernelStep]:
    """Computed weights of a depthwise convolution as `[taps, channels]`, and the kernel that brings them there."""
    weight = _weight(node)
    window, channels = _window(weight), weight.shape[0]
    assert isinstance(channels, int)
    taps, lanes = math.prod(window), 16
    packed = context.temporary(weight.dtype, (taps, channels), "taps")
    builder = MergingBuilder(context, (), "pack_weights")
    block = builder.grid("block", Literal(-(-channels // lanes)))
    row, column = (
        builder.variable("row", Literal(0), Literal(taps)),
        builder.variable("column", Literal(0), Literal(channels)),
    )
    place = builder.place(packed, (row, column))
    reader = builder.lane()
    found = cast(reader.value(weight, (column, Literal(0), *_digits(builder, row, window))), weight.dtype)
    loop = _loop(row, taps, *reader.statements, Store(place.buffer, place.index, found))
    own, lane = block * lanes + Name("t"), Name("t")
    body = (Let(column, own), Branch(column < Literal(channels), (loop,)))
    return packed, builder.finish([Threads(lane, lanes, body)], f"{weight.name} by tap")


def _element(
    builder: MergingBuilder, node: Node, groups: Groups, part: Expression, column: Name, channel: Expression, taps: Sequence[Expression]
) -> Expression:  # fmt: skip
    """A weight: a place in memory where it is one."""
    weight = _weight(node)
    outputs, inputs = groups.outputs // groups.joined, groups.inputs // groups.joined
    if node.operator.name == "conv_transpose":
        turned = [Literal(size - 1) - tap for size, tap in zip(_window(weight), taps, strict=True)]
        index: tuple[Expression, ...] = (channel, column, *turned)
    else:
        own = channel % inputs if groups.joined > 1 else channel
        index = (part * groups.outputs + column, own if inputs > 1 else Literal(0), *taps)
    found = builder.locate(weight, index)
    element: Expression = found if found is not None else cast(builder.seen(weight, index), weight.dtype)
    if groups.joined == 1:
        return element
    together = apply("==", column // outputs, channel // inputs)
    return apply("select", together, element, Literal(0.0, weight.dtype))


def _digits(builder: MergingBuilder, number: Expression, sizes: Sequence[int]) -> list[Expression]:
    digits = builder.indices.digits(number, [Literal(size) for size in sizes])
    return [Literal(0) if size == 1 else digit for size, digit in zip(sizes, digits, strict=True)]


def _loop(row: Name, length: int, *body: Statement) -> Loop:
    return Loop(row, Literal(0), Literal(length), body)


def _weight(node: Node) -> Value:
    weight = node.inputs[1]
    assert weight is not None
    return weight


def _window(weight: Value) -> tuple[int, ...]:
    return tuple(size for size in weight.shape[2:] if isinstance(size, int))


__all__ = ["pack_panels", "pack_taps"]
