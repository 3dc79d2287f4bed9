"""canonicalise: graphs before and after, as text; random graphs compute the same; functions written out are known by what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import nn

import suture
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph
from suture.ir.verify import verify


def names(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def canonical(text: str, **options: bool) -> Graph:
    """The canonical form of a graph in text, held against the graph itself on inputs of our own."""
    graph = parse_graph(text)
    for parameter in graph.parameters.values():
        torch.manual_seed(0)
        if parameter.data.is_meta:
            parameter.assign(torch.randn(parameter.data.shape, dtype=parameter.dtype))
    result = suture.passes.canonicalise(graph, **options)
    verify(result)
    torch.manual_seed(3)
    inputs = [torch.randn([2 if not isinstance(d, int) else d for d in v.shape]).to(v.dtype) for v in graph.inputs]
    for before, after in zip(evaluate(graph, inputs), evaluate(result, inputs), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6, equal_nan=True)
    return result


CASES = {
    "orders": (
        """%a: f32[3, 2, 4] = permute(%x) dims=(1, 0, 2)
           %b: f32[4, 2, 3] = permute(%a) dims=(2, 1, 0)
           return %b""",
        ["permute"],
    ),
    "orders that cancel": (
        """%a: f32[2, 4, 3] = permute(%x) dims=(0, 2, 1)
           %b: f32[2, 4, 3] = relu(%a)
           %c: f32[2, 3, 4] = permute(%b) dims=(0, 2, 1)
           return %c""",
        ["relu"],
    ),
    "shapes across a function of rows": (
        """%a: f32[6, 4] = reshape(%x)
           %b: f32[6, 4] = layer_norm(%a, _, _)
           %c: f32[3, 2, 4] = reshape(%b)
           return %c""",
        ["layer_norm", "reshape"],
    ),
    "sums under one view": (
        """%a: f32[2, 4, 3] = permute(%x) dims=(0, 2, 1)
           %n: f32[2, 3, 4] = neg(%x)
           %b: f32[2, 4, 3] = permute(%n) dims=(0, 2, 1)
           %c: f32[2, 4, 3] = add(%a, %b)
           return %c""",
        ["neg", "add", "permute"],
    ),
    "a residual that is read in another shape": (
        """%a: f32[6, 4] = reshape(%x)
           %e: f32[2, 3, 4] = exp(%x)
           %b: f32[6, 4] = reshape(%e)
           %c: f32[6, 4] = add(%a, %b)
           %d: f32[2, 3, 4] = reshape(%c)
           return %d""",
        ["exp", "add"],
    ),
    "two shapes around an order": (
        """%a: f32[2, 3, 2, 2] = reshape(%x)
           %b: f32[2, 2, 3, 2] = permute(%a) dims=(0, 2, 1, 3)
           %c: f32[1, 2, 2, 3, 2] = reshape(%b)
           return %c""",
        ["reshape", "permute"],
    ),
    "factors": (
        """%a: f32[2, 3, 4] = mul(%x) scalar=2.0
           %b: f32[2, 3, 4] = div(%a) scalar=4.0
           %c: f32[2, 3, 4] = mul(%b) scalar=3.0
           return %c""",
        ["mul"],
    ),
    "a factor of one": (
        """%a: f32[2, 3, 4] = mul(%x) scalar=1
           %b: f32[2, 3, 4] = sub(%a) scalar=0
           %c: f32[2, 3, 4] = exp(%b)
           return %c""",
        ["exp"],
    ),
    "no terms that cancel": (
        """%a: f32[2, 3, 4] = add(%x) scalar=1.0
           %b: f32[2, 3, 4] = sub(%a) scalar=1.0
           return %b""",
        ["add", "sub"],
    ),
    "nothing is added to floats, for the sign of zero": (
        """%a: f32[2, 3, 4] = add(%x) scalar=0.0
           %b: f32[2, 3, 4] = reciprocal(%a)
           return %b""",
        ["add", "reciprocal"],
    ),
    "bounds": (
        """%a: f32[2, 3, 4] = maximum(%x) scalar=0.0
           %b: f32[2, 3, 4] = minimum(%a) scalar=6.0
           return %b""",
        ["relu6"],
    ),
    "bounds apart": (
        """%a: f32[2, 3, 4] = clamp(%x) max=1.0
           %b: f32[2, 3, 4] = clamp(%a) min=2.0
           return %b""",
        ["clamp", "clamp"],
    ),
    "double negation": (
        """%a: f32[2, 3, 4] = neg(%x)
           %b: f32[2, 3, 4] = neg(%a)
           %c: f32[2, 3, 4] = relu(%b)
           %d: f32[2, 3, 4] = relu(%c)
           return %d""",
        ["relu"],
    ),
    "casts that lose nothing": (
        """%a: f64[2, 3, 4] = cast(%x) dtype=f64
           %b: f32[2, 3, 4] = cast(%a) dtype=f32
           %c: f32[2, 3, 4] = exp(%b)
           return %c""",
        ["exp"],
    ),
    "casts that lose digits": (
        """%a: f16[2, 3, 4] = cast(%x) dtype=f16
           %b: f32[2, 3, 4] = cast(%a) dtype=f32
           return %b""",
        ["cast", "cast"],
    ),
    "equal nodes": (
        """%a: f32[2, 3, 4] = exp(%x)
           %b: f32[2, 3, 4] = exp(%x)
           %c: f32[2, 3, 4] = mul(%a, %b)
           return %c""",
        ["exp", "mul"],
    ),
    "a part of a part": (
        """%a: f32[2, 3, 3] = slice(%x) dim=2 start=1
           %b: f32[2, 3, 1] = slice(%a) dim=2 start=1
           return %b""",
        ["slice"],
    ),
    "parts of a join": (
        """%a: f32[2, 3, 8] = concat(%x, %x) dim=2
           %b: f32[2, 3, 4] = slice(%a) dim=2 start=4
           %c: f32[2, 3, 4] = exp(%b)
           return %c""",
        ["exp"],
    ),
    "split and joined": (
        """%a: f32[2, 3, 2], %b: f32[2, 3, 2] = split(%x) dim=2
           %c: f32[2, 3, 4] = concat(%a, %b) dim=2
           %d: f32[2, 3, 4] = exp(%c)
           return %d""",
        ["exp"],
    ),
    "neighbours": (
        """%a: f32[2, 3, 1] = slice(%x) dim=2
           %b: f32[2, 3, 3] = slice(%x) dim=2 start=1
           %c: f32[2, 3, 3] = mul(%a, %b)
           return %c""",
        ["split", "mul"],
    ),
    "turned around": (
        """%a: f32[2, 3, 1], %b: f32[2, 3, 3] = split(%x) dim=2
           %c: f32[2, 3, 4] = concat(%b, %a) dim=2
           %d: f32[2, 3, 4] = roll(%c) shifts=(1,) dims=(1,)
           return %d""",
        ["roll"],
    ),
    "what broadcasts anyway": (
        """%s: f32[1, 3, 4] = slice(%x) dim=0
           %a: f32[2, 3, 4] = expand(%s)
           %b: f32[2, 3, 4] = mul(%x, %a)
           return %b""",
        ["slice", "mul"],
    ),
    "a gain and a bias behind a norm": (
        """%a: f32[2, 3, 4] = layer_norm(%x, _, _)
           %b: f32[2, 3, 4] = mul(%a, @gain)
           %c: f32[2, 3, 4] = add(%b, @bias)
           return %c""",
        ["layer_norm"],
    ),
    "a bias before a gain": (
        """%a: f32[2, 3, 4] = layer_norm(%x, _, @bias)
           %b: f32[2, 3, 4] = mul(%a, @gain)
           return %b""",
        ["layer_norm", "mul"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_brought_into_canonical_form(name: str) -> None:
    body, expected = CASES[name]
    parameters = "".join(f"parameter @{p}: f32[4]\n" for p in ("gain", "bias") if f"@{p}" in body)
    assert names(canonical(f"graph g(%x: f32[2, 3, 4]) {{\n{parameters}{body}\n}}")) == expected


def test_padding_of_zeros_becomes_the_convolutions() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(F.pad(x, (1, 1, 2, 2)))

    x = torch.randn(2, 3, 6, 6)
    module = Padded()
    result = suture.passes.canonicalise(suture.trace(module, x))
    assert names(result) == ["conv"]
    assert result.nodes[0].attributes["padding"] == (3, 2)
    torch.testing.assert_close(evaluate(result, [x])[0], module(x), rtol=1e-5, atol=1e-6)


def test_values_keep_their_names_and_what_is_new_has_another() -> None:
    text = """graph g(%x: f32[2, 3, 4]) {
      %a: f32[2, 4, 3] = permute(%x) dims=(0, 2, 1)
      %b: f32[2, 4, 3] = gelu(%a)
      %c: f32[2, 3, 4] = permute(%b) dims=(0, 2, 1)
      return %c as last
    }"""
    result = canonical(text)
    assert result.output_names == ["last"]
    assert result.outputs[0].name != "b"
    assert "b" not in {value.name for node in result.nodes for value in node.outputs}


def test_dropout_goes_only_where_inference_is_said() -> None:
    graph = suture.trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()), torch.randn(2, 4))
    assert "dropout" in names(suture.passes.canonicalise(graph))
    assert names(suture.passes.canonicalise(graph, inference=True)) == ["linear", "relu"]


def test_what_is_canonical_is_left_as_it_is_and_says_so() -> None:
    graph = suture.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    record = suture.passes.canonicalise(graph).history[-1]
    assert record.outcome == "not applicable"
    assert record.notes == ("the graph is in canonical form",)


def test_a_graph_without_nodes_and_one_of_shapes_only_are_no_error() -> None:
    empty = parse_graph("graph g(%x: f32[2]) {\n return %x\n}")
    assert len(suture.passes.canonicalise(empty)) == 0
    text = """graph g(%x: f32[2, 4]) {
      parameter @w: f32[4, 4]
      %a: f32[2, 4] = linear(%x, @w, _)
      %b: f32[2, 2, 2] = reshape(%a)
      %c: f32[2, 4] = reshape(%b)
      return %c
    }"""
    planned = parse_graph(text)
    planned.parameters["w"].assign(torch.empty(4, 4, device="meta"))
    assert names(suture.passes.canonicalise(planned)) == ["linear"]


ELEMENTWISE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "tanh gelu": (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), "gelu"),
    "tanh gelu otherwise": (
        lambda x: x * (0.5 * (torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)) + 1.0)), "gelu",
    ),
    "erf gelu": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "gelu"),
    "silu": (lambda x: x * torch.sigmoid(x), "silu"),
    "silu by exp": (lambda x: x / (1 + torch.exp(-x)), "silu"),
    "hard swish": (lambda x: x * F.relu6(x + 3) / 6, "hardswish"),
    "hard sigmoid": (lambda x: torch.clamp(x + 3, 0, 6) / 6, "hardsigmoid"),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
    "softsign": (lambda x: x / (1 + x.abs()), "softsign"),
}  # fmt: skip


class Apply(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_activation_written_out_is_known_by_what_it_computes(name: str) -> None:
    function, expected = ELEMENTWISE[name]
    x = torch.randn(3, 5) * 4
    result = suture.passes.canonicalise(suture.trace(Apply(function), x))
    assert names(result) == [expected]
    torch.testing.assert_close(evaluate(result, [x])[0], function(x), rtol=1e-5, atol=1e-5)


def test_what_only_looks_like_an_activation_stays() -> None:
    close = suture.trace(Apply(lambda x: x * torch.sigmoid(1.01 * x)), torch.randn(3, 5))
    assert "silu" not in names(suture.passes.canonicalise(close))
    shared = suture.trace(Apply(lambda x: torch.stack([x * torch.sigmoid(x), torch.sigmoid(x)])), torch.randn(3, 5))
    assert "silu" not in names(suture.passes.canonicalise(shared))
    kept = suture.passes.canonicalise(suture.trace(Apply(ELEMENTWISE["silu"][0]), torch.randn(3, 5)), recognise=False)
    assert names(kept) == ["sigmoid", "mul"]


ROWWISE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "layer norm": (
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5),
        "layer_norm",
    ),
    "layer norm by var": (
        lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6), "layer_norm",
    ),
    "rms norm": (lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5), "rms_norm"),
    "softmax": (lambda x: torch.exp(x - x.amax(-1, keepdim=True)) / torch.exp(x - x.amax(-1, keepdim=True)).sum(-1, keepdim=True), "softmax"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWWISE)
def test_a_norm_written_out_is_known_by_what_it_computes(name: str) -> None:
    function, expected = ROWWISE[name]
    x = torch.randn(2, 3, 16)
    result = suture.passes.canonicalise(suture.trace(Apply(function), x, dynamic={"x": {0: "batch"}}))
    assert names(result) == [expected]
    torch.testing.assert_close(evaluate(result, [x])[0], function(x), rtol=1e-5, atol=1e-5)


def test_a_norm_by_the_sample_variance_is_none() -> None:
    function = lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)  # noqa: E731
    assert "layer_norm" not in names(suture.passes.canonicalise(suture.trace(Apply(function), torch.randn(2, 3, 16))))


class Attention(nn.Module):
    def __init__(self, *, masked: bool = False, scaled: str = "scores", returned: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(2, 5, 5))
        self.masked, self.scaled, self.returned = masked, scaled, returned

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.scaled == "queries":
            q = q * 0.5
        scores = q @ k.transpose(-2, -1)
        if self.scaled == "scores":
            scores = scores / 2.0
        if self.masked:
            scores = scores + self.bias
        weights = scores.softmax(-1)
        result = (weights @ v).transpose(1, 2).reshape(x.shape[0], 5, 8)
        return (result, weights) if self.returned else result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaled", ["queries", "scores", "nothing"])
def test_attention_written_out_is_one_operator(masked: bool, scaled: str) -> None:
    module, x = Attention(masked=masked, scaled=scaled).eval(), torch.randn(3, 5, 8)
    result = suture.passes.canonicalise(suture.trace(module, x, dynamic={"x": {0: "batch"}}))
    (node,) = (node for node in result.nodes if node.operator.name == "attention")
    assert node.attributes["scale"] == (1.0 if scaled == "nothing" else 0.5)
    assert "softmax" not in names(result)
    torch.testing.assert_close(evaluate(result, [x])[0], module(x), rtol=1e-5, atol=1e-6)


def test_attention_whose_weights_are_returned_stays_and_says_why() -> None:
    result = suture.passes.canonicalise(suture.trace(Attention(returned=True).eval(), torch.randn(3, 5, 8)))
    assert "softmax" in names(result)
    assert any("its weights are read elsewhere" in note for note in result.history[-1].notes)


@pytest.mark.parametrize("unbatched_first", [True, False])
def test_a_sequence_turned_to_the_front_and_back_is_not_turned(unbatched_first: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = module, nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            if unbatched_first:
                return x + self.inner(y, y, y, need_weights=False)[0]
            q, k, v = (F.linear(y.transpose(0, 1), self.inner.in_proj_weight, self.inner.in_proj_bias)).chunk(3, -1)
            q, k, v = (p.reshape(5, 3, 2, 4).permute(1, 2, 0, 3) for p in (q, k, v))
            made = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).reshape(15, 8)
            return x + self.inner.out_proj(made).reshape(5, 3, 8).transpose(0, 1)

    encoder, x = Encoder().eval(), torch.randn(3, 5, 8)
    result = suture.passes.canonicalise(suture.trace(encoder, x))
    verify(result)
    orders = [node.attributes["dims"] for node in result.nodes if node.operator.name == "permute"]
    assert orders == [(0, 2, 1, 3)] * 4
    torch.testing.assert_close(evaluate(result, [x])[0], encoder(x), rtol=1e-5, atol=1e-6)


def test_linear_layers_between_orders_of_an_image_are_convolutions_in_inference() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x.permute(0, 2, 3, 1))
            return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)

    module, x = Block().eval(), torch.randn(2, 4, 5, 6)
    graph = suture.trace(module, x, dynamic={"x": {0: "batch"}})
    assert "conv" not in names(suture.passes.canonicalise(graph))
    result = suture.passes.canonicalise(graph, inference=True)
    assert names(result) == ["permute", "layer_norm", "permute", "conv", "gelu", "conv", "add"]
    assert "up.weight" not in result.parameters
    torch.testing.assert_close(evaluate(result, [x])[0], module(x), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.graphs(max_steps=12))
def test_random_graphs_compute_the_same_in_no_more_nodes(graph: Graph) -> None:
    inputs = strategies.run_inputs(graph, 1)
    expected = evaluate(graph, inputs)
    result = suture.passes.canonicalise(graph, inference=True)
    verify(result)
    assert len(result) <= len(graph)
    for before, after in zip(expected, evaluate(result, inputs), strict=True):
        torch.testing.assert_close(after, before, rtol=2e-4, atol=2e-4, equal_nan=True)


VIEWS = ("reshape", "permute", "unary", "scalar", "binary", "slice", "split", "concat", "linear", "norm")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.graphs(steps=VIEWS, max_steps=14))
def test_random_chains_of_views_reach_a_fixed_point(graph: Graph) -> None:
    first = suture.passes.canonicalise(graph)
    second = suture.passes.canonicalise(first)
    assert names(second) == names(first)
    sizes = [len(item) for item in (graph, first, second)]
    assert all(after <= before for before, after in pairwise(sizes))
