"""What convolutions and pools read and write: values whose channels lie innermost, copied there only where they do not."""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.windows import Window, both, channels_last, fixed, index_of
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import Branch, Expression, Literal, Loop, Statement, Store, Threads, apply, cast
from suture.ir.sizes import Dim

_LANES = 64


def readable(value: Value, context: Context, nodes: Sequence[Node]) -> bool:
    """Whether a kernel of these nodes can read a value where it lies, neighbouring channels side by side."""
    builder = KernelBuilder(context, nodes, "probe")
    names = [builder.variable(f"at_{dim}", Literal(0), builder.size(size)) for dim, size in enumerate(value.shape)]
    found = builder.locate(value, index_of(value, names))
    if found is None or value.shape[1] == 1:
        return found is not None
    sides = zip(reversed(found.index), reversed(found.buffer.shape), strict=True)
    return next((at == names[1] for at, size in sides if size != Literal(1)), False)


def source(value: Value, context: Context, nodes: Sequence[Node]) -> tuple[Value, list[KernelStep]]:
    """A value that lies channels-last, and the kernel that makes it where it must be copied."""
    if readable(value, context, nodes):
        return value, []
    copy = context.temporary(compute_type(value.dtype), value.shape, f"{value.name}_by_channel")
    context.storage[copy] = channels_last(value.rank)
    return copy, [moved(value, copy, context, nodes)]


def result(value: Value, context: Context) -> tuple[Value, list[KernelStep]]:
    """Where a kernel whose lanes run over channels stores a value, and the kernel that brings it to its place where that is not there."""
    innermost = context.order(value)[-1]
    if innermost == 1 or all(size == 1 for size in value.shape[2:]) or value.shape[1] == 1:
        return value, []
    made = context.temporary(value.dtype, value.shape, f"{value.name}_by_channel")
    context.storage[made] = channels_last(value.rank)
    return made, [moved(made, value, context)]


def moved(origin: Value, target: Value, context: Context, nodes: Sequence[Node] = ()) -> KernelStep:
    """The kernel that copies a value into one of the same shape that lies in another order.

    :param nodes: the nodes that it computes on the way

    Lanes take the target's innermost dimension; a block also runs over the origin's, so that what comes with an element is used soon.
    """
    builder = KernelBuilder(context, nodes, "lay_out")
    order = context.order(target)
    inner, other = order[-1], order[-2] if order[-1] == 1 else 1
    places: dict[int, Expression] = {}
    for dim in order:
        if dim not in (inner, other):
            places[dim] = builder.grid(f"at_{dim}", builder.size(target.shape[dim]))
    size, lanes = builder.size(target.shape[inner]), lanes_for(target.shape[inner])
    turns = (size + (lanes - 1)) // lanes
    turn, lane = builder.variable("turn", Literal(0), turns), builder.variable("lane", Literal(0), Literal(lanes))
    places[other] = along = builder.variable("along", Literal(0), builder.size(target.shape[other]))
    places[inner] = turn * lanes + lane
    index = [places[dim] for dim in range(target.rank)]
    moving = builder.lane()
    moving.store(target, index_of(target, index), moving.value(origin, index_of(origin, index)))
    body = guarded(None if _fills(target.shape[inner], lanes) else places[inner] < size, moving.statements)
    loop = Loop(turn, Literal(0), turns, (Loop(along, Literal(0), builder.size(target.shape[other]), body),))
    why = f"{origin} into the order {', '.join(map(str, order))}"
    return builder.finish([Threads(lane, lanes, (loop,))], why)


def padded_rows(
    value: Value, windows: Sequence[Window], context: Context, nodes: Sequence[Node] = ()
) -> tuple[Value, KernelStep]:
    """A copy with zeros around it, `[n, *rows, columns * channels]`: where channels are few, a window's whole row is contiguous.

    :param nodes: the nodes that it computes on the way
    """
    channels = fixed(value.shape[1])
    assert channels is not None
    spatial = [size + 2 * window.padding for size, window in zip(value.shape[2:], windows, strict=True)]
    dtype = compute_type(value.dtype)
    copy = context.temporary(dtype, (value.shape[0], *spatial[:-1], spatial[-1] * channels), f"{value.name}_padded")
    builder = KernelBuilder(context, nodes, "pad")
    image = builder.grid("image", builder.size(value.shape[0]))
    rows = [builder.grid(f"row_{k}", builder.size(size)) for k, size in enumerate(spatial[:-1])]
    columns, lanes = builder.size(spatial[-1]), lanes_for(spatial[-1])
    turns = (columns + (lanes - 1)) // lanes
    turn, lane = builder.variable("turn", Literal(0), turns), builder.variable("lane", Literal(0), Literal(lanes))
    column = turn * lanes + lane
    places = [at - window.padding for at, window in zip((*rows, column), windows, strict=True)]
    conditions: list[Expression] = []
    for at, window, size in zip(places, windows, value.shape[2:], strict=True):
        if window.padding:
            conditions += [Literal(0) <= at, at < builder.size(size)]
    condition = both(*conditions)
    copying = builder.lane()
    statements: list[Statement] = []
    for channel in range(channels):
        with copying.guarded():
            element = copying.value(value, index_of(value, (image, Literal(channel), *places)))
        found = element if condition is None else apply("select", condition, element, Literal(0, dtype))
        place = builder.place(copy, (image, *rows, column * channels + channel))
        statements.append(Store(place.buffer, place.index, cast(found, dtype)))
    # said twice, as each is needed for what it is an index of
    last, end = column * channels + (channels - 1), builder.size(copy.shape[-1])
    lane_inside = None if _fills(spatial[-1], lanes) else both(column < columns, last < end)
    body = guarded(lane_inside, [*copying.statements, *statements])
    why = f"{value} with {', '.join(str(w.padding) for w in windows)} zeros around it, channels innermost"
    step = builder.finish([Threads(lane, lanes, (Loop(turn, Literal(0), turns, body),))], why)
    return copy, step


def lanes_for(size: Dim) -> int:
    """As many lanes as a dimension takes, in whole vectors; at most 64."""
    number = fixed(size)
    if number is None or number >= _LANES:
        return _LANES
    return max(-(-number // 8) * 8, 8)


def guarded(condition: Expression | None, body: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements under a condition, if there is one."""
    return tuple(body) if condition is None else (Branch(condition, tuple(body)),)


def _fills(size: Dim, lanes: int) -> bool:
    """Whether lanes take a dimension in whole turns."""
    number = fixed(size)
    return number is not None and number % lanes == 0


__all__ = ["guarded", "lanes_for", "moved", "padded_rows", "readable", "result", "source"]
