"""Writing quantisers into a graph: behind the values that have one, and in front of weights and biases that are stored as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.quantise.placement import Placement, Site

_BIAS_BITS = 32


@dataclass(frozen=True)
class Quantisers:
    """Numbers for a placement: a quantiser for each group of values (by its leader), for each weight, and what biases are to be.

    A bias that is None stays absent.
    """

    activations: Mapping[Value, QuantiserParameters]
    weights: Mapping[Site, QuantiserParameters]
    biases: Mapping[Site, torch.Tensor | None]


@dataclass
class _Writer:
    graph: Graph
    placement: Placement
    quantisers: Quantisers
    trainable: bool
    followers: dict[Node, Node | None] = field(default_factory=dict)
    scales: dict[Value, tuple[Parameter, Parameter]] = field(default_factory=dict)
    stored: dict[tuple[Parameter, int | None], Value] = field(default_factory=dict)
    replaced: dict[Parameter, None] = field(default_factory=dict)


def insert(graph: Graph, placement: Placement, quantisers: Quantisers, *, trainable: bool = False) -> None:
    """Write the quantisers of a placement into its graph.

    :param trainable: keep weights and biases as floats behind quantisers, so that what `to_torch` makes of the graph trains on; else they are stored
        as integers
    """
    order = graph.nodes
    followers = dict(zip(order, [*order[1:], None], strict=True))
    writer = _Writer(graph, placement, quantisers, trainable, followers)
    for value in dict.fromkeys(placement.quantised()):
        _behind(writer, value)
    for site in placement.sites:
        _parameters(writer, site)
    for parameter in writer.replaced:
        if not parameter.uses and not parameter.is_graph_output():
            graph.remove_parameter(parameter)


def _behind(writer: _Writer, value: Value) -> None:
    """Put a quantiser and a dequantiser behind a value, and let its readers read that."""
    graph, placement = writer.graph, writer.placement
    leader = placement.leader(value)
    chosen = writer.quantisers.activations[leader]
    if leader not in writer.scales:
        writer.scales[leader] = (
            _store(graph, f"{leader.name}_scale", chosen.scale),
            _store(graph, f"{leader.name}_zero", chosen.zero),
        )
    scale, zero = writer.scales[leader]
    next_ = graph.nodes[0] if value.producer is None else writer.followers[value.producer]
    readers = value.uses
    attributes = {"bits": chosen.bits, "signed": chosen.signed}
    path = value.producer.path if value.producer is not None else ""
    integers = graph.add(
        "quantise", [value, scale, zero], attributes, path=path, name=f"{value.name}_integers", before=next_
    )
    back = graph.add(
        "dequantise", [integers.output, scale, zero], attributes, path=path, name=f"{value.name}_dequantised", before=next_
    )  # fmt: skip
    if value in placement.integers:
        graph.replace_uses(value, back.output, keep=[integers])
        return
    wanted = {(site.node, index) for site in placement.sites for index in site.activations}
    for node, index in readers:
        if (node, index) in wanted:
            node.replace_input(index, back.output)


def _parameters(writer: _Writer, site: Site) -> None:
    """Let a site read its weight and its bias from integers."""
    if site.weight is None:
        return
    weight = site.node.inputs[site.weight]
    assert isinstance(weight, Parameter)
    chosen = writer.quantisers.weights[site]
    writer.replaced[weight] = None
    key = (weight, chosen.axis)
    if key not in writer.stored:
        writer.stored[key] = _constant(writer, site, weight.name, weight, weight.data, chosen, writer.trainable)
    site.node.replace_input(site.weight, writer.stored[key])
    bias = writer.quantisers.biases.get(site)
    if bias is None or site.form.bias is None:
        return
    if site.form.bias >= len(site.node.inputs):
        site.node.extend_inputs(site.form.bias + 1)
    old = site.node.inputs[site.form.bias]
    name = old.name if old is not None else _beside(weight.name)
    (activation,) = site.activations
    operand = site.node.inputs[activation]
    assert operand is not None and operand.producer is not None
    scale = operand.producer.inputs[1]
    assert isinstance(scale, Parameter)
    product = chosen.scale.to(torch.float64) * scale.data.to(torch.float64)
    axis = 0 if chosen.axis is not None else None
    wide = QuantiserParameters(
        product.to(torch.float32), torch.zeros_like(product, dtype=torch.int32), _BIAS_BITS, True, axis
    )
    if isinstance(old, Parameter):
        writer.replaced[old] = None
    site.node.replace_input(site.form.bias, _constant(writer, site, name, old, bias, wide, writer.trainable))


def _constant(
    writer: _Writer,
    site: Site,
    name: str,
    old: Value | None,
    data: torch.Tensor,
    chosen: QuantiserParameters,
    trainable: bool,
) -> Value:
    """A parameter of integers and its dequantiser, or the parameter itself behind a quantiser."""
    graph, node = writer.graph, site.node
    attributes = {"axis": chosen.axis, "bits": chosen.bits, "signed": True}
    scale = _store(graph, f"{name}_scale", chosen.scale)
    integers: Value
    if trainable:
        kept = old if isinstance(old, Parameter) and old.data is data else None
        kept = kept or _store(graph, f"{name}_corrected" if name in graph.parameters else name, data, "parameter")
        integers = graph.add(
            "quantise", [kept, scale], attributes, path=node.path, name=f"{_plain(name)}_integers", before=node
        ).output
    else:
        integers = _store(graph, f"{name}_integers", chosen.quantise(data))
    made = graph.add(
        "dequantise", [integers, scale], attributes, path=node.path, name=f"{_plain(name)}_dequantised", before=node
    )
    return made.output


def _store(graph: Graph, name: str, data: torch.Tensor, role: str = "buffer") -> Parameter:
    """A parameter under a name that is free."""
    free, count = name, 1
    while free in graph.parameters:
        free, count = f"{name}_{count}", count + 1
    return graph.add_parameter(free, data, role)


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _beside(weight: str) -> str:
    """The name of a bias that was absent."""
    stem = weight.removesuffix("weight")
    return f"{stem}bias" if stem != weight else f"{weight}_bias"
