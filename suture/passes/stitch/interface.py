"""What crosses a cut: how a value lays out channels and positions, and what must be resampled so that two models' values line up.

The channel dimension is the one that parameters write or read along (found from the axes); what remains is positions: a grid of an image, a sequence
of tokens, perhaps with a few tokens beside the grid (class and register tokens), which come first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.algebra import atoms_of
from suture.ir.axes import AxisTable
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim
from suture.ir.types import Attribute, TensorType

Layout = Literal["vector", "tokens", "channels_first", "channels_last"]

_MOST_EXTRA_TOKENS = 5  # a class token, and four registers


@dataclass(frozen=True)
class Interface:
    """The layout of a value of a type.

    :param grid: the sizes of the positions: none, one or several numbers
    :param extra: how many tokens stand before those of the grid
    """

    type: TensorType
    layout: Layout
    grid: tuple[Dim, ...]
    extra: int
    channels: int

    @property
    def positions(self) -> Dim:
        """How many positions there are, extra tokens included."""
        total: Dim = 1
        for size in self.grid:
            total = total * size
        return total + self.extra

    def lines_up(self, other: Interface) -> bool:
        """Whether values of both need no resampling: the same layout and positions, whatever the channels."""
        return (self.layout, self.grid, self.extra) == (other.layout, other.grid, other.extra)

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The features of every position of every example, [rows, channels]."""
        wide = tensor.movedim(1, -1) if self.layout == "channels_first" else tensor
        return wide.reshape(-1, self.channels)

    def __str__(self) -> str:
        where = "x".join(map(str, self.grid)) or "no positions"
        more = f" and {self.extra} more" if self.extra else ""
        return f"{self.channels} channels, {self.layout.replace('_', ' ')}, {where}{more}"


def interface_of(table: AxisTable, value: Value) -> Interface:
    """How a value is laid out.

    :param table: the axes of its graph
    :raises SutureError: STITCH, if it has no batch and channels, or its channels are of no fixed number
    """
    rank = value.rank
    if rank < 2 or not value.dtype.is_floating_point:
        raise _misfit(value, "it has no batch and channels", "a floating-point value of rank 2 to 5 would be right")
    dim = _channel_dim(table, value)
    channels = value.shape[dim]
    if not isinstance(channels, int):
        raise _misfit(value, f"its channels are of the size {channels}", "stitch where the number of channels is fixed")
    grid = tuple(size for k, size in enumerate(value.shape) if k not in (0, dim))
    if not grid:
        return Interface(value.type, "vector", (), 0, channels)
    if dim != rank - 1:
        return Interface(value.type, "channels_first", grid, 0, channels)
    if len(grid) > 1:
        return Interface(value.type, "channels_last", grid, 0, channels)
    extra, square = _square(grid[0])
    return Interface(value.type, "tokens", square, extra, channels)


def _channel_dim(table: AxisTable, value: Value) -> int:
    """The last dimension, if parameters write or read along it; else the one along which most do; else the second of an image."""
    counts = [0] * value.rank
    for dim in range(1, value.rank):
        for atom in dict.fromkeys(atoms_of(table.axis(value, dim))):
            info = table.infos.get(atom)
            if info is not None and info.places:
                counts[dim] += len(info.writers) + len(info.readers)
    if counts[-1]:
        return value.rank - 1
    if any(counts):
        return counts.index(max(counts))
    return 1 if value.rank > 3 else value.rank - 1


def _square(tokens: Dim) -> tuple[int, tuple[Dim, ...]]:
    """The extra tokens and the square grid of so many tokens; a sequence of no square number of tokens is a grid of one dimension."""
    if isinstance(tokens, int):
        for extra in range(min(_MOST_EXTRA_TOKENS, tokens - 1) + 1):
            side = math.isqrt(tokens - extra)
            if side * side == tokens - extra:
                return extra, (side, side)
    return 0, (tokens,)


def _misfit(value: Value, what: str, remedy: str) -> SutureError:
    return SutureError(Code.STITCH, f"{value} ({value.type}) cannot be stitched: {what}", where=value.graph.name,
                       remedy=remedy)  # fmt: skip


