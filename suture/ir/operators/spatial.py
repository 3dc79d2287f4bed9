"""Operators on space: pooling, interpolation, sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.contract import window_size
from suture.ir.operators.layout import make_instance, plain_letters
from suture.ir.sizes import Dim

LINEAR, HOMOGENEOUS = FunctionClass.LINEAR, FunctionClass.HOMOGENEOUS


def window_binding(call: Call) -> Binding:
    """How many dimensions a window has."""
    rank = len(call.ints("kernel"))
    return Binding({"b": call.type(0).rank - rank, "h": rank})


def window_letters(call: Call, sizes: Mapping[str, Dim]) -> dict[str, Dim]:
    """How many windows there are along each dimension."""
    kernel, stride, padding = call.ints("kernel"), call.ints("stride"), call.ints("padding")
    dilation = call.ints("dilation") if "dilation" in call.attributes else (1,) * len(kernel)
    ceil = bool(call.attributes["ceil"])
    return {
        f"h{k}'": window_size(
            sizes[f"h{k}"], kernel[k], stride[k], padding[k], padding[k], dilation[k], ceil=ceil, where=call.where
        )
        for k in range(len(kernel))
    }


def _max_pool(x: torch.Tensor, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> torch.Tensor:
    function: Callable[..., torch.Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(x, kernel, stride, padding, dilation, ceil)


def _avg_pool(
    x: torch.Tensor, *, kernel: Any, stride: Any, padding: Any, ceil: bool, count_padding: bool, divisor: int | None
) -> torch.Tensor:
    if len(kernel) == 1:
        return F.avg_pool1d(x, kernel, stride, padding, ceil, count_padding)
    function = (F.avg_pool2d, F.avg_pool3d)[len(kernel) - 2]
    return function(x, kernel, stride, padding, ceil, count_padding, divisor)


declare(
    "max_pool",
    "x[*b, !*h] -> y[*b, !*h']",
    _max_pool,
    attributes={"kernel": REQUIRED, "stride": REQUIRED, "padding": REQUIRED, "dilation": REQUIRED, "ceil": False},
    function=HOMOGENEOUS,
    bind=window_binding,
    late=window_letters,
    doc="Maximum over windows.",
)
declare(
    "avg_pool", "x[*b, !*h] -> y[*b, !*h']", _avg_pool,
    attributes={"kernel": REQUIRED, "stride": REQUIRED, "padding": REQUIRED, "ceil": False, "count_padding": True, "divisor": None},
    function=LINEAR, bind=window_binding, late=window_letters, doc="Mean over windows.",
)  # fmt: skip


def resized_instance(call: Call) -> Instance:
    """The last `rank` dimensions get the declared sizes; the others are free."""
    rank, source, target = call.ints("rank")[0], call.shape(0), call.result_shapes(1)[0]
    if len(target) != len(source) or not 0 < rank < len(source) + 1 or target[:-rank] != source[:-rank]:
        raise SutureError(Code.SHAPE, f"{call.type(0)} resized to [{', '.join(map(str, target))}]", where=call.where,
                          remedy=f"only the last {rank} dimensions may change")  # fmt: skip
    letters, sizes = plain_letters(source)
    outputs: list[Term] = list(letters)
    roles: dict[str, Role] = {}
    for k in range(len(source) - rank, len(source)):
        outputs[k], sizes[f"q{k}"] = f"q{k}", target[k]
        roles |= {f"d{k}": Role.ORDERED, f"q{k}": Role.ORDERED}
    return make_instance([letters], [outputs], sizes, roles)


def _adaptive_avg_pool(x: torch.Tensor, *, rank: int, shape: Sequence[int]) -> torch.Tensor:
    function: Callable[..., torch.Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
        rank - 1
    ]
    return function(x, tuple(shape)[-rank:])


def _adaptive_max_pool(x: torch.Tensor, *, rank: int, shape: Sequence[int]) -> torch.Tensor:
    function: Callable[..., torch.Tensor] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[
        rank - 1
    ]
    return function(x, tuple(shape)[-rank:])


declare("adaptive_avg_pool", "x[*b, !*h] -> y[*b, !*q]", _adaptive_avg_pool, attributes={"rank": 2}, function=LINEAR,
        build=resized_instance, declared=True, doc="Mean over windows that give the declared sizes.")  # fmt: skip
declare(
    "adaptive_max_pool",
    "x[*b, !*h] -> y[*b, !*q]",
    _adaptive_max_pool,
    attributes={"rank": 2},
    function=HOMOGENEOUS,
    build=resized_instance,
    declared=True,
    doc="Maximum over windows that give the declared sizes.",
)


def _interpolate(
    x: torch.Tensor,
    *,
    rank: int,
    mode: str,
    align_corners: bool | None,
    scales: Any,
    antialias: bool,
    shape: Sequence[int],
) -> torch.Tensor:
    size = None if scales is not None else tuple(shape)[-rank:]
    return F.interpolate(
        x, size, list(scales) if scales is not None else None, mode, align_corners, antialias=antialias
    )


declare(
    "interpolate",
    "x[*b, !*h] -> y[*b, !*q]",
    _interpolate,
    attributes={"rank": 2, "mode": "nearest", "align_corners": None, "scales": None, "antialias": False},
    function=LINEAR,
    build=resized_instance,
    declared=True,
    doc="Resampling of space to the declared sizes, by `scales` where they are given.",
)


def _grid_sample(x: torch.Tensor, grid: torch.Tensor, *, mode: str, padding: str, align_corners: bool) -> torch.Tensor:
    return F.grid_sample(x, grid, mode, padding, align_corners)


declare(
    "grid_sample",
    "x[n, c, !h, !w], grid[n, p, q, 1] -> y[n, c, p, q]",
    _grid_sample,
    attributes={"mode": "bilinear", "padding": "zeros", "align_corners": False},
    function=LINEAR,
    build=lambda call: _grid_instance(call),
    cost=lambda instance: 0,
    doc="x at the positions of a grid.",
)


def _grid_instance(call: Call) -> Instance:
    image, grid = call.shape(0), call.shape(1)
    if len(image) != 4 or len(grid) != 4 or grid[0] != image[0] or grid[3] != 2:
        raise SutureError(
            Code.SHAPE,
            f"{call.type(0)} at the grid {call.type(1)}",
            where=call.where,
            remedy="[n, c, h, w] at [n, p, q, 2] would be right",
        )
    sizes: dict[str, Dim] = {
        "n": image[0],
        "c": image[1],
        "h": image[2],
        "w": image[3],
        "p": grid[1],
        "q": grid[2],
        "z": grid[3],
    }
    ordered = dict.fromkeys("hwpqz", Role.ORDERED)
    return make_instance([["n", "c", "h", "w"], ["n", "p", "q", "z"]], [["n", "c", "p", "q"]], sizes, ordered)
