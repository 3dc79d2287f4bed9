"""The inspector's operators for edges in main memory: each a pass or a few over them, where torch's own sorts and masks take many.

What is not covered here (numbers of 32 bits, keys too long to sort in one word) or wrong runs as the operator is defined, which says what is wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from suture.codegen.toolchain import build
from suture.ir.graph import Node
from suture.ir.operators.sides import different_ends
from suture.ir.semantics import run_node
from suture.ir.sizes import evaluate_size

_Operands = Sequence[torch.Tensor]
_Made = tuple[torch.Tensor, ...] | None
_Call = Callable[..., int]
_FUNCTIONS = {  # addresses and counts that each takes, in order
    "sort_order": "aaca", "unique_rows": "aacaa", "inverse_order": "aca", "run_pointers": "acca", "tile_runs": "accaa", "different_ends": "aacca",
    "meeting_rows": "acacca", "segment_sum": "aacca", "embedding_1": "acaca", "embedding_4": "acaca", "embedding_8": "acaca",
}  # fmt: skip


def run_counting(
    node: Node, operands: Sequence[torch.Tensor | None], symbols: Mapping[str, int]
) -> tuple[torch.Tensor, ...]:
    """One node's results, the same numbers as those of `run_node`.

    :param operands: in main memory
    """
    step = _STEPS.get(node.operator.name)
    if step is not None:
        given = [each.contiguous() for each in operands if each is not None]
        found = step(node, given, symbols) if given[-1].dtype == torch.int64 else None
        if found is not None:
            return found
    return run_node(node, operands, symbols)


def count_ends(type: torch.Tensor, end: torch.Tensor, types: int) -> torch.Tensor:
    """For each type how many different ends its rows have, as `different_ends`."""
    if type.device.type == "cpu" and type.dtype == end.dtype == torch.int64 and len(type):
        type, end = type.contiguous(), end.contiguous()
        counts = _room(types)
        if _call("different_ends")(type.data_ptr(), end.data_ptr(), len(type), types, counts.data_ptr()) == 0:
            return counts
    return different_ends(type, end, types)


def _room(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.int64, device="cpu")


def _keys(given: _Operands) -> tuple[int, int | None] | None:
    """The addresses of one key or two; None where they are not of 64 bits."""
    if any(each.dtype != torch.int64 for each in given):
        return None
    return given[0].data_ptr(), given[1].data_ptr() if len(given) > 1 else None


def _sort_order(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    keys, order = _keys(given), _room(len(given[0]))
    return (order,) if keys and _call("sort_order")(*keys, len(order), order.data_ptr()) == 0 else None


def _unique_rows(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    keys, count = _keys(given), len(given[0])
    first, rank = _room(count), _room(count)
    pairs = _call("unique_rows")(*keys, count, first.data_ptr(), rank.data_ptr()) if keys else -1
    return None if pairs < 0 else (first[:pairs].clone(), rank)


def _inverse_order(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    (order,) = given
    rank = torch.empty_like(order)
    return (rank,) if _call("inverse_order")(order.data_ptr(), len(order), rank.data_ptr()) == 0 else None


def _run_pointers(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    (key,) = given
    pointers = _room(evaluate_size(node.output.shape[0], symbols))
    done = _call("run_pointers")(key.data_ptr(), len(key), len(pointers) - 1, pointers.data_ptr())
    return (pointers,) if done == 0 else None


def _tile_runs(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    (pointers,), rows, call = given, node.attributes["rows"], _call("tile_runs")
    count = call(pointers.data_ptr(), len(pointers) - 1, rows, None, None)
    tiles, types = _room(count + 1), _room(count)
    call(pointers.data_ptr(), len(pointers) - 1, rows, tiles.data_ptr(), types.data_ptr())
    return tiles, types


def _fewer_ends(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    type, a, b = given
    types = evaluate_size(node.output.shape[0], symbols)
    if len(type) and int(type.max()) >= types:
        return None
    return (count_ends(type, b, types) < count_ends(type, a, types),)


def _meeting_rows(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    side, first = given
    row = _room(len(side) + len(first) + 1)
    together = int(bool(node.attributes["together"]))
    count = _call("meeting_rows")(side.data_ptr(), len(side), first.data_ptr(), len(first), together, row.data_ptr())
    return None if count < 0 else (row[:count].clone(),)


def _segment_sum(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    x, index = given
    if x.dtype != torch.int64 or x.ndim != 1:
        return None
    made = _room(evaluate_size(node.output.shape[0], symbols))
    done = _call("segment_sum")(x.data_ptr(), index.data_ptr(), len(index), len(made), made.data_ptr())
    return (made,) if done == 0 else None


def _embedding(node: Node, given: _Operands, symbols: Mapping[str, int]) -> _Made:
    table, index = given
    if table.numel() != len(table) or index.ndim != 1 or table.itemsize not in (1, 4, 8):
        return None
    made = torch.empty((len(index), *table.shape[1:]), dtype=table.dtype, device="cpu")
    call = _call(f"embedding_{table.itemsize}")
    done = call(table.data_ptr(), len(table), index.data_ptr(), len(index), made.data_ptr())
    return (made,) if done == 0 else None


_STEPS: Mapping[str, Callable[[Node, _Operands, Mapping[str, int]], _Made]] = {
    "sort_order": _sort_order, "unique_rows": _unique_rows, "inverse_order": _inverse_order, "run_pointers": _run_pointers, "tile_runs": _tile_runs,
    "fewer_ends": _fewer_ends, "meeting_rows": _meeting_rows, "segment_sum": _segment_sum, "embedding": _embedding,
}  # fmt: skip


@cache
def _call(name: str) -> _Call:
    """A compiled function.

    :raises SutureError: COMPILER or WRITE, as `build`
    """
    found: _Call = getattr(_library(), name)
    kinds = {"a": ctypes.c_void_p, "c": ctypes.c_int64}
    found.argtypes, found.restype = [kinds[each] for each in _FUNCTIONS[name]], ctypes.c_int64  # type: ignore[attr-defined]
    return found


@cache
def _library() -> ctypes.CDLL:
    return build(Path(__file__).with_name("counting.cpp").read_text(encoding="utf-8"))
