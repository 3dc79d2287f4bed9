"""Resampling: which elements of the input an element of the result is made of, and with what weights.

A result's position is mapped to one in the input by the ratio of the sizes, or by the scale that the node states; positions are those of the
elements' centres, or of their corners where `align_corners` holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.codegen.builder import KernelBuilder, Lane
from suture.codegen.convolution.windows import first, fixed, index_of
from suture.codegen.indices import clamped
from suture.codegen.scalars import compute_type
from suture.ir.graph import Node
from suture.ir.kernel import INDEX, Expression, Let, Literal, Name, apply, cast
from suture.ir.sizes import Dim

_NEAREST = ("nearest", "nearest-exact")
_LINEAR = ("linear", "bilinear", "trilinear")


def refuses_resampling(node: Node) -> str | None:
    """Why resampling is left to the library; None if it is not."""
    mode = node.attributes["mode"]
    if mode not in (*_NEAREST, *_LINEAR):
        return f"its mode is {mode}"
    return "it smooths what it makes smaller" if node.attributes["antialias"] else None


def resampled(builder: KernelBuilder, lane: Lane, node: Node, index: Sequence[Expression]) -> Expression:
    """An element of the result; names that the lane needs are put in front."""
    rank, value = node.attributes["rank"], first(node)
    assert isinstance(rank, int)
    outer = node.output.rank - rank
    if node.attributes["mode"] in _NEAREST:
        places = [_nearest(builder, node, k, index[outer + k]) for k in range(rank)]
        return lane.value(value, index_of(value, (*index[:outer], *places)))
    corners = [_linear(builder, lane, node, k, index[outer + k]) for k in range(rank)]
    total: Expression | None = None
    for sides in itertools.product((0, 1), repeat=rank):
        at = [corner.places[side] for corner, side in zip(corners, sides, strict=True)]
        part = lane.value(value, index_of(value, (*index[:outer], *at)))
        for corner, side in zip(corners, sides, strict=True):
            part = part * corner.weights[side]
        total = part if total is None else total + part
    assert total is not None
    return total


@dataclass(frozen=True)
class _Corners:
    """The two neighbours of a position along one dimension, and their weights."""

    places: tuple[Expression, Expression]
    weights: tuple[Expression, Expression]


def _nearest(builder: KernelBuilder, node: Node, k: int, at: Expression) -> Expression:
    size, target, scale = _sizes(node, k)
    extent = builder.size(size)
    if size == target and scale is None:
        return at
    times = fixed(target)
    ratio = times // size if isinstance(size, int) and size and times and times % size == 0 else 0
    if ratio and ratio & (ratio - 1) == 0 and scale in (None, ratio):
        return at // ratio  # the same by either rule
    position = cast(at, torch.float32)
    if node.attributes["mode"] == "nearest-exact":
        position = position + 0.5
    found = apply("floor", position * _ratio(builder, size, target, scale, torch.float32))
    return clamped(cast(found, INDEX), extent)


def _linear(builder: KernelBuilder, lane: Lane, node: Node, k: int, at: Expression) -> _Corners:
    size, target, scale = _sizes(node, k)
    extent, dtype = builder.size(size), compute_type(node.output.dtype)
    position = cast(at, dtype)
    if node.attributes["align_corners"]:
        step = _steps(builder, size, target, dtype)
        position = position * step
    else:
        ratio = _ratio(builder, size, target, scale, dtype)
        position = apply("max", (position + 0.5) * ratio - 0.5, Literal(0.0, dtype))
    position = _named(builder, lane, position)
    low = _named(builder, lane, clamped(cast(apply("floor", position), INDEX), extent))
    high = _named(builder, lane, apply("min", low + 1, extent - 1))
    upper = apply("min", position - cast(low, dtype), Literal(1.0, dtype))
    weight = _named(builder, lane, upper)
    return _Corners((low, high), (Literal(1.0, dtype) - weight, weight))


def _named(builder: KernelBuilder, lane: Lane, value: Expression) -> Expression:
    name = Name(builder.fresh(), value.dtype)
    if value.dtype == INDEX:
        builder.indices.ranges.lets[name.name] = builder.indices.dim(value)
    lane.statements.append(Let(name, value))
    return name


def _sizes(node: Node, k: int) -> tuple[Dim, Dim, float | None]:
    """The input's size, the result's, and the scale between them if the node states one."""
    rank, scales = node.attributes["rank"], node.attributes["scales"]
    assert isinstance(rank, int)
    dim = node.output.rank - rank + k
    scale = scales[k] if isinstance(scales, tuple) else scales
    return first(node).shape[dim], node.output.shape[dim], float(scale) if isinstance(scale, int | float) else None


def _ratio(builder: KernelBuilder, size: Dim, target: Dim, scale: float | None, dtype: torch.dtype) -> Expression:
    """How far apart in the input neighbouring results are."""
    if scale is not None:
        return Literal(_rounded(1.0 / scale, dtype), dtype)
    if isinstance(size, int) and isinstance(target, int):
        return Literal(_rounded(size / target, dtype), dtype)
    return cast(builder.size(size), dtype) / cast(builder.size(target), dtype)


def _steps(builder: KernelBuilder, size: Dim, target: Dim, dtype: torch.dtype) -> Expression:
    """The same where the first and the last elements of both meet."""
    if isinstance(size, int) and isinstance(target, int):
        return Literal(_rounded((size - 1) / (target - 1), dtype) if target > 1 else 0.0, dtype)
    extent, count = builder.size(size), builder.size(target)
    return cast(extent - 1, dtype) / cast(apply("max", count - 1, Literal(1)), dtype)


def _rounded(value: float, dtype: torch.dtype) -> float:
    """A number as its element type has it: the library computes with no more."""
    return float(torch.tensor(value, dtype=dtype))


__all__ = ["refuses_resampling", "resampled"]
