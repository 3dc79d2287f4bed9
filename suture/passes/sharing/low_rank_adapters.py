"""Low-rank adapters beside weights: y = W x + B (A x), with A `[rank, n]` and B `[m, rank]` as parameters `lora_a` and `lora_b` of their own.

A weight is seen as the matrix that maps a position's inputs to its outputs: of a linear operator the weight itself, of `addmm` and `matmul` its
transpose, of a convolution the kernel with its inputs and offsets as columns. So an adapter of a convolution is a convolution into `rank` channels
and one of kernel size 1 out of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import Attribute

WEIGHT = {"linear": 1, "conv": 1, "addmm": 2, "matmul": 1}
"""Which operand of an operator is the weight."""
DATA = {"linear": 0, "conv": 0, "addmm": 1, "matmul": 0}
"""Which one the weight is applied to."""
_TRANSPOSED = ("addmm", "matmul")
A, B = "lora_a", "lora_b"


@dataclass(frozen=True)
class Adapter:
    """An adapter in a graph: the node of the weight, those of A and B, and the sum."""

    node: Node
    down: Node
    up: Node
    total: Node

    @property
    def a(self) -> Parameter:
        """A."""
        return _parameter(self.down, 1)

    @property
    def b(self) -> Parameter:
        """B."""
        return _parameter(self.up, 1)

    @property
    def weight(self) -> Parameter:
        """W, as the graph holds it."""
        return _parameter(self.node, WEIGHT[self.node.operator.name])

    @property
    def name(self) -> str:
        """The name that W has at this place, after which the adapter's parameters are named."""
        return _weight_name(self.a.name)

    def product(self) -> torch.Tensor:
        """B A, as a weight of the shape of W; float64."""
        b = self.b.data.detach().to(torch.float64).flatten(1)
        a = self.a.data.detach().to(torch.float64).flatten(1)
        return from_matrix(b @ a, self.node)


def why_no_matrix(parameter: Parameter) -> str | None:
    """Why a parameter cannot be given adapters; None if it can: one node reads it, and multiplies by it as a matrix."""
    if len(parameter.uses) != 1:
        return f"{len(parameter.uses)} nodes read it"
    node, index = parameter.uses[0]
    name = node.operator.name
    if WEIGHT.get(name) != index:
        return f"{name} does not multiply by it"
    if name == "conv" and node.attributes["groups"] != 1:
        return f"its convolution has {node.attributes['groups']} groups"
    return f"it has {parameter.rank} dimensions" if name != "conv" and parameter.rank != 2 else None


def as_matrix(weight: torch.Tensor, node: Node) -> torch.Tensor:
    """A weight as the matrix `[outputs, inputs]` that its node applies."""
    return weight.transpose(0, 1) if node.operator.name in _TRANSPOSED else weight.flatten(1)


def from_matrix(matrix: torch.Tensor, node: Node) -> torch.Tensor:
    """A matrix in the layout of a node's weight."""
    if node.operator.name in _TRANSPOSED:
        return matrix.transpose(0, 1)
    weight = node.inputs[WEIGHT[node.operator.name]]
    assert weight is not None
    shape = [size for size in weight.shape[1:] if isinstance(size, int)]
    return matrix.reshape(len(matrix), *shape)


