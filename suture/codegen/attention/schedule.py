"""Schedules of attention: how many queries and keys a block takes at a time."""

from __future__ import annotations

import torch

from suture.codegen.scalars import compute_type
from suture.codegen.schedule import AttentionSchedule
from suture.ir.graph import Node
from suture.ir.sizes import Dim

_SHARED = 48 * 1024  # bytes of memory that a block of a GPU has without asking for more
_TILE = 12  # rows of a register tile
_FEW = 2  # queries that go one by one: a tile of them would be mostly empty


def schedules_for(node: Node, target: str) -> tuple[AttentionSchedule, ...]:
    """Schedules worth measuring, the likeliest first.

    :param target: `cpp` or `cuda`
    """
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    wide = compute_type(q.dtype)
    if target == "cuda":
        return _on_gpu(_fixed(q.shape[-1]), _fixed(v.shape[-1]), wide)
    length, vector = q.shape[-2], 64 // wide.itemsize
    keys = tuple(dict.fromkeys(_keys(k.shape[-2], most) for most in (11 * _TILE, 5 * _TILE)))
    if isinstance(length, int) and length <= _FEW:
        return tuple(AttentionSchedule(1, -(-each // vector) * vector, vector, vector) for each in keys)
    if isinstance(length, int) and length <= vector:
        return tuple(AttentionSchedule(vector, each, vector, vector) for each in keys)
    pair = [AttentionSchedule(2 * vector, each, 2 * vector, 2 * vector) for each in keys]
    # twice as many read keys half as often, but more of them are past the end, or see only some of the keys
    broad = AttentionSchedule(4 * vector, keys[0], 4 * vector, 4 * vector)
    long = isinstance(length, int) and length >= 16 * vector and -length % broad.queries * 16 <= length
    return (broad, *pair) if long and not node.attributes["causal"] else (*pair, broad)


def _keys(length: Dim, most: int) -> int:
    """Keys of a tile: all tiles about as long."""
    if not isinstance(length, int) or not length:
        return most
    tiles = -(-length // most)
    return -(-length // (tiles * 4)) * 4


def _on_gpu(depth: int, width: int, wide: torch.dtype) -> tuple[AttentionSchedule, ...]:
    """Tiles that leave the queries, the weights and, where there is room, keys or values in a block's memory."""
    found = []
    for queries, keys, lanes, across in ((64, 64, 128, 16), (64, 32, 128, 16), (32, 32, 128, 16), (16, 16, 32, 8)):
        held = (depth * queries + keys * queries + queries) * wide.itemsize
        brought = keys * max(depth, -(-width // across) * across) * wide.itemsize
        if held + brought <= _SHARED:
            found.append(AttentionSchedule(queries, keys, lanes, across, staged=True))
        elif held <= _SHARED:
            found.append(AttentionSchedule(queries, keys, lanes, across))
    return tuple(sorted(found, key=lambda each: not each.staged)) or (AttentionSchedule(8, 8, 32, 8),)


def _fixed(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
