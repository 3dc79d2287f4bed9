"""Putting a linear form into a graph in the place of the nodes that it was made of.

The result keeps its name. The weight is stored under the name of the weightiest layer that goes, in that layer's element type, and stays
trained if it was; a bias is stored under that layer's too, or beside its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.operator import find
from suture.ir.types import Attribute, TensorType
from suture.passes.reparam.linear_form import LinearForm
from suture.passes.reparam.reading import Reading, bias_of, weight_of
from suture.passes.rewriting import Refusal


@dataclass(frozen=True)
class Emission:
    """A node that says a form: its operator and attributes, and the weight as that operator stores it."""

    operator: str
    attributes: dict[str, Attribute]
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Place:
    """Where a form goes: the node whose result it computes, its operand, and what becomes dead.

    :param gone: the nodes that go, each before what it reads; with `last` at their head, unless `last` is a new value's place only
    :param readings: those of the nodes that go that are linear forms
    """

    last: Node
    operand: Value
    axis: int | None
    gone: tuple[Node, ...]
    readings: tuple[Reading, ...]


def main_layer(readings: Sequence[Reading]) -> Reading | Refusal:
    """The layer that goes whose weight is the largest, and whose parameters nothing else reads."""
    nodes = {reading.node for reading in readings}
    best: Reading | None = None
    reason = "there is no layer to store it in"
    for reading in (reading for reading in readings if reading.is_layer):
        tied = tied_reason(reading.node, nodes)
        if tied:
            reason = tied
        elif best is None or _size(reading) > _size(best):
            best = reading
    return Refusal(reason) if best is None else best


def tied_reason(layer: Node, gone: set[Node]) -> str:
    """Why the parameters of a layer cannot take other numbers, if they cannot."""
    for kind, of in (("weight", weight_of), ("bias", bias_of)):
        value = of(layer)
        if value is None:
            continue
        if value.is_graph_output():
            return f"the {kind} {value.name} is tied, the graph's output reads it too"
        for node, index in value.uses:
            if node not in gone:
                return f"the {kind} {value.name} is tied, {called(node)} reads it too"
            if of(node) is not value or sum(operand is value for operand in node.inputs) > 1:
                return f"the {kind} {value.name} is tied, the same layer reads it as operand {index} too"
    return ""


def emission(form: LinearForm, operand: Value, axis: int | None, main: Node | None) -> Emission | Refusal:
    """How a form is written as one node."""
    if main is not None and main.operator.name == "conv_transpose":
        return _transposed(form, main)
    if form.border is not None and form.pads:
        return Refusal("it would be padded with something else than zeros")
    if axis == operand.rank - 1 and form.is_pointwise and (main is None or main.operator.name != "conv"):
        return _matrix(form, operand, main)
    if axis != 1 or not 3 <= operand.rank <= 5:
        return Refusal("no layer runs along that axis")
    form = form.lifted(operand.rank - 2).symmetric()
    windows = form.windows
    if any(window.before != window.after for window in windows):
        return Refusal("it would be padded more on one side than on the other")
    attributes: dict[str, Attribute] = {
        "stride": tuple(window.stride for window in windows),
        "padding": tuple(window.before for window in windows),
        "dilation": tuple(window.dilation for window in windows),
        "groups": form.groups,
    }
    return Emission("conv", attributes, form.kernel, form.bias)


def write(graph: Graph, form: LinearForm, place: Place, *, name: str | None = None) -> Node | Refusal:
    """Compute the result of `place.last` by one node with that form; the nodes that go are removed.

    :param name: the name of the result; that of the result it stands for by default
    """
    readings = place.readings
    main = main_layer(readings)
    if isinstance(main, Refusal) and any(reading.is_layer for reading in readings):
        return main
    layer = None if isinstance(main, Refusal) else main.node
    says = emission(form, place.operand, place.axis, layer)
    if isinstance(says, Refusal):
        return says
    dtype = place.last.output.dtype
    types = [place.operand.type, TensorType(dtype, tuple(says.weight.shape))]
    if says.bias is not None:
        types.append(TensorType(dtype, tuple(says.bias.shape)))
    if says.operator == "addmm":
        types = [types[2], *types[:2]]
    try:
        (type_,) = find(says.operator).infer(types, find(says.operator).complete(says.attributes))
    except SutureError as error:
        return Refusal(f"{error.what}, and {error.remedy}")
    if type_.shape != place.last.output.shape:
        return Refusal("their numbers of results do not agree for every size")
    return _placed(graph, says, place, layer, name or place.last.output.name)


def _placed(graph: Graph, says: Emission, place: Place, layer: Node | None, name: str) -> Node:
    path = layer.path if layer is not None else place.last.path
    weight = _stored_weight(graph, says, place, layer, path)
    bias = None if says.bias is None else _stored_bias(graph, says.bias, weight, place, layer)
    operands: list[Value | None] = [place.operand, weight] if bias is None else [place.operand, weight, bias]
    if says.operator == "addmm":
        operands = [bias, place.operand, weight]
    elif says.operator == "linear" and bias is None:
        operands.append(None)
    fresh = graph.add(says.operator, operands, says.attributes, path=path, name=f"{name}_new", before=place.last)
    if place.last in place.gone:
        graph.replace_uses(place.last.output, fresh.output)
        remove_all(graph, place.gone)
    graph.rename_result(fresh.output, name)
    return fresh


def remove_all(graph: Graph, nodes: Sequence[Node]) -> None:
    """Remove nodes that nothing reads but one another, each given before what it reads."""
    for node in nodes:
        graph.remove(node)


def stored_like(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers as a parameter holds them."""
    return data.to(dtype).contiguous()


