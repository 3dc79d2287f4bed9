"""Fused operators: what they compute, against torch's and transformers' own code; their bodies; their axes."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
import zoo
from operator_examples import EXAMPLES, Example
from torch import Tensor, nn

import suture
from suture.backends.onnxruntime import OnnxModel
from suture.ir.expansion import expanded
from suture.ir.graph import Graph, Value
from suture.ir.operator import find
from suture.ir.operators.fused import BODIES
from suture.ir.template import parse_template
from suture.ir.text import parse_graph
from suture.ir.types import TensorType

FUSED = [example for example in EXAMPLES if example.operator in BODIES]

NAMES = {
    "bias_gelu": ("BiasGelu", "FastGelu"), "quick_gelu": ("QuickGelu",), "bias_residual": ("Sum",),
    "skip_layer_norm": ("SkipLayerNormalization",), "skip_rms_norm": ("SkipSimplifiedLayerNormalization",),
    "multi_head_attention": ("MultiHeadAttention",), "grouped_attention": ("Attention",),
    "packed_attention": ("Attention",), "projected_attention": ("Attention",), "rotary": ("RotaryEmbedding",),
}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, count: int, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Attention as the formula has it (Vaswani et al. 2017, equation 1)."""
    scores = heads(q, count) @ heads(k, count).mT * scale + bias
    return (scores.softmax(-1) @ heads(v, count)).transpose(1, 2).flatten(2)


def test_bias_gelu_is_gelu_of_the_sum() -> None:
    x, c = draw(2, 3, 4), draw(4)
    for approximate in ("none", "tanh"):
        given = find("bias_gelu").run(x, c, approximate=approximate)
        torch.testing.assert_close(given, F.gelu(x + c, approximate=approximate))


def test_quick_gelu_is_what_clip_calls_so() -> None:
    x = draw(3, 5)
    torch.testing.assert_close(find("quick_gelu").run(x, alpha=1.702), x * torch.sigmoid(1.702 * x))


def test_bias_residual_is_a_sum_of_three() -> None:
    x, c, skip = draw(2, 3, 4), draw(4), draw(2, 3, 4, seed=1)
    torch.testing.assert_close(find("bias_residual").run(x, c, skip), x + c + skip)


def test_skip_norms_give_the_norm_and_the_sum() -> None:
    x, skip, gain, bias = draw(2, 3, 8), draw(2, 3, 8, seed=1), draw(8), draw(8, seed=1)
    normalised, total = find("skip_layer_norm").run(x, skip, gain, bias, eps=1e-3)
    torch.testing.assert_close(normalised, F.layer_norm(x + skip, (8,), gain, bias, 1e-3))
    torch.testing.assert_close(total, x + skip)
    normalised, total = find("skip_rms_norm").run(x, skip, gain, eps=1e-3)
    torch.testing.assert_close(normalised, F.rms_norm(x + skip, (8,), gain, 1e-3))
    torch.testing.assert_close(total, x + skip)


def test_multi_head_attention_is_the_formula() -> None:
    q, k, v, bias = draw(2, 5, 12), draw(2, 4, 12), draw(2, 4, 6), draw(2, 1, 5, 4)
    given = find("multi_head_attention").run(q, k, v, bias, heads=3, scale=0.3, causal=False, dropout=0.0)
    torch.testing.assert_close(given, attend(q, k, v, 3, 0.3, bias))
    causal = torch.full((4, 4), -math.inf, dtype=torch.float64).triu(1)
    given = find("multi_head_attention").run(k, k, v, heads=3, scale=0.3, causal=True, dropout=0.0)
    torch.testing.assert_close(given, attend(k, k, v, 3, 0.3, causal))


def test_grouped_attention_repeats_each_key_head_for_its_group() -> None:
    q, k, v = draw(2, 5, 12), draw(2, 4, 6), draw(2, 4, 6, seed=1)
    given = find("grouped_attention").run(q, k, v, key_heads=2, group=2, scale=0.3, causal=False, dropout=0.0)
    wide = [x.unflatten(-1, (2, 3)).repeat_interleave(2, 2).flatten(2) for x in (k, v)]
    torch.testing.assert_close(given, attend(q, *wide, 4, 0.3))


