"""Values lie channels-last around convolutions, as they are counted elsewhere, and compiled models agree with torch all the same."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

import suture
from suture.codegen.layouts.joins import settle_joins
from suture.codegen.layouts.orders import choose
from suture.codegen.program import lower
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph
from suture.ir.text import parse_graph
from suture.ir.types import TensorType

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)

NETWORK = """\
graph network(%x: f32[batch, 3, 32, 32]) {
  parameter @stem: f32[16, 3, 3, 3]
  parameter @point: f32[24, 16, 1, 1]
  parameter @gain: f32[16, 1, 1]
  parameter @head: f32[10, 16]
  %stem: f32[batch, 16, 16, 16] = conv(%x, @stem, _) stride=(2, 2) padding=(1, 1)
  %scaled: f32[batch, 16, 16, 16] = mul(%stem, @gain)
  %act: f32[batch, 16, 16, 16] = relu(%scaled)
  %pooled: f32[batch, 16, 8, 8] = max_pool(%act) kernel=(2, 2) stride=(2, 2) padding=(0, 0) dilation=(1, 1)
  %rows: f32[batch, 8, 8, 16] = permute(%pooled) dims=(0, 2, 3, 1)
  %tokens: f32[batch, 64, 16] = reshape(%rows)
  %scores: f32[batch, 64, 10] = linear(%tokens, @head, _)
  %out: f32[batch, 24, 8, 8] = conv(%pooled, @point, _)
  return %scores as scores, %out as out
}
"""


def orders(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {value.name: order for value, order in choose(graph).items()}


def test_convolutions_and_what_follows_them_have_channels_innermost() -> None:
    found = orders(parse_graph(NETWORK))
    last = (0, 2, 3, 1)
    assert found["x"] == (0, 1, 2, 3)
    assert [found[name] for name in ("stem", "scaled", "act", "pooled")] == [last] * 4


def test_views_of_them_say_what_their_readers_meet() -> None:
    found = orders(parse_graph(NETWORK))
    assert found["rows"] == (0, 1, 2, 3)  # the permutation is what memory holds already
    assert found["tokens"] == (0, 1, 2)
    assert found["scores"] == (0, 1, 2)


def test_outputs_lie_as_their_callers_expect() -> None:
    assert orders(parse_graph(NETWORK))["out"] == (0, 1, 2, 3)


@pytest.mark.parametrize(("shape", "window"), [((2, 4, 9), (3,)), ((2, 4, 5, 6, 7), (1, 2, 3))])
def test_one_and_three_dimensions(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    graph = Graph("windows")
    x = graph.add_input("x", TensorType(torch.float32, shape))
    weight = graph.add_parameter("w", torch.randn(8, 4, *window))
    ones = (1,) * len(window)
    made = graph.add("conv", (x, weight), {"stride": ones, "padding": (0,) * len(window), "dilation": ones}).output
    kept = graph.add("relu", (made,), name="z").output
    graph.outputs.append(graph.add("neg", (kept,)).output)
    graph.output_names.append("result")
    assert orders(graph)["z"] == (0, *range(2, len(shape)), 1)


def test_a_network_without_windows_stays_as_it_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    graph = suture.trace(layer, (torch.randn(2, 5, 32),))
    stored = [
        order for value, order in choose(graph).items() if value.producer is None or value.producer.operator.pointwise
    ]
    assert all(order == tuple(range(len(order))) for order in stored)


def test_the_choice_is_the_same_every_time() -> None:
    assert orders(parse_graph(NETWORK)) == orders(parse_graph(NETWORK))


class Joined(nn.Module):
    """Two branches joined, and shuffled, and read by windows: thrice, so that views would chain."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3))
        self.right = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.head = nn.Conv2d(16, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for left, right in zip(self.left, self.right, strict=True):
            a, b = x.chunk(2, 1)
            x = torch.cat([left(a).relu(), right(b)], 1)
            n, c, h, w = x.shape
            x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x)


@needs_compiler
def test_joined_parts_come_into_memory_where_windows_read_them() -> None:
    torch.manual_seed(0)
    module, x = Joined().eval(), torch.randn(2, 16, 9, 7)
    graph = suture.trace(module, (x,))
    program = lower(graph)
    joins = [step for step in program.steps if isinstance(step, KernelStep) and step.kernel.name.startswith("join")]
    assert len(joins) == 3
    with torch.no_grad():
        torch.testing.assert_close(suture.compile(graph)(x), module(x), rtol=1e-4, atol=1e-5)


def test_joins_that_pointwise_nodes_read_stay_views() -> None:
    graph = parse_graph("""\
graph g(%x: f32[2, 4, 5, 5], %y: f32[2, 4, 5, 5]) {
  %both: f32[2, 8, 5, 5] = concat(%x, %y) dim=1
  %act: f32[2, 8, 5, 5] = relu(%both)
  return %act as act
}
""")
    settle_joins(graph)
    assert [node.operator.name for node in graph.nodes] == ["concat", "relu"]


class Mixed(nn.Module):
    """Windows, norms over channels behind a permutation, gates and a head: everything that meets a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.depth = nn.Conv2d(24, 24, 7, padding=3, groups=24)
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.grouped = nn.Conv2d(24, 48, 3, 2, 1, groups=4)
        self.bn = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + self.down(nn.functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = self.bn(self.grouped(x * gate)).relu()
        wide = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)), wide


@needs_compiler
@pytest.mark.parametrize("size", [32, 52])
def test_a_model_in_which_orders_meet_computes_what_torch_does(size: int) -> None:
    torch.manual_seed(0)
    module, x = Mixed().eval(), torch.randn(3, 3, size, size)
    compiled = suture.compile(suture.trace(module, (x,), dynamic={"x": {0: "batch"}}))
    for batch in (3, 1, 5):
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            for found, wanted in zip(compiled(x), module(x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