def free_name(graph: Graph, base: str) -> str:
    """A parameter name that is not taken: the base itself, else with a number."""
    name, count = base, 1
    while name in graph.parameters:
        name, count = f"{base}_{count}", count + 1
    return name


def bias_beside(graph: Graph, weight: Parameter, bias: torch.Tensor) -> Parameter:
    """A new bias, named beside its weight and trained as the weight is."""
    stem = weight.name.removesuffix("weight")
    name = free_name(graph, f"{stem}bias" if stem != weight.name else f"{weight.name}_bias")
    return graph.add_parameter(
        name, stored_like(bias, weight.data.dtype), "parameter", requires_grad=weight.requires_grad
    )


def called(node: Node) -> str:
    """What a person calls a node: its module path, else its place in the graph."""
    return node.path or node.where()


def titled(node: Node) -> str:
    """The same with its operator."""
    return f"{node.path} ({node.operator.name})" if node.path else node.where()


def _size(reading: Reading) -> int:
    weight = weight_of(reading.node)
    return weight.data.numel() if isinstance(weight, Parameter) else 0


def _transposed(form: LinearForm, main: Node) -> Emission | Refusal:
    if not form.transposed:
        return Refusal("a transposed convolution with something else is none")
    kernel = form.kernel.reshape(form.groups, -1, *form.kernel.shape[1:]).transpose(1, 2).flatten(0, 1)
    return Emission("conv_transpose", {**main.attributes, "groups": form.groups}, kernel, form.bias)


def _matrix(form: LinearForm, operand: Value, main: Node | None) -> Emission:
    matrix = form.lowered().regrouped(1).kernel
    if main is not None and main.operator.name == "matmul" and form.bias is None:
        return Emission("matmul", {}, matrix.T, None)
    if main is not None and main.operator.name == "addmm" and form.bias is not None and operand.rank == 2:
        return Emission("addmm", {}, matrix.T, form.bias)
    return Emission("linear", {}, matrix, form.bias)


def _stored_weight(graph: Graph, says: Emission, place: Place, layer: Node | None, path: str) -> Parameter:
    old = weight_of(layer) if layer is not None else None
    if isinstance(old, Parameter):
        old.assign(stored_like(says.weight, old.data.dtype))
        return old
    trained = any(tensor.requires_grad for reading in place.readings for tensor in reading.parameters)
    name = free_name(graph, f"{path}.weight" if path else f"{place.last.output.name}_weight")
    data = stored_like(says.weight, place.last.output.dtype)
    return graph.add_parameter(name, data, "parameter", requires_grad=trained)


def _stored_bias(graph: Graph, bias: torch.Tensor, weight: Parameter, place: Place, layer: Node | None) -> Parameter:
    old = bias_of(layer) if layer is not None else None
    if isinstance(old, Parameter) and all(node in place.gone for node, _ in old.uses):
        old.assign(stored_like(bias, old.data.dtype))
        return old
    return bias_beside(graph, weight, bias)
