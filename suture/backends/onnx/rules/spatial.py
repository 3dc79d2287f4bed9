"""Pooling, interpolation and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.sizes import Dim, product

if TYPE_CHECKING:
    import onnx_ir


def _with_batch(at: Lowering, rank: int) -> tuple[onnx_ir.Value, bool]:
    """ONNX pools over [n, c, *space]; an image without a batch gets one."""
    lead = at.type(0).rank - rank
    if lead == 2:
        return at.x(0), False
    if lead == 1:
        return at.unsqueeze(at.x(0), 0), True
    at.fail(
        f"{lead} dimensions before the {rank} spatial ones",
        "[channels, *space] or [batch, channels, *space] would be right",
    )


@rule("max_pool")
def _max_pool(at: Lowering) -> onnx_ir.Value:
    return _maxima(at, 1)[0]


@rule("max_pool_index")
def _max_pool_index(at: Lowering) -> onnx_ir.Value:
    return _in_space(at, _maxima(at, 2)[1], len(at.integers("kernel")))


def _in_space(at: Lowering, index: onnx_ir.Value, rank: int) -> onnx_ir.Value:
    """ONNX counts positions through all samples and channels."""
    return at.op("Mod", index, at.size(product(at.type(0).shape[-rank:])))


def _maxima(at: Lowering, results: int) -> tuple[onnx_ir.Value, ...]:
    """The maxima of windows, and where they stand if two results are asked for."""
    kernel = at.integers("kernel")
    x, added = _with_batch(at, len(kernel))
    made = at.ops(
        "MaxPool", results, x, kernel_shape=list(kernel), strides=list(at.integers("stride")), pads=list(at.integers("padding")) * 2,
        dilations=list(at.integers("dilation")), ceil_mode=_ceil_mode(at, at.integers("dilation")),
    )  # fmt: skip
    return tuple(at.squeeze(y, 0) for y in made) if added else tuple(made)


@rule("adaptive_max_pool_index")
def _adaptive_max_pool_index(at: Lowering) -> onnx_ir.Value:
    rank = at.integer("rank")
    windows = _even_windows(at.type(0).shape[-rank:], at.out.shape[-rank:])
    if windows is None:
        at.fail("windows of several sizes", "result sizes that divide the operand's would be right")
    x, added = _with_batch(at, rank)
    index = _in_space(at, at.ops("MaxPool", 2, x, kernel_shape=windows, strides=windows)[1], rank)
    return at.squeeze(index, 0) if added else index


@rule("avg_pool")
def _avg_pool(at: Lowering) -> onnx_ir.Value:
    """A divisor of its own is a mean over whole windows, scaled."""
    kernel, divisor = at.integers("kernel"), at.node.attributes["divisor"]
    x, added = _with_batch(at, len(kernel))
    if divisor is not None and at.flag("ceil"):
        at.fail("a divisor together with ceil", "one of them would be right")
    counted = at.flag("count_padding") or divisor is not None
    y = at.op(
        "AveragePool", x, kernel_shape=list(kernel), strides=list(at.integers("stride")), pads=list(at.integers("padding")) * 2,
        ceil_mode=_ceil_mode(at), count_include_pad=int(counted),
    )  # fmt: skip
    if isinstance(divisor, int | float):
        area = torch.Size(kernel).numel()
        y = at.op("Mul", y, at.constant(area / divisor, at.out.dtype))
    return at.squeeze(y, 0) if added else y


def _ceil_mode(at: Lowering, dilation: Sequence[int] | None = None) -> int:
    """Whether sizes are rounded up: asked for, and other than rounded down. torch drops a last window that begins in the padding, ONNX does not."""
    if not at.flag("ceil"):
        return 0
    kernel, stride, padding = (at.integers(name) for name in ("kernel", "stride", "padding"))
    spread = dilation or [1] * len(kernel)
    rank = len(kernel)
    for k, (old, new) in enumerate(zip(at.type(0).shape[-rank:], at.out.shape[-rank:], strict=True)):
        if not isinstance(old, int) or not isinstance(new, int):
            return 1
        if new != (old + 2 * padding[k] - spread[k] * (kernel[k] - 1) - 1) // stride[k] + 1:
            return 1
    return 0


@rule("adaptive_avg_pool", "adaptive_max_pool")
def _adaptive(at: Lowering) -> onnx_ir.Value:
    rank = at.integer("rank")
    source, target = at.type(0).shape[-rank:], at.out.shape[-rank:]
    mean = at.node.operator.name == "adaptive_avg_pool"
    return _adaptive_mean(at, source, target) if mean else _adaptive_max(at, source, target)


def _adaptive_mean(at: Lowering, source: Sequence[Dim], target: Sequence[Dim]) -> onnx_ir.Value:
    if tuple(source) == tuple(target):
        return at.x(0)
    rank, total = len(source), at.type(0).rank
    if all(size == 1 for size in target):
        if total == rank + 2:
            return at.op("GlobalAveragePool", at.x(0))
        return at.reduce("ReduceMean", at.x(0), list(range(total - rank, total)), keep=True)
    windows = _even_windows(source, target)
    if windows is not None:
        x, added = _with_batch(at, rank)
        y = at.op("AveragePool", x, kernel_shape=windows, strides=windows)
        return at.squeeze(y, 0) if added else y
    # Windows that overlap: a mean over each is a product with a fixed matrix, one dimension at a time.
    letters, y = "abcdefgh"[:total], at.x(0)
    for k, (old, new) in enumerate(zip(source, target, strict=True)):
        if old == new:
            continue
        axis = total - rank + k
        if new == 1:
            y = at.reduce("ReduceMean", y, [axis], keep=True)
            continue
        matrix = torch.zeros(_fixed(at, new), _fixed(at, old), dtype=at.out.dtype)
        for row, (start, end) in enumerate(_windows(_fixed(at, old), _fixed(at, new))):
            matrix[row, start:end] = 1 / (end - start)
        result = letters.replace(letters[axis], "z")
        y = at.op("Einsum", y, at.emitter.constant(matrix), equation=f"{letters},z{letters[axis]}->{result}")
    return y


def _adaptive_max(at: Lowering, source: Sequence[Dim], target: Sequence[Dim]) -> onnx_ir.Value:
    if tuple(source) == tuple(target):
        return at.x(0)
    rank, total = len(source), at.type(0).rank
    if all(size == 1 for size in target):
        if total == rank + 2:
            return at.op("GlobalMaxPool", at.x(0))
        return at.reduce("ReduceMax", at.x(0), list(range(total - rank, total)), keep=True)
    windows = _even_windows(source, target)
    if windows is not None:
        x, added = _with_batch(at, rank)
        y = at.op("MaxPool", x, kernel_shape=windows, strides=windows)
        return at.squeeze(y, 0) if added else y
    y = at.x(0)
    for k, (old, new) in enumerate(zip(source, target, strict=True)):
        if old == new:
            continue
        axis = total - rank + k
        if new == 1:
            y = at.reduce("ReduceMax", y, [axis], keep=True)
            continue
        ranges = _windows(_fixed(at, old), _fixed(at, new))
        y = at.concat([at.reduce("ReduceMax", at.slice(y, axis, a, b), [axis], keep=True) for a, b in ranges], axis)
    return y


def _fixed(at: Lowering, dim: Dim) -> int:
    if not isinstance(dim, int):
        at.fail(f"windows over a size of {dim}", "a fixed size, or a result of size 1, would be right")
    return dim


def _windows(old: int, new: int) -> list[tuple[int, int]]:
    """From floor(i * old / new) to ceil((i + 1) * old / new), as torch takes them."""
    return [(i * old // new, -((i + 1) * old // -new)) for i in range(new)]


def _even_windows(source: Sequence[Dim], target: Sequence[Dim]) -> list[int] | None:
    windows = []
    for old, new in zip(source, target, strict=True):
        if not isinstance(old, int) or not isinstance(new, int) or old % new:
            return None
        windows.append(old // new)
    return windows


@rule("interpolate")
def _interpolate(at: Lowering) -> onnx_ir.Value:
    rank, mode, aligned = at.integer("rank"), at.text("mode"), bool(at.node.attributes["align_corners"])
    if mode == "area":
        return _adaptive_mean(at, at.type(0).shape[-rank:], at.out.shape[-rank:])
    attributes: dict[str, object] = {}
    if mode in ("nearest", "nearest-exact"):
        exact = mode == "nearest-exact"
        attributes["coordinate_transformation_mode"] = "half_pixel" if exact else "asymmetric"
        attributes["nearest_mode"] = "round_prefer_ceil" if exact else "floor"
        attributes["mode"] = "nearest"
    else:
        attributes["coordinate_transformation_mode"] = "align_corners" if aligned else "half_pixel"
        attributes["mode"] = "cubic" if mode == "bicubic" else "linear"
        if mode == "bicubic":
            attributes["cubic_coeff_a"] = -0.5 if at.flag("antialias") else -0.75
    if at.flag("antialias"):
        at.need(18, "Resize with antialias")
        attributes |= {"antialias": 1, "exclude_outside": 1}  # torch renormalises the weights at the border
    scales = at.node.attributes["scales"]
    if isinstance(scales, tuple):
        factors = [_not_below(float(str(scale))) for scale in scales]
        return at.op("Resize", at.x(0), None, at.constant([1.0, 1.0, *factors], torch.float32), None, **attributes)
    if at.opset >= 18:
        axes = list(range(at.out.rank - rank, at.out.rank))
        return at.op("Resize", at.x(0), None, None, at.shape(at.out.shape[-rank:]), axes=axes, **attributes)
    return at.op("Resize", at.x(0), None, None, at.shape(at.out.shape), **attributes)


def _not_below(scale: float) -> float:
    """The float32 next to a scale that is not smaller: sizes are rounded down, and 10 * 0.7 must stay 7."""
    near = torch.tensor(scale, dtype=torch.float32)
    return float(near if float(near) >= scale else torch.nextafter(near, torch.tensor(torch.inf)))


@rule("grid_sample")
def _grid_sample(at: Lowering) -> onnx_ir.Value:
    later = at.opset >= 20
    modes = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"} if later else {}
    mode = at.text("mode")
    return at.op(
        "GridSample", at.x(0), at.x(1), mode=modes.get(mode, mode), padding_mode=at.text("padding"),
        align_corners=int(at.flag("align_corners")),
    )  # fmt: skip
