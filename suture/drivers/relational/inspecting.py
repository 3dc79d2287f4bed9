"""The inspector at work: integers that follow from the edges alone, computed once and shared by all programs that run on them.

A result is known by the expression that it is (an operator, its attributes, the numbers of its operands), not by the graph that asked: two layers,
inference and training, forward and backward have the orders and pointers of one set of edges in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from suture.drivers.relational.incidence import Incidence
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import bind_measured, run_node
from suture.ir.sizes import Size, evaluate_size, symbols_of
from suture.passes.relational.inspection import CARRIER


def inspect_edges(
    inspector: Graph, incidence: Incidence, inputs: Mapping[str, torch.Tensor], symbols: dict[str, int]
) -> list[torch.Tensor]:
    """The results of an inspector.

    :param inspector: a graph of integer operators
    :param incidence: what is known about the edges, which learns what is computed
    :param inputs: its inputs, by name
    :param symbols: the sizes that are known; those that the inspector measures are added
    """
    with incidence.lock:
        return _Inspection(inspector, incidence, inputs, symbols).results()


class _Inspection:
    """One look at edges."""

    def __init__(
        self, graph: Graph, incidence: Incidence, inputs: Mapping[str, torch.Tensor], symbols: dict[str, int]
    ) -> None:
        self.graph, self.incidence, self.symbols = graph, incidence, symbols
        self.known: dict[Value, torch.Tensor] = {value: _given(value, inputs, symbols) for value in graph.inputs}
        self.place = next((tensor.device for tensor in inputs.values()), torch.device("cpu"))
        self.known.update((parameter, parameter.data.to(self.place)) for parameter in graph.parameters.values())
        self.numbers: dict[Value, tuple[int, int]] = {}

    def results(self) -> list[torch.Tensor]:
        for value in self.graph.inputs:
            self.numbers[value] = (self.incidence.number((value.name, self.known[value].shape)), 0)
        for parameter in self.graph.parameters.values():
            self.numbers[parameter] = (self.incidence.number(_constant(parameter)), 0)
        for node in self.graph.nodes:  # in order: what a node measures, later expressions name
            self._name(node)
        self._compute(self.graph.outputs)
        return [self.known[value] for value in self.graph.outputs]

    def _name(self, node: Node) -> None:
        """Number a node's expression; where it was computed before, take its results."""
        attributes = tuple((name, _plain(value, self.symbols)) for name, value in sorted(node.attributes.items()))
        shapes = tuple(tuple(_plain(dim, self.symbols) for dim in value.shape) for value in node.outputs)
        operands = tuple(None if value is None else self.numbers[value] for value in node.inputs)
        declared = shapes if node.operator.declared and not node.operator.measures else ()
        number = self.incidence.number((node.operator.name, attributes, operands, declared))
        for value in node.outputs:
            self.numbers[value] = (number, value.index)
            found = self.incidence.results.get(self.numbers[value])
            if found is not None:
                self.known[value] = found
        if node.operator.measures:
            if any(value not in self.known for value in node.outputs):
                self._compute(node.outputs)
            for value in node.outputs:
                self._keep(value)
            bind_measured(node, [self.known[value] for value in node.outputs], self.symbols)

    def _compute(self, wanted: Sequence[Value]) -> None:
        """Compute values and what they are made of; keep the values."""
        needed: dict[Node, None] = {}
        waiting = [value for value in wanted if value not in self.known]
        while waiting:
            node = waiting.pop().producer
            assert node is not None
            if node not in needed:
                needed[node] = None
                waiting += [value for value in node.inputs if value is not None and value not in self.known]
        for node in self.graph.nodes:
            if node not in needed:
                continue
            operands = [None if value is None else self.known[value] for value in node.inputs]
            with self.place:  # what is made from nothing is where the edges are
                results = run_node(node, operands, self.symbols)
            self.known.update(zip(node.outputs, results, strict=True))
        for value in wanted:
            self._keep(value)

    def _keep(self, value: Value) -> None:
        if value.producer is not None:
            self.incidence.results.setdefault(self.numbers[value], self.known[value])


def _given(value: Value, inputs: Mapping[str, torch.Tensor], symbols: Mapping[str, int]) -> torch.Tensor:
    """An input; one that only says how many rows there are is made of their number."""
    if value.name in inputs:
        return inputs[value.name]
    size = symbols[value.name.removeprefix(CARRIER)]
    device = next((tensor.device for tensor in inputs.values()), None)
    return torch.empty((size, 0), dtype=value.dtype, device=device)


def _constant(parameter: Parameter) -> Hashable:
    """A constant by its numbers."""
    return (str(parameter.type), tuple(parameter.data.flatten().tolist()))


def _plain(value: object, symbols: Mapping[str, int]) -> Hashable:
    """An attribute or a size, in numbers where they are known."""
    if isinstance(value, Size):
        return evaluate_size(value, symbols) if set(symbols_of(value)) <= set(symbols) else str(value)
    if isinstance(value, tuple):
        return tuple(_plain(each, symbols) for each in value)
    return value if isinstance(value, Hashable) else str(value)
