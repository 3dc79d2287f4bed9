"""The passes fuse and expand: what is found in real architectures, that nothing changes, and the way back."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import suture
from suture.ir.graph import Graph, Value
from suture.ir.text import parse_graph, print_attribute
from suture.passes.fusion.patterns import FUSIONS
from suture.passes.probes import draw_probes

TEXT = ("bert", "gpt2", "llama")
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


@cache
def traced(name: str) -> Graph:
    entry = zoo.ENTRIES[name]
    args, kwargs = entry.args()
    graph = suture.trace(zoo.randomise(entry.module()), args, kwargs, dynamic=entry.dynamic)
    return suture.passes.canonicalise(graph, inference=True)


@cache
def fused(name: str, target: str = "onnxruntime", *include: str) -> Graph:
    return suture.passes.fuse(traced(name), target=target, include=include)


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.operator.name for node in graph.nodes)


def run_everywhere(path: Path, graph: Graph, inputs: list[Tensor]) -> list[list[Tensor]]:
    """A file's results at every level of ONNX Runtime's own optimisation."""
    import onnxruntime

    found = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, inputs, strict=True)}
        found.append([torch.from_numpy(result) for result in session.run(None, feed)])
    return found


def shape_of(value: Value, known: dict[Value, Any]) -> Any:
    """What a value is computed from, without names: equal for graphs that differ in names and order alone."""
    if value not in known:
        node = value.producer
        if node is None:
            known[value] = str(value)
        else:
            attributes = sorted((key, print_attribute(item)) for key, item in node.attributes.items())
            operands = [None if item is None else shape_of(item, known) for item in node.inputs]
            while operands and operands[-1] is None:
                operands.pop()
            known[value] = hash((node.operator.name, value.index, str(value.type), repr(attributes), repr(operands)))
    return known[value]


def structure(graph: Graph) -> list[Any]:
    return [shape_of(value, {}) for value in graph.outputs]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", {"projected_attention": 2, "bias_residual": 4, "bias_gelu": 2, "attention": 0}),
        ("gpt2", {"packed_attention": 2, "bias_residual": 4, "bias_gelu": 2, "addmm": 0, "attention": 0}),
        ("llama", {"grouped_attention": 2, "rotary": 4, "attention": 0, "expand": 1}),
        ("t5", {"projected_attention": 4, "multi_head_attention": 2, "attention": 0}),
    ],
)
def test_what_is_found_in_an_architecture(name: str, expected: dict[str, int]) -> None:
    found = counts(fused(name))
    assert {operator: found[operator] for operator in expected} == expected


@pytest.mark.parametrize("name", [*TEXT, "t5"])
def test_expand_gives_the_graph_back(name: str) -> None:
    """The same nodes over the same operands, whatever their names; for what was written in one way only."""
    again = suture.passes.expand(fused(name))
    assert not any(node.operator.name in ("rotary", "bias_gelu", "bias_residual") for node in again.nodes)
    inputs = draw_probes(traced(name), sizes={"batch": 3, "sequence": 7})
    for a, b in zip(suture.evaluate(again, inputs), suture.evaluate(traced(name), inputs), strict=True):
        torch.testing.assert_close(a, b)
    if name not in ("gpt2", "llama"):  # there fuse brings products on rows and repeated keys into another form first
        assert structure(suture.passes.canonicalise(again)) == structure(traced(name))


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    ("target", "opset", "choices", "include"),
    [
        ("onnxruntime", 17, {}, ()),
        ("onnxruntime", 21, {}, ("all",)),
        ("portable", 23, {"attention": "operator"}, ()),
        ("portable", 23, {"attention": "operator", "linear": "matmul"}, ()),
    ],
)
def test_files_compute_the_same_at_every_level(
    name: str, target: str, opset: int, choices: dict[str, str], include: tuple[str, ...], tmp_path: Path
) -> None:
    graph = fused(name, target, *include)
    path = suture.export_onnx(graph, tmp_path / "net.onnx", profile=target, opset=opset, choices=choices)
    domains = {node.domain for node in onnx.load(str(path)).graph.node}
    assert domains == ({"", "com.microsoft"} if target == "onnxruntime" else {""})
    for sizes in ({"batch": 1, "sequence": 5}, {"batch": 3, "sequence": 9}):
        inputs = draw_probes(traced(name), sizes=sizes)
        expected = suture.evaluate(traced(name), inputs)
        for results in run_everywhere(path, graph, inputs):
            for result, wanted in zip(results, expected, strict=True):
                torch.testing.assert_close(result, wanted, rtol=1e-4, atol=2e-5)


def test_a_fused_graph_still_trains() -> None:
    """Its module is made of the bodies, with the parameters' own names."""
    module = suture.to_torch(fused("bert")).train()
    kwargs = dict(zip(("input_ids", "attention_mask"), draw_probes(traced("bert")), strict=True))
    result = module(**kwargs)
    result.last_hidden_state.sum().backward()
    named = dict(module.named_parameters())
    assert named["encoder.layer.0.attention.self.query.weight"].grad is not None


