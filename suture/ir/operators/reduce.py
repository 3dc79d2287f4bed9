"""Operators that reduce dimensions: sums, means, extremes, and running sums along one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance, plain_letters
from suture.ir.types import Attribute

LINEAR, HOMOGENEOUS, ZERO, OTHER = (
    FunctionClass.LINEAR,
    FunctionClass.HOMOGENEOUS,
    FunctionClass.ZERO_PRESERVING,
    FunctionClass.OTHER,
)


def _instance(role: Role) -> Callable[[Call], Instance]:
    def build(call: Call) -> Instance:
        letters, sizes = plain_letters(call.shape(0))
        rank = len(letters)
        if any(not -rank <= dim < max(rank, 1) for dim in call.ints("dims")):
            raise SutureError(
                Code.SHAPE,
                f"dims={call.ints('dims')} of a value of rank {rank}",
                where=call.where,
                remedy=f"{-rank} to {rank - 1} would be right",
            )
        reduced = {dim % rank for dim in call.ints("dims")} if rank else set()
        keep = bool(call.attributes["keepdim"])
        outputs: list[Term] = [
            1 if k in reduced else letter for k, letter in enumerate(letters) if keep or k not in reduced
        ]
        return make_instance([letters], [outputs], sizes, {f"d{k}": role for k in reduced})

    return build


def _wide_sum(call: Call) -> torch.dtype:
    dtype = call.type(0).dtype
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _bool(call: Call) -> torch.dtype:
    return torch.bool


def _index(call: Call) -> torch.dtype:
    return torch.int64


def _reduction(
    name: str,
    run: Callable[..., Any],
    notation: str,
    role: Role,
    function: FunctionClass,
    dtype: Callable[[Call], torch.dtype] | None = None,
    **more: Attribute,
) -> None:
    declare(
        name,
        notation,
        run,
        attributes={"dims": REQUIRED, "keepdim": False, **more},
        function=function,
        build=_instance(role),
        dtype=dtype,
    )


def _over(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
        result: torch.Tensor = function(x, tuple(dims), keepdim=keepdim)
        return result

    return run


def _variance(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool, correction: float) -> torch.Tensor:
    return torch.var(x, tuple(dims), correction=correction, keepdim=keepdim)


def _norm(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool, p: float) -> torch.Tensor:
    result: torch.Tensor = torch.linalg.vector_norm(x, p, tuple(dims), keepdim=keepdim)
    return result


def _argmax(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    return torch.argmax(x, dims[0], keepdim=keepdim)


def _argmin(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    return torch.argmin(x, dims[0], keepdim=keepdim)


def _product(x: torch.Tensor, *, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    return torch.prod(x, dims[0], keepdim=keepdim)


_reduction("sum", _over(torch.sum), "x[*a, d, *b] -> y[*a, *b]", Role.CONTRACTED, LINEAR, _wide_sum)
_reduction("mean", _over(torch.mean), "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, LINEAR)
_reduction("amax", _over(torch.amax), "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, HOMOGENEOUS)
_reduction("amin", _over(torch.amin), "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, HOMOGENEOUS)
_reduction("prod", _product, "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, OTHER, _wide_sum)
_reduction("any", _over(torch.any), "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, OTHER, _bool)
_reduction("all", _over(torch.all), "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, OTHER, _bool)
_reduction("var", _variance, "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, ZERO, correction=1.0)
_reduction("vector_norm", _norm, "x[*a, ~d, *b] -> y[*a, *b]", Role.MIXED, ZERO, p=2.0)
_reduction("argmax", _argmax, "x[*a, !d, *b] -> y[*a, *b]", Role.ORDERED, OTHER, _index)
_reduction("argmin", _argmin, "x[*a, !d, *b] -> y[*a, *b]", Role.ORDERED, OTHER, _index)


def _cumulative_instance(call: Call) -> Instance:
    letters, sizes = plain_letters(call.shape(0))
    return make_instance([letters], [letters], sizes, {f"d{call.dim()}": Role.ORDERED})


def _cumsum(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    return torch.cumsum(x, dim)


declare("cumsum", "x[*a, !d, *b] -> y[*a, !d, *b]", _cumsum, attributes={"dim": 0}, function=LINEAR, build=_cumulative_instance, dtype=_wide_sum,
        doc="Running sum along a dimension.")  # fmt: skip


def _topk(x: torch.Tensor, *, k: int, dim: int, largest: bool, sorted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(x, k, dim, largest, sorted)
    return values, indices


def _topk_instance(call: Call) -> Instance:
    letters, sizes = plain_letters(call.shape(0))
    dim = call.dim()
    sizes["k"] = kept = call.ints("k")[0]
    whole = sizes.get(f"d{dim}", 1)
    if isinstance(whole, int) and kept > whole:
        raise SutureError(
            Code.SHAPE, f"the {kept} largest of {whole}", where=call.where, remedy=f"at most {whole} would be right"
        )
    outputs = [*letters[:dim], "k", *letters[dim + 1 :]]
    return make_instance([letters], [outputs, outputs], sizes, {f"d{dim}": Role.ORDERED, "k": Role.ORDERED})


def _topk_types(call: Call) -> tuple[torch.dtype, ...]:
    return call.type(0).dtype, torch.int64


declare(
    "topk",
    "x[*a, !d, *b] -> y[*a, !k, *b], i[*a, !k, *b]",
    _topk,
    attributes={"k": REQUIRED, "dim": -1, "largest": True, "sorted": True},
    function=OTHER,
    build=_topk_instance,
    dtype=_topk_types,
    doc="The k largest along a dimension, and where they are.",
)
