"""Memory of large results: used again once nobody but us holds it.

What the system gives anew comes page by page and filled with zeros, which takes as long as a kernel that passes over it once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from suture.ir.graph import Value

_SMALL = 1 << 17  # bytes below which the C library has memory at hand
_MOST = 1 << 25  # bytes that one compiled graph keeps
_EACH = 2  # pieces of a result: one that the caller still holds while it asks for the next, and that next one
_uses = getattr(torch._C, "_storage_Use_Count", None)


class Room(NamedTuple):
    """What a result takes: its sizes, how far its neighbours are apart, in elements, and its bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """The room of a tensor in the order of its dimensions."""
        strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
        return cls(tuple(shape), strides, math.prod(shape) * dtype.itemsize)


class Results:
    """The results of a compiled graph: tensors over memory that earlier results had, where their callers have let go of it."""

    def __init__(self) -> None:
        self._kept: dict[Value, list[torch.UntypedStorage]] = {}
        self._lock = threading.Lock()

    def make(self, value: Value, room: Room) -> torch.Tensor:
        """A tensor for a result, in the order of its dimensions; what is in it does not count."""
        size = room.size
        if not _SMALL <= size <= _MOST or _uses is None:
            return torch.empty(room.shape, dtype=value.dtype)
        with self._lock:
            for storage in self._kept.get(value, ()):
                if storage.nbytes() == size and _uses(storage._cdata) == 1 and not storage.is_shared():
                    return torch.empty(0, dtype=value.dtype).set_(storage, 0, room.shape, room.strides)
            made = torch.empty(room.shape, dtype=value.dtype)
            self._keep(value, made.untyped_storage(), size)
        return made

    def _keep(self, value: Value, storage: torch.UntypedStorage, size: int) -> None:
        alike = [each for each in self._kept.pop(value, ()) if each.nbytes() == size]
        others = sum(each.nbytes() for kept in self._kept.values() for each in kept)
        room = min(_EACH, (_MOST - others) // size)
        if room:
            self._kept[value] = [*alike, storage][-room:]