class Block(nn.Module):
    """A block of a vision transformer as `timm` writes it: one projection for all three."""

    def __init__(self, width: int = 12, heads: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width, bias=bias)
        self.proj, self.after = nn.Linear(width, width), nn.LayerNorm(width)
        self.fc1, self.fc2, self.heads = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.proj(y)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.after(x))))


@pytest.mark.parametrize("batch", [1, 2, "dynamic"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_vision_block_is_eleven_nodes_or_fewer(batch: int | str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block, x = Block(bias=bias).eval(), torch.randn(2 if batch == "dynamic" else int(batch), 5, 12)
    graph = suture.trace(block, (x,), dynamic={"x": {0: "batch"}} if batch == "dynamic" else None)
    small = suture.passes.fuse(graph)
    assert counts(small)["packed_attention"] == 1
    path = suture.export_onnx(small, tmp_path / "block.onnx", profile="onnxruntime")
    assert len(onnx.load(str(path)).graph.node) <= 11
    for results in run_everywhere(path, small, [x]):
        torch.testing.assert_close(results[0], block(x), rtol=1e-4, atol=1e-5)


@given(swap=st.lists(st.booleans(), min_size=3, max_size=3), batch=st.integers(1, 3), gain=st.booleans())
@settings(max_examples=20)
def test_sums_match_either_way_round(swap: list[bool], batch: int, gain: bool) -> None:
    """x + skip and skip + x are one pattern; so is gate * x."""

    def pair(a: str, b: str, k: int) -> str:
        return f"{b}, {a}" if swap[k] else f"{a}, {b}"

    text = f"""
    graph net(%x: f32[{batch}, 3, 4], %skip: f32[{batch}, 3, 4]) {{
      parameter @w: f32[4, 4]
      parameter @c: f32[4]
      parameter @gain: f32[4]
      %h: f32[{batch}, 3, 4] = linear(%x, @w, @c)
      %r: f32[{batch}, 3, 4] = add({pair("%h", "%skip", 0)})
      %a: f32[{batch}, 3, 4] = mul(%r, _) scalar=1.702
      %s: f32[{batch}, 3, 4] = sigmoid(%a)
      %g: f32[{batch}, 3, 4] = mul({pair("%r", "%s", 1)})
      %t: f32[{batch}, 3, 4] = add({pair("%g", "%skip", 2)})
      %n: f32[{batch}, 3, 4] = rms_norm(%t, {"@gain" if gain else "_"})
      return %n, %t
    }}
    """
    graph = parse_graph(
        text, {name: torch.randn(4, 4)[: 4 if name == "w" else 1].squeeze(0) for name in ("w", "c", "gain")}
    )
    small = suture.passes.fuse(graph, include=("all",))
    assert counts(small) == {"linear": 1, "bias_residual": 1, "quick_gelu": 1, "skip_rms_norm": 1}
    assert small.outputs[1].name == "t"
    inputs = draw_probes(graph)
    for a, b in zip(suture.evaluate(small, inputs), suture.evaluate(graph, inputs), strict=True):
        torch.testing.assert_close(a, b)
    again = suture.passes.expand(small)
    assert counts(again) == counts(graph)


def test_exclude_and_include_choose_kinds() -> None:
    every = set(FUSIONS)
    left = suture.passes.fuse(traced("bert"), exclude=tuple(every - {"gelu"}))
    assert {name for name in counts(left) if name in ("bias_gelu", "attention", "bias_residual")} == {
        "bias_gelu",
        "attention",
    }
    norms = suture.passes.fuse(traced("bert"), include=("skip_norm",), exclude=("residual",))
    assert counts(norms)["skip_layer_norm"] == 4
    with pytest.raises(suture.SutureError, match=r"S402.*no kind of fusion 'gelus'.*gelu"):
        suture.passes.fuse(traced("bert"), include=("gelus",))


def test_what_is_left_says_why() -> None:
    notes = "\n".join(fused("t5").history[-1].notes)
    assert "projected_attention at %decoder_block_0_layer_1_EncDecAttention" in notes
    assert "x would be %" in notes


def test_nothing_to_do_is_said() -> None:
    graph = suture.trace(nn.Linear(3, 2), (torch.randn(4, 3),))
    for name in ("fuse", "expand"):
        record = getattr(suture.passes, name)(graph).history[-1]
        assert record.outcome == "not applicable"
        assert record.notes
    empty = parse_graph("graph empty(%x: f32[2]) {\n  return %x\n}")
    assert suture.passes.fuse(empty).history[-1].outcome == "not applicable"


def test_shapes_alone_are_enough() -> None:
    """A planned graph has no numbers: it is fused all the same."""
    planned = parse_graph(str(traced("bert")))
    assert counts(suture.passes.fuse(planned)) == counts(fused("bert"))
