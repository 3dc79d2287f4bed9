"""Operators that go from positions back to where they were taken: the segment sum, and the positions of maxima in windows.

The segment sum is the adjoint of the lookup: what was read at an index is added up there. A maximum over windows is a lookup at the position of the
maximum, which `max_pool_index` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance
from suture.ir.operators.spatial import resized_instance, window_binding, window_letters
from suture.ir.sizes import Dim


def _segment_sum(x: torch.Tensor, i: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    total = torch.zeros(tuple(shape), dtype=x.dtype, device=x.device)
    if i.ndim == 1:
        return total.index_add_(0, i, x)
    spread = i.reshape([*i.shape, *[1] * (x.ndim - i.ndim)]).expand_as(x)
    return total.scatter_add_(i.ndim - 1, spread, x)


def integer_operand(call: Call, index: int) -> None:
    """Refuse indices that are no integers.

    :raises SutureError: DTYPE
    """
    if call.type(index).dtype not in (torch.int64, torch.int32):
        raise SutureError(Code.DTYPE, f"the index is {call.type(index).dtype}", where=call.where, remedy="integers would be right")  # fmt: skip


def _segment_instance(call: Call) -> Instance:
    """All dimensions of the index but its last are batches; those of x behind it are features."""
    x, i, y = call.shape(0), call.shape(1), call.result_shapes(1)[0]
    batches = len(i) - 1
    if batches < 0 or x[: len(i)] != i or len(y) != len(x) or y[:batches] != x[:batches] or y[len(i) :] != x[len(i) :]:
        raise SutureError(
            Code.SHAPE, f"{call.type(0)} summed at {call.type(1)} to [{', '.join(map(str, y))}]", where=call.where,
            remedy="x[*b, e, *f] and i[*b, e] give y[*b, n, *f]",
        )  # fmt: skip
    integer_operand(call, 1)
    batch: list[Term] = [f"b{k}" for k in range(batches)]
    features: list[Term] = [f"f{k}" for k in range(len(x) - len(i))]
    sizes: dict[str, Dim] = {str(letter): size for letter, size in zip([*batch, "e", *features], x, strict=True)}
    sizes["n"] = y[batches]
    dims = [[*batch, "e", *features], [*batch, "e"]]
    return make_instance(dims, [[*batch, "n", *features]], sizes, {"e": Role.CONTRACTED, "n": Role.LOOKUP})


declare(
    "segment_sum",
    "x[*b, e, *f], i[*b, e] -> y[*b, n, *f]",
    _segment_sum,
    function=FunctionClass.LINEAR,
    build=_segment_instance,
    declared=True,
    cost=lambda instance: 0,
    doc="The sums of x over equal indices: y at n is the sum of x at all e with i = n; what lookups give back.",
)


def _max_pool_index(
    x: torch.Tensor, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
) -> torch.Tensor:
    function: Callable[..., Any] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    index: torch.Tensor = function(x, kernel, stride, padding, dilation, ceil, return_indices=True)[1]
    return index


def _adaptive_max_pool_index(x: torch.Tensor, *, rank: int, shape: Sequence[int]) -> torch.Tensor:
    function: Callable[..., Any] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
    index: torch.Tensor = function(x, tuple(shape)[-rank:], return_indices=True)[1]
    return index


def _int64(call: Call) -> torch.dtype:
    return torch.int64


declare(
    "max_pool_index",
    "x[*b, !*h] -> i[*b, !*h']",
    _max_pool_index,
    attributes={"kernel": REQUIRED, "stride": REQUIRED, "padding": REQUIRED, "dilation": REQUIRED, "ceil": False},
    bind=window_binding,
    late=window_letters,
    dtype=_int64,
    doc="Where the maximum of each window stands: its row-major position in the space of x, of several the first.",
)
declare(
    "adaptive_max_pool_index",
    "x[*b, !*h] -> i[*b, !*q]",
    _adaptive_max_pool_index,
    attributes={"rank": 2},
    build=resized_instance,
    dtype=_int64,
    declared=True,
    doc="Where the maxima of adaptive_max_pool stand, as row-major positions in the space of x.",
)
