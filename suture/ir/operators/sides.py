"""Operators that choose for each type of edges the endpoint of which fewer different ones occur, and list what is met on each side.

A sum of products by type may multiply before it sums, once for each pair of type and source, or sum before it multiplies, once for each pair of type
and destination. A relation of many sources and few destinations wants the second, its reverse the first: these operators part edges by that.
"""

from __future__ import annotations

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role
from suture.ir.operator import REQUIRED, Call, declare
from suture.ir.operators.layout import make_instance
from suture.ir.operators.segments import integer_operand
from suture.ir.sizes import Dim

_TABLE = 1 << 27  # up to so many possible pairs are counted in a table; beyond, by sorting


def _fewer(type: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, shape: tuple[int]) -> torch.Tensor:
    if len(type) and int(type.max()) >= shape[0]:
        raise SutureError(
            Code.INPUT, f"a type is {int(type.max())} where there are {shape[0]}", remedy="an index must lie inside its dimension"
        )  # fmt: skip
    return different_ends(type, b, shape[0]) < different_ends(type, a, shape[0])


def different_ends(type: torch.Tensor, end: torch.Tensor, types: int) -> torch.Tensor:
    """For each type how many different ends its rows have."""
    if not len(type):
        return torch.zeros(types, dtype=torch.int64, device=type.device)
    span = int(end.max()) + 1
    keys = type.to(torch.int64) * span + end
    if types * span > _TABLE:
        return torch.bincount(torch.unique(keys) // span, minlength=types)
    seen = torch.zeros(types * span, dtype=torch.bool, device=keys.device).index_fill_(0, keys, value=True)
    return torch.count_nonzero(seen.view(types, span), 1)


def _meeting_rows(side: torch.Tensor, first: torch.Tensor, *, together: bool) -> torch.Tensor:
    pairs = first[side[first] == together]
    return torch.cat([pairs, torch.nonzero(side != together).flatten()])


def _fewer_instance(call: Call) -> Instance:
    for k in range(3):
        integer_operand(call, k)
        if call.type(k).rank != 1 or call.shape(k) != call.shape(0):
            raise SutureError(
                Code.SHAPE, f"keys {call.type(0)} and {call.type(k)}", where=call.where, remedy="keys of one length would be right"
            )  # fmt: skip
    sizes: dict[str, Dim] = {"e": call.shape(0)[0], "t": call.result_shapes(1)[0][0]}
    return make_instance([["e"]] * 3, [["t"]], sizes, dict.fromkeys(sizes, Role.LOOKUP))


def _meeting_instance(call: Call) -> Instance:
    integer_operand(call, 1)
    if call.type(0).dtype != torch.bool:
        raise SutureError(
            Code.DTYPE, f"sides of {call.type(0)}", where=call.where, remedy="truth values would be right"
        )
    sizes: dict[str, Dim] = {"e": call.shape(0)[0], "u": call.shape(1)[0], "k": call.result_shapes(1)[0][0]}
    return make_instance([["e"], ["u"]], [["k"]], sizes, dict.fromkeys(sizes, Role.LOOKUP))


declare(
    "fewer_ends",
    "type[e], a[e], b[e] -> side[t]",
    _fewer,
    build=_fewer_instance,
    dtype=lambda call: torch.bool,
    declared=True,
    doc="For each type whether its rows have fewer different b than a.",
)
declare(
    "meeting_rows",
    "side[e], first[u] -> row[k]",
    _meeting_rows,
    attributes={"together": REQUIRED},
    build=_meeting_instance,
    dtype=lambda call: torch.int64,
    declared=True,
    measures=True,
    doc="Rows of which those of one side stand for all of their pair, the first of each; those of the other side stand for themselves.",
)
