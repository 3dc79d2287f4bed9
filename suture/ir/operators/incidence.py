"""Operators that look at the edges of a graph alone: orders, pointers, unique pairs, tiles.

They are what an inspector computes once for a graph, so that everything else runs over neighbours. Their operands and results are integers. How many
unique pairs or tiles there are, only the data say: such an operator *measures*, and the symbols in its declared results are bound when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Role
from suture.ir.operator import REQUIRED, Call, declare
from suture.ir.operators.layout import make_instance
from suture.ir.operators.segments import integer_operand
from suture.ir.sizes import Dim


def _flat_keys(major: torch.Tensor, minor: torch.Tensor | None) -> torch.Tensor:
    """One key a row that sorts as the two do."""
    if minor is None or not len(major):
        return major.to(torch.int64)
    low = minor.to(torch.int64)
    return major.to(torch.int64) * (low.max() + 1) + low


def _narrowed(key: torch.Tensor) -> torch.Tensor:
    """Keys in the narrowest type in which they sort the same: torch sorts half as wide ones in half the time."""
    least, most = map(int, torch.aminmax(key)) if len(key) else (0, 0)
    if least < 0:
        return key
    if most < 1 << 16:
        return (key - (1 << 15)).to(torch.int16)
    return key.to(torch.int32) if most <= torch.iinfo(torch.int32).max else key


def _sort_order(major: torch.Tensor, minor: torch.Tensor | None = None) -> torch.Tensor:
    return torch.argsort(_narrowed(_flat_keys(major, minor)), stable=True)


def _inverse_order(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device, dtype=order.dtype))


def _run_pointers(key: torch.Tensor, *, shape: Sequence[int]) -> torch.Tensor:
    counts = torch.bincount(key, minlength=shape[0] - 1)
    if len(counts) != shape[0] - 1:
        raise SutureError(
            Code.INPUT, f"an index is {int(key.max())} where there are {shape[0] - 1}", remedy="an index must lie inside its dimension"
        )  # fmt: skip
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _unique_rows(major: torch.Tensor, minor: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    taken, order = torch.sort(_narrowed(_flat_keys(major, minor)), stable=True)
    new = torch.ones_like(taken, dtype=torch.bool)
    torch.ne(taken[1:], taken[:-1], out=new[1:])
    rank = torch.empty_like(order).scatter_(0, order, new.cumsum(0).sub_(1))
    return order.index_select(0, new.nonzero().flatten()), rank


def _tile_runs(p: torch.Tensor, *, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = p[1:] - p[:-1]
    counts = (lengths + (rows - 1)) // rows
    types = torch.repeat_interleave(torch.arange(len(lengths), device=p.device), counts)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[:-1]  # the number of each type's first tile
    starts = p[types] + (torch.arange(len(types), device=p.device) - first[types]) * rows
    return torch.cat([starts, p[-1:]]), types


def _keys_instance(call: Call, outputs: list[list[str]], sizes: dict[str, Dim]) -> Instance:
    for k, each in enumerate(call.types):
        if each is not None:
            integer_operand(call, k)
            if each.rank != 1 or each.shape != call.shape(0):
                raise SutureError(
                    Code.SHAPE, f"keys {call.type(0)} and {each}", where=call.where, remedy="keys of one length would be right"
                )  # fmt: skip
    letters = dict.fromkeys(letter for dims in (["e"], *outputs) for letter in dims)
    roles = dict.fromkeys(letters, Role.LOOKUP)
    inputs = [None if each is None else ["e"] for each in call.types]
    return make_instance(inputs, outputs, {"e": call.shape(0)[0], **sizes}, roles)


def _int64(call: Call) -> torch.dtype:
    return torch.int64


declare(
    "sort_order",
    "major[e], minor[e]? -> order[e]",
    _sort_order,
    build=lambda call: _keys_instance(call, [["e"]], {}),
    dtype=_int64,
    doc="The stable order that sorts rows by one key, or by two, the first before the second.",
)
declare(
    "inverse_order",
    "order[e] -> rank[e]",
    _inverse_order,
    build=lambda call: _keys_instance(call, [["e"]], {}),
    doc="Where each row has come to in an order.",
)
declare(
    "run_pointers",
    "key[e] -> p[q]",
    _run_pointers,
    build=lambda call: _keys_instance(call, [["q"]], {"q": call.result_shapes(1)[0][0]}),
    dtype=_int64,
    declared=True,
    doc="Where the rows of each key begin when rows are sorted by it, and where the last end: one more than there are keys.",
)
declare(
    "unique_rows",
    "major[e], minor[e]? -> first[u], rank[e]",
    _unique_rows,
    build=lambda call: _keys_instance(call, [["u"], ["e"]], {"u": call.result_shapes(2)[0][0]}),
    dtype=_int64,
    declared=True,
    measures=True,
    doc="The different keys, sorted: the first row that has each, and for every row the number of its key.",
)


def _tiles_instance(call: Call) -> Instance:
    integer_operand(call, 0)
    (count,) = call.result_shapes(2)[1]
    sizes: dict[str, Dim] = {"q": call.shape(0)[0], "k": count, "k'": count + 1}
    return make_instance([["q"]], [["k'"], ["k"]], sizes, dict.fromkeys(sizes, Role.LOOKUP))


declare(
    "tile_runs",
    "p[q] -> tiles[k'], types[k]",
    _tile_runs,
    attributes={"rows": REQUIRED},
    build=_tiles_instance,
    dtype=_int64,
    declared=True,
    measures=True,
    doc="Segments cut into tiles of at most so many rows: where each tile begins (and the last ends), and its segment.",
)
