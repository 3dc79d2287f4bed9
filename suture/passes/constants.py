"""Computing ahead of time what depends on no input."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import run_node
from suture.passes.registry import Notes


def fold_constants(graph: Graph, notes: Notes, *, growth: int) -> int:
    """Replace values that depend on no input by tensors, unless the model would grow; how many were replaced.

    A value that depends on a trained parameter becomes a parameter, and only if the model does not grow at all.

    :param growth: the most bytes that one constant may add
    """
    constant = constant_nodes(graph)
    folded = 0
    for node in graph.nodes:
        values = wanted_values(node, constant) if node in constant else ()
        if not values:
            continue
        sources = Sources.of(*values)
        allowed = 0 if sources.trained else growth
        if sources.added > allowed:
            what = "trained parameters" if sources.trained else "constants"
            notes.note(f"{node.where()} stays computed from {what}: as a tensor it would add {sources.added:,} bytes")
            continue
        for value in values:
            store(graph, value, sources)
        folded += len(values)
    return folded


def wanted_values(node: Node, constant: Collection[Node]) -> tuple[Value, ...]:
    """The results of a constant node that something else reads; none if the graph returns one of them."""
    if any(value.is_graph_output() for value in node.outputs):
        return ()
    return tuple(value for value in node.outputs if any(reader not in constant for reader, _ in value.uses))


@dataclass(frozen=True)
class Sources:
    """What the results of a constant node are computed from.

    :param nodes: everything on the way
    :param gone: those of the nodes that nothing would need any more if the results were stored
    :param added: the bytes by which the model would grow: the results', less those of the tensors that nothing would read any more
    """

    nodes: set[Node]
    gone: set[Node]
    leaves: list[Parameter]
    trained: list[Parameter]
    added: int

    @classmethod
    def of(cls, *values: Value) -> Sources:
        """What results of one node are computed from, if all of it is constant."""
        assert values[0].producer is not None
        nodes: set[Node] = set()
        leaves: dict[Parameter, None] = {}
        pending = [values[0].producer]
        while pending:
            node = pending.pop()
            nodes.add(node)
            for operand in node.inputs:
                if isinstance(operand, Parameter):
                    leaves[operand] = None
                elif operand is not None and operand.producer is not None and operand.producer not in nodes:
                    pending.append(operand.producer)
        alive = _alive(nodes, values)
        unread = [
            leaf
            for leaf in leaves
            if not leaf.is_graph_output() and all(user in nodes and user not in alive for user, _ in leaf.uses)
        ]
        trained = [leaf for leaf in leaves if leaf.role == "parameter"]
        counted = [
            leaf for leaf in unread if leaf in trained or not trained
        ]  # a freed index table does not pay for copies of trained numbers
        freed = sum(leaf.data.numel() * leaf.data.element_size() for leaf in counted)
        stored = sum(math.prod(_numbers(value)) * value.dtype.itemsize for value in values)
        return cls(nodes, nodes - alive, list(leaves), trained, stored - freed)


def _alive(nodes: set[Node], values: Collection[Value]) -> set[Node]:
    """Those of the nodes that something else than `values` still needs."""
    alive: set[Node] = set()
    pending = [
        node for node in nodes for output in node.outputs
        if output not in values and (output.is_graph_output() or any(reader not in nodes for reader, _ in output.uses))
    ]  # fmt: skip
    while pending:
        node = pending.pop()
        if node in alive:
            continue
        alive.add(node)
        pending += [operand.producer for operand in node.inputs if operand is not None and operand.producer in nodes]
    return alive


def constant_nodes(graph: Graph, *, inference: bool = False) -> set[Node]:
    """Nodes that depend on no input, have fixed sizes, and do the same every time they run.

    :param inference: whether what differs in training counts as what it does in inference
    """
    found: set[Node] = set()
    for node in graph.nodes:
        if node.operator.name == "opaque" or node.bodies or (node.operator.training and not inference):
            continue
        if not all(isinstance(dim, int) for output in node.outputs for dim in output.shape):
            continue
        if any(not isinstance(v, Parameter) and v.producer not in found for v in node.inputs if v is not None):
            continue
        found.add(node)
    return found


def store(graph: Graph, value: Value, sources: Sources) -> Parameter:
    """Compute a constant value and let its readers read the tensor; the nodes that made it stay until they are removed as dead."""
    if any(leaf.data.is_meta for leaf in sources.leaves):
        data = torch.empty(_numbers(value), dtype=value.dtype, device="meta")
    else:
        data = _compute(graph, value, sources)
    role = "parameter" if sources.trained else "constant"
    trains = any(leaf.requires_grad for leaf in sources.trained)
    parameter = graph.add_parameter(_name(graph, value, sources), data, role, requires_grad=trains)
    graph.replace_uses(value, parameter)
    return parameter


def _compute(graph: Graph, value: Value, sources: Sources) -> torch.Tensor:
    environment: dict[Value, torch.Tensor] = {leaf: leaf.data.detach() for leaf in sources.leaves}
    with torch.no_grad():
        for node in graph.nodes:
            if node in sources.nodes:
                results = run_node(node, [None if v is None else environment[v] for v in node.inputs], {})
                environment.update(zip(node.outputs, results, strict=True))
    # a view would keep the whole tensor it looks into, and an expanded one has elements that share memory
    return environment[value].clone(memory_format=torch.contiguous_format)


def _name(graph: Graph, value: Value, sources: Sources) -> str:
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
