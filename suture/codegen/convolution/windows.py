"""The windows of convolutions and pools: which elements of the input an element of the result is made of, and what is known of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from suture.codegen.builder import KernelBuilder
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Literal, apply
from suture.ir.sizes import Dim


@dataclass(frozen=True)
class Window:
    """A window along one dimension: result `o` is made of inputs `o * stride + tap * dilation - padding`."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def start(self, at: Expression, tap: Expression | int) -> Expression:
        """The input's index of one tap of the window at `at`."""
        offset = Literal(tap * self.dilation) if isinstance(tap, int) else tap * self.dilation
        return at * self.stride + offset - self.padding

    def reach(self, count: int) -> int:
        """How many neighbouring inputs the windows of `count` neighbouring results take."""
        return (count - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def windows_of(node: Node) -> tuple[Window, ...]:
    """The windows of a convolution (whose kernel is its weight's shape) or a pool, one for each spatial dimension."""
    kernel = _numbers(node, "kernel") if "kernel" in node.attributes else _weight_window(node)
    rank = len(kernel)
    stride, padding = _spread(node, "stride", rank), _spread(node, "padding", rank)
    dilation = _spread(node, "dilation", rank) if "dilation" in node.attributes else (1,) * rank
    return tuple(map(Window, kernel, stride, padding, dilation))


def turned(windows: Sequence[Window]) -> tuple[Window, ...]:
    """The windows of the convolution that a transposed one is, whose windows move by single steps."""
    return tuple(replace(each, padding=each.dilation * (each.kernel - 1) - each.padding) for each in windows)


def first(node: Node) -> Value:
    """The operand that windows slide over."""
    value = node.inputs[0]
    assert value is not None
    return value


def channels_last(rank: int) -> tuple[int, ...]:
    """The order in which channels, dimension 1, lie innermost."""
    return (0, *range(2, rank), 1)


def fixed(dim: Dim) -> int | None:
    """A size that is a number."""
    return dim if isinstance(dim, int) else None


def inside(builder: KernelBuilder, at: Expression, size: Expression) -> Expression | None:
    """The condition that an index lies in its dimension; None where that is seen anyway."""
    ranges, number, limit = builder.indices.ranges, builder.indices.dim(at), builder.indices.dim(size)
    low = None if ranges.never_negative(number) else Literal(0) <= at
    high = None if ranges.never_negative(limit - 1 - number) else at < size
    return both(low, high)


def window_ends(
    builder: KernelBuilder, start: Expression, size: Expression, window: Window
) -> tuple[Expression, Expression]:
    """The taps of a window that meet the input: from the first to before the last.

    :param start: the input's index of the first tap
    """
    ranges = builder.indices.ranges
    low: Expression = Literal(0)
    if not ranges.never_negative(builder.indices.dim(start)):
        before = (Literal(window.dilation - 1) - start) // window.dilation
        low = apply("max", Literal(0), builder.indices.short(before))
    last = start + (window.kernel - 1) * window.dilation
    high: Expression = Literal(window.kernel)
    if not ranges.never_negative(builder.indices.dim(size) - 1 - builder.indices.dim(last)):
        behind = (size - start + (window.dilation - 1)) // window.dilation
        high = apply("min", Literal(window.kernel), builder.indices.short(behind))
    return low, high


def both(*conditions: Expression | None) -> Expression | None:
    """All of the conditions that are there."""
    found: Expression | None = None
    for condition in conditions:
        if condition is not None:
            found = condition if found is None else apply("and", found, condition)
    return found


def index_of(value: Value, index: Sequence[Expression]) -> tuple[Expression, ...]:
    """An index as readers write it: zero where there is one element."""
    return tuple(Literal(0) if size == 1 else at for size, at in zip(value.shape, index, strict=True))


def _weight_window(node: Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    assert weight is not None
    return tuple(size for size in weight.shape[2:] if isinstance(size, int))


def _numbers(node: Node, name: str) -> tuple[int, ...]:
    value = node.attributes[name]
    return tuple(each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, int))


def _spread(node: Node, name: str, rank: int) -> tuple[int, ...]:
    found = _numbers(node, name)
    return found * rank if len(found) == 1 else found


__all__ = [
    "Window",
    "both",
    "channels_last",
    "first",
    "fixed",
    "index_of",
    "inside",
    "turned",
    "window_ends",
    "windows_of",
]
