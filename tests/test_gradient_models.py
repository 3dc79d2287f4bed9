"""Gradients of whole models and of training, against torch in float64; and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from gradients import F64, assert_gradients, expected, read
from torch import nn

import suture
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate


class _Node(torch.autograd.Function):
    """A graph and its gradient as one operation of torch, so that torch's own check can be put to it."""

    @staticmethod
    def forward(context: Any, graph: Graph, made: Graph, *inputs: torch.Tensor) -> torch.Tensor:
        context.made = made
        context.save_for_backward(*inputs)
        return evaluate(graph, inputs)[0].clone()

    @staticmethod
    def backward(context: Any, *cotangents: torch.Tensor) -> Any:
        with torch.no_grad():
            return None, None, *evaluate(context.made, [*context.saved_tensors, *cotangents])[1:]


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ("%y: f32[2, 3] = layer_norm(%x, %z) eps=0.1", ((2, 3), (3,))),
        ("%y: f32[2, 3, 2] = attention(%x, %z, %z) scale=0.5 causal=true", ((2, 3, 2), (2, 3, 2))),
        ("%y: f32[1, 2, 3] = conv(%x, %z, _) stride=(2,) padding=(1,)", ((1, 3, 6), (2, 3, 3))),
        ('%h: f32[2, 3] = einsum(%x, %z) equation="ij,jk->ik"\n  %y: f32[2, 3] = gelu(%h)', ((2, 4), (4, 3))),
    ],
)
def test_finite_differences_agree(body: str, sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, z = (f"f32[{', '.join(map(str, size))}]" for size in sizes)
    graph = read(f"graph g(%x: {x}, %z: {z}) {{\n  {body}\n  return %y\n}}\n")
    made = suture.passes.gradient(graph)
    torch.manual_seed(0)
    given = [torch.randn(size, dtype=F64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(lambda *inputs: _Node.apply(graph, made, *inputs), given)


# training


class _Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop, self.down = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.drop(torch.relu(self.norm(self.up(x)))))


def test_in_training_dropout_drops_the_same_on_both_ways_and_norms_see_the_batch() -> None:
    graph = suture.trace(_Trained().double().eval(), torch.randn(6, 3, dtype=F64))
    x, g = torch.randn(6, 3, dtype=F64), torch.randn(6, 2, dtype=F64)
    made = suture.passes.gradient(graph, training=True)
    torch.manual_seed(3)
    received = dict(zip(made.output_names, evaluate(made, [x, g], training=True), strict=True))
    torch.manual_seed(3)
    right = expected(graph, {"input" if "input" in graph.symbols() else graph.inputs[0].name: x}, [g], training=True)
    for name, value in right.items():
        torch.testing.assert_close(received[name], value, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(evaluate(made, [x, g])[0], received["output"])  # something was dropped


def test_dropout_of_attention_is_drawn_once() -> None:
    graph = read("""\
graph g(%q: f32[1, 2, 3, 4], %k: f32[1, 2, 5, 4], %v: f32[1, 2, 5, 4]) {
  %y: f32[1, 2, 3, 4] = attention(%q, %k, %v) scale=0.5 dropout=0.5
  return %y
}
""")
    q, k, v, g = (torch.randn(1, 2, n, 4, dtype=F64, requires_grad=True) for n in (3, 5, 5, 3))
    made = suture.passes.gradient(graph, training=True)
    torch.manual_seed(0)
    y, *received = evaluate(made, [q, k, v, g], training=True)
    right = torch.autograd.grad(y, [q, k, v], g)
    for ours, value in zip(received, right, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(y, evaluate(graph, [q, k, v])[0])


def test_experts_in_training_are_refused() -> None:
    graph = read("""\
graph g(%x: f32[4, 3]) {
  parameter @w: f32[2, 5, 3]
  %p: i64[4] = random_order(%x)
  %y: f32[4, 5] = expert_linear(%x, @w, _, %p)
  return %y
}
""")
    assert_gradients(graph, suture.passes.gradient(graph), {"x": torch.randn(4, 3, dtype=F64)})
    with pytest.raises(SutureError, match="expert of its own"):
        suture.passes.gradient(graph, training=True)


# whole models

SMALL = {
    "resnet18": 32,
    "mobilenetv3_large_100": 32,
    "densenet121": 32,
    "shufflenet_v2_x1_0": 32,
    "hrnet_w18_small": 32,
    "unet": 16,
    "convnext_tiny": 32,
}
"""Images smaller than the zoo's: float64 convolutions are slow."""

COARSE = {"mobilenetv3_large_100": 1e-6}
"""torch's derivative of hardsigmoid multiplies by a sixth in float32."""

FIXED = ("lstm",)
"""What is differentiated at fixed sizes alone: the steps of a recurrence are written out."""


def whole(name: str) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A model in float64, its sizes symbolic as far as they may be, and inputs for it."""
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module()).double()
    made = {key: t.double() if t.is_floating_point() else t for key, t in entry.inputs(2, 6).items()}
    if name in SMALL:
        made = {key: t[..., : SMALL[name], : SMALL[name]] for key, t in made.items()}
    args, kwargs = (tuple(made.values()), {}) if entry.positional else ((), made)
    graph = suture.trace(module, args, kwargs, dynamic=None if name in FIXED else entry.dynamic)
    return graph, dict(zip((value.name for value in graph.inputs), made.values(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "unet", "bert", "gpt2", "t5", "hf_vit", "lstm"])
def test_whole_models_have_the_gradients_that_torch_finds(name: str) -> None:
    graph, inputs = whole(name)
    made = suture.passes.gradient(graph)
    assert_gradients(graph, made, inputs)
    if name not in FIXED:
        assert_gradients(graph, made, {key: torch.cat([t, t.flip(0), t[:1]]) for key, t in inputs.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_large_100", "densenet121", "shufflenet_v2_x1_0", "hrnet_w18_small", "convnext_tiny", "vit_tiny_patch16_224"
    ],
)  # fmt: skip
def test_large_models_have_the_gradients_that_torch_finds(name: str) -> None:
    graph, inputs = whole(name)
    assert_gradients(graph, suture.passes.gradient(graph), inputs, within=COARSE.get(name, 1e-10))
