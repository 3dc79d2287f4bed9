"""`relational.compile`: a message-passing module as a compiled function of a graph and tensors, with gradients."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from suture.drivers.relational.incidence import Incidence, find_incidence
from suture.drivers.relational.program import RelationalProgram
from suture.drivers.relational.traced import TracedCall, trace_call
from suture.drivers.relational.variants import Target
from suture.frontends.messages.graph import MessageGraph
from suture.ir.errors import Code, SutureError

_SHAPES = 512  # for how many shapes of arguments it is remembered which program they are for
_Key = tuple[Hashable, ...]


class RelationalFunction(nn.Module):
    """A message-passing module, compiled: `f(g, *tensors)` computes what the module does, and gradients flow to tensors and parameters.

    The module is `program`; its parameters are read at every call, so that an optimiser's step or loaded weights are seen. It is traced once for each
    kind of call (types of tensors, number of types, training or evaluation), and compiled for any number of edges and nodes, once for each way to
    compute it that the statistics of edges call for. What follows from the edges alone is kept for as long as they are. Results are the same bits at
    every run. Calls from several threads do not meet.

    :param program: what is compiled
    :param compact: whether values may be computed once for unique pairs of an endpoint and a type
    :param reorder: whether linear operators may change places
    :param target: `cpp`: this machine's processor; `cuda`: torch's current GPU
    :param train: whether gradients are recorded; None: where torch records them
    """

    def __init__(
        self,
        program: nn.Module,
        *,
        compact: bool = True,
        reorder: bool = True,
        target: Target = "cpp",
        train: bool | None = None,
    ) -> None:
        super().__init__()
        self.program = program
        self.compact, self.reorder, self.target, self.recording = compact, reorder, target, train
        self._start()

    def forward(self, g: MessageGraph, *tensors: Any, **keywords: Any) -> Any:
        """What the module returns for a graph and tensors.

        :raises SutureError: RELATION, INPUT or DEVICE, if edges, tensors and weights do not fit each other; EXPORT, if it cannot be traced;
            GRADIENT, COMPILER or WRITE, if it cannot be compiled
        """
        if keywords or any(not isinstance(each, torch.Tensor) for each in tensors):
            leaves, nesting = pytree.tree_flatten((tensors, keywords))
            flat = [each for each in leaves if isinstance(each, torch.Tensor)]
            fixed = (str(nesting), repr([None if isinstance(each, torch.Tensor) else each for each in leaves]))
        else:
            flat, fixed = list(tensors), ("", "")
        call = self._find(g, flat, fixed, tensors, keywords)
        recording = torch.is_grad_enabled() if self.recording is None else self.recording
        results = call.program.run(_incidence(g, call.indices(flat)), call.given(g, flat), gradients=recording)
        return call.returned(results)

    def programs(self) -> Iterator[RelationalProgram]:
        """What was traced so far, a program for each kind of call."""
        yield from (call.program for calls in self._traced.values() for call in calls)

    def extra_repr(self) -> str:
        """What it was asked to do."""
        return f"compact={self.compact}, reorder={self.reorder}, target={self.target}"

    def _start(self) -> None:
        self._traced: dict[_Key, list[TracedCall]] = {}
        self._shapes: dict[_Key, TracedCall] = {}
        self._lock = threading.RLock()

    def _find(
        self, g: MessageGraph, flat: list[torch.Tensor], fixed: _Key, tensors: tuple[Any, ...], keywords: dict[str, Any]
    ) -> TracedCall:
        """The program that arguments are for; traced if there is none yet."""
        if not isinstance(g, MessageGraph):
            raise SutureError(
                Code.RELATION, f"the first argument is a {type(g).__name__}", where=type(self.program).__name__,
                remedy="give a relational.MessageGraph",
            )  # fmt: skip
        modules = tuple([(id(each), each.training) for each in self.program.modules()])
        held = tuple([(each.dtype, each.shape) for each in self.program.parameters()])
        kind = (modules, held, fixed, g.spaces, *g.tensors, g.num_types, g.num_node_types, g.device)
        shapes = (kind, tuple([(each.dtype, each.shape) for each in flat]), *g.counts.values())
        found = self._shapes.get(shapes)
        if found is not None:
            return found
        with self._lock:
            calls = self._traced.setdefault(kind, [])
            fitting = next((call for call in calls if call.fits(g, flat)), None)
            if fitting is None:
                fitting = trace_call(
                    self.program, g, tensors, keywords, compact=self.compact, reorder=self.reorder, target=self.target
                )
                calls.append(fitting)
            while len(self._shapes) >= _SHAPES:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[shapes] = fitting
            return fitting

    def __getstate__(self) -> dict[str, Any]:
        """Without what was traced and compiled, which a copy finds again."""
        return {name: each for name, each in self.__dict__.items() if name not in ("_traced", "_shapes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start()


def compile(
    module: nn.Module,
    *,
    compact: bool = True,
    reorder: bool = True,
    target: Target = "cpp",
    train: bool | None = None,
) -> RelationalFunction:
    """Compile a message-passing module: `relational.compile(RGCN(...))(g, x)`.

    :param compact: whether values may be computed once for unique pairs of an endpoint and a type
    :param reorder: whether linear operators may change places
    :param target: `cpp`: C++ for this machine's processor; `cuda`: CUDA C++ for torch's current GPU
    :param train: whether gradients are recorded; None: where torch records them
    :raises SutureError: OPTION, if there is no such target; MODULE, if it is no module
    """
    if target not in ("cpp", "cuda"):
        raise SutureError(Code.OPTION, f"there is no target {target!r}", remedy="cpp and cuda are known")
    if not isinstance(module, nn.Module):
        raise SutureError(Code.MODULE, f"{type(module).__name__} is no torch module", remedy="pass an nn.Module")
    return RelationalFunction(module, compact=compact, reorder=reorder, target=target, train=train)


def _incidence(g: MessageGraph, others: dict[str, torch.Tensor]) -> Incidence:
    """What is known of a graph's edges and of other indices; the graph itself keeps it where torch does not say whether they were written to."""
    if others:
        return find_incidence(g.tensors | others)
    if any(each.is_inference() for each in g.tensors.values()):
        kept: Incidence = g.cache.setdefault("incidence", Incidence())
        return kept
    return find_incidence(g.tensors)
