"""A message-passing module traced for one kind of call: where each input and parameter comes from, how results are nested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from suture.backends.calling import load_spec
from suture.drivers.relational.program import RelationalProgram
from suture.drivers.relational.variants import Target
from suture.frontends.messages.graph import MessageGraph
from suture.frontends.messages.tracing import trace
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import bind_symbols, check_input
from suture.passes.relational.locality import is_index


class TracedCall:
    """A module's program for one kind of call.

    :param module: the module, whose parameters are read at each call
    :param program: what it was traced to
    """

    def __init__(self, module: nn.Module, g: MessageGraph, program: RelationalProgram) -> None:
        self.program = program
        graph = program.graph
        known = {*g.tensors, *g.spaces}
        names = [value.name for value in graph.inputs]
        rest = [name for name in names if name not in known]
        self._leaves = len(rest)
        self._sources = [(name, rest.index(name) if name in rest else -1) for name in names]
        self._indices = [
            (name, k)
            for value, (name, k) in zip(graph.inputs, self._sources, strict=True)
            if k >= 0 and is_index(value)
        ]
        self._held = [_place(module, name) for name in program.parameters]
        assert graph.structure is not None
        self._nesting = load_spec(graph.structure.outputs)
        self._fixed: dict[str, Any] = json.loads(graph.structure.fixed_outputs)
        self._single = self._nesting.is_leaf() and not self._fixed

    def fits(self, g: MessageGraph, flat: Sequence[torch.Tensor]) -> bool:
        """Whether tensors are such as it was traced for."""
        if len(flat) != self._leaves:
            return False
        given = self.given(g, flat)[: len(self.program.graph.inputs)]
        try:
            for value, tensor in zip(self.program.graph.inputs, given, strict=True):
                check_input(value.name, value.type, tensor)
            bind_symbols(self.program.graph, given)
        except SutureError:
            return False
        return all(value.dtype == tensor.dtype for value, tensor in zip(self.program.graph.inputs, given, strict=True))

    def indices(self, flat: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a call that index as edges do, by name: numbers of rows, say."""
        return {name: flat[k] for name, k in self._indices}

    def given(self, g: MessageGraph, flat: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The program's inputs and parameters, as they are now."""
        inputs = [flat[k] if k >= 0 else _of_graph(g, name) for name, k in self._sources]
        return [*inputs, *(owner[name] for owner, name in self._held)]

    def returned(self, results: Sequence[torch.Tensor]) -> Any:
        """The results, nested as the module returns them."""
        if self._single:
            return results[0]
        tensors = iter(results)
        leaves = [
            self._fixed[str(k)] if str(k) in self._fixed else next(tensors) for k in range(self._nesting.num_leaves)
        ]
        return pytree.tree_unflatten(leaves, self._nesting)


def trace_call(
    module: nn.Module,
    g: MessageGraph,
    tensors: Sequence[Any],
    keywords: Mapping[str, Any],
    *,
    compact: bool,
    reorder: bool,
    target: Target,
) -> TracedCall:
    """Trace a module for calls like this one.

    :raises SutureError: MODULE, RELATION or EXPORT, as `relational.trace`
    """
    with _as_parameters(module):
        graph = trace(module, g, *tensors, **keywords)
    program = RelationalProgram(
        graph, compact=compact, reorder=reorder, target=target, training=_training(module, graph), parameters=_moving(module, graph)
    )  # fmt: skip
    return TracedCall(module, g, program)


@contextmanager
def _as_parameters(module: nn.Module) -> Iterator[None]:
    """While a module is traced, weights that are results of other operators stand as parameters: torch.export takes no others."""
    found: list[tuple[dict[str, Any], str, Any]] = [
        (part._parameters, name, each)
        for part in module.modules() for name, each in part._parameters.items() if each is not None and not isinstance(each, nn.Parameter)
    ]  # fmt: skip
    for places, name, each in found:
        places[name] = nn.Parameter(each.detach())
    try:
        yield
    finally:
        for places, name, each in found:
            places[name] = each


def _moving(module: nn.Module, graph: Graph) -> list[str]:
    """The parameters of a graph that are the module's, and may be others at the next call."""
    own = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return [name for name, each in graph.parameters.items() if name in own and each.dtype.is_floating_point]


def _training(module: nn.Module, graph: Graph) -> list[str]:
    """The values of operators that tell training from evaluation, where the part of the module that they are of trains."""
    parts = dict(module.named_modules())
    return [
        node.output.name for node in graph.nodes if node.operator.training and parts.get(node.path, module).training
    ]


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a module keeps a tensor: a dictionary, and the name in it."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    return owner._parameters if last in owner._parameters else owner._buffers, last


def _of_graph(g: MessageGraph, name: str) -> torch.Tensor:
    """Integers of a graph; for a space of nodes what only says how many there are."""
    found = g.tensors.get(name)
    if found is not None:
        return found
    key = ("rows", name)
    if key not in g.cache:
        g.cache[key] = torch.empty(g.counts[name], 0, device=g.device)
    carrier: torch.Tensor = g.cache[key]
    return carrier
