"""What was found out about edges, kept for as long as the edges are.

Edges are index tensors. They are known by the memory that they look at and its version, so that `source, target = edge_index` finds at every call
what the first call found; a tensor that was written to since is another one. Nothing here keeps an index tensor alive.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_Key = tuple[Hashable, ...]


@dataclass(eq=False)
class Incidence:
    """What is known about one set of index tensors.

    :param results: what inspectors computed for programs, by the number of the expression and of the result
    :param measured: the sizes of what operators that measure gave, by the number of the expression
    :param prepared: what programs settled for calls with these edges
    """

    results: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    measured: dict[int, tuple[torch.Size, ...]] = field(default_factory=dict)
    prepared: dict[Hashable, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: dict[Hashable, int] = field(default_factory=dict)

    def number(self, expression: Hashable) -> int:
        """The number of an expression; equal expressions have one."""
        return self._numbers.setdefault(expression, len(self._numbers))


@dataclass(frozen=True)
class _Entry:
    incidence: Incidence
    versions: tuple[int, ...]
    memory: tuple[StorageWeakRef, ...]

    def expired(self) -> bool:
        return any(each.expired() for each in self.memory)  # type: ignore[no-untyped-call]


_KNOWN: dict[_Key, _Entry] = {}
_LOCK = threading.Lock()


def find_incidence(indices: Mapping[str, torch.Tensor]) -> Incidence:
    """What is known about index tensors, by their names; new if they have not been seen, or have been written to.

    Tensors that were made under `torch.inference_mode` say nothing of being written to: what is found out about them is not kept.
    """
    tensors = tuple(indices.values())
    if any(each.is_inference() for each in tensors):
        return Incidence()
    key = tuple(itertools.chain(indices, *map(_place, tensors)))
    versions = tuple([each._version for each in tensors])
    entry = _KNOWN.get(key)
    if entry is not None and entry.versions == versions:  # its memory lives: these tensors look at it
        return entry.incidence
    with _LOCK:
        entry = _KNOWN.get(key)
        if entry is not None and entry.versions == versions:
            return entry.incidence
        for old in [name for name, each in _KNOWN.items() if each.expired()]:
            del _KNOWN[old]
        memory = tuple(StorageWeakRef(each.untyped_storage()) for each in tensors)  # type: ignore[no-untyped-call]
        _KNOWN[key] = _Entry(Incidence(), versions, memory)
        return _KNOWN[key].incidence


def forget() -> None:
    """Let go of everything that was found out about edges."""
    with _LOCK:
        _KNOWN.clear()


def _place(tensor: torch.Tensor) -> _Key:
    """The memory that a tensor looks at. A storage's address is not given away while a weak reference to it stands."""
    address = tensor.untyped_storage()._cdata
    return address, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
