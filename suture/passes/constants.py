"""Computing ahead of time what depends on no input."""

from __future__ import annotations

import math

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import run_node
from suture.passes.registry import Notes


def fold_constants(graph: Graph, notes: Notes, *, growth: int) -> int:
    """Replace values that depend on no input by tensors, unless the model would grow; how many were replaced.

    A value that depends on a trained parameter becomes a parameter, and only if the model does not grow at all.

    :param growth: the most bytes that one constant may add
    """
    constant = _constant_nodes(graph)
    folded = 0
    for node in graph.nodes:
        if node not in constant:
            continue
        for value in node.outputs:
            if value.is_graph_output() or not any(reader not in constant for reader, _ in value.uses):
                continue
            sources = _Sources.of(value)
            added = math.prod(_numbers(value)) * value.dtype.itemsize - sources.freed
            allowed = 0 if sources.trained else growth
            if added > allowed:
                what = "trained parameters" if sources.trained else "constants"
                notes.note(f"{node.where()} stays computed from {what}: as a tensor it would add {added:,} bytes")
                continue
            _replace(graph, value, sources)
            folded += 1
    return folded


class _Sources:
    """What a constant value is computed from."""

    def __init__(self, nodes: set[Node], leaves: list[Parameter], trained: list[Parameter], freed: int) -> None:
        self.nodes = nodes
        self.leaves = leaves
        self.trained = trained
        self.freed = freed  # bytes of the tensors that nothing would read any more

    @classmethod
    def of(cls, value: Value) -> _Sources:
        assert value.producer is not None
        nodes: set[Node] = set()
        leaves: dict[Parameter, None] = {}
        pending = [value.producer]
        while pending:
            node = pending.pop()
            nodes.add(node)
            for operand in node.inputs:
                if isinstance(operand, Parameter):
                    leaves[operand] = None
                elif operand is not None and operand.producer is not None and operand.producer not in nodes:
                    pending.append(operand.producer)
        alive = _alive(nodes, value)
        gone = [
            leaf
            for leaf in leaves
            if not leaf.is_graph_output() and all(user in nodes and user not in alive for user, _ in leaf.uses)
        ]
        trained = [leaf for leaf in leaves if leaf.role == "parameter"]
        counted = [
            leaf for leaf in gone if leaf in trained or not trained
        ]  # a freed index table does not pay for copies of trained numbers
        return cls(nodes, list(leaves), trained, sum(leaf.data.numel() * leaf.data.element_size() for leaf in counted))


def _alive(nodes: set[Node], value: Value) -> set[Node]:
    """Those of the nodes that something else than `value` still needs."""
    alive: set[Node] = set()
    pending = [
        node for node in nodes for output in node.outputs
        if output is not value and (output.is_graph_output() or any(reader not in nodes for reader, _ in output.uses))
    ]  # fmt: skip
    while pending:
        node = pending.pop()
        if node in alive:
            continue
        alive.add(node)
        pending += [operand.producer for operand in node.inputs if operand is not None and operand.producer in nodes]
    return alive


def _constant_nodes(graph: Graph) -> set[Node]:
    """Nodes that depend on no input, have fixed sizes, and do the same every time they run."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.operator.name == "opaque" or node.operator.training:
            continue
        if not all(isinstance(dim, int) for output in node.outputs for dim in output.shape):
            continue
        if any(not isinstance(v, Parameter) and v.producer not in found for v in node.inputs if v is not None):
            continue
        found.add(node)
    return found


def _replace(graph: Graph, value: Value, sources: _Sources) -> None:
    if any(leaf.data.is_meta for leaf in sources.leaves):
        data = torch.empty(_numbers(value), dtype=value.dtype, device="meta")
    else:
        data = _compute(graph, value, sources)
    role = "parameter" if sources.trained else "constant"
    trains = any(leaf.requires_grad for leaf in sources.trained)
    parameter = graph.add_parameter(_name(graph, value, sources), data, role, requires_grad=trains)
    graph.replace_uses(value, parameter)


def _compute(graph: Graph, value: Value, sources: _Sources) -> torch.Tensor:
    environment: dict[Value, torch.Tensor] = {leaf: leaf.data.detach() for leaf in sources.leaves}
    with torch.no_grad():
        for node in graph.nodes:
            if node in sources.nodes:
                results = run_node(node, [None if v is None else environment[v] for v in node.inputs], {})
                environment.update(zip(node.outputs, results, strict=True))
    # a view would keep the whole tensor it looks into, and an expanded one has elements that share memory
    return environment[value].clone(memory_format=torch.contiguous_format)


def _name(graph: Graph, value: Value, sources: _Sources) -> str:
    """The name of the trained parameter that the value stands for, with a mark: its numbers are others."""
    path = value.producer.path if value.producer else ""
    base = (
        f"{sources.trained[0].name}_folded"
        if len(sources.trained) == 1
        else f"{path}.{value.name}"
        if path
        else value.name
    )
    name, count = base, 1
    while name in graph.parameters:
        name, count = f"{base}_{count}", count + 1
    return name


def _numbers(value: Value) -> tuple[int, ...]:
    return tuple(dim for dim in value.shape if isinstance(dim, int))
