"""What message passing is made of, as functions of tensors: lookups, products by type, sums and maxima over equal indices, groups of equal pairs.

Run eagerly they are what the operators of `suture.ir.operators` say they mean, with torch's own derivatives. While torch.export traces they are
operators of the library `suture`, which `suture.frontends.messages.translation` puts into the graph one for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.operator import find
from suture.ir.operators.relational import by_type

NAMESPACE = "suture"


class Numbered(Protocol):
    """What holds integers and says of what, as `e.src` does."""

    tensor: torch.Tensor


Integers: TypeAlias = "torch.Tensor | Numbered"
"""A tensor of integers, or what holds one."""

_SCHEMAS = {
    "lookup": "(Tensor table, Tensor index) -> Tensor",
    "typed_linear": "(Tensor x, Tensor weight, Tensor type) -> Tensor",
    "segment_sum": "(Tensor x, Tensor index, SymInt segments) -> Tensor",
    "segment_max": "(Tensor x, Tensor index, SymInt segments) -> Tensor",
    "segment_softmax": "(Tensor x, Tensor index, SymInt segments) -> Tensor",
    "unique_rows": "(Tensor major, Tensor minor) -> (Tensor first, Tensor rank)",
}


def lookup(table: torch.Tensor, index: Integers) -> torch.Tensor:
    """The rows of `table[n, *f]` at `index[*e]`, which may not be negative: `y[*e, *f]`.

    :raises SutureError: DEVICE, if the two are on different devices
    """
    numbers = _numbers(index)
    _same_device(table, numbers)
    return _run("lookup", table, numbers)  # type: ignore[no-any-return]


def typed_linear(x: torch.Tensor, weight: torch.Tensor, type: Integers) -> torch.Tensor:
    """Each row of `x[e, *h, i]` times the matrix of its type `weight[t, *h, i, o]`: `y[e, *h, o]`.

    :raises SutureError: RELATION, DTYPE or DEVICE, if they do not fit; INPUT, for a type without a weight
    """
    numbers = _numbers(type)
    _same_device(weight, numbers)
    _same_rows(x, numbers)
    if weight.ndim != x.ndim + 1 or weight.shape[1:-1] != x.shape[1:] or x.ndim < 2:
        raise SutureError(
            Code.RELATION, f"rows [{_sizes(x)}] times the matrices [{_sizes(weight)}] of their types",
            remedy="rows [e, *h, i] and matrices [t, *h, i, o] would be right",
        )  # fmt: skip
    if x.dtype != weight.dtype:
        what = f"rows of {x.dtype} times matrices of {weight.dtype}"
        raise SutureError(Code.DTYPE, what, remedy="give them one element type")
    return _run("typed_linear", x, weight, numbers)  # type: ignore[no-any-return]


def segment_sum(x: torch.Tensor, index: Integers, segments: int) -> torch.Tensor:
    """The sums of `x[e, *f]` over equal `index[e]`: `y[segments, *f]`."""
    numbers = _numbers(index)
    _same_rows(x, numbers)
    return _run("segment_sum", x, numbers, segments)  # type: ignore[no-any-return]


def segment_max(x: torch.Tensor, index: Integers, segments: int) -> torch.Tensor:
    """The maxima of `x[e, *f]` over equal `index[e]`, zero where there is none: `y[segments, *f]`. Equal maxima share a gradient."""
    numbers = _numbers(index)
    _same_rows(x, numbers)
    return _run("segment_max", x, numbers, segments)  # type: ignore[no-any-return]


def segment_softmax(x: torch.Tensor, index: Integers, segments: int) -> torch.Tensor:
    """The softmax of `x[e, *f]` over equal `index[e]`, the maximum taken off first: `y[e, *f]`."""
    numbers = _numbers(index)
    _same_rows(x, numbers)
    return _run("segment_softmax", x, numbers, segments)  # type: ignore[no-any-return]


def unique_rows(major: Integers, minor: Integers) -> tuple[torch.Tensor, torch.Tensor]:
    """The different pairs `(major[e], minor[e])`, sorted: the first row that has each, and for every row the number of its pair."""
    return _run("unique_rows", _numbers(major), _numbers(minor))  # type: ignore[no-any-return]


def _numbers(index: Integers) -> torch.Tensor:
    return index if isinstance(index, torch.Tensor) else index.tensor


def _run(name: str, *arguments: Any) -> Any:
    if torch.compiler.is_exporting():
        return getattr(torch.ops.suture, name)(*arguments)
    return _EAGER[name](*arguments)


def _sizes(x: torch.Tensor) -> str:
    return ", ".join(map(str, x.shape))


def _same_device(x: torch.Tensor, index: torch.Tensor) -> None:
    if x.device != index.device:
        raise SutureError(
            Code.DEVICE, f"features or weights on {x.device} and edges on {index.device}", remedy="put both on one device: g.to(device)"
        )  # fmt: skip


def _same_rows(x: torch.Tensor, index: torch.Tensor) -> None:
    _same_device(x, index)
    if not x.ndim or x.shape[0] != index.shape[0]:
        raise SutureError(
            Code.RELATION, f"values [{_sizes(x)}] along {index.shape[0]} edges", remedy="a value has one row for every edge"
        )  # fmt: skip


def _segment_sum(x: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    return find("segment_sum").run(x, index, shape=(segments, *x.shape[1:]))  # type: ignore[no-any-return]


def _segment_max(x: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    return find("segment_max").run(x, index, empty=0.0, shape=(segments, *x.shape[1:]))  # type: ignore[no-any-return]


def _segment_softmax(x: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    return find("segment_softmax").run(x, index, segments=segments)  # type: ignore[no-any-return]


def _lookup(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return find("embedding").run(table, index, padding=None)  # type: ignore[no-any-return]


def _typed_linear(x: torch.Tensor, weight: torch.Tensor, type: torch.Tensor) -> torch.Tensor:
    if not len(type):  # no rows, and yet something to differentiate
        return (x.unsqueeze(-2) @ weight.index_select(0, type)).squeeze(-2)
    return by_type(x, weight, type)


_EAGER: dict[str, Callable[..., Any]] = {
    "lookup": _lookup,
    "typed_linear": _typed_linear,
    "segment_sum": _segment_sum,
    "segment_max": _segment_max,
    "segment_softmax": _segment_softmax,
    "unique_rows": find("unique_rows").run,
}


def _lookup_shape(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.new_empty((*index.shape, *table.shape[1:]))


def _typed_shape(x: torch.Tensor, weight: torch.Tensor, type: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[-1]))


def _segment_shape(x: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    return x.new_empty((segments, *x.shape[1:]))


def _row_shape(x: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    return torch.empty_like(x)


def _pairs_shape(major: torch.Tensor, minor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return major.new_empty(count, dtype=torch.int64), major.new_empty(major.shape, dtype=torch.int64)


_SHAPES: dict[str, Callable[..., Any]] = {
    "lookup": _lookup_shape,
    "typed_linear": _typed_shape,
    "segment_sum": _segment_shape,
    "segment_max": _segment_shape,
    "segment_softmax": _row_shape,
    "unique_rows": _pairs_shape,
}

for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.impl(f"{NAMESPACE}::{_name}", "default", _EAGER[_name])
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _SHAPES[_name])
