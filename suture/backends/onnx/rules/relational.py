"""Message passing in plain ONNX: maxima and sums at indices by scatters, products by type over tiles of rows of one type.

A product by type gathers no matrix per row: rows are brought into tiles of `ROWS` rows of one type, padded, and each tile is multiplied by the
matrix of its type in one MatMul.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.rules.inspection import (
    INT,
    counted,
    counting,
    ended,
    filled,
    rows_of,
    scattered,
    sorted_order,
    tiled,
)

if TYPE_CHECKING:
    import onnx_ir

    from suture.ir.sizes import Dim

ROWS = 32


def _highest(at: Lowering, index: onnx_ir.Value, count: Dim) -> onnx_ir.Value:
    """The maxima of the first operand's rows at equal indices; minus infinity (of integers, the lowest) where there are none."""
    at.need(18, "scatter that takes the maximum")
    dtype, dims = at.type(0).dtype, (count, *at.type(0).shape[1:])
    lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
    return scattered(at, filled(at, at.shape(dims), lowest, dtype), index, at.x(0), "max")


def _maximum(at: Lowering, index: onnx_ir.Value, count: Dim) -> onnx_ir.Value:
    """The maxima at equal indices, and `empty` where there are none."""
    hit = at.op("Greater", counted(at, index, at.shape([count])), at.ints(0))
    if at.type(0).rank > 1:
        hit = at.unsqueeze(hit, *range(1, at.type(0).rank))
    return at.op("Where", hit, _highest(at, index, count), at.scalar(at.node.attributes["empty"], at.out.dtype))


@rule("segment_max")
def _segment_max(at: Lowering) -> onnx_ir.Value:
    return _maximum(at, at.x(1, INT), at.out.shape[0])


@rule("segment_softmax")
def _segment_softmax(at: Lowering) -> onnx_ir.Value:
    index, (count,) = at.x(1, INT), at.dims("segments")
    risen = at.op("Exp", at.op("Sub", at.x(0), at.op("Gather", _highest(at, index, count), index, axis=0)))
    zeros = filled(at, at.shape((count, *at.out.shape[1:])), 0, at.out.dtype)
    return at.op("Div", risen, at.op("Gather", scattered(at, zeros, index, risen, "add"), index, axis=0))


@rule("csr_sum")
def _csr_sum(at: Lowering) -> onnx_ir.Value:
    zeros = filled(at, at.shape(at.out.shape), 0, at.out.dtype)
    return scattered(at, zeros, _segments(at, 1, at.type(0).shape[0]), at.x(0), "add")


@rule("csr_max")
def _csr_max(at: Lowering) -> onnx_ir.Value:
    return _maximum(at, _segments(at, 1, at.type(0).shape[0]), at.out.shape[0])


@rule("csr_spread")
def _csr_spread(at: Lowering) -> onnx_ir.Value:
    return at.op("Gather", at.x(0), _segments(at, 1, at.out.shape[0]), axis=0)


def _segments(at: Lowering, index: int, rows: Dim) -> onnx_ir.Value:
    """The segment of each row, from the pointers that an operand holds."""
    return rows_of(at, at.x(index, INT), at.shape([rows]))


@rule("typed_linear")
def _typed_linear(at: Lowering) -> onnx_ir.Value:
    return _linear(at, at.x(2, INT))


@rule("grouped_linear")
def _grouped_linear(at: Lowering) -> onnx_ir.Value:
    made = _linear(at, at.op("Gather", at.x(3, INT), _segments(at, 2, at.type(0).shape[0])))
    if not at.has(4):
        return made
    return scattered(at, filled(at, at.shape(at.out.shape), 0, at.out.dtype), at.x(4, INT), made, "add")


@rule("typed_outer")
def _typed_outer(at: Lowering) -> onnx_ir.Value:
    return _outer(at, at.x(2, INT))


@rule("grouped_outer")
def _grouped_outer(at: Lowering) -> onnx_ir.Value:
    return _outer(at, _segments(at, 2, at.type(0).shape[0]))


