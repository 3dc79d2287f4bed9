"""Specialisation: inputs become constants, and what follows from them is settled ahead of time.

Of a graph that can be set to many things at run time (which stitch, how many layers) this makes the ordinary graph of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from suture.ir.bodies import inline
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.interface import bind_interface_input
from suture.ir.semantics import run_node
from suture.ir.sizes import symbols_of
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.unread import drop_unread, read_names

Number = bool | int | float


@register(contract=Contract.EXACT)
def specialise(
    graph: Graph,
    notes: Notes,
    *,
    inputs: Mapping[str, Any] | None = None,
    input: tuple[str, ...] = (),
    value: tuple[Number, ...] = (),
) -> Graph:
    """Bind inputs to constants, and keep only what then can still run.

    What follows from constants alone is computed, branches whose predicate is then known are replaced by the body taken, and nodes and parameters
    that nothing reads any more are gone. Values keep their names, and the weights that stay are shared.

    :param inputs: what the inputs are, by name: tensors, numbers or nested lists
    :param input: names of inputs, as a script writes them
    :param value: a number for each of these
    :raises SutureError: INPUT, if there is no such input or what it is bound to does not fit; OPTION, if there are not as many values as names
    """
    bound = {**_pairs(input, value), **(inputs or {})}
    result = graph.copy()
    read = read_names(result)
    given = [bind_interface_input(result, name, _tensor(result, name, item)) for name, item in bound.items()]
    for name in bound:
        notes.loses_input(name)
    settled = _Settled()
    taken = _take_branches(result, settled, notes)
    if not given and not taken:
        notes.not_applicable("no input is bound, and no branch has a predicate that is known")
        return graph
    _fold(result, settled, given)
    result.remove_dead()
    drop_unread(result, read | {parameter.name for parameter in given})
    return result


class _Settled:
    """What is known ahead of time: values that follow from constants alone, and their tensors."""

    def __init__(self) -> None:
        self._is_settled: dict[Value, bool] = {}
        self._tensors: dict[Value, torch.Tensor] = {}

    def __contains__(self, value: Value) -> bool:
        """Whether a value follows from constants alone and has numbers."""
        pending = [value]
        while pending:
            item = pending[-1]
            if item in self._is_settled:
                pending.pop()
                continue
            producer = item.producer
            if producer is None or not _is_pure(producer):
                self._is_settled[item] = isinstance(item, Parameter) and _is_constant(item)
                continue
            operands = [operand for operand in producer.inputs if operand is not None]
            waiting = [operand for operand in operands if operand not in self._is_settled]
            if waiting:
                pending += waiting
                continue
            self._is_settled[item] = all(self._is_settled[operand] for operand in operands)
        return self._is_settled[value]

    def forget_open(self) -> None:
        """After an edit of the graph: what was not settled may be by now."""
        self._is_settled = {value: True for value, known in self._is_settled.items() if known}

    def tensor(self, value: Value) -> torch.Tensor:
        """The numbers of a settled value."""
        pending = [value]
        while pending:
            item = pending[-1]
            if item in self._tensors:
                pending.pop()
                continue
            if isinstance(item, Parameter):
                self._tensors[item] = item.data.detach()
                continue
            assert item.producer is not None
            waiting = [v for v in item.producer.inputs if v is not None and v not in self._tensors]
            if waiting:
                pending += waiting
                continue
            operands = [None if v is None else self._tensors[v] for v in item.producer.inputs]
            results = run_node(item.producer, operands, {})
            self._tensors.update(zip(item.producer.outputs, results, strict=True))
        return self._tensors[value]


def _is_constant(parameter: Parameter) -> bool:
    """Whether a tensor stays what it is: not trained, no running statistic, and loaded."""
    running = any(use.node.operator.training for use in parameter.uses if not use.node.bodies)
    return parameter.role != "parameter" and not parameter.requires_grad and not running and not parameter.data.is_meta


def _is_pure(node: Node) -> bool:
    """Whether a node gives the same for the same operands, at sizes known ahead of time."""
    fixed = not any(symbols_of(dim) for output in node.outputs for dim in output.shape)
    return fixed and not node.operator.training and node.operator.name != "opaque"


def _take_branches(graph: Graph, settled: _Settled, notes: Notes) -> int:
    """Put the body that is taken in place of every branch whose predicate is settled; bodies in bodies follow. Returns how many."""
    taken = 0
    while True:
        settled.forget_open()
        decided = [node for node in graph.nodes if node.bodies and _predicate(node) in settled]
        if not decided:
            return taken
        for node in decided:
            choice = "then" if bool(settled.tensor(_predicate(node))) else "otherwise"
            notes.note(f"{node.where()}: {choice} is taken")
            inline(node, node.bodies[choice])
            taken += 1


def _predicate(node: Node) -> Value:
    predicate = node.inputs[0]
    assert predicate is not None
    return predicate


def _fold(graph: Graph, settled: _Settled, given: list[Parameter]) -> None:
    """Compute what follows from the bound inputs and constants, where something else reads it."""
    follows: set[Value] = set(given)
    for node in graph.nodes:
        if not any(operand in follows for operand in node.inputs) or node.outputs[0] not in settled:
            continue
        follows.update(node.outputs)
    for value in [value for node in graph.nodes for value in node.outputs if value in follows]:
        readers = [use.node for use in value.uses if use.node.outputs[0] not in follows]
        if not readers and not value.is_graph_output():
            continue
        name, count = value.name, 1
        while name in graph.parameters:
            name, count = f"{value.name}_{count}", count + 1
        graph.replace_uses(value, graph.add_parameter(name, settled.tensor(value).clone(), "constant"))


def _pairs(names: tuple[str, ...], values: tuple[Number, ...]) -> dict[str, Any]:
    if len(names) != len(values):
        raise SutureError(
            Code.OPTION, f"{len(names)} inputs and {len(values)} values", remedy="one value for each input, in order"
        )
    return dict(zip(names, values, strict=True))


def _tensor(graph: Graph, name: str, item: Any) -> torch.Tensor:
    """What an input is bound to, as a tensor of the input's type; the graph refuses what is no input, or has another shape."""
    value = next((value for value in graph.inputs if value.name == name), None)
    if value is None:
        return torch.tensor(0)
    if isinstance(item, torch.Tensor):
        return item.to(value.dtype) if _fits(item.dtype, value.dtype) else item
    try:
        found = torch.tensor(item)
        return torch.tensor(item, dtype=value.dtype) if _fits(found.dtype, value.dtype) else found
    except (TypeError, ValueError, RuntimeError):
        raise SutureError(
            Code.INPUT,
            f"the input {name} cannot be a {type(item).__name__}",
            where=graph.name,
            remedy=f"numbers that make {value.type} would be right",
        ) from None


def _fits(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of one type may stand for another's: whole numbers for floats, and any width of the same kind."""
    if given == torch.bool or wanted == torch.bool:
        return given == wanted
    return wanted.is_floating_point or not given.is_floating_point
