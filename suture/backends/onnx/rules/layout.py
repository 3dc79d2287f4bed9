"""Operators that move data along dimensions: reshape, permute, slices, concatenations, padding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.held import Held, rows_of
from suture.backends.onnx.lowering import LAST, Lowering
from suture.ir.sizes import Dim, Size

if TYPE_CHECKING:
    import onnx_ir


@rule("reshape")
def _reshape(at: Lowering) -> onnx_ir.Value:
    return at.emitter.viewed(at.value(0), at.out.shape)


@rule("permute")
def _permute(at: Lowering) -> onnx_ir.Value | Held:
    """Reorder dimensions; leading sizes of 1 that the operand is held under stay in front."""
    rank = max(at.type(0).rank, 1)
    order = [dim % rank for dim in at.integers("dims")]
    held = at.emitter.held(at.value(0))
    lead = len(held.shape) - rank
    if lead > 0 and held.shape == (*[1] * lead, *at.type(0).shape):
        moved = [*range(lead), *(dim + lead for dim in order)]
        return Held(at.transpose(held.value, moved), (*[1] * lead, *at.out.shape))
    return at.transpose(at.x(0), order)


@rule("expand")
def _expand(at: Lowering) -> onnx_ir.Value:
    """Only the sizes that grow are named: 1 leaves a dimension as it is."""
    source, target = at.type(0).shape, at.out.shape
    if source == target:
        return at.x(0)
    padded = (1,) * (len(target) - len(source)) + source
    return at.op(
        "Expand", at.x(0), at.shape([1 if old == new else new for old, new in zip(padded, target, strict=True)])
    )


@rule("repeat")
def _repeat(at: Lowering) -> onnx_ir.Value:
    repeats, x = at.dims("repeats"), at.x(0)
    extra = len(repeats) - at.type(0).rank
    if extra:
        x = at.unsqueeze(x, *range(extra))
    return x if all(count == 1 for count in repeats) else at.op("Tile", x, at.shape(repeats))


@rule("repeat_interleave")
def _repeat_interleave(at: Lowering) -> onnx_ir.Value:
    dim, count, shape = at.dim(), at.dims("repeats")[0], at.type(0).shape
    apart: list[Dim] = [1] * (len(shape) + 1)
    apart[dim + 1] = count
    spread = at.op("Expand", at.unsqueeze(at.x(0), dim + 1), at.shape(apart))
    return at.reshape(spread, (*shape[: dim + 1], count, *shape[dim + 1 :]), at.out.shape)


@rule("concat")
def _concat(at: Lowering) -> onnx_ir.Value:
    return at.concat([at.x(k, at.out.dtype) for k in range(len(at.node.inputs))], at.integer("dim") % at.out.rank)


@rule("split")
def _split(at: Lowering) -> tuple[onnx_ir.Value | Held, ...]:
    dim, parts = at.dim(), at.node.outputs
    if len(parts) == 1:
        return (at.x(0),)
    views = all(use.node.operator.name == "reshape" for value in parts for use in value.uses)
    if views and dim == at.type(0).rank - 1 and at.emitter.is_held_as_rows(at.value(0)):
        made = at.ops(
            "Split", len(parts), at.emitter.rows(at.value(0)), at.shape([value.shape[dim] for value in parts]), axis=1
        )
        return tuple(Held(x, rows_of(value)) for x, value in zip(made, parts, strict=True))
    return at.ops("Split", len(parts), at.x(0), at.shape([value.shape[dim] for value in parts]), axis=dim)


@rule("slice")
def _slice(at: Lowering) -> onnx_ir.Value:
    """Ends are counted from whichever side needs no size to be computed."""
    dim, step = at.dim(), at.integer("step")
    start = at.dims("start")[0]
    size, length = at.type(0).shape[dim], at.out.shape[dim]
    if start == 0 and length == size and step == 1:
        return at.x(0)
    end = start + ((length - 1) * step + 1)
    if length == 0:
        end = start
    reached: Dim = LAST if end == size else _from_the_end(end, size)
    return at.slice(at.x(0), dim, _from_the_end(start, size), reached, step)


def _from_the_end(position: Dim, size: Dim) -> Dim:
    distance = position - size
    return distance if isinstance(position, Size) and isinstance(distance, int) and distance < 0 else position


@rule("select")
def _select(at: Lowering) -> onnx_ir.Value:
    return at.op("Gather", at.x(0), at.size(at.dims("index")[0]), axis=at.dim())


@rule("roll")
def _roll(at: Lowering) -> onnx_ir.Value | Held:
    """One Gather of all positions where their number is fixed, neighbouring dimensions as one; else two Slices and a Concat a dimension."""
    x, shape = at.value(0), at.type(0).shape
    shifts = {dim % len(shape): shift for shift, dim in zip(at.dims("shifts"), at.integers("dims"), strict=True)}
    first, last = min(shifts), max(shifts) + 1
    sizes = [size for size in shape[first:last] if isinstance(size, int)]
    moved = [(dim - first, shift) for dim, shift in shifts.items() if isinstance(shift, int)]
    if len(sizes) == last - first == len(moved) == len(at.integers("dims")):
        positions = torch.arange(math.prod(sizes)).reshape(sizes)
        turned = torch.roll(positions, [shift for _, shift in moved], [dim for dim, _ in moved])
        flat: tuple[Dim, ...] = (*shape[:first], math.prod(sizes), *shape[last:])
        index = at.emitter.constant(turned.reshape(-1))
        return Held(at.op("Gather", at.emitter.viewed(x, flat), index, axis=first), flat)
    made = at.x(0)
    for shift, dim in zip(at.dims("shifts"), at.integers("dims"), strict=True):
        axis = dim % len(shape)
        cut = -shift % shape[axis]  # what stood here comes first
        if cut != 0:
            made = at.concat([at.slice(made, axis, cut, LAST), at.slice(made, axis, 0, cut)], axis)
    return made


@rule("flip")
def _flip(at: Lowering) -> onnx_ir.Value:
    rank = at.type(0).rank
    axes = [dim % rank for dim in at.integers("dims")]
    if not axes:
        return at.x(0)
    count = len(axes)
    return at.op(
        "Slice", at.x(0), at.ints(*[-1] * count), at.ints(*[-LAST] * count), at.ints(*axes), at.ints(*[-1] * count)
    )


@rule("pad")
def _pad(at: Lowering) -> onnx_ir.Value:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    mode, pads, value = at.text("mode"), at.integers("pads"), at.node.attributes["value"]
    if mode == "circular":
        at.need(19, "circular padding (Pad in mode wrap)")
    if not any(pads):
        return at.x(0)
    filling = at.constant(value, at.out.dtype) if mode == "constant" and value else None
    return at.op("Pad", at.x(0), at.ints(*pads), filling, mode=modes[mode])


@rule("triangle")
def _triangle(at: Lowering) -> onnx_ir.Value:
    dtype = at.out.dtype
    wide = torch.int64 if dtype in (torch.int32, torch.int16, torch.int8, torch.uint8) else dtype
    diagonal = at.constant(at.integer("diagonal"), torch.int64)
    return at.cast(at.op("Trilu", at.x(0, wide), diagonal, upper=int(at.flag("upper"))), wide, dtype)


@rule("pixel_shuffle")
def _pixel_shuffle(at: Lowering) -> onnx_ir.Value:
    rank, x = at.type(0).rank, at.x(0)
    if rank == 4:
        return at.op("DepthToSpace", x, blocksize=at.integer("factor"), mode="CRD")
    if rank == 3:
        return at.squeeze(at.op("DepthToSpace", at.unsqueeze(x, 0), blocksize=at.integer("factor"), mode="CRD"), 0)
    r, (*lead, _, h, w), c = at.integer("factor"), at.type(0).shape, at.out.shape[-3]
    k = len(lead)
    apart = at.reshape(x, at.type(0).shape, (*lead, c, r, r, h, w))
    moved = at.transpose(apart, [*range(k), k, k + 3, k + 1, k + 4, k + 2])
    return at.reshape(moved, (*lead, c, h, r, w, r), at.out.shape)


@rule("pixel_unshuffle")
def _pixel_unshuffle(at: Lowering) -> onnx_ir.Value:
    r, (*lead, c, _, _), (h, w) = at.integer("factor"), at.type(0).shape, at.out.shape[-2:]
    k = len(lead)
    apart = at.reshape(at.x(0), at.type(0).shape, (*lead, c, h, r, w, r))
    moved = at.transpose(apart, [*range(k), k, k + 2, k + 4, k + 1, k + 3])
    return at.reshape(moved, (*lead, c, r, r, h, w), at.out.shape)
