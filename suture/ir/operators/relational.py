"""Operators of message passing: values along edges, that nodes and types look up, and that meet again in nodes.

An edge has a source, a destination and a type, each a number; so a value along edges has one dimension for all of them, and whatever an edge takes
from a node or a weight is a lookup. Nothing here says in which order edges come: see `suture.ir.operators.runs` for what follows from an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Role, Term, instantiate
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare, find
from suture.ir.operators.layout import make_instance
from suture.ir.operators.segments import integer_operand
from suture.ir.sizes import Dim, product

LINEAR = FunctionClass.LINEAR


def by_type(x: torch.Tensor, w: torch.Tensor, type: torch.Tensor) -> torch.Tensor:
    """`x[e, *h, i]` times the matrix of each row's type `w[t, *h, i, o]`; rows of one type are multiplied at once."""
    check_types(type, w.shape[0])
    order = torch.argsort(type, stable=True)
    counts = torch.bincount(type, minlength=w.shape[0]).tolist()
    rows = torch.split(x.index_select(0, order), counts)
    made = [(each.movedim(0, -2) @ matrix).movedim(-2, 0) for each, matrix in zip(rows, w, strict=True) if len(each)]
    result = x.new_zeros((*x.shape[:-1], w.shape[-1]))
    return result.index_copy_(0, order, torch.cat(made)) if made else result


def outer_by_type(x: torch.Tensor, g: torch.Tensor, type: torch.Tensor, types: int) -> torch.Tensor:
    """For each type the sum of the outer products of its rows: `x[e, *h, i]`, `g[e, *h, o]` -> `w[t, *h, i, o]`."""
    check_types(type, types)
    order = torch.argsort(type, stable=True)
    counts = torch.bincount(type, minlength=types).tolist()
    left, right = (torch.split(each.index_select(0, order), counts) for each in (x, g))
    made = [a.movedim(0, -1) @ b.movedim(0, -2) for a, b in zip(left, right, strict=True)]
    return torch.stack(made) if made else x.new_zeros((0, *x.shape[1:], g.shape[-1]))


def check_types(type: torch.Tensor, types: int) -> None:
    """Refuse types that there are no weights for.

    :raises SutureError: INPUT, with how many there are and where the first is
    """
    outside = (type < 0) | (type >= types)
    count = int(outside.sum())
    if count:
        first = int(outside.nonzero()[0])
        raise SutureError(
            Code.INPUT, f"{count} of {len(type)} types lie outside 0 to {types - 1}: type {int(type[first])} at {first}",
            remedy="every type needs a weight",
        )  # fmt: skip


declare(
    "typed_linear",
    "x[e, *h, i], w[t, *h, i, o], type[e] -> y[e, *h, o] (w at type)",
    by_type,
    function=LINEAR,
    doc="Each row of x times the matrix of its type.",
)


def _typed_outer(x: torch.Tensor, g: torch.Tensor, type: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    return outer_by_type(x, g, type, shape[0])


def _outer_instance(call: Call) -> Instance:
    sizes: dict[str, Dim] = {"t": call.result_shapes(1)[0][0]}
    operands = [None if each is None else each.shape for each in call.types]
    found = instantiate(find("typed_outer").signature, operands, Binding({}, sizes), where=call.where)
    return replace(found, roles={**found.roles, "t": Role.LOOKUP})


def outer_cost(instance: Instance) -> Dim:
    """Each row is multiplied for its own type alone: the sizes of all letters of the rows."""
    return product([instance.size(term) for term in (*(instance.inputs[0] or ()), (instance.inputs[1] or ())[-1])])


declare(
    "typed_outer",
    "x[e, *h, i], g[e, *h, o], type[e] -> w[t, *h, i, o]",
    _typed_outer,
    function=LINEAR,
    build=_outer_instance,
    declared=True,
    cost=outer_cost,
    doc="For each type the sum, over the rows of that type, of the outer products of x and g: what typed_linear gives back to its weights.",
)


def _segment_max(x: torch.Tensor, i: torch.Tensor, *, empty: float, shape: Sequence[int]) -> torch.Tensor:
    found = torch.full(tuple(shape), empty, dtype=x.dtype, device=x.device)
    spread = i.reshape([len(i), *[1] * (x.ndim - 1)]).expand_as(x)
    return found.scatter_reduce_(0, spread, x, "amax", include_self=False)


def _segment_max_instance(call: Call) -> Instance:
    """The index has one dimension; those of x behind its first are features."""
    x, i, y = call.shape(0), call.shape(1), call.result_shapes(1)[0]
    if len(i) != 1 or x[:1] != i or y[1:] != x[1:] or len(y) != len(x):
        raise SutureError(
            Code.SHAPE, f"the maxima of {call.type(0)} at {call.type(1)} to [{', '.join(map(str, y))}]", where=call.where,
            remedy="x[e, *f] and i[e] give y[n, *f]",
        )  # fmt: skip
    integer_operand(call, 1)
    features: list[Term] = [f"f{k}" for k in range(len(x) - 1)]
    sizes: dict[str, Dim] = {str(letter): size for letter, size in zip(["e", *features], x, strict=True)}
    sizes["n"] = y[0]
    return make_instance([["e", *features], ["e"]], [["n", *features]], sizes, {"e": Role.MIXED, "n": Role.LOOKUP})


declare(
    "segment_max",
    "x[~e, *f], i[e] -> y[n, *f]",
    _segment_max,
    attributes={"empty": 0.0},
    build=_segment_max_instance,
    declared=True,
    doc="The maxima of x over equal indices; `empty` where there is none.",
)


def _segment_softmax(x: torch.Tensor, i: torch.Tensor, *, segments: int) -> torch.Tensor:
    shape = (segments, *x.shape[1:])
    risen = (x - _segment_max(x, i, empty=0.0, shape=shape).index_select(0, i)).exp()
    return risen / x.new_zeros(shape).index_add_(0, i, risen).index_select(0, i)


declare(
    "segment_softmax",
    "x[~e, *f], i[e] -> y[e, *f]",
    _segment_softmax,
    attributes={"segments": REQUIRED},
    doc="The softmax of x over equal indices below `segments`, the maximum taken off first: an attention over the edges that meet in a node.",
)
