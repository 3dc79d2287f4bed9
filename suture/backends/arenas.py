"""Memory that calls take in turn: calls of one thread follow one another, so one piece serves every compiled graph of a process.

A piece is taken for a call and given back after it; only calls that run at once have pieces of their own.
"""

from __future__ import annotations

import threading
import weakref

import torch


class Arenas:
    """Idle pieces of memory on the CPU."""

    def __init__(self) -> None:
        self._idle: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> torch.Tensor:
        """A piece of at least `size` bytes: the largest idle one, or one that replaces it."""
        with self._lock:
            found = self._idle.pop() if self._idle else None
        if found is None or found.numel() < size:
            del found  # before its successor is made
            return torch.empty(size, dtype=torch.uint8)
        return found

    def give(self, arena: torch.Tensor) -> None:
        """Let others have a piece that `take` gave."""
        with self._lock:
            self._idle.append(arena)
            self._idle.sort(key=torch.Tensor.numel)


_SHARED: weakref.WeakValueDictionary[str, Arenas] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared_arenas() -> Arenas:
    """The pieces of this process; they are let go with the last compiled graph that holds them."""
    with _LOCK:
        found = _SHARED.get("cpu")
        if found is None:
            found = _SHARED["cpu"] = Arenas()
        return found
