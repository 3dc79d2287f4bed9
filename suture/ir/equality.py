"""Structural equality of graphs: same names, types, operators, attributes, in the same order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from suture.ir.graph import Graph, Node, Parameter
from suture.ir.text import print_attribute, print_value, record_json


def same_graph(a: Graph, b: Graph, *, weights: bool = False) -> str | None:
    """The first difference between two graphs, in one line; None if there is none.

    :param weights: whether the parameters' tensors must be equal too, bit for bit (nan equals nan)
    """
    for what, left, right in _facts(a, b):
        if left != right:
            return f"{what}: {left} and {right}"
    if weights:
        for left, right in zip(a.parameters.values(), b.parameters.values(), strict=True):
            if not _same_tensor(left.data, right.data):
                return f"{left}: the tensors differ"
    return None


def _facts(a: Graph, b: Graph) -> Iterator[tuple[str, object, object]]:
    """Pairs that must agree, coarse ones first, so that the first difference is the one that says most."""
    yield "name", a.name, b.name
    yield "inputs", [f"{value}: {value.type}" for value in a.inputs], [f"{value}: {value.type}" for value in b.inputs]
    yield "source", a.source, b.source
    yield "hints", a.hints, b.hints
    yield "structure", a.structure, b.structure
    yield "number of records", len(a.history), len(b.history)
    for k, (left, right) in enumerate(zip(a.history, b.history, strict=True)):
        yield f"record {k}", record_json(left), record_json(right)
    yield "parameters", list(a.parameters), list(b.parameters)
    for name in a.parameters:
        yield f"@{name}", _parameter(a.parameters[name]), _parameter(b.parameters[name])
    for k, (one, other) in enumerate(zip(a.nodes, b.nodes, strict=False)):
        yield f"node {k}", _node(one), _node(other)
        for name, body in one.bodies.items():
            for what, left_fact, right_fact in _facts(body, other.bodies[name]):
                yield f"node {k}, {name}: {what}", left_fact, right_fact
    yield "number of nodes", len(a), len(b)
    yield "outputs", [print_value(value) for value in a.outputs], [print_value(value) for value in b.outputs]
    yield "output names", a.output_names, b.output_names


def _parameter(parameter: Parameter) -> str:
    flags = f"trained={parameter.requires_grad} persistent={parameter.persistent} aliases={parameter.aliases}"
    return f"{parameter.role} {parameter.type} {flags}"


def _node(node: Node) -> str:
    results = ", ".join(f"{print_value(value)}: {value.type}" for value in node.outputs)
    operands = ", ".join("_" if value is None else print_value(value) for value in node.inputs)
    attributes = " ".join(
        f"{name}={'graph' if name in node.bodies else print_attribute(value)}"
        for name, value in sorted(node.attributes.items())
    )
    return f"{results} = {node.operator.name}({operands}) {attributes} at {node.path!r}"


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.is_meta != b.is_meta:
        return False
    if a.is_meta or a is b:
        return True
    nan = a.is_floating_point() or a.is_complex()
    return torch.equal(a, b) or (nan and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
