"""Putting quantisers of activations into a graph: between a value and the products that read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.graph import Graph, Parameter, Use, Value
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.quantise_weights.storing import free_name


def insert_quantiser(graph: Graph, value: Value, uses: Sequence[Use], parameters: QuantiserParameters) -> None:
    """Let some uses of a value read it rounded to a quantiser's numbers."""
    stem = _stem(value, uses)
    scale = _scale(graph, value, stem, parameters.scale)
    zero = graph.add_parameter(free_name(graph, f"{stem}_zero"), parameters.zero.to(scale.data.device), "buffer")
    attributes = {"bits": parameters.bits, "signed": parameters.signed}
    _insert(graph, value, uses, "", [scale, zero], attributes)


def insert_log_quantiser(graph: Graph, value: Value, uses: Sequence[Use], scale: torch.Tensor, bits: int) -> None:
    """Let some uses of a positive value read it rounded to powers of the square root of two."""
    stem = _stem(value, uses)
    _insert(graph, value, uses, "log2_", [_scale(graph, value, stem, scale)], {"bits": bits, "steps": 2})


def _insert(
    graph: Graph, value: Value, uses: Sequence[Use], kind: str, parameters: list[Value], attributes: dict[str, int]
) -> None:
    nodes = {use.node for use in uses}
    first = next(node for node in graph.nodes if node in nodes)
    name = value.name
    integers = graph.add(
        f"{kind}quantise", [value, *parameters], attributes, path=first.path, name=f"{name}_integers", before=first
    )
    rounded = graph.add(
        f"{kind}dequantise", [integers.output, *parameters], attributes, path=first.path, name=f"{name}_rounded",
        before=first,
    )  # fmt: skip
    for node, index in uses:
        node.replace_input(index, rounded.output)


def _scale(graph: Graph, value: Value, stem: str, scale: torch.Tensor) -> Parameter:
    device = next((parameter.data.device for parameter in graph.parameters.values()), torch.device("cpu"))
    data = scale.to(device, value.dtype)
    return graph.add_parameter(free_name(graph, f"{stem}_scale"), data, "parameter", requires_grad=False)


def _stem(value: Value, uses: Sequence[Use]) -> str:
    """A name for a quantiser's parameters, beside the module that reads the value."""
    path = uses[0].node.path
    return f"{path}.{value.name}" if path else value.name
