"""The layers of networks: products, convolutions, pooling, normalisation, attention, recurrence, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from suture.frontends.aten.rule import AtenCall, Result, Untranslatable, translates
from suture.ir.graph import Value
from suture.ir.sizes import Dim


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    items = tuple(value) if isinstance(value, Sequence) else (value,)
    if any(not isinstance(item, int) for item in items):
        raise Untranslatable("a symbolic window")
    return items * rank if len(items) == 1 else items


@translates("linear")
def _linear(call: AtenCall) -> Result:
    weight = call.value("weight")
    if weight.rank != 2:
        raise Untranslatable("a linear map to a number")
    return call.emit("linear", call.value("input"), weight, call.get("bias"))


@translates("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def _matmul(call: AtenCall) -> Result:
    left = call.value()
    right = call.value(next(name for name in ("other", "mat2", "vec", "tensor") if name in call.arguments))
    if call.name == "inner" and (left.rank != 1 or right.rank != 1):
        raise Untranslatable("inner products of matrices")
    return call.emit("matmul", left, right)


@translates("addmm")
def _addmm(call: AtenCall) -> Result:
    if call["beta"] != 1 or call["alpha"] != 1:
        raise Untranslatable("a weighted sum")
    return call.emit("addmm", call.value(), call.value("mat1"), call.value("mat2"))


@translates("baddbmm")
def _baddbmm(call: AtenCall) -> Result:
    result, c = call.emit("matmul", call.value("batch1"), call.value("batch2")), call.value()
    if call["alpha"] != 1:
        result = call.emit("mul", result, None, scalar=call["alpha"])
    if call["beta"] == 0:
        return result
    return call.emit("add", c if call["beta"] == 1 else call.emit("mul", c, None, scalar=call["beta"]), result)


@translates("_weight_norm")
def _weight_norm(call: AtenCall) -> Result:
    v, dim = call.value("v"), call["dim"]
    dims = tuple(k for k in range(v.rank) if k != dim % v.rank) if dim != -1 else tuple(range(v.rank))
    length = call.emit("vector_norm", v, dims=dims, keepdim=True, p=2.0)
    return call.emit("mul", v, call.emit("div", call.value("g"), length))


@translates("outer", "ger")
def _outer(call: AtenCall) -> Result:
    left, right = call.value(), call.value("vec2")
    return call.emit("mul", call.reshape(left, [left.shape[0], 1]), right)


@translates("einsum")
def _einsum(call: AtenCall) -> Result:
    return call.emit("einsum", *call["tensors"], equation=str(call["equation"]).replace(" ", ""))


@translates("bilinear")
def _bilinear(call: AtenCall) -> Result:
    return call.emit("bilinear", call.value("input1"), call.value("input2"), call.value("weight"), call.get("bias"))


def _batched(call: AtenCall, x: Value, rank: int) -> tuple[Value, bool]:
    """The input with a batch dimension, and whether it had none."""
    return (x, False) if x.rank == rank else (call.reshape(x, (1, *x.shape)), True)


@translates("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def _conv(call: AtenCall) -> Result:
    weight = call.value("weight")
    rank = weight.rank - 2
    if call.get("transposed"):
        return _conv_transpose(call)
    x, alone = _batched(call, call.value("input"), weight.rank)
    stride, dilation = _spread(call["stride"], rank), _spread(call["dilation"], rank)
    if isinstance(call["padding"], str):
        x, padding = _named_padding(call, x, weight, dilation)
    else:
        padding = _spread(call["padding"], rank)
    result = call.emit(
        "conv", x, weight, call.get("bias"), stride=stride, padding=padding, dilation=dilation, groups=call["groups"]
    )
    return call.reshape(result, result.shape[1:]) if alone else result


def _named_padding(call: AtenCall, x: Value, weight: Value, dilation: Sequence[int]) -> tuple[Value, tuple[int, ...]]:
    """`valid` is no padding; `same` pads so that the size stays, after rather than before where that is uneven."""
    rank = weight.rank - 2
    if call["padding"] == "valid":
        return x, (0,) * rank
    kernel = [size for size in weight.shape[2:] if isinstance(size, int)]
    totals = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
    uneven = [total % 2 for total in totals]
    if any(uneven):
        x = call.emit("pad", x, pads=(0,) * x.rank + (0, 0, *uneven), mode="constant", value=0.0)
    return x, tuple(total // 2 for total in totals)


@translates("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(call: AtenCall) -> Result:
    weight = call.value("weight")
    rank = weight.rank - 2
    x, alone = _batched(call, call.value("input"), weight.rank)
    result = call.emit(
        "conv_transpose", x, weight, call.get("bias"), stride=_spread(call["stride"], rank), padding=_spread(call["padding"], rank),
        output_padding=_spread(call["output_padding"], rank), dilation=_spread(call["dilation"], rank), groups=call["groups"],
    )  # fmt: skip
    return call.reshape(result, result.shape[1:]) if alone else result


def _spatial_rank(name: str) -> int:
    return next(int(character) for character in name if character.isdigit())


@translates(
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "max_pool1d_with_indices",
)
def _max_pool(call: AtenCall) -> Result:
    rank = _spatial_rank(call.name)
    kernel = _spread(call["kernel_size"], rank)
    stride = _spread(call["stride"], rank) if call["stride"] else kernel
    pooled = call.emit(
        "max_pool", call.value(), kernel=kernel, stride=stride, padding=_spread(call["padding"], rank), dilation=_spread(call["dilation"], rank),
        ceil=call["ceil_mode"],
    )  # fmt: skip
    return [pooled, None] if "indices" in call.name else pooled


@translates("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(call: AtenCall) -> Result:
    rank = _spatial_rank(call.name)
    kernel = _spread(call["kernel_size"], rank)
    stride = _spread(call["stride"], rank) if call["stride"] else kernel
    return call.emit(
        "avg_pool", call.value(), kernel=kernel, stride=stride, padding=_spread(call["padding"], rank), ceil=call["ceil_mode"],
        count_padding=call["count_include_pad"], divisor=call.get("divisor_override"),
    )  # fmt: skip


@translates(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"
)
def _adaptive_avg_pool(call: AtenCall) -> Result:
    return call.emit("adaptive_avg_pool", call.value(), shapes=[call.type.shape], rank=_spatial_rank(call.name))


@translates("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(call: AtenCall) -> Result:
    return [call.emit("adaptive_max_pool", call.value(), shapes=[call.type.shape], rank=_spatial_rank(call.name)), None]


_MODES = {
    "upsample_nearest1d": "nearest", "upsample_nearest2d": "nearest", "upsample_nearest3d": "nearest", "_upsample_nearest_exact1d": "nearest-exact",
    "_upsample_nearest_exact2d": "nearest-exact", "_upsample_nearest_exact3d": "nearest-exact", "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear", "upsample_trilinear3d": "trilinear", "upsample_bicubic2d": "bicubic", "_upsample_bilinear2d_aa": "bilinear",
    "_upsample_bicubic2d_aa": "bicubic",
}  # fmt: skip


@translates(*_MODES)
def _interpolate(call: AtenCall) -> Result:
    scales, align = call.get("scale_factors"), call.get("align_corners")
    if call.get("output_size") is not None:
        scales = None
    if "nearest" in call.name:
        align = None
    return call.emit(
        "interpolate", call.value("input" if "input" in call.arguments else "self"), shapes=[call.type.shape], rank=_spatial_rank(call.name),
        mode=_MODES[call.name], align_corners=align, scales=None if scales is None else tuple(scales), antialias=call.name.endswith("_aa"),
    )  # fmt: skip


@translates("grid_sampler", "grid_sampler_2d")
def _grid_sample(call: AtenCall) -> Result:
    if call.value("input").rank != 4:
        raise Untranslatable("sampling of volumes")
    mode = ("bilinear", "nearest", "bicubic")[call["interpolation_mode"]]
    padding = ("zeros", "border", "reflection")[call["padding_mode"]]
    return call.emit(
        "grid_sample",
        call.value("input"),
        call.value("grid"),
        mode=mode,
        padding=padding,
        align_corners=call["align_corners"],
    )


@translates("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: AtenCall) -> Result:
    by_batch = bool(call.get("training"))
    mean, var = (None, None) if by_batch else (call["running_mean"], call["running_var"])
    result = call.emit(
        "batch_norm", call.value("input"), call["weight"], call["bias"], mean, var, eps=call["eps"], momentum=call["momentum"]
    )  # fmt: skip
    return result if call.name == "batch_norm" else [result, None, None]


@translates("layer_norm", "native_layer_norm")
def _layer_norm(call: AtenCall) -> Result:
    result = call.emit(
        "layer_norm", call.value("input"), call["weight"], call["bias"], rank=len(call["normalized_shape"]), eps=call["eps"]
    )  # fmt: skip
    return result if call.name == "layer_norm" else [result, None, None]


@translates("rms_norm")
def _rms_norm(call: AtenCall) -> Result:
    return call.emit(
        "rms_norm", call.value("input"), call["weight"], rank=len(call["normalized_shape"]), eps=call["eps"]
    )


@translates("group_norm")
def _group_norm(call: AtenCall) -> Result:
    return call.emit(
        "group_norm", call.value("input"), call["weight"], call["bias"], groups=call["num_groups"], eps=call["eps"]
    )


@translates("instance_norm")
def _instance_norm(call: AtenCall) -> Result:
    mean, var = (None, None) if call["use_input_stats"] else (call["running_mean"], call["running_var"])
    x, count = call.value("input"), call.type.rank
    if count < 3:
        raise Untranslatable("a norm over no space")
    return call.emit(
        "instance_norm", x, call["weight"], call["bias"], mean, var, eps=call["eps"], momentum=call["momentum"]
    )


@translates("scaled_dot_product_attention")
def _attention(call: AtenCall) -> Result:
    query, scale = call.value("query"), call["scale"]
    width: Dim = query.shape[-1]
    if scale is None:
        if not isinstance(width, int):
            raise Untranslatable("heads of symbolic width")
        scale = 1.0 / math.sqrt(width)
    return call.emit(
        "attention", query, call.value("key"), call.value("value"), call.get("attn_mask"), dropout=float(call["dropout_p"]),
        causal=call["is_causal"], scale=scale, grouped=call["enable_gqa"],
    )  # fmt: skip


@translates("recurrent")
def _recurrent(call: AtenCall) -> Result:
    """The operator that stands in for torch's recurrent layers while tracing: see `suture.frontends.recurrent`."""
    return call.emit_all(
        call["kind"], [call.value("x"), *call["states"], *call["weights"]], layers=call["layers"], bidirectional=call["bidirectional"],
        biased=call["biased"], batch_first=call["batch_first"], dropout=float(call["dropout"]),
    )  # fmt: skip
