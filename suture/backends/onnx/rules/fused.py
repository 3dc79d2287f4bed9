"""Fused operators: one ONNX node each, where the target has one that says the same; elsewhere their bodies are written.

A table says, per operator, why a node cannot be one ONNX node. The emitter puts the bodies of those back before it begins (`fused_where_possible`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.profile import Profile
from suture.backends.onnx.rules.attention import mask_bias, rows_alive, rows_may_die
from suture.backends.onnx.rules.contract import transposed
from suture.ir.expansion import expanded
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import Dim

if TYPE_CHECKING:
    import onnx_ir


Reason: TypeAlias = "Callable[[Node, int, Profile], str | None]"


def fused_where_possible(graph: Graph, opset: int, profile: Profile) -> Graph:
    """The graph with the bodies of those fused operators that a target has no operator for."""

    def keep(node: Node) -> bool:
        return UNWRITABLE[node.operator.name](node, opset, profile) is None

    return expanded(graph, keep)


def _contributed(node: Node, opset: int, profile: Profile) -> str | None:
    if not profile.contrib or profile.choices.fused != "contrib":
        return f"{profile.name} takes no contributed operators for it"
    if node.outputs[0].dtype != torch.float32:
        return "its kernels on a CPU are for 32 bits"
    return None


def _skip_norm(node: Node, opset: int, profile: Profile) -> str | None:
    if node.outputs[0].rank not in (2, 3):
        return "it takes rows, or batches of rows"
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return "it needs a gain"
    return _contributed(node, opset, profile)


def _operator(node: Node, opset: int, profile: Profile) -> bool:
    """Whether the operator Attention of opset 23 is taken.

    ONNX's shape inference takes a width that it does not know for 0 there; layers that work on the matrix of rows hide theirs behind a Reshape to
    a computed shape.
    """
    query, choices = node.inputs[0], profile.choices
    known = query is not None and all(isinstance(dim, int) for dim in query.shape)
    taken = opset >= 23 and choices.attention == "operator" and node.outputs[0].dtype == torch.float32
    return taken and (known or choices.linear == "matmul")


def _mask(node: Node) -> str | None:
    """A mask of four dimensions is a bias; rows that see nothing are put right afterwards, which needs them to be the same for all heads."""
    mask = _mask_of(node)
    if mask is None:
        return None
    if node.attributes["causal"]:
        return "it is causal and masked"
    if not mask.dtype.is_floating_point and mask.dtype != torch.bool:
        return f"its mask is {mask.type}"
    if mask.rank > 2 and mask.shape[-3] != 1 and rows_may_die(mask):
        return "rows may see nothing in some heads only"
    return None


def _mask_of(node: Node) -> Value | None:
    index = {"projected_attention": 7}.get(node.operator.name, 3)
    return node.inputs[index] if len(node.inputs) > index else None


def _multi_head(node: Node, opset: int, profile: Profile) -> str | None:
    query, key = node.inputs[0], node.inputs[1]
    if node.attributes["causal"] and query is not None and key is not None and query.shape[1] != key.shape[1]:
        return "rows and columns of its causal mask differ"
    reason = _mask(node)
    return reason or (None if _operator(node, opset, profile) else _contributed(node, opset, profile))


def _grouped(node: Node, opset: int, profile: Profile) -> str | None:
    if not _operator(node, opset, profile):
        return "only Attention of opset 23 shares key heads"
    return _mask(node)


def _packed(node: Node, opset: int, profile: Profile) -> str | None:
    if _operator(node, opset, profile):
        return "the operator Attention takes queries, keys and values"
    weights = node.inputs[1:4] if node.operator.name == "projected_attention" else node.inputs[1:2]
    if node.operator.name == "projected_attention" and not all(isinstance(weight, Parameter) for weight in weights):
        return "its weights are computed"
    biases = node.inputs[4:7] if node.operator.name == "projected_attention" else node.inputs[2:3]
    if not all(bias is None or isinstance(bias, Parameter) for bias in biases):
        return "its biases are computed"
    return _mask(node) or _contributed(node, opset, profile)


def _rotary(node: Node, opset: int, profile: Profile) -> str | None:
    cos = node.inputs[1]
    sin = node.inputs[2]
    if cos is None or sin is None or cos.shape[0] != 1:
        return "the angles differ within a batch"
    if not _repeats(cos) or not _repeats(sin):
        return "the halves of its tables may differ"
    return _contributed(node, opset, profile)


def _sum(node: Node, opset: int, profile: Profile) -> str | None:
    if node.outputs[0].dtype not in (torch.float32, torch.float64):
        return "Sum is for 32 and 64 bits"
    return None


UNWRITABLE: dict[str, Reason] = {
    "bias_gelu": _contributed,
    "quick_gelu": _contributed,
    "bias_residual": _sum,
    "skip_layer_norm": _skip_norm,
    "skip_rms_norm": _skip_norm,
    "multi_head_attention": _multi_head,
    "grouped_attention": _grouped,
    "packed_attention": _packed,
    "projected_attention": _packed,
    "rotary": _rotary,
}
"""Fused operator -> why a node of it cannot be one ONNX node, for an operator set and a profile."""


@rule("bias_gelu")
def _bias_gelu(at: Lowering) -> onnx_ir.Value:
    name = "BiasGelu" if at.text("approximate") == "none" else "FastGelu"
    return at.contrib(name, at.x(0), at.x(1))[0]


@rule("quick_gelu")
def _quick_gelu(at: Lowering) -> onnx_ir.Value:
    return at.contrib("QuickGelu", at.x(0), alpha=at.number("alpha"))[0]


@rule("bias_residual")
def _bias_residual(at: Lowering) -> onnx_ir.Value:
    """One Sum of three. ONNX Runtime would fuse an Add and the norm after it into a kernel that is slower than the two; it leaves a Sum alone."""
    return at.op("Sum", at.x(0), at.x(1), at.x(2))


@rule("skip_layer_norm")
def _skip_layer_norm(at: Lowering) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    made = at.contrib(
        "SkipLayerNormalization", at.x(0), at.x(1), at.x(2), at.maybe(3), results=4, epsilon=at.number("eps")
    )
    return made[0], made[3]


@rule("skip_rms_norm")
def _skip_rms_norm(at: Lowering) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    given = at.node.attributes["eps"]
    eps = torch.finfo(at.out.dtype).eps if given is None else at.number("eps")
    made = at.contrib("SkipSimplifiedLayerNormalization", at.x(0), at.x(1), at.x(2), results=4, epsilon=eps)
    return made[0], made[3]


@rule("multi_head_attention")
def _multi_head_attention(at: Lowering) -> onnx_ir.Value:
    if _operator(at.node, at.opset, at.emitter.profile):
        return _attention_operator(at, at.integer("heads"), at.integer("heads"))
    made = at.contrib(
        "MultiHeadAttention", at.x(0), at.x(1), at.x(2), None, None, _bias(at), num_heads=at.integer("heads"),
        scale=at.number("scale"), unidirectional=int(at.flag("causal")),
    )  # fmt: skip
    return _revive(at, made[0])


@rule("grouped_attention")
def _grouped_attention(at: Lowering) -> onnx_ir.Value:
    heads = at.integer("key_heads")
    return _attention_operator(at, heads * at.integer("group"), heads)


@rule("packed_attention")
def _packed_attention(at: Lowering) -> onnx_ir.Value:
    bias = at.maybe(2) or at.filled(at.type(1).shape[0], 0, at.out.dtype)
    return _self_attention(at, transposed(at, at.value(1)), bias)


@rule("projected_attention")
def _projected_attention(at: Lowering) -> onnx_ir.Value:
    weights = [value for value in at.node.inputs[1:4] if isinstance(value, Parameter)]
    rows = [weight.data.shape[0] for weight in weights]
    name = weights[0].name
    packed = at.weight(
        f"{name}.packed",
        (weights[0].data.shape[1], sum(rows)),
        lambda: torch.cat([w.data for w in weights]).t(),
        weights,
    )
    biases = [value if isinstance(value, Parameter) else None for value in at.node.inputs[4:7]]
    given = [bias for bias in biases if bias is not None]
    if not given:
        return _self_attention(at, packed, at.filled(sum(rows), 0, at.out.dtype), rows)

    def make() -> torch.Tensor:
        zeros = [torch.zeros(count, dtype=at.out.dtype) for count in rows]
        return torch.cat([zero if bias is None else bias.data for bias, zero in zip(biases, zeros, strict=True)])

    packed_bias = at.weight(f"{given[0].name}.packed", (sum(rows),), make, [*weights, *given])
    return _self_attention(at, packed, packed_bias, rows)


def _self_attention(
    at: Lowering, weight: onnx_ir.Value, bias: onnx_ir.Value, widths: list[int] | None = None
) -> onnx_ir.Value:
    """ONNX Runtime says that the bias may be absent; on a CPU its kernel crashes without one."""
    named: dict[str, Any] = {"qkv_hidden_sizes": widths} if widths and len(set(widths)) > 1 else {}
    made = at.contrib(
        "Attention", at.x(0), weight, bias, None, None, _bias(at), num_heads=at.integer("heads"),
        scale=at.number("scale"), unidirectional=int(at.flag("causal")), **named,
    )  # fmt: skip
    return _revive(at, made[0])


def _attention_operator(at: Lowering, query_heads: int, key_heads: int) -> onnx_ir.Value:
    made = at.op(
        "Attention", at.x(0), at.x(1), at.x(2), _bias(at), q_num_heads=query_heads, kv_num_heads=key_heads,
        scale=at.number("scale"), is_causal=int(at.flag("causal")),
    )  # fmt: skip
    return _revive(at, made)


def _bias(at: Lowering) -> onnx_ir.Value | None:
    """The mask as a bias of four dimensions, the last two of them whole; made once for all layers."""
    mask = _mask_of(at.node)
    if mask is None or _hides_nothing(mask):
        return None
    rows = at.type(0).shape[1]
    key = ("attention bias", mask, rows)
    if key not in at.emitter.cache:
        made = mask_bias(at, mask)
        if mask.rank < 4:
            made = at.unsqueeze(made, *range(4 - mask.rank))
        columns = _columns(at)
        last = (1, 1, *mask.shape)[-2:]
        if last != (rows, columns):
            made = at.op("Expand", made, at.shape([1, 1, rows, columns]))
        at.emitter.cache[key] = made
    return at.emitter.cache[key]


def _hides_nothing(mask: Value) -> bool:
    """Whether a mask is a constant that lets everything through."""
    if not isinstance(mask, Parameter):
        return False
    return bool(mask.data.all()) if mask.dtype == torch.bool else not bool(mask.data.any())


def _columns(at: Lowering) -> Dim:
    own = at.node.operator.name in ("packed_attention", "projected_attention")
    return at.type(0 if own else 1).shape[1]


def _revive(at: Lowering, made: onnx_ir.Value) -> onnx_ir.Value:
    """Zeros in the rows that see nothing, as torch has it."""
    mask = _mask_of(at.node)
    alive = None if mask is None else rows_alive(at, mask)
    if mask is None or alive is None:
        return made
    key = ("rows alive, by row", mask)
    if key not in at.emitter.cache:
        by_row = at.squeeze(alive, mask.rank - 3) if mask.rank > 2 else alive
        at.emitter.cache[key] = by_row
    return at.op("Where", at.emitter.cache[key], made, at.constant(0, at.out.dtype))


@rule("rotary")
def _rotary_embedding(at: Lowering) -> onnx_ir.Value:
    tables = [_half_table(at, index) for index in (1, 2)]
    return at.contrib("RotaryEmbedding", at.x(0), at.ints(0), *tables, num_heads=at.integer("heads"))[0]


def _half_table(at: Lowering, index: int) -> onnx_ir.Value:
    """Half the columns of a table whose halves are the same; made once for all layers."""
    table = at.value(index)
    width = table.shape[-1]
    if not isinstance(width, int):
        at.fail(f"tables of {width} columns", "a fixed number would be right")
    half = width // 2
    if isinstance(table, Parameter):
        data = table.data
        return at.weight(f"{table.name}.half", (data.shape[2], half), lambda: data[0, 0, :, :half], [table])
    key = ("half of table", table)
    if key not in at.emitter.cache:
        rows = at.reshape(at.x(index), table.shape, table.shape[2:])
        at.emitter.cache[key] = at.slice(rows, 1, 0, half)
    return at.emitter.cache[key]


def _repeats(value: Value) -> bool:
    """Whether the two halves of the last dimension are known to be equal."""
    if isinstance(value, Parameter):
        low, high = value.data.chunk(2, -1)
        return torch.equal(low, high)
    made = value.producer
    if made is None:
        return False
    operands = [operand for operand in made.inputs if operand is not None]
    if made.operator.name == "concat":
        last = made.attributes["dim"] in (-1, value.rank - 1)
        return last and len(operands) == 2 and operands[0] is operands[1]
    source = operands[0] if len(operands) == 1 else None
    if made.operator.name == "reshape":
        return source is not None and source.shape[-1:] == value.shape[-1:] and _repeats(source)
    return source is not None and made.operator.pointwise and _repeats(source)
