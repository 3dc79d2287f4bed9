"""Operators on rows that come sorted: the rows of each segment are neighbours, and pointers say where segments begin and end.

Segment n has the rows `p[n] .. p[n + 1]`. What message passing says by lookups and sums over equal indices becomes loops over neighbours: no two
segments meet in an element, so nothing is atomic, and sums have one order. `csr_sum` and `csr_spread` are each other's adjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, Role, Term, instantiate
from suture.ir.operator import Call, FunctionClass, declare, find
from suture.ir.operators.layout import make_instance
from suture.ir.operators.relational import by_type, outer_by_type, outer_cost
from suture.ir.operators.segments import integer_operand
from suture.ir.sizes import Dim

LINEAR = FunctionClass.LINEAR


def rows_of(p: torch.Tensor) -> torch.Tensor:
    """The segment of each row."""
    return torch.repeat_interleave(torch.arange(len(p) - 1, device=p.device), p[1:] - p[:-1])


def _csr_sum(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return x.new_zeros((len(p) - 1, *x.shape[1:])).index_add_(0, rows_of(p), x)


def _csr_max(x: torch.Tensor, p: torch.Tensor, *, empty: float) -> torch.Tensor:
    found = torch.full((len(p) - 1, *x.shape[1:]), empty, dtype=x.dtype, device=x.device)
    spread = rows_of(p).reshape([len(x), *[1] * (x.ndim - 1)]).expand_as(x)
    return found.scatter_reduce_(0, spread, x, "amax", include_self=False)


def _csr_spread(x: torch.Tensor, p: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    return x.index_select(0, rows_of(p))


def _reduced(call: Call) -> Instance:
    x, p = call.shape(0), call.shape(1)
    if not x or len(p) != 1:
        raise SutureError(
            Code.SHAPE, f"{call.type(0)} in segments of {call.type(1)}", where=call.where, remedy="x[e, *f] and p[n + 1] would be right"
        )  # fmt: skip
    integer_operand(call, 1)
    features: list[Term] = [f"f{k}" for k in range(len(x) - 1)]
    sizes: dict[str, Dim] = {str(letter): size for letter, size in zip(["e", *features], x, strict=True)}
    sizes |= {"n": p[0] - 1, "q": p[0]}
    return make_instance(
        [["e", *features], ["q"]], [["n", *features]], sizes, {"e": Role.ORDERED, "n": Role.LOOKUP, "q": Role.LOOKUP}
    )


declare(
    "csr_sum",
    "x[!e, *f], p[q] -> y[n, *f]",
    _csr_sum,
    function=LINEAR,
    build=_reduced,
    cost=lambda instance: 0,
    doc="The sum of each segment's rows.",
)
declare(
    "csr_max",
    "x[!e, *f], p[q] -> y[n, *f]",
    _csr_max,
    attributes={"empty": 0.0},
    build=_reduced,
    doc="The maximum of each segment's rows; `empty` where there is none.",
)


def _spread_instance(call: Call) -> Instance:
    x, p, y = call.shape(0), call.shape(1), call.result_shapes(1)[0]
    if not x or len(p) != 1 or p[0] - x[0] != 1 or y[1:] != x[1:] or len(y) != len(x):
        raise SutureError(
            Code.SHAPE, f"{call.type(0)} over segments of {call.type(1)} to [{', '.join(map(str, y))}]", where=call.where,
            remedy="x[n, *f] and p[n + 1] give y[e, *f]",
        )  # fmt: skip
    integer_operand(call, 1)
    features: list[Term] = [f"f{k}" for k in range(len(x) - 1)]
    sizes: dict[str, Dim] = {str(letter): size for letter, size in zip(["n", *features], x, strict=True)}
    sizes |= {"e": y[0], "q": p[0]}
    roles = {"e": Role.LOOKUP, "n": Role.LOOKUP, "q": Role.LOOKUP}
    return make_instance([["n", *features], ["q"]], [["e", *features]], sizes, roles)


declare(
    "csr_spread",
    "x[n, *f], p[q] -> y[e, *f]",
    _csr_spread,
    function=LINEAR,
    build=_spread_instance,
    declared=True,
    cost=lambda instance: 0,
    doc="Each segment's row, once for every row of the segment.",
)


def _grouped_linear(
    x: torch.Tensor, w: torch.Tensor, tiles: torch.Tensor, types: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    made = by_type(x, w, types[rows_of(tiles)])
    return made if order is None else torch.zeros_like(made).index_copy(0, order.long(), made)


def _grouped_outer(x: torch.Tensor, g: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return outer_by_type(x, g, rows_of(p), len(p) - 1)


def _grouped_linear_instance(call: Call) -> Instance:
    tiles, types = call.shape(2), call.shape(3)
    if len(tiles) != 1 or len(types) != 1 or tiles[0] - types[0] != 1:
        raise SutureError(
            Code.SHAPE, f"tiles {call.type(2)} of types {call.type(3)}", where=call.where, remedy="tiles[k + 1] and types[k] would be right"
        )  # fmt: skip
    integer_operand(call, 2)
    integer_operand(call, 3)
    if len(call.types) > 4 and call.types[4] is not None:
        integer_operand(call, 4)
    operands = [None if each is None else each.shape for each in call.types]
    return _pinned(instantiate(find("grouped_linear").signature, operands, where=call.where), "e", "t", "q", "k")


def _grouped_outer_instance(call: Call) -> Instance:
    integer_operand(call, 2)
    operands = [None if each is None else each.shape for each in call.types]
    types = call.shape(2)[0] - 1
    found = instantiate(find("grouped_outer").signature, operands, Binding({}, {"t": types}), where=call.where)
    found = replace(found, roles={**found.roles, "e": Role.ORDERED})
    return _pinned(found, "t", "q")


def _pinned(instance: Instance, *letters: str) -> Instance:
    return replace(instance, roles={**instance.roles, **dict.fromkeys(letters, Role.LOOKUP)})


declare(
    "grouped_linear",
    "x[e, *h, i], w[t, *h, i, o], tiles[q], types[k], order[e]? -> y[e, *h, o]",
    _grouped_linear,
    function=LINEAR,
    build=_grouped_linear_instance,
    doc="Each tile of rows times the matrix of the tile's type: tile k has the rows tiles[k] .. tiles[k + 1]. "
    "Row r of what is made stands at order[r], which is a permutation; where it came from without one.",
)
declare(
    "grouped_outer",
    "x[!e, *h, i], g[!e, *h, o], p[q] -> w[t, *h, i, o]",
    _grouped_outer,
    function=LINEAR,
    build=_grouped_outer_instance,
    cost=outer_cost,
    doc="For each segment the sum of the outer products of its rows of x and g: what grouped_linear gives back to its weights.",
)
