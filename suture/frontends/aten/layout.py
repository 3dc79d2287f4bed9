"""Operators that move data: shapes, orders, parts, joins, lookups, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from suture.frontends.aten.rule import AtenCall, Result, Untranslatable, translates
from suture.ir.graph import Value
from suture.ir.sizes import Dim, Size, product


@translates(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "_unsafe_view", "_reshape_alias", "ravel",
    "view_copy", "atleast_1d", "unsqueeze_copy", "squeeze_copy",
)  # fmt: skip
def _reshape(call: AtenCall) -> Result:
    x = call.value()
    if x.dtype != call.type.dtype:
        raise Untranslatable("bits read as another type")
    return call.reshape(x, call.type.shape)


@translates("permute", "permute_copy")
def _permute(call: AtenCall) -> Result:
    return call.permute(call.value(), call["dims"])


@translates("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint", "matrix_H")
def _transpose(call: AtenCall) -> Result:
    x = call.value()
    order = list(range(x.rank))
    if call.name == "numpy_T":
        return call.permute(x, order[::-1])
    first = call.get("dim0", call.get("axis0", -2 if call.name != "t" else 0))
    second = call.get("dim1", call.get("axis1", -1))
    if x.rank < 2:
        return x
    a, b = call.position(first, x.rank), call.position(second, x.rank)
    order[a], order[b] = order[b], order[a]
    return call.permute(x, order)


@translates("movedim", "moveaxis")
def _movedim(call: AtenCall) -> Result:
    x = call.value()
    source, target = call["source"], call["destination"]
    moved = [call.position(dim, x.rank) for dim in (source if isinstance(source, Sequence) else [source])]
    places = [call.position(dim, x.rank) for dim in (target if isinstance(target, Sequence) else [target])]
    rest = iter(dim for dim in range(x.rank) if dim not in moved)
    return call.permute(x, [moved[places.index(k)] if k in places else next(rest) for k in range(x.rank)])


@translates("expand", "expand_as", "broadcast_to", "expand_copy")
def _expand(call: AtenCall) -> Result:
    return call.expand(call.value(), call.type.shape)


@translates("repeat", "tile")
def _repeat(call: AtenCall) -> Result:
    x = call.value()
    repeats = list(call.get("repeats", call.get("dims")))
    repeats = [1] * (x.rank - len(repeats)) + repeats
    lifted = call.reshape(x, [1] * (len(repeats) - x.rank) + list(x.shape))
    if all(count == 1 for count in repeats):
        return lifted
    if all(size == 1 or count == 1 for size, count in zip(lifted.shape, repeats, strict=True)):
        return call.expand(lifted, call.type.shape)
    return call.emit("repeat", lifted, repeats=tuple(repeats))


@translates("repeat_interleave.self_int")
def _repeat_interleave(call: AtenCall) -> Result:
    x = call.value()
    if call["dim"] is None:
        x, dim = call.reshape(x, [x.type.elements]), 0
    else:
        dim = call.dim()
    return call.emit("repeat_interleave", x, dim=dim, repeats=call["repeats"])


@translates("cat", "concat", "concatenate")
def _concat(call: AtenCall) -> Result:
    parts = [part for part in call["tensors"] if part.shape != (0,) or call.type.rank == 1]
    dim = call.position(call["dim"], call.type.rank)
    parts = [part for part in parts if part.shape[dim] != 0] or parts[:1]
    parts = [call.cast(part, call.type.dtype) for part in parts]
    return call.emit("concat", *parts, dim=dim) if len(parts) > 1 else parts[0]


@translates("hstack", "vstack")
def _stack_rows(call: AtenCall) -> Result:
    least = 2 if call.name == "vstack" else 1
    parts = [call.reshape(part, (1,) * (least - part.rank) + part.shape) for part in call["tensors"]]
    dim = 0 if call.name == "vstack" or call.type.rank == 1 else 1
    return (
        call.emit("concat", *[call.cast(part, call.type.dtype) for part in parts], dim=dim)
        if len(parts) > 1
        else parts[0]
    )


@translates("stack")
def _stack(call: AtenCall) -> Result:
    dim = call.position(call["dim"], call.type.rank)
    parts = [call.reshape(part, (*part.shape[:dim], 1, *part.shape[dim:])) for part in call["tensors"]]
    return call.emit("concat", *parts, dim=dim) if len(parts) > 1 else parts[0]


@translates(
    "split",
    "chunk",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_chunk",
    "tensor_split",
    "unsafe_split_with_sizes",
    "split_copy",
)
def _split(call: AtenCall) -> Result:
    dim = call.dim()
    return call.split(call.value(), dim, [type_.shape[dim] for type_ in call.types if type_ is not None])


@translates("unbind", "unbind_copy")
def _unbind(call: AtenCall) -> Result:
    x, dim = call.value(), call.dim()
    if not isinstance(x.shape[dim], int):
        raise Untranslatable("a symbolic number of parts")
    parts = call.split(x, dim, [1] * len(call.types))
    return [call.reshape(part, (*x.shape[:dim], *x.shape[dim + 1 :])) for part in parts]


def _start(call: AtenCall, size: Dim, given: Any) -> Dim:
    """Where a slice begins, counted from the front and within the dimension."""
    if given is None:
        return 0
    if isinstance(given, Size):
        return given
    if given < 0:
        return max(size + int(given), 0) if isinstance(size, int) else size + int(given)
    start = int(given)
    return min(start, size) if isinstance(size, int) else start


@translates("slice", "slice_copy", "narrow")
def _slice(call: AtenCall) -> Result:
    x, dim = call.value(), call.dim()
    length = call.type.shape[dim]
    if call.name == "narrow" and isinstance(call["start"], Value):
        raise Untranslatable("a place that depends on data")
    start = _start(call, x.shape[dim], call["start"])
    return call.slice(x, dim, start, length, call.get("step", 1))


@translates("select", "select_copy")
def _select(call: AtenCall) -> Result:
    x, dim, index = call.value(), call.dim(), call["index"]
    if isinstance(index, int) and index < 0 and isinstance(x.shape[dim], int):
        index += x.shape[dim]
    if x.shape[dim] == 1:
        return call.reshape(x, call.type.shape)
    return call.emit("select", x, dim=dim, index=index)


@translates("slice_scatter")
def _slice_scatter(call: AtenCall) -> Result:
    x, dim, source = call.value(), call.dim(), call.value("src")
    if call["step"] != 1:
        raise Untranslatable("a write to every other index")
    start = _start(call, x.shape[dim], call["start"])
    return _overwrite(call, x, dim, start, source)


def _overwrite(call: AtenCall, x: Value, dim: int, start: Dim, piece: Value) -> Value:
    """A value with a range of a dimension replaced."""
    end = start + piece.shape[dim]
    rest = x.shape[dim] - end
    before = [call.slice(x, dim, 0, start)] if start != 0 else []
    after = [call.slice(x, dim, end, rest)] if rest != 0 else []
    return call.emit("concat", *before, piece, *after, dim=dim) if before or after else piece


@translates("select_scatter")
def _select_scatter(call: AtenCall) -> Result:
    x, dim, index, source = call.value(), call.dim(), call["index"], call.value("src")
    if not isinstance(index, int):
        raise Untranslatable("a symbolic index")
    start: Dim = index if index >= 0 else x.shape[dim] + index
    piece = call.reshape(source, (*x.shape[:dim], 1, *x.shape[dim + 1 :]))
    return _overwrite(call, x, dim, start, piece)


@translates("roll")
def _roll(call: AtenCall) -> Result:
    x, shifts, dims = call.value(), call["shifts"], call["dims"]
    if dims:
        return call.emit("roll", x, shifts=tuple(shifts), dims=tuple(call.position(dim, x.rank) for dim in dims))
    flat = call.emit("roll", call.reshape(x, [x.type.elements]), shifts=tuple(shifts), dims=(0,))
    return call.reshape(flat, x.shape)


@translates("flip")
def _flip(call: AtenCall) -> Result:
    x = call.value()
    return call.emit("flip", x, dims=tuple(call.position(dim, x.rank) for dim in call["dims"]))


@translates("tril", "triu")
def _triangle(call: AtenCall) -> Result:
    return call.emit("triangle", call.value(), diagonal=call["diagonal"], upper=call.name == "triu")


@translates("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(call: AtenCall) -> Result:
    x = call.value()
    given = list(call.get("pad", call.get("padding")))
    if any(not isinstance(amount, int) for amount in given):
        raise Untranslatable("symbolic padding")
    if not any(given):
        return x
    mode = {"reflection": "reflect", "replication": "replicate", "constant": "constant"}.get(
        call.name.split("_")[0]
    ) or call["mode"]
    # Torch counts pairs from the last dimension.
    pairs = [(given[2 * k], given[2 * k + 1]) for k in range(len(given) // 2)][::-1]
    pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs
    if mode != "constant" and any(before or after for before, after in pairs[:2]) and x.rank > 2:
        raise Untranslatable("reflected channels")
    pads = tuple(before for before, _ in pairs) + tuple(after for _, after in pairs)
    value = call.get("value")
    return call.emit(
        "pad", x, pads=pads, mode=mode, value=None if mode != "constant" else 0.0 if value is None else value
    )


@translates("embedding")
def _embedding(call: AtenCall) -> Result:
    padding = call["padding_idx"]
    return call.emit("embedding", call.value("weight"), call.value("indices"), padding=None if padding < 0 else padding)


@translates("index", "_unsafe_index")
def _index(call: AtenCall) -> Result:
    picked = [(dim, index) for dim, index in enumerate(call["indices"]) if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for _, index in picked):
        raise Untranslatable("a boolean index")
    return call.emit("index", call.value(), *[index for _, index in picked], dims=tuple(dim for dim, _ in picked))


@translates("index_select")
def _index_select(call: AtenCall) -> Result:
    if call.value("index").rank != 1:
        raise Untranslatable("an index that is a number")
    return call.emit("index", call.value(), call.value("index"), dims=(call.dim(),))


@translates("gather")
def _gather(call: AtenCall) -> Result:
    if not call.value().rank:
        raise Untranslatable("a lookup in a number")
    return call.emit("gather", call.value(), call.value("index"), dim=call.dim())


@translates("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(call: AtenCall) -> Result:
    return call.emit(call.name, call.value(), factor=call.get("upscale_factor", call.get("downscale_factor")))


@translates("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: AtenCall) -> Result:
    x, groups = call.value(), call["groups"]
    channels, space = x.shape[1], list(x.shape[2:])
    apart = call.reshape(x, [x.shape[0], groups, channels // groups, *space])
    return call.reshape(call.permute(apart, [0, 2, 1, *range(3, apart.rank)]), x.shape)


@translates("meshgrid")
def _meshgrid(call: AtenCall) -> Result:
    tensors = list(call["tensors"])
    order = list(range(len(tensors)))
    if call.get("indexing", "ij") == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    results = []
    for k, tensor in enumerate(tensors):
        shape: list[Dim] = [1] * len(tensors)
        shape[order[k]] = product(tensor.shape)
        type_ = call.types[k]
        assert type_ is not None
        results.append(call.expand(call.reshape(tensor, shape), type_.shape))
    return results
