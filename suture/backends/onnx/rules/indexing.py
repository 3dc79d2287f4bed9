"""Lookups: rows of a table, advanced indexing, element by element gathers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.sizes import Dim

if TYPE_CHECKING:
    import onnx_ir


def _indices(at: Lowering, index: int) -> onnx_ir.Value:
    dtype = at.type(index).dtype
    return at.x(index, dtype if dtype in (torch.int32, torch.int64) else torch.int64)


@rule("embedding")
def _embedding(at: Lowering) -> onnx_ir.Value:
    return at.op("Gather", at.x(0), _indices(at, 1), axis=0)


@rule("gather")
def _gather(at: Lowering) -> onnx_ir.Value:
    if at.type(0).rank == 0:
        return at.x(0)
    return at.op("GatherElements", at.x(0), _indices(at, 1), axis=at.dim())


@rule("index")
def _index(at: Lowering) -> onnx_ir.Value:
    """One index is a Gather. Several are brought to one shape and stacked, the dimensions that they index moved to the front."""
    rank = at.type(0).rank
    dims = [dim % rank for dim in at.integers("dims")]
    if len(dims) == 1:
        return at.op("Gather", at.x(0), _indices(at, 1), axis=dims[0])
    stacked, common = _stacked(at, len(dims))
    kept = [dim for dim in range(rank) if dim not in dims]
    source = at.transpose(at.x(0), [*dims, *kept])
    found = at.op("GatherND", source, stacked)
    if dims != list(range(dims[0], dims[0] + len(dims))) or dims[0] == 0:
        return found
    # Neighbours: the result's dimensions stand where the indexed ones stood.
    count = len(common)
    order = [*range(count, count + dims[0]), *range(count), *range(count + dims[0], count + len(kept))]
    return at.transpose(found, order)


def _stacked(at: Lowering, count: int) -> tuple[onnx_ir.Value, tuple[Dim, ...]]:
    """The indices side by side in a last dimension, and their common shape; nodes with the same indices share it."""
    common = _broadcast([at.type(k + 1).shape for k in range(count)])
    key = ("stacked", *(at.value(k + 1) for k in range(count)))
    if key not in at.emitter.cache:
        parts = []
        for k in range(count):
            index = at.x(k + 1, torch.int64)
            if at.type(k + 1).shape != common:
                index = at.op("Expand", index, at.shape(common))
            parts.append(at.unsqueeze(index, len(common)))
        at.emitter.cache[key] = at.concat(parts, len(common))
    return at.emitter.cache[key], common


def _broadcast(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    rank = max(len(shape) for shape in shapes)
    common: list[Dim] = [1] * rank
    for shape in shapes:
        for k, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                common[k] = size
    return tuple(common)


@rule("segment_sum")
def _segment_sum(at: Lowering) -> onnx_ir.Value:
    """Zeros, to which elements are added at their indices; the index is repeated along the features."""
    dims, batches = at.type(0).shape, at.type(1).rank - 1
    index = _indices(at, 1)
    if at.type(0).rank > at.type(1).rank:
        index = at.op("Expand", at.unsqueeze(index, *range(at.type(1).rank, at.type(0).rank)), at.shape(dims))
    zeros = at.op("Expand", at.constant(0, at.out.dtype), at.shape(at.out.shape))
    return at.op("ScatterElements", zeros, index, at.x(0), axis=batches, reduction="add")
