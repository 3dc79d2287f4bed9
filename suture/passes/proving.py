"""Checking a rewrite where it happens: only what it changed is computed again, from values known to be right.

The graph is run once on probes and every value kept. After a rewrite the nodes that are new, or read something new, are run on the values
kept; the first result that has a known value's name must equal it, and what lies behind it is as it was. So a rewrite costs the nodes that it
touched, errors do not add up, and the blame is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import bind_symbols, run_node
from suture.passes.contract import TOLERANCE, deviation
from suture.passes.probes import bind_probes, draw_probes

_SLACK = 10.0  # a rewrite may round otherwise than what it replaces, in a few places


@dataclass(frozen=True)
class Difference:
    """A value that a rewrite changed although it kept its name."""

    name: str
    where: str
    deviation: float
    allowed: float


class Proof:
    """The values of a graph on probes, and which of its nodes computed them.

    :param probes: tensors for the graph's inputs; drawn from their types by default
    :param limit: the most bytes of values that are kept; beyond it a rewrite is left to the pass's own contract
    """

    def __init__(
        self,
        graph: Graph,
        probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
        *,
        limit: int = 2**31,
    ) -> None:
        inputs = draw_probes(graph) if probes is None else bind_probes(graph, probes)
        self.symbols = bind_symbols(graph, inputs)
        self._inputs = dict(zip((value.name for value in graph.inputs), inputs, strict=True))
        self._known: dict[str, torch.Tensor] = {}
        self._computed: dict[Node, tuple[object, ...]] = {}
        self._active = True
        spent = 0
        for node in graph.nodes:
            for value, tensor in zip(node.outputs, self._run(node, {}), strict=True):
                self._known[value.name] = tensor
                spent += tensor.numel() * tensor.element_size()
            self._computed[node] = _reads(node)
            if spent > limit:
                self._active, self._known = False, {}
                return

    @classmethod
    def of(
        cls, graph: Graph, probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None
    ) -> Proof | None:
        """The proof of a graph; None where it has shapes only."""
        if any(parameter.data.is_meta for parameter in graph.parameters.values()):
            return None
        return cls(graph, probes)

    def first_difference(self, graph: Graph) -> Difference | None:
        """Run what changed since the last call; the first value that is not what it was, if any."""
        if not self._active:
            return None
        fresh: dict[Value, torch.Tensor] = {}
        for node in graph.nodes:
            reads = _reads(node)
            if self._computed.get(node) == reads and not any(operand in fresh for operand in node.inputs):
                continue
            results = self._run(node, fresh)
            self._computed[node] = reads
            for value, tensor in zip(node.outputs, results, strict=True):
                if value.name not in self._known:
                    self._known[value.name] = tensor
                    fresh[value] = tensor
                    continue
                off, allowed = deviation(self._known[value.name], tensor), _allowed(tensor)
                if not off <= allowed:
                    return Difference(value.name, node.where(), off, allowed)
        return None

    def _run(self, node: Node, fresh: Mapping[Value, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        operands = [None if value is None else self._value(value, fresh) for value in node.inputs]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                0
            )  # what random operators draw from; seeding every device takes milliseconds
            return run_node(node, operands, self.symbols)

    def _value(self, value: Value, fresh: Mapping[Value, torch.Tensor]) -> torch.Tensor:
        if isinstance(value, Parameter):
            return value.data
        if value in fresh:
            return fresh[value]
        return self._inputs[value.name] if value.producer is None else self._known[value.name]


def _reads(node: Node) -> tuple[object, ...]:
    """What a node computes its results from: operands, the tensors of parameters, attributes."""
    operands = tuple((value, id(value.data)) if isinstance(value, Parameter) else value for value in node.inputs)
    return (operands, tuple(sorted((name, repr(value)) for name, value in node.attributes.items())))


def _allowed(tensor: torch.Tensor) -> float:
    return _SLACK * TOLERANCE.get(tensor.dtype, 0.0)
