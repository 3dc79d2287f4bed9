"""Putting factors in the place of a layer, with names that follow from its own: `fc.weight` becomes `fc.reduce.weight` and `fc.expand.weight`."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.graph import Graph, Parameter, Value
from suture.passes.low_rank.candidate import Factor
from suture.passes.low_rank.layers import Layer
from suture.passes.low_rank.weights import bias_of


def put_factors(graph: Graph, layer: Layer, factors: Sequence[Factor]) -> None:
    """Replace every node of a layer by its factors, in place; the bias goes to the last one, and results keep their names."""
    weight = layer.weight
    named = [factor_name(weight.name, factor.leaf) for factor in factors]
    parameters = [_parameter(graph, weight, name, factor) for name, factor in zip(named, factors, strict=True)]
    biases = dict.fromkeys(bias_of(node) for node in layer.nodes)
    for node in layer.nodes:
        value, bias, title = layer.data(node), bias_of(node), node.output.name
        for k, (factor, parameter) in enumerate(zip(factors, parameters, strict=True)):
            last = k == len(factors) - 1
            operands: list[Value | None] = [value, parameter, bias if last else None]
            path = parameter.name.removesuffix(".weight") if parameter.name.endswith(".weight") else node.path
            name = f"{title}_{factor.leaf}" if not last else f"{title}_new"
            value = graph.add(factor.operator, operands, factor.attributes, path=path, name=name, before=node).output
        graph.replace_uses(node.output, value)
        graph.remove(node)
        graph.rename_result(value, title)
    for bias in biases:
        _rename_bias(graph, layer, bias, named[-1])
    graph.remove_parameter(weight)


def factor_name(weight: str, leaf: str) -> str:
    """What a factor's weight is called."""
    module, _, last = weight.rpartition(".")
    return f"{module}.{leaf}.weight" if last == "weight" and module else f"{weight}_{leaf}"


def _parameter(graph: Graph, weight: Parameter, name: str, factor: Factor) -> Parameter:
    data = factor.weight.to(weight.dtype).contiguous()
    return graph.add_parameter(
        name, data.requires_grad_(weight.data.requires_grad), weight.role,
        aliases=tuple(factor_name(alias, factor.leaf) for alias in weight.aliases), requires_grad=weight.requires_grad,
    )  # fmt: skip


def _rename_bias(graph: Graph, layer: Layer, bias: Value | None, factor: str) -> None:
    """Let a bias that stands beside the weight stand beside the last factor, if no other layer reads it."""
    module = layer.weight.name.removesuffix("weight")
    if not isinstance(bias, Parameter) or not factor.endswith(".weight") or bias.name != f"{module}bias":
        return
    path = factor.removesuffix(".weight")
    if any(use.node.path != path for use in bias.uses) or bias.is_graph_output():
        return
    renamed = graph.add_parameter(
        f"{factor.removesuffix('weight')}bias", bias.data, bias.role,
        aliases=tuple(_beside(alias) for alias in bias.aliases), requires_grad=bias.requires_grad, persistent=bias.persistent,
    )  # fmt: skip
    graph.replace_uses(bias, renamed)
    graph.remove_parameter(bias)


def _beside(alias: str) -> str:
    module, _, last = alias.rpartition(".")
    return f"{module}.expand.{last}" if module else alias