def _linear(at: Lowering, types: onnx_ir.Value) -> onnx_ir.Value:
    """Each row times the matrix of its type: tiles `[k, *h, r, i]` times the matrices of their types `[k, *h, i, o]`."""
    slots, source, of_tile = _tiles(at, types, at.type(1).shape[0])
    heads = at.type(0).rank - 2
    tiles = _in_tiles(at, at.op("Gather", at.x(0), source, axis=0), at.type(0).shape[1:], of_tile)
    made = at.op("MatMul", _rows_inside(at, tiles, heads), at.op("Gather", at.x(1), of_tile, axis=0))
    slots_of_tiles = at.op("Mul", at.op("Shape", of_tile), at.ints(ROWS))
    flat = at.concat([slots_of_tiles, at.shape(at.out.shape[1:])], 0)
    back = at.transpose(made, [0, heads + 1, *range(1, heads + 1), heads + 2])
    return at.op("Gather", at.op("Reshape", back, flat, allowzero=1), slots, axis=0)


def _outer(at: Lowering, types: onnx_ir.Value) -> onnx_ir.Value:
    """For each type the sum of its tiles' products `[k, *h, i, r]` times `[k, *h, r, o]`; rows that only pad are zero."""
    count, dtype = at.out.shape[0], at.out.dtype
    _, source, of_tile = _tiles(at, types, count, pad=True)
    heads = at.type(0).rank - 2
    sides = []
    for index in (0, 1):
        shape = at.type(index).shape
        padded = at.concat([at.x(index), filled(at, at.shape((1, *shape[1:])), 0, dtype)], 0)
        tiles = _in_tiles(at, at.op("Gather", padded, source, axis=0), shape[1:], of_tile)
        sides.append(_rows_inside(at, tiles, heads))
    turned = at.transpose(sides[0], [*range(heads + 1), heads + 2, heads + 1])
    zeros = filled(at, at.shape(at.out.shape), 0, dtype)
    return scattered(at, zeros, of_tile, at.op("MatMul", turned, sides[1]), "add")


def _tiles(
    at: Lowering, types: onnx_ir.Value, count: Dim, *, pad: bool = False
) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
    """Rows in tiles of one type each: the slot of each row, the row of each slot, the type of each tile.

    A slot that only pads holds the first row or, where `pad` is asked for, the row behind the last.
    """
    rows = at.op("Shape", types)
    order = sorted_order(at, types)
    sorted_types = at.op("Gather", types, order)
    lengths = counted(at, types, at.shape([count]))
    first, of_tile = tiled(at, lengths, ROWS)
    starts = at.op("CumSum", lengths, at.constant(0, INT), exclusive=1)
    inside = at.op("Sub", counting(at, rows), at.op("Gather", starts, sorted_types))
    slots = at.op("Add", at.op("Mul", at.op("Gather", first, sorted_types), at.ints(ROWS)), inside)
    room = at.op("Mul", ended(at, first, -1), at.ints(ROWS))
    empty = at.op("Expand", rows, room) if pad else filled(at, room, 0, INT)
    source = scattered(at, empty, slots, order)
    return scattered(at, filled(at, rows, 0, INT), order, slots), source, of_tile


def _in_tiles(at: Lowering, x: onnx_ir.Value, features: tuple[Dim, ...], of_tile: onnx_ir.Value) -> onnx_ir.Value:
    """Slots as tiles: `[k * r, *f]` as `[k, r, *f]`."""
    return at.op("Reshape", x, at.concat([at.op("Shape", of_tile), at.shape((ROWS, *features))], 0), allowzero=1)


def _rows_inside(at: Lowering, x: onnx_ir.Value, heads: int) -> onnx_ir.Value:
    """`[k, r, *h, f]` as `[k, *h, r, f]`."""
    return at.transpose(x, [0, *range(2, 2 + heads), 1, 2 + heads])