@pytest.mark.parametrize("bias", [True, False])
def test_packed_and_projected_attention_are_torchs_module(bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double().eval()
    module.out_proj.weight.data = torch.eye(12, dtype=torch.float64)
    x, scale = draw(2, 5, 12), 4**-0.5
    expected, _ = module(x, x, x, need_weights=False)
    weight, vector = module.in_proj_weight, module.in_proj_bias
    options = {"heads": 3, "scale": scale, "causal": False, "dropout": 0.0}
    torch.testing.assert_close(find("packed_attention").run(x, weight, vector, parts=3, **options), expected)
    vectors = vector.chunk(3) if bias else (None, None, None)
    torch.testing.assert_close(find("projected_attention").run(x, *weight.chunk(3), *vectors, **options), expected)


def test_rotary_is_what_transformers_does() -> None:
    zoo.declare_torchvision_operators()
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, angles = draw(2, 5, 12), draw(1, 5, 2)
    cos, sin = (function(torch.cat([angles, angles], -1)) for function in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(heads(x, 3), heads(x, 3), cos, sin)
    given = find("rotary").run(x, cos[:, None], sin[:, None], heads=3, parts=2)
    torch.testing.assert_close(given, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("example", FUSED, ids=str)
def test_a_body_computes_what_its_operator_does(example: Example) -> None:
    """The body is written out, the module is made from it, and the text comes back."""
    tensors = example.tensors(dtype=torch.float64)
    graph = example.node(tensors).graph
    operands = [tensor for tensor in tensors if tensor is not None]
    plain = expanded(graph)
    assert not any(node.operator.name in BODIES for node in plain.nodes)
    expected = suture.evaluate(graph, operands)
    for given, wanted in zip(suture.evaluate(plain, operands), expected, strict=True):
        torch.testing.assert_close(given, wanted)
    made = suture.to_torch(graph)(*operands)
    torch.testing.assert_close(made if isinstance(made, Tensor) else made[0], expected[0])
    assert str(parse_graph(str(graph))) == str(graph)


CONTRIBUTED = [example for example in FUSED if "_" not in example.operands.split()[2:3]]


@pytest.mark.parametrize("example", CONTRIBUTED, ids=str)
def test_onnx_runtimes_operator_computes_the_same(example: Example, tmp_path: Path) -> None:
    """One node of ONNX Runtime's own, or what opset 23 has; weights and tables are constants, as they are in models."""
    tensors = example.tensors()
    graph = Graph("net")
    values: list[Value | None] = []
    for k, tensor in enumerate(tensors):
        if tensor is None:
            values.append(None)
        elif example.operator in ("packed_attention", "projected_attention", "rotary") and k:
            half = tensor.shape[-1] // 2
            doubled = (
                torch.cat([tensor[..., :half], tensor[..., :half]], -1) if example.operator == "rotary" else tensor
            )
            values.append(graph.add_parameter(f"p{k}", doubled))
        else:
            values.append(graph.add_input(f"x{k}", TensorType(tensor.dtype, tuple(tensor.shape))))
    graph.set_outputs(graph.add(example.operator, values, example.attributes).outputs)
    grouped = example.operator == "grouped_attention"
    path = suture.export_onnx(
        graph, tmp_path / "net.onnx", profile="onnxruntime", opset=23 if grouped else 21,
        choices={"attention": "operator"} if grouped else {},
    )  # fmt: skip
    written = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert any(name in written for name in NAMES[example.operator]), written
    inputs = [
        tensor for tensor, value in zip(tensors, values, strict=True) if value in graph.inputs and tensor is not None
    ]
    for given, wanted in zip(OnnxModel(path).run(inputs), suture.evaluate(graph, inputs), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


def test_every_fused_operator_has_an_example() -> None:
    assert {example.operator for example in FUSED} == set(BODIES)


def test_a_branch_may_hold_fused_operators() -> None:
    text = """
    graph choice(%p: bool[], %x: f32[2, 3, 4], %c: f32[4]) {
      %y: f32[2, 3, 4] = branch(%p, %x, %c) then=graph then(%x: f32[2, 3, 4], %c: f32[4]) {
        %g: f32[2, 3, 4] = bias_gelu(%x, %c)
        return %g
      } otherwise=graph otherwise(%x: f32[2, 3, 4], %c: f32[4]) {
        return %x
      }
      return %y
    }
    """
    graph = parse_graph(text)
    inputs = [torch.tensor(True), torch.randn(2, 3, 4), torch.randn(4)]
    plain = expanded(graph)
    assert [node.operator.name for node in plain.nodes[0].bodies["then"].nodes] == ["add", "gelu"]
    torch.testing.assert_close(suture.evaluate(plain, inputs), suture.evaluate(graph, inputs))
    torch.testing.assert_close(suture.to_torch(graph)(*inputs), suture.evaluate(graph, inputs)[0])


def test_heads_may_be_cut_where_letters_say_so() -> None:
    """A head is a letter of all three projections: the axes of the weights show it."""
    graph = Graph("attention")
    x = graph.add_input("x", TensorType(torch.float32, (2, 5, 6)))
    weights = [graph.add_parameter(name, torch.randn(8, 6)) for name in ("q", "k", "v")]
    out = graph.add_parameter("out", torch.randn(6, 8))
    node = graph.add("projected_attention", [x, *weights], {"heads": 2, "scale": 0.5})
    graph.set_outputs(graph.add("linear", [node.output, out, None]).outputs)
    table = str(graph.axes())
    (line,) = [line for line in table.splitlines() if line.split()[1:2] == ["2"] and "free" in line]
    assert "projected_attention" in line


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_must_fit_the_scores(causal: bool) -> None:
    graph = Graph("attention")
    x = graph.add_input("x", TensorType(torch.float32, (2, 5, 6)))
    mask = graph.add_input("mask", TensorType(torch.float32, (1, 1, 5, 4)))
    with pytest.raises(suture.SutureError, match=r"S101.*5"):
        graph.add("multi_head_attention", [x, x, x, mask], {"heads": 2, "scale": 0.5, "causal": causal})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x[a] -> y[a]\ny is relu(x)", "no line of a template"),
        ("x[a] -> y[a]\ny = nothing(x)", "no operator 'nothing'"),
        ("x[a]\ny = relu(x)", "->"),
    ],
)
def test_a_template_that_does_not_parse_says_where(text: str, message: str) -> None:
    with pytest.raises(suture.SutureError, match=message):
        parse_template(text)
