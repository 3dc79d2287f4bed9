"""Operators that look values up at indices: embedding, index, gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role, Term
from suture.ir.operator import Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance, plain_letters

LINEAR, OTHER = FunctionClass.LINEAR, FunctionClass.OTHER


def _embedding(w: torch.Tensor, i: torch.Tensor, *, padding: int | None) -> torch.Tensor:
    # padding only stops the gradient of one row; an index beyond a pruned table cannot happen, the vocabulary is pinned
    if w.ndim == 2:
        return F.embedding(i, w, padding)
    return w.index_select(0, i.reshape(-1)).reshape(*i.shape, *w.shape[1:])


declare(
    "embedding",
    "w[v, *d], i[*b] -> y[*b, *d] (w at i)",
    _embedding,
    attributes={"padding": None},
    function=LINEAR,
    doc="The rows of w at i.",
)


def _index(x: torch.Tensor, *indices: torch.Tensor | None, dims: Sequence[int]) -> torch.Tensor:
    key: list[Any] = [slice(None)] * x.ndim
    for dim, index in zip(dims, indices, strict=True):
        key[dim] = index
    try:
        return x[tuple(key)]
    except IndexError as error:
        raise SutureError(Code.INPUT, str(error), remedy="an index must lie inside its dimension") from None


def _index_instance(call: Call) -> Instance:
    """Advanced indexing: the index operands broadcast together and take the place of the dimensions they index (the front, if those are apart)."""
    dims = call.ints("dims")
    letters, sizes = plain_letters(call.shape(0))
    rank = max((len(call.shape(k)) for k in range(1, len(call.types))), default=0)
    looked: list[Term] = [f"i{k}" for k in range(rank)]
    operands: list[list[Term]] = [letters]
    for k in range(1, len(call.types)):
        if call.type(k).dtype == torch.bool:
            raise SutureError(
                Code.DTYPE,
                "a boolean index has no size of its own",
                where=call.where,
                remedy="use where, or an opaque node",
            )
        offset = rank - len(call.shape(k))
        for position, size in enumerate(call.shape(k)):
            letter = f"i{offset + position}"
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
            elif size not in (1, sizes[letter]):
                raise SutureError(
                    Code.SHAPE,
                    f"index {call.type(k)} where others have {sizes[letter]}",
                    where=call.where,
                    remedy="indices broadcast together",
                )
    for k in range(1, len(call.types)):
        shape, offset = call.shape(k), rank - len(call.shape(k))
        operands.append(
            [1 if size == 1 and sizes[f"i{offset + p}"] != 1 else f"i{offset + p}" for p, size in enumerate(shape)]
        )
    adjacent = list(dims) == list(range(dims[0], dims[0] + len(dims)))
    kept = [letter for k, letter in enumerate(letters) if k not in dims]
    front = dims[0] if adjacent else 0
    return make_instance(
        operands, [[*kept[:front], *looked, *kept[front:]]], sizes, {f"d{dim}": Role.LOOKUP for dim in dims}
    )


declare("index", "x[n, *f], i[*e] -> y[*e, *f] (x at i)", _index, attributes={"dims": (0,)}, function=LINEAR, build=_index_instance,
        doc="x at the indices given for `dims`, one operand each.")  # fmt: skip


def _gather(x: torch.Tensor, i: torch.Tensor, *, dim: int) -> torch.Tensor:
    return torch.gather(x, dim, i)


def _gather_instance(call: Call) -> Instance:
    """Every other dimension of the index is a prefix of x's, so all are ordered unless equal."""
    dim = call.dim()
    source, index = call.shape(0), call.shape(1)
    fits = len(source) == len(index) and all(
        not (isinstance(a, int) and isinstance(b, int)) or b <= a
        for k, (a, b) in enumerate(zip(source, index, strict=True))
        if k != dim
    )
    if not fits:
        raise SutureError(
            Code.SHAPE,
            f"{call.type(0)} at {call.type(1)}",
            where=call.where,
            remedy=f"the index is no larger but along dimension {dim}",
        )
    letters, sizes = plain_letters(source)
    others, more = plain_letters(index, "i")
    sizes |= more
    roles = {f"d{dim}": Role.LOOKUP}
    for k, (a, b) in enumerate(zip(source, index, strict=True)):
        if k != dim and a == b:
            others[k] = letters[k]
        elif k != dim:
            roles |= {f"d{k}": Role.ORDERED, f"i{k}": Role.ORDERED}
    return make_instance([letters, others], [others], sizes, roles)


declare(
    "gather",
    "x[*a, n, *b], i[*a, e, *b] -> y[*a, e, *b]",
    _gather,
    attributes={"dim": 0},
    function=LINEAR,
    build=_gather_instance,
    cost=lambda instance: 0,
    doc="x at the index along one dimension, element by element.",
)
