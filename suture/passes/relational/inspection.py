"""The inspector and the executor: what the edges of a graph decide once, and what runs at every call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.grafting import copy_parameter
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import evaluate
from suture.ir.sizes import Size, product, symbol, symbols_of
from suture.ir.types import TensorType
from suture.passes.relational.structure import INDICES, structural

CARRIER = "rows_of_"
"""What the names of inspector inputs begin with that have no elements and only say how many rows there are."""

_LOOKUPS = frozenset({"embedding", "csr_spread", "reshape", "unsqueeze", "squeeze", "expand", "cast"})


def split_inspector(graph: Graph, *, numbers: bool = True) -> tuple[Graph, Graph]:
    """Part what follows from indices alone from the rest: the inspector runs once for a graph's edges, the executor at every call.

    The inspector takes the integer inputs that it reads, by their names, and for a size that those do not show an input `rows_of_<size>` of the shape
    `[size, 0]`. Numbers that follow from indices alone (one over a degree, say) are its work too where they are one a row. The executor takes the
    graph's inputs but for the indices that it no longer reads, in their order, then the inspector's results, in theirs and by their names.

    :param numbers: whether the inspector computes such numbers; else it has integers alone
    """
    inside = _inspected(graph, numbers=numbers)
    outside = _outside(graph, inside)
    results = _crossing(graph, inside, outside)
    return _inspector(graph, inside, results), _executor(graph, outside, results)


def inspect(inspector: Graph, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Run an inspector.

    :param inputs: the inputs of the graph that it was parted from, or only the indices
    :param sizes: the numbers of symbolic sizes, for those that no index shows
    :returns: its results by name
    :raises SutureError: INPUT, for indices outside their rows, or a size that is not given
    """
    given: dict[str, torch.Tensor] = {}
    for value in inspector.inputs:
        name = value.name
        if name in inputs:
            given[name] = inputs[name]
            continue
        size = name.removeprefix(CARRIER)
        if size == name or size not in sizes:
            raise SutureError(
                Code.INPUT, f"the inspector of {inspector.name} lacks {name}", remedy=f"give {value.type}"
            )
        given[name] = torch.empty((sizes[size], 0), dtype=value.dtype, device=_device(inputs.values()))
    return dict(zip(inspector.output_names, evaluate(inspector, given), strict=True))


