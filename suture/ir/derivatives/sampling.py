"""The derivative of sampling at a grid: the definition, written out from lookups, is gone back through."""

from __future__ import annotations

from typing import TypeAlias

import torch

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.reverse import derived
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.sizes import Dim, product

_CUBIC = -0.75
"""The slope of torch's cubic weights one position from the centre (Keys 1981)."""

Tap: TypeAlias = "tuple[Formula, Formula | None]"


@rule("grid_sample")
def _grid_sample(at: Site) -> Gradients:
    image, grid = at.operand(0), at.operand(1)
    n, c, height, width = image.shape
    places = [n, product(grid.shape[1:3])]
    flat = grid.reshape([*places, 2])
    pixels = image.reshape([n, c, product([height, width])])
    rows = _taps(at, flat.op("select", dim=2, index=1), height)
    columns = _taps(at, flat.op("select", dim=2, index=0), width)
    total: Formula | None = None
    for row, down in rows:
        for column, across in columns:
            held = (column >= 0).also(column <= width - 1).also(row >= 0).also(row <= height - 1)
            index = held.where(row * width + column, 0).op("cast", dtype=torch.int64)
            seen = pixels.op("gather", index.reshape([n, 1, places[1]]).expand([n, c, places[1]]), dim=2)
            part = held.reshape([n, 1, places[1]]).where(seen, 0.0)
            if down is not None and across is not None:
                part = part * (down * across).reshape([n, 1, places[1]])
            total = part if total is None else total + part
    assert total is not None
    yield from derived(at, [total.reshape([n, c, *grid.shape[1:3]])]).items()


def _taps(at: Site, place: Formula, size: Dim) -> list[Tap]:
    """The rows or columns that a coordinate sees, and their weights, None for 1. Cubic weights are those of the coordinate as it is."""
    pixel = (place + 1) * (size - 1) / 2 if at["align_corners"] else ((place + 1) * size - 1) / 2
    if at["mode"] == "nearest":
        return [(_bounded(at, pixel, size).op("round"), None)]
    if at["mode"] == "bilinear":
        pixel = _bounded(at, pixel, size)
        low = pixel.op("floor")
        rest = pixel - low
        return [(low, 1 - rest), (low + 1, rest)]
    low = pixel.op("floor")
    rest = pixel - low
    weights = (_outer(rest + 1), _inner(rest), _inner(1 - rest), _outer(2 - rest))
    return [(_bounded(at, low + k, size), weight) for k, weight in enumerate(weights, start=-1)]


def _inner(t: Formula) -> Formula:
    """The cubic weight at a distance of up to 1."""
    return (t * (_CUBIC + 2) - (_CUBIC + 3)) * t * t + 1


def _outer(t: Formula) -> Formula:
    """The cubic weight at a distance from 1 to 2."""
    return ((t * _CUBIC - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC


def _bounded(at: Site, pixel: Formula, size: Dim) -> Formula:
    """A position in pixels as `padding` says: as it is, at the border, or mirrored at the outermost pixels' centres or outer edges."""
    if at["padding"] == "zeros":
        return pixel
    if at["padding"] == "reflection":
        pixel = _reflected(pixel, 0.0, size - 1) if at["align_corners"] else _reflected(pixel, -0.5, size)
    return pixel.op("clamp", min=0.0).op("minimum", None, scalar=size - 1)


def _reflected(pixel: Formula, low: float, span: Dim) -> Formula:
    """Mirrored at `low` and at `low + span`, as often as it takes."""
    if span == 0:
        return pixel * 0.0
    distance = (pixel - low).abs()
    extra = distance.op("remainder", None, scalar=span)
    flips = (distance / span).op("floor")
    even = flips.op("remainder", None, scalar=2).equals(0)
    return even.where(extra + low, (span - extra) + low)
