"""Whether edges fit nodes and weights: looked at once for each set of edges, so that kernels may believe what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.semantics import run_node
from suture.ir.sizes import Dim, Size, evaluate_size, symbols_of
from suture.passes.relational.structure import structural

_ENTRIES = {"typed_linear": "types", "typed_outer": "types"}


class Bounds:
    """What a graph looks up at indices, read off it once.

    :param graph: a program before its edges are laid out
    """

    def __init__(self, graph: Graph) -> None:
        known = structural(graph)
        found = (
            (each, limit, node.operator.name) for node in graph.nodes for each, limit in _limits(node) if each in known
        )
        self.limits = tuple(dict.fromkeys(found))
        self.inputs = [value for value in graph.inputs if value in known]
        self.parameters = [value for value in graph.parameters.values() if value in known]


def check_indices(
    graph: Graph, inputs: Mapping[str, torch.Tensor], symbols: Mapping[str, int], bounds: Bounds | None = None
) -> None:
    """Refuse indices that lie outside of what they look up.

    :param graph: a program before its edges are laid out
    :param inputs: at least its index inputs, by name
    :param symbols: the sizes of the inputs
    :param bounds: its `Bounds`, where these are known
    :raises SutureError: INPUT, with how many lie outside, and the first of them
    """
    bounds = Bounds(graph) if bounds is None else bounds
    tensors: dict[Value, torch.Tensor] = {value: inputs[value.name] for value in bounds.inputs if value.name in inputs}
    place = next((tensor.device for tensor in inputs.values()), torch.device("cpu"))
    tensors.update((each, each.data.to(place)) for each in bounds.parameters)
    for value, limit, operator in bounds.limits:
        if not set(symbols_of(limit)) <= set(symbols):
            continue  # a number of pairs, which was made from their indices
        found = tensors.get(value)
        if found is None:
            with place:  # what is made from nothing is where the edges are
                found = _tensor(value, tensors, symbols)
        if found is not None:
            _check(found, evaluate_size(limit, symbols), value.name, operator, graph.name)


def _limits(node: Node) -> Iterator[tuple[Value, Dim]]:
    """The indices of a node, and what each must be below."""
    match node.operator.name:
        case "embedding" | "segment_sum" | "segment_max" | "segment_softmax" | "run_pointers":
            position = 0 if node.operator.name == "run_pointers" else 1
        case "typed_linear" | "typed_outer":
            position = 2
        case _:
            return
    index = node.inputs[position]
    if index is None:
        return
    first = node.inputs[0]
    assert first is not None
    match node.operator.name:
        case "embedding":
            yield index, first.shape[0]
        case "typed_linear":
            assert node.inputs[1] is not None
            yield index, node.inputs[1].shape[0]
        case "segment_sum":
            yield index, node.output.shape[index.rank - 1]
        case "segment_softmax":
            segments = node.attributes["segments"]
            assert isinstance(segments, int | Size)
            yield index, segments
        case "run_pointers":
            yield index, node.output.shape[0] - 1
        case _:
            yield index, node.output.shape[0]


def _tensor(value: Value, tensors: dict[Value, torch.Tensor], symbols: Mapping[str, int]) -> torch.Tensor | None:
    """An integer value, computed from the edges; None if an input of it is not there."""
    node = value.producer
    if value not in tensors and node is not None:
        operands = [None if each is None else _tensor(each, tensors, symbols) for each in node.inputs]
        if any(each is None and given is not None for each, given in zip(operands, node.inputs, strict=True)):
            return None
        tensors.update(zip(node.outputs, run_node(node, operands, symbols), strict=True))
    return tensors.get(value)


def _check(index: torch.Tensor, limit: int, name: str, operator: str, where: str) -> None:
    if not index.numel():
        return
    low, high = torch.aminmax(index)
    if int(low) >= 0 and int(high) < limit:
        return
    outside = ((index < 0) | (index >= limit)).flatten()
    first = int(outside.nonzero()[0])
    what = _ENTRIES.get(operator, "indices")
    raise SutureError(
        Code.INPUT,
        f"{int(outside.sum())} of {index.numel()} {what} in {name} lie outside 0 to {limit - 1}: {int(index.flatten()[first])} at {first}",
        where=where,
        remedy="every type needs a weight" if what == "types" else "an index must lie inside its dimension",
    )