def align(graph: Graph, value: Value, source: Interface, target: Interface) -> Value:
    """Add to a graph what brings a value into the layout and to the positions of another interface; its channels stay.

    Grids shrink by averaging and grow by linear interpolation; tokens beside the grid are carried over, and are the mean of the grid where the source
    has fewer of them.

    :raises SutureError: STITCH, if there is no such way
    """
    if source.lines_up(target):
        return value
    if target.layout == "vector":
        return _mean(graph, value, source)
    if len(source.grid) != len(target.grid) or source.type.shape[0] != target.type.shape[0]:
        raise SutureError(
            Code.STITCH,
            f"{source.type} does not line up with {target.type}: {source} against {target}",
            remedy="grids of as many dimensions would be right",
        )
    batch, channels = source.type.shape[0], source.channels
    image, extras = _to_image(graph, value, source)
    if source.grid != target.grid:
        image = _resize(graph, image, (batch, channels, *target.grid), source.grid, target.grid)
    if target.layout == "channels_first":
        return image
    last = (0, *range(2, 2 + len(target.grid)), 1)
    if target.layout == "channels_last":
        return graph.add("permute", [image], {"dims": last}).output
    return _to_tokens(graph, image, extras, target, batch, channels)


def _to_image(graph: Graph, value: Value, source: Interface) -> tuple[Value, Value | None]:
    """The grid with channels first, and the tokens beside it."""
    batch, channels = source.type.shape[0], source.channels
    if source.layout == "channels_first":
        return value, None
    first = (0, 1 + len(source.grid), *range(1, 1 + len(source.grid)))
    if source.layout == "channels_last":
        return graph.add("permute", [value], {"dims": first}).output, None
    extras = None
    if source.extra:
        rest = source.positions - source.extra
        shapes = [(batch, source.extra, channels), (batch, rest, channels)]
        extras, value = graph.add("split", [value], {"dim": 1}, shapes=shapes, name=["extra_tokens", "grid"]).outputs
    permuted = graph.add("permute", [value], {"dims": (0, 2, 1)}).output
    return graph.add("reshape", [permuted], shapes=[(batch, channels, *source.grid)]).output, extras


def _resize(graph: Graph, image: Value, shape: tuple[Dim, ...], old: tuple[Dim, ...], new: tuple[Dim, ...]) -> Value:
    fixed = [(a, b) for a, b in zip(old, new, strict=True) if isinstance(a, int) and isinstance(b, int)]
    if len(fixed) != len(old) or len(old) > 2:
        raise SutureError(
            Code.STITCH,
            f"positions of {'x'.join(map(str, old))} cannot be resampled to {'x'.join(map(str, new))}",
            remedy="fixed grids of one or two dimensions would be right",
        )
    rank = len(old)
    if all(a % b == 0 for a, b in fixed):
        return graph.add("adaptive_avg_pool", [image], {"rank": rank}, shapes=[shape]).output
    mode = "bilinear" if rank == 2 else "linear"
    attributes: dict[str, Attribute] = {"rank": rank, "mode": mode, "align_corners": False}
    return graph.add("interpolate", [image], attributes, shapes=[shape]).output


def _to_tokens(graph: Graph, image: Value, extras: Value | None, target: Interface, batch: Dim, channels: int) -> Value:
    count = target.positions - target.extra
    flat = graph.add("reshape", [image], shapes=[(batch, channels, count)]).output
    tokens = graph.add("permute", [flat], {"dims": (0, 2, 1)}).output
    if not target.extra:
        return tokens
    given = 0
    parts: list[Value] = []
    if extras is not None:
        held = extras.shape[1]
        assert isinstance(held, int)
        given = min(held, target.extra)
        parts.append(
            extras
            if given == held
            else graph.add("slice", [extras], {"dim": 1}, shapes=[(batch, given, channels)]).output
        )
    if given < target.extra:
        mean = graph.add("mean", [tokens], {"dims": (1,), "keepdim": True}).output
        parts += [mean] * (target.extra - given)
    return graph.add("concat", [*parts, tokens], {"dim": 1}).output


def _mean(graph: Graph, value: Value, source: Interface) -> Value:
    if source.layout == "channels_first":
        dims = tuple(range(2, 2 + len(source.grid)))
    else:
        dims = tuple(range(1, 1 + (1 if source.layout == "tokens" else len(source.grid))))
    return graph.add("mean", [value], {"dims": dims}).output
