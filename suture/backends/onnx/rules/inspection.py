"""Orders, pointers, unique pairs and tiles: what edges alone decide. TopK sorts (the earlier of equals first), Unique finds pairs, CumSum counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import LAST, Lowering

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir

INT = torch.int64


def filled(at: Lowering, shape: onnx_ir.Value, number: float, dtype: torch.dtype) -> onnx_ir.Value:
    """A tensor of one number; the shape is a vector that may be computed."""
    import onnx_ir as ir

    return at.op("ConstantOfShape", shape, value=ir.tensor_adapters.TorchTensor(torch.tensor([number], dtype=dtype)))


def counting(at: Lowering, count: onnx_ir.Value) -> onnx_ir.Value:
    """0, 1, 2, ... below a count, which is a vector of one number."""
    return at.op("Range", at.constant(0, INT), at.squeeze(count, 0), at.constant(1, INT))


def scattered(
    at: Lowering, onto: onnx_ir.Value, index: onnx_ir.Value, rows: onnx_ir.Value, reduction: str = "none"
) -> onnx_ir.Value:
    """Rows put, or added, at the positions of an index along the first dimension."""
    return at.op("ScatterND", onto, at.unsqueeze(index, 1), rows, reduction=reduction)


def counted(at: Lowering, index: onnx_ir.Value, count: onnx_ir.Value) -> onnx_ir.Value:
    """How often each number below a count is in an index."""
    ones = filled(at, at.op("Shape", index), 1, INT)
    return scattered(at, filled(at, count, 0, INT), index, ones, "add")


def ended(at: Lowering, x: onnx_ir.Value, start: int, end: int = LAST) -> onnx_ir.Value:
    """A part of a vector."""
    return at.op("Slice", x, at.ints(start), at.ints(end), at.ints(0))


def pointers(at: Lowering, counts: onnx_ir.Value) -> onnx_ir.Value:
    """0, then the running sums of counts."""
    return at.concat([at.ints(0), at.op("CumSum", counts, at.constant(0, INT))], 0)


def rows_of(at: Lowering, runs: onnx_ir.Value, count: onnx_ir.Value) -> onnx_ir.Value:
    """The run of each row: how many runs have ended at it or before."""
    key = ("rows", runs)
    if key not in at.emitter.cache:
        ends = counted(at, ended(at, runs, 1, -1), at.op("Add", count, at.ints(1)))
        at.emitter.cache[key] = ended(at, at.op("CumSum", ends, at.constant(0, INT)), 0, -1)
    return at.emitter.cache[key]


def sorted_order(at: Lowering, key: onnx_ir.Value) -> onnx_ir.Value:
    """The stable order that sorts a vector."""
    return at.ops("TopK", 2, key, at.op("Shape", key), axis=0, largest=0, sorted=1)[1]


def _key(at: Lowering) -> onnx_ir.Value:
    """One number a row that sorts as its keys do."""
    major = at.x(0, INT)
    return _both(at, major, at.x(1, INT))[0] if at.has(1) else major


def _both(at: Lowering, major: onnx_ir.Value, minor: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """One number a row that sorts as two keys do, and how many of them each major key has room for."""
    highest = at.reduce("ReduceMax", at.concat([minor, at.ints(0)], 0), [0], keep=True)
    room = at.op("Add", highest, at.ints(1))
    return at.op("Add", at.op("Mul", major, room), minor), room


@rule("sort_order")
def _sort_order(at: Lowering) -> onnx_ir.Value:
    return sorted_order(at, _key(at))


@rule("inverse_order")
def _inverse_order(at: Lowering) -> onnx_ir.Value:
    order = at.x(0, INT)
    count = at.op("Shape", order)
    return at.cast(scattered(at, filled(at, count, 0, INT), order, counting(at, count)), INT, at.out.dtype)


@rule("run_pointers")
def _run_pointers(at: Lowering) -> onnx_ir.Value:
    return pointers(at, counted(at, at.x(0, INT), at.shape([at.out.shape[0] - 1])))


@rule("unique_rows")
def _unique_rows(at: Lowering) -> Sequence[onnx_ir.Value]:
    _, first, rank = at.ops("Unique", 3, _key(at), sorted=1)
    return first, rank


@rule("tile_runs")
def _tile_runs(at: Lowering) -> Sequence[onnx_ir.Value]:
    runs, rows = at.x(0, INT), at.integer("rows")
    lengths = at.op("Sub", ended(at, runs, 1), ended(at, runs, 0, -1))
    first, types = tiled(at, lengths, rows)
    inside = at.op("Sub", counting(at, at.op("Shape", types)), at.op("Gather", first, types))
    starts = at.op("Add", at.op("Gather", runs, types), at.op("Mul", inside, at.ints(rows)))
    return at.concat([starts, ended(at, runs, -1)], 0), types


def tiled(at: Lowering, lengths: onnx_ir.Value, rows: int) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """The number of the first tile of each run (and of all tiles, at the end), and the run of each tile, for runs of these lengths."""
    counts = at.op("Div", at.op("Add", lengths, at.ints(rows - 1)), at.ints(rows))
    first = pointers(at, counts)
    return first, rows_of(at, first, ended(at, first, -1))


@rule("fewer_ends")
def _fewer_ends(at: Lowering) -> onnx_ir.Value:
    counts = []
    for k in (1, 2):
        key, room = _both(at, at.x(0, INT), at.x(k, INT))
        different = at.ops("Unique", 1, key, sorted=1)[0]
        counts.append(counted(at, at.op("Div", different, room), at.shape(at.out.shape)))
    return at.op("Less", counts[1], counts[0])


@rule("meeting_rows")
def _meeting_rows(at: Lowering) -> onnx_ir.Value:
    side, first, together = at.x(0), at.x(1, INT), at.flag("together")
    turned = at.op("Not", side)
    met, alone = (side, turned) if together else (turned, side)
    pairs = at.op("Compress", first, at.op("Gather", met, first), axis=0)
    rows = at.op("Compress", counting(at, at.op("Shape", side)), alone, axis=0)
    return at.concat([pairs, rows], 0)