def _device(tensors: Iterable[torch.Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _inspected(graph: Graph, *, numbers: bool) -> set[Node]:
    """The nodes of the inspector: integers from indices, and narrow numbers from those, but for what only looks such numbers up for the executor."""
    known = structural(graph)
    inside = {node for node in graph.nodes if node.inputs and all(value in known for value in node.outputs)}
    if not numbers:
        return inside
    narrow: list[Node] = []
    for node in graph.nodes:
        if node in inside or not node.inputs or node.bodies or node.operator.training:
            continue
        operands = [value for value in node.inputs if value is not None and not _is_constant(value)]
        if operands and all(value in known for value in operands) and all(_is_narrow(value) for value in node.outputs):
            known.update(node.outputs)
            narrow.append(node)
    inside.update(narrow)
    for node in reversed(narrow):
        readers = [use.node for value in node.outputs for use in value.uses]
        if node.operator.name in _LOOKUPS and not any(reader in inside for reader in readers):
            inside.discard(node)
    return inside


def _outside(graph: Graph, inside: set[Node]) -> list[Node]:
    """The nodes that run at every call, in order; not those that the inspector alone reads."""
    needed: set[Node] = set()
    pending = [value.producer for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is not None and node not in inside and node not in needed:
            needed.add(node)
            pending.extend(value.producer for value in node.inputs if value is not None)
    return [node for node in graph.nodes if node in needed]


def _is_constant(value: Value) -> bool:
    return value.producer is not None and not value.producer.inputs and not value.producer.operator.training


def _is_narrow(value: Value) -> bool:
    return product(value.shape[1:]) == 1


def _crossing(graph: Graph, inside: set[Node], outside: list[Node]) -> list[Value]:
    """The inspector's results: what the executor reads, what the graph returns, and what shows sizes that only data decide."""
    made = [value for node in graph.nodes if node in inside for value in node.outputs]
    read = {value for node in outside for value in node.inputs if value is not None}
    read.update(graph.outputs)
    found = [value for value in made if value in read]
    used = {name for node in outside for name in _sizes(node)}
    shown = {name for value in (*graph.inputs, *found) for dim in value.shape for name in symbols_of(dim)}
    for name in sorted(used - shown):
        found.append(
            next(value for value in made if value not in found and any(name in symbols_of(dim) for dim in value.shape))
        )
    return found


def _sizes(node: Node) -> set[str]:
    """The symbols in the results and attributes of a node."""
    held = [dim for value in node.outputs for dim in value.shape]
    held += [each for each in node.attributes.values() if isinstance(each, Size)]
    held += [
        each for many in node.attributes.values() if isinstance(many, tuple) for each in many if isinstance(each, Size)
    ]
    return {name for dim in held for name in symbols_of(dim)}


def _inspector(graph: Graph, inside: set[Node], results: list[Value]) -> Graph:
    needed = _leading_to(results)
    piece = Graph(f"{graph.name}_inspector")
    piece.hints = dict(graph.hints)
    read = {value for node in needed for value in node.inputs}
    values = {value: piece.add_input(value.name, value.type) for value in graph.inputs if value in read}
    missing = {name for node in needed for name in _sizes(node)} - set(piece.symbols())
    measured = {name for node in needed if node.operator.measures for name in _sizes(node)}
    for name in [name for name in graph.symbols() if name in missing - measured]:
        piece.add_input(f"{CARRIER}{name}", TensorType(torch.bool, (symbol(name), 0)))
    _copy_nodes(piece, needed, values)
    piece.set_outputs([values[value] for value in results], [value.name for value in results])
    return piece


def _leading_to(results: list[Value]) -> list[Node]:
    """The nodes that results need, constants among them, in order."""
    needed: set[Node] = set()
    pending = [value.producer for value in results]
    while pending:
        node = pending.pop()
        if node is not None and node not in needed:
            needed.add(node)
            pending.extend(value.producer for value in node.inputs if value is not None)
    return [node for node in next(iter(needed)).graph.nodes if node in needed] if needed else []


def _executor(graph: Graph, nodes: list[Node], results: list[Value]) -> Graph:
    read = {value for node in nodes for value in node.inputs} | set(graph.outputs)
    kept = [value for value in graph.inputs if value in read or value.dtype not in INDICES]
    shown = {name for value in (*kept, *results) for dim in value.shape for name in symbols_of(dim)}
    used = {name for node in nodes for name in _sizes(node)}
    for value in graph.inputs:
        brought = {name for dim in value.shape for name in symbols_of(dim)}
        if value not in kept and brought & (used - shown):
            kept.append(value)
            shown |= brought
    piece = Graph(graph.name)
    piece.hints, piece.source, piece.history = dict(graph.hints), graph.source, graph.history
    values = {value: piece.add_input(value.name, value.type) for value in graph.inputs if value in kept}
    values |= {value: piece.add_input(value.name, value.type) for value in results}
    for parameter in graph.parameters.values():
        if parameter.dtype not in INDICES or parameter in read:
            values[parameter] = copy_parameter(piece, parameter)
    _copy_nodes(piece, nodes, values)
    piece.set_outputs([values[value] for value in graph.outputs], graph.output_names)
    piece.remove_dead()
    return piece


def _copy_nodes(piece: Graph, nodes: list[Node], values: dict[Value, Value]) -> None:
    """Copy nodes, and the parameters that they read, into a graph of their own."""
    for node in nodes:
        for value in node.inputs:
            if isinstance(value, Parameter) and value not in values:
                values[value] = copy_parameter(piece, value)
        operands = [None if value is None else values[value] for value in node.inputs]
        shapes = [value.shape for value in node.outputs] if node.operator.declared else None
        names = [value.name for value in node.outputs]
        twin = piece.add(node.operator, operands, node.attributes, shapes=shapes, path=node.path, name=names)
        values.update(zip(node.outputs, twin.outputs, strict=True))
