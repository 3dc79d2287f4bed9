"""Low-rank adapters beside weights: y = W x + s B (A x), with A `[rank, n]` and B `[m, rank]` as parameters `lora_a` and `lora_b` of their own.

Of a convolution an adapter is a convolution into `rank` channels and one of kernel size 1 out of them; of one in groups both have its groups.
A and B may themselves be mixtures of fixed matrices (NOLA): then they are computed in the graph from coefficients `nola_a` and `nola_b`, which are
what is trained, and from `nola_a_basis` and `nola_b_basis`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.types import Attribute
from suture.passes.low_rank.weights import DATA, WEIGHT, from_matrix

A, B = "lora_a", "lora_b"
NOLA_A, NOLA_B = "nola_a", "nola_b"
BASIS = "basis"


@dataclass(frozen=True, eq=False)
class Mixture:
    """A factor that is a mixture: `coefficients [k]` of the matrices `basis [k, ...]`."""

    coefficients: torch.Tensor
    basis: torch.Tensor


Factor = torch.Tensor | Mixture


@dataclass(frozen=True)
class Adapter:
    """An adapter in a graph: the node of the weight, those of A and B, the product with the scale if there is one, and the sum."""

    node: Node
    down: Node
    up: Node
    scaled: Node | None
    total: Node

    @property
    def weight(self) -> Parameter:
        """W, as the graph holds it."""
        return _parameter(self.node.inputs[WEIGHT[self.node.operator.name]])

    @property
    def name(self) -> str:
        """The name that W has at this place, after which the adapter's parameters are named."""
        return _weight_name(_stored(self.down)[0].name)

    @property
    def scale(self) -> float:
        """What the adapter's result is multiplied by."""
        scalar = 1.0 if self.scaled is None else self.scaled.attributes["scalar"]
        assert isinstance(scalar, int | float)
        return float(scalar)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All tensors of the adapter."""
        return (*_stored(self.down), *_stored(self.up))

    def product(self) -> torch.Tensor:
        """s B A, as a weight of the shape of W; float64."""
        a, b = _factor(self.down), _factor(self.up)
        groups = self.up.attributes.get("groups", 1)
        assert isinstance(groups, int)
        rows = torch.bmm(b.reshape(groups, len(b) // groups, -1), a.reshape(groups, len(a) // groups, -1))
        return from_matrix(rows.flatten(0, 1) * self.scale, self.node)


def add_adapter(graph: Graph, node: Node, weight: str, a: Factor, b: Factor, *, scale: float = 1.0) -> Adapter:
    """Put an adapter beside a node; the sum takes the name of the node's result. The graph must be sorted afterwards.

    :param weight: the name of the weight at this place, after which the new parameters are named
    :param a: `[rank, inputs]`, of a convolution in groups `[groups * rank, inputs of a group]`
    :param b: `[outputs, rank]`
    :raises SutureError: RANK, if the factors have no rank in common, or one beyond the matrix; GRAPH, if the names are taken
    """
    kernel, x = node.inputs[WEIGHT[node.operator.name]], node.inputs[DATA[node.operator.name]]
    assert kernel is not None and x is not None
    is_conv = node.operator.name == "conv"
    groups = node.attributes["groups"] if is_conv else 1
    assert isinstance(groups, int)
    _require_rank(_shape(a), _shape(b), groups, weight)
    window = [size for size in kernel.shape[1:] if isinstance(size, int)] if is_conv else []
    first = _add_factor(graph, a, [*_shape(a)[:1], *window] if is_conv else list(_shape(a)), weight, "a", kernel.dtype)
    point = [1] * (kernel.rank - 2) if is_conv else []
    second = _add_factor(graph, b, [*_shape(b), *point], weight, "b", kernel.dtype)
    result = node.output
    name = result.name
    operator = "conv" if is_conv else "linear"
    inner: dict[str, Attribute] = dict(node.attributes) if is_conv else {}
    outer: dict[str, Attribute] = _pointwise(kernel.rank - 2, groups) if is_conv else {}
    down = graph.add(operator, [x, first, None], inner, path=adapter_name(weight, A), name=f"{name}_{A}")
    up = graph.add(operator, [down.output, second, None], outer, path=adapter_name(weight, B), name=f"{name}_{B}")
    scaled = None
    if scale != 1.0:
        scaled = graph.add("mul", [up.output, None], {"scalar": scale}, path=up.path, name=f"{name}_scaled")
    graph.rename_result(result, f"{name}_shared")
    total = graph.add("add", [result, (scaled or up).output], path=node.path, name=name)
    graph.replace_uses(result, total.output, keep=[total])
    return Adapter(node, down, up, scaled, total)


def find_adapters(graph: Graph) -> list[Adapter]:
    """The adapters of a graph: by their structure, and the names of A and B."""
    found = []
    for total in graph.nodes:
        if total.operator.name != "add" or len(total.inputs) != 2:
            continue
        node, up = (None if value is None else value.producer for value in total.inputs)
        scaled = None
        if up is not None and up.operator.name == "mul" and "scalar" in up.attributes and up.inputs[0] is not None:
            scaled, up = up, up.inputs[0].producer
        down = up.inputs[0].producer if up is not None and up.inputs and up.inputs[0] is not None else None
        if node is None or up is None or down is None or node.operator.name not in WEIGHT:
            continue
        alone = all(len(part.output.uses) == 1 for part in (node, down, up, *([scaled] if scaled else [])))
        same = node.inputs[DATA[node.operator.name]] is down.inputs[0]
        if alone and same and _reads(down, (A, NOLA_A)) and _reads(up, (B, NOLA_B)):
            found.append(Adapter(node, down, up, scaled, total))
    return found


def remove_adapter(graph: Graph, adapter: Adapter) -> None:
    """Take an adapter's nodes and parameters out; the node's result has its old name again."""
    name = adapter.total.output.name
    graph.replace_uses(adapter.total.output, adapter.node.output, keep=[adapter.total])
    parameters = adapter.parameters
    mixtures = [mixture for mixture in (_mixture(adapter.down), _mixture(adapter.up)) if mixture is not None]
    for node in (adapter.total, adapter.scaled, adapter.up, adapter.down, *mixtures):
        if node is not None:
            graph.remove(node)
    for parameter in parameters:
        if not parameter.uses:
            graph.remove_parameter(parameter)
    graph.rename_result(adapter.node.output, name)


def adapter_name(weight: str, leaf: str) -> str:
    """What A or B of a weight is called: `up.lora_a` beside `up.weight`, `attn.in_proj_weight_lora_a` beside `attn.in_proj_weight`."""
    module, _, last = weight.rpartition(".")
    return f"{module}.{leaf}" if last == "weight" and module else f"{weight}_{leaf}"


def _weight_name(a: str) -> str:
    for leaf in (A, NOLA_A):
        module, _, last = a.rpartition(".")
        if last == leaf:
            return f"{module}.weight"
        if a.endswith(f"_{leaf}"):
            return a.removesuffix(f"_{leaf}")
    return a


def _require_rank(a: tuple[int, ...], b: tuple[int, ...], groups: int, where: str) -> None:
    rank = a[0] // groups
    most = min(a[1], b[0] // groups)
    if b[1:] != (rank,) or not 1 <= rank <= most:
        raise SutureError(
            Code.RANK, f"an adapter of {list(b)} times {list(a)}", where=where,
            remedy=f"one rank of both, 1 to {most}, would be right",
        )  # fmt: skip


def _shape(factor: Factor) -> tuple[int, ...]:
    return tuple(factor.basis.shape[1:] if isinstance(factor, Mixture) else factor.shape)


def _add_factor(graph: Graph, factor: Factor, shape: list[int], weight: str, side: str, dtype: torch.dtype) -> Value:
    """The value that holds a factor: a parameter, or a mixture of a basis."""
    if not isinstance(factor, Mixture):
        return _trained(graph, adapter_name(weight, f"lora_{side}"), factor.reshape(shape), dtype)
    name = adapter_name(weight, f"nola_{side}")
    coefficients = _trained(graph, name, factor.coefficients, dtype)
    data = factor.basis.reshape(-1, *shape).to(dtype).contiguous()
    basis = graph.add_parameter(f"{name}_{BASIS}", data, "buffer", persistent=False)
    letters = "abcdef"[: len(shape)]
    return graph.add(
        "einsum", [coefficients, basis], {"equation": f"k,k{letters}->{letters}"}, path=name, name=name.replace(".", "_")
    ).output  # fmt: skip


def _trained(graph: Graph, name: str, data: torch.Tensor, dtype: torch.dtype) -> Parameter:
    return graph.add_parameter(name, data.detach().to(dtype).contiguous().clone().requires_grad_())


def _pointwise(rank: int, groups: int) -> dict[str, Attribute]:
    return {"stride": (1,) * rank, "padding": (0,) * rank, "dilation": (1,) * rank, "groups": groups}


def _parameter(value: Value | None) -> Parameter:
    assert isinstance(value, Parameter)
    return value


def _mixture(node: Node) -> Node | None:
    """The node that mixes a factor's basis, if the factor is a mixture."""
    value = node.inputs[1]
    return None if value is None else value.producer


def _stored(node: Node) -> tuple[Parameter, ...]:
    """The tensors that make up a factor: itself, or coefficients and basis."""
    mixture = _mixture(node)
    return tuple(map(_parameter, node.inputs[1:2] if mixture is None else mixture.inputs[:2]))


def _factor(node: Node) -> torch.Tensor:
    first, *basis = (parameter.data.detach().to(torch.float64) for parameter in _stored(node))
    return torch.tensordot(first, basis[0], 1) if basis else first


def _reads(node: Node, leaves: tuple[str, ...]) -> bool:
    value = node.inputs[1] if node.operator.name in ("linear", "conv") else None
    if value is not None and value.producer is not None and value.producer.operator.name == "einsum":
        value = value.producer.inputs[0]
    return isinstance(value, Parameter) and value.name.endswith(leaves)
