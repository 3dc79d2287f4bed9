"""Layouts: linear layers on an image whose channels stand last, and are moved to the front behind them, are 1x1 convolutions."""

from __future__ import annotations

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import Attribute
from suture.passes.canonical.matching import dims_of, is_sole, source, supersede
from suture.passes.rewriting import Rule

_POINT: dict[str, Attribute] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def linear_to_convolution(graph: Graph, node: Node) -> str | None:
    """permute(f(x W^T + c)) to channels first is a 1x1 convolution of the permuted x: one node for product and bias, as its neighbours lie."""
    if node.operator.name != "permute" or dims_of(node) != (0, 3, 1, 2):
        return None
    chain = _chain(node)
    if not any(item.operator.name == "linear" for item in chain):
        return None
    start = source(chain[-1])
    value = graph.add(
        "permute", [start], {"dims": (0, 3, 1, 2)}, path=node.path, name=f"{start.name}_first", before=node
    ).output
    for item in reversed(chain):
        name = f"{item.output.name}_first"
        if item.operator.name != "linear":
            value = graph.add(item.operator, [value], item.attributes, path=item.path, name=name, before=node).output
            continue
        weight = item.inputs[1]
        assert isinstance(weight, Parameter)
        inputs = [value, _kernel(graph, weight), *item.inputs[2:]]
        value = graph.add("conv", inputs, _POINT, path=item.path, name=name, before=node).output
    supersede(graph, node.output, value)
    graph.remove_dead()
    return f"{sum(item.operator.name == 'linear' for item in chain)} linear layers as 1x1 convolutions"


def _chain(node: Node) -> list[Node]:
    """The linear layers and elementwise functions above a node, nearest first, each read by the next alone; the last of them is a linear layer."""
    found: list[Node] = []
    value: Value | None = source(node)
    while value is not None and is_sole(value) and value.producer is not None:
        above = value.producer
        tensors = [operand for operand in above.inputs if operand is not None]
        single = (
            above.operator.pointwise
            and len(tensors) == 1
            and not above.operator.training
            and above.inputs[0] is not None
        )
        if not single and not _is_layer(above):
            break
        found.append(above)
        value = source(above)
    while found and found[-1].operator.name != "linear":
        found.pop()
    return found


def _is_layer(node: Node) -> bool:
    weight = node.inputs[1] if node.operator.name == "linear" else None
    return isinstance(weight, Parameter) and is_sole(weight)


def _kernel(graph: Graph, weight: Parameter) -> Parameter:
    """The weight as a kernel of one position: the same numbers."""
    name, count = f"{weight.name}_kernel", 1
    while name in graph.parameters:
        name, count = f"{weight.name}_kernel_{count}", count + 1
    data = weight.data[:, :, None, None]
    return graph.add_parameter(
        name, data, weight.role, requires_grad=weight.requires_grad, persistent=weight.persistent
    )


RULES = (Rule("linear to convolution", linear_to_convolution),)
