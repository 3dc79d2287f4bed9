"""Message graphs of the index tensors that layers are called with, made once for each and kept as long as the tensors live."""

from __future__ import annotations

import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

from suture.frontends.messages.graph import MessageGraph
from suture.frontends.messages.lookups import OneHot

T = TypeVar("T")


class TensorCache(Generic[T]):
    """What was made of tensors: found again for the same tensors, unchanged; forgotten when one of them is gone.

    :param limit: how many results are kept; the one that was used longest ago goes first
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, tuple[T, tuple[weakref.ref[Any], ...]]] = OrderedDict()
        self._lock = Lock()

    def get(self, tensors: tuple[Any, ...], extra: Hashable, make: Callable[[], T]) -> T:
        """The result for these tensors (and objects that live as long) and what else it depends on; `make` makes it the first time."""
        key = (extra, *map(id, tensors), *_versions(tensors))
        with self._lock:
            found = self._kept.get(key)
            if found is not None and all(map(operator.is_, map(operator.call, found[1]), tensors)):
                self._kept.move_to_end(key)
                return found[0]
        made = make()
        with self._lock:
            references = tuple(weakref.ref(each, lambda _: self._forget(key)) for each in tensors)
            self._kept[key] = (made, references)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, key: Hashable) -> None:
        self._kept.pop(key, None)


def _versions(tensors: tuple[Any, ...]) -> Sequence[tuple[int, int]]:
    """Those of all tensors: there may be hundreds, at every call."""
    try:
        return [(each.data_ptr(), each._version) for each in tensors]
    except (AttributeError, RuntimeError):  # something else than a tensor, or one of inference mode
        return [_version(each) for each in tensors]


def _version(held: Any) -> tuple[int, int]:
    """Where a tensor lies and how often it was written to; one of inference mode does not count that."""
    if not isinstance(held, torch.Tensor):
        return 0, 0
    return held.data_ptr(), 0 if held.is_inference() else held._version


_MADE: TensorCache[Any] = TensorCache()
"""What the layers of all models made of the edges that they were called with; layers that read the same edges share it."""


def own(index: torch.Tensor) -> torch.Tensor:
    """The same memory as another tensor, which does not keep the other alive: subclasses and autograd's views are left behind."""
    return index.detach().as_subclass(torch.Tensor)


@dataclass(frozen=True)
class Ends:
    """What edges lead between.

    :param sources: how many nodes they begin in
    :param targets: how many nodes they end in; None, if these are the same nodes
    :param types: how many types edges have
    :param flipped: whether they lead from row 1 of their index to row 0
    """

    sources: int
    targets: int | None = None
    types: int | None = None
    flipped: bool = False


def is_index(edge_index: Any) -> bool:
    """Whether it is `[2, edges]` of integers, as a dense tensor."""
    return (
        isinstance(edge_index, torch.Tensor)
        and edge_index.layout == torch.strided
        and edge_index.dim() == 2
        and edge_index.shape[0] == 2
        and edge_index.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    )


def _rows(edge_index: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and destinations."""
    index = own(edge_index)
    return (index[1], index[0]) if ends.flipped else (index[0], index[1])


def edges_of(edge_index: torch.Tensor, edge_type: torch.Tensor | None, ends: Ends) -> MessageGraph:
    """The graph of `edge_index[2, edges]`: row 0 has sources, row 1 destinations.

    :raises SutureError: RELATION or INPUT, if an edge leads outside
    """
    tensors = (edge_index,) if edge_type is None else (edge_index, edge_type)

    def make() -> MessageGraph:
        return message_graph(*_rows(edge_index, ends), None if edge_type is None else own(edge_type), ends)

    found: MessageGraph = _MADE.get(tensors, ("edges", ends), make)
    return found


def numbers(graph: MessageGraph, count: int) -> torch.Tensor:
    """The numbers from zero to `count`, the same tensor at every call with the same graph."""
    key = ("numbers", count)
    if key not in graph.cache:
        graph.cache[key] = torch.arange(count, device=graph.device)
    found: torch.Tensor = graph.cache[key]
    return found


def one_hot(numbers: torch.Tensor, width: int) -> OneHot:
    """The one-hot rows of nodes' numbers; the numbers are looked at once.

    :raises SutureError: RELATION, if they are not numbers of columns
    """
    found: OneHot = kept((numbers,), ("one-hot", width), lambda: OneHot(own(numbers), width))
    return found


def message_graph(src: torch.Tensor, dst: torch.Tensor, type: torch.Tensor | None, ends: Ends) -> MessageGraph:
    """A message graph over one set of nodes, or from one set to another."""
    if ends.targets is None:
        return MessageGraph(src, dst, type, num_nodes=ends.sources, num_types=ends.types)
    return MessageGraph(src, dst, type, num_src=ends.sources, num_dst=ends.targets, num_types=ends.types)


def kept(objects: tuple[Any, ...], extra: Hashable, make: Callable[[], Any]) -> Any:
    """What was made of index tensors (and objects that live as long), found again for the same ones."""
    return _MADE.get(objects, extra, make)


@dataclass(frozen=True)
class Looped:
    """Edges with a loop at each node in place of those that were there.

    :param staying: the positions of the edges that are no loops
    :param edge_index: these edges, then the loops, as the layer was given edges
    :param graph: the same as a message graph
    """

    staying: torch.Tensor
    edge_index: torch.Tensor
    graph: MessageGraph


def looped(edge_index: torch.Tensor, loops: int, ends: Ends) -> Looped:
    """Replace the self loops by one at each of the first `loops` nodes."""

    def make() -> Looped:
        index = own(edge_index)
        staying = (index[0] != index[1]).nonzero().flatten()
        nodes = torch.arange(loops, dtype=index.dtype, device=index.device)
        full = torch.cat([index[:, staying], nodes.expand(2, -1)], dim=1)
        return Looped(staying, full, message_graph(*_rows(full, ends), None, ends))

    found: Looped = _MADE.get((edge_index,), ("looped", loops, ends), make)
    return found