def add_adapter(graph: Graph, node: Node, weight: str, a: torch.Tensor, b: torch.Tensor) -> Adapter:
    """Put an adapter beside a node; the sum takes the name of the node's result. The graph must be sorted afterwards.

    :param weight: the name of the weight at this place, after which the new parameters are named
    :param a: `[rank, inputs]`
    :param b: `[outputs, rank]`
    :raises SutureError: RANK, if the factors have no rank in common, or one beyond the matrix; GRAPH, if the names are taken
    """
    rank = len(a)
    if b.shape[1:] != (rank,) or not 1 <= rank <= min(a.shape[1], b.shape[0]):
        raise SutureError(
            Code.RANK, f"an adapter of {list(b.shape)} times {list(a.shape)}", where=weight,
            remedy=f"one rank of both, 1 to {min(a.shape[1], b.shape[0])}, would be right",
        )  # fmt: skip
    kernel = node.inputs[WEIGHT[node.operator.name]]
    x = node.inputs[DATA[node.operator.name]]
    assert kernel is not None and x is not None
    is_conv = node.operator.name == "conv"
    if is_conv:
        a = a.reshape(rank, *[size for size in kernel.shape[1:] if isinstance(size, int)])
        b = b.reshape(*b.shape, *[1] * (kernel.rank - 2))
    first = _trained(graph, adapter_name(weight, A), a, kernel.dtype)
    second = _trained(graph, adapter_name(weight, B), b, kernel.dtype)
    result = node.output
    name = result.name
    operator = "conv" if is_conv else "linear"
    inner: dict[str, Attribute] = dict(node.attributes) if is_conv else {}
    outer: dict[str, Attribute] = _pointwise(kernel.rank - 2) if is_conv else {}
    down = graph.add(operator, [x, first, None], inner, path=first.name, name=f"{name}_{A}")
    up = graph.add(operator, [down.output, second, None], outer, path=second.name, name=f"{name}_{B}")
    graph.rename_result(result, f"{name}_shared")
    total = graph.add("add", [result, up.output], path=node.path, name=name)
    graph.replace_uses(result, total.output, keep=[total])
    return Adapter(node, down, up, total)


def find_adapters(graph: Graph) -> list[Adapter]:
    """The adapters of a graph: by their structure, and the names of A and B."""
    found = []
    for total in graph.nodes:
        if total.operator.name != "add" or len(total.inputs) != 2:
            continue
        node, up = (None if value is None else value.producer for value in total.inputs)
        down = up.inputs[0].producer if up is not None and up.inputs and up.inputs[0] is not None else None
        if node is None or up is None or down is None or node.operator.name not in WEIGHT:
            continue
        if _reads(down, A) and _reads(up, B) and _data(node) is down.inputs[0] and len(node.output.uses) == 1:
            found.append(Adapter(node, down, up, total))
    return found


def remove_adapter(graph: Graph, adapter: Adapter) -> None:
    """Take an adapter's nodes and parameters out; the node's result has its old name again."""
    name = adapter.total.output.name
    graph.replace_uses(adapter.total.output, adapter.node.output, keep=[adapter.total])
    for node in (adapter.total, adapter.up, adapter.down):
        parameters = [value for value in node.inputs if isinstance(value, Parameter)]
        graph.remove(node)
        for parameter in parameters:
            if not parameter.uses:
                graph.remove_parameter(parameter)
    graph.rename_result(adapter.node.output, name)


def set_weight(node: Node, weight: Value) -> None:
    """Let a node multiply by another weight."""
    node.replace_input(WEIGHT[node.operator.name], weight)


def adapter_name(weight: str, leaf: str) -> str:
    """What A or B of a weight is called: `up.lora_a` beside `up.weight`, `attn.in_proj_weight_lora_a` beside `attn.in_proj_weight`."""
    module, _, last = weight.rpartition(".")
    return f"{module}.{leaf}" if last == "weight" and module else f"{weight}_{leaf}"


def _weight_name(a: str) -> str:
    module, _, last = a.rpartition(".")
    return f"{module}.weight" if last == A else a.removesuffix(f"_{A}")


def _trained(graph: Graph, name: str, data: torch.Tensor, dtype: torch.dtype) -> Parameter:
    return graph.add_parameter(name, data.detach().to(dtype).contiguous().clone().requires_grad_())


def _pointwise(rank: int) -> dict[str, Attribute]:
    return {"stride": (1,) * rank, "padding": (0,) * rank, "dilation": (1,) * rank, "groups": 1}


def _parameter(node: Node, index: int) -> Parameter:
    value = node.inputs[index]
    assert isinstance(value, Parameter)
    return value


def _data(node: Node) -> Value | None:
    return node.inputs[DATA[node.operator.name]]


def _reads(node: Node, leaf: str) -> bool:
    value = node.inputs[1] if node.operator.name in ("linear", "conv") else None
    return isinstance(value, Parameter) and value.name.endswith(leaf)
