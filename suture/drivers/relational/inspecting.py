"""The inspector at work: integers that follow from the edges alone, computed once and shared by all programs that run on them.

A result is known by the expression that it is (an operator, its attributes, the numbers of its operands), not by the graph that asked: two layers,
inference and training, forward and backward have the orders and pointers of one set of edges in common.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext

import torch

from suture.backends.counting import run_counting
from suture.drivers.relational.incidence import Incidence
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import bind_shapes, run_node
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


class _Step:
    """What of a node's expression is the same for all edges. It does not hold the node: it is kept for as long as the graph is."""

    def __init__(self, node: Node) -> None:
        self.name = node.operator.name
        self.attributes: list[tuple[str, object]] = sorted(node.attributes.items())
        shapes = [value.shape for value in node.outputs]
        self.shapes = tuple(shapes) if node.operator.declared and not node.operator.measures else ()
        fixed = not any(_has_sizes(each) for each in (*node.attributes.values(), self.shapes))
        self.fixed = self._said({}) if fixed else None

    def said(self, symbols: Mapping[str, int]) -> Hashable:
        """The expression but for its operands, in numbers."""
        return self._said(symbols) if self.fixed is None else self.fixed

    def _said(self, symbols: Mapping[str, int]) -> Hashable:
        attributes = tuple([(name, _plain(value, symbols)) for name, value in self.attributes])
        return self.name, attributes, _plain(self.shapes, symbols)


_STEPS: weakref.WeakKeyDictionary[Graph, list[_Step]] = weakref.WeakKeyDictionary()


def _steps(graph: Graph) -> list[_Step]:
    found = _STEPS.get(graph)
    if found is None:
        found = _STEPS[graph] = [_Step(node) for node in graph.nodes]
    return found


class _Inspection:
    """One look at edges."""

    def __init__(
        self, graph: Graph, incidence: Incidence, inputs: Mapping[str, torch.Tensor], symbols: dict[str, int]
    ) -> None:
        self.graph, self.incidence, self.symbols = graph, incidence, symbols
        self.nodes = graph.nodes
        self.known: dict[Value, torch.Tensor] = {value: _given(value, inputs, symbols) for value in graph.inputs}
        self.place = next((tensor.device for tensor in inputs.values()), torch.device("cpu"))
        self.known.update((parameter, parameter.data.to(self.place)) for parameter in graph.parameters.values())
        self.numbers: dict[Value, tuple[int, int]] = {}
        self.run = run_counting if self.place.type == "cpu" else run_node

    def results(self) -> list[torch.Tensor]:
        for value in self.graph.inputs:
            self.numbers[value] = (self.incidence.number((value.name, self.known[value].shape)), 0)
        for parameter in self.graph.parameters.values():
            self.numbers[parameter] = (self.incidence.number(_constant(parameter)), 0)
        # What is made from nothing is where the edges are.
        with nullcontext() if torch.get_default_device() == self.place else self.place:
            for node, step in zip(self.nodes, _steps(self.graph), strict=True):
                self._name(node, step)  # in order: what a node measures, later expressions name
            self._compute(self.graph.outputs, last=True)
        for value in self.graph.outputs:
            if value.producer is not None:
                self.incidence.results.setdefault(self.numbers[value], self.known[value])
        return [self.known[value] for value in self.graph.outputs]

    def _name(self, node: Node, step: _Step) -> None:
        """Number a node's expression; where it was computed before, take its results."""
        incidence = self.incidence
        operands = tuple([None if value is None else self.numbers[value] for value in node.inputs])
        number = incidence.number((step.said(self.symbols), operands))
        for value in node.outputs:
            name = self.numbers[value] = (number, value.index)
            if incidence.results and name in incidence.results:
                self.known[value] = incidence.results[name]
        if node.operator.measures:
            bind_shapes(node.outputs, self._measured(number, node), self.symbols)

    def _measured(self, number: int, node: Node) -> Sequence[torch.Size]:
        """The sizes that a node measures: these are known for good, its results are kept where programs read them."""
        if number not in self.incidence.measured:
            self._compute(node.outputs)
            self.incidence.measured[number] = tuple([self.known[value].shape for value in node.outputs])
        return self.incidence.measured[number]

    def _compute(self, wanted: Sequence[Value], *, last: bool = False) -> None:
        """Compute values and what they are made of.

        :param last: whether nothing is computed after them: what they were made of is let go as soon as nobody reads it any more
        """
        needed: set[Node] = set()
        waiting = [value for value in wanted if value not in self.known]
        while waiting:
            node = waiting.pop().producer
            assert node is not None
            if node not in needed:
                needed.add(node)
                waiting += [value for value in node.inputs if value is not None and value not in self.known]
        readers = Counter(value for node in needed for value in node.inputs)
        readers.update(self.graph.outputs)
        for node in self.nodes if needed else ():
            if node in needed:
                operands = [None if value is None else self.known[value] for value in node.inputs]
                results = self.run(node, operands, self.symbols)
                self.known.update(zip(node.outputs, results, strict=True))
                del operands, results
                readers.subtract(node.inputs)
                for value in (*node.inputs, *node.outputs) if last else ():
                    if value is not None and readers[value] <= 0:
                        self.known.pop(value, None)


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


def _has_sizes(value: object) -> bool:
    return isinstance(value, Size) or (isinstance(value, tuple) and any(map(_has_sizes, value)))


def _plain(value: object, symbols: Mapping[str, int]) -> Hashable:
    """An attribute or a size, in numbers where they are known."""
    if isinstance(value, Size):
        return evaluate_size(value, symbols) if set(symbols_of(value)) <= set(symbols) else str(value)
    if isinstance(value, tuple):
        return tuple([_plain(each, symbols) for each in value])
    return value if isinstance(value, Hashable) else str(value)
