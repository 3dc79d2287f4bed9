"""precompute: what depends on no input is stored where it pays, never more than allowed, and every byte is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import suture
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph


def total_bytes(graph: Graph) -> int:
    return sum(p.data.numel() * p.data.element_size() for p in graph.parameters.values() if p.uses)


def names(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


class Positions(nn.Module):
    """A bias looked up by position, as windowed attention has it: the table is trained, the positions are not."""

    def __init__(self, side: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]) + side - 1
        self.register_buffer("index", apart[0] * (2 * side - 1) + apart[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.index.view(-1)].view(16, 16, 3).permute(2, 0, 1)
        return x + bias.unsqueeze(0)


def test_a_bias_looked_up_by_position_becomes_a_tensor() -> None:
    module, x = Positions(), torch.randn(2, 3, 16, 16)
    graph = suture.trace(module, x, dynamic={"x": {0: "batch"}})
    result = suture.passes.precompute(graph)
    assert names(result) == ["add"]
    assert set(result.parameters) == {"table_folded"}
    torch.testing.assert_close(evaluate(result, [x])[0], module(x))


def test_the_notes_say_how_many_bytes_came_and_went() -> None:
    graph = suture.trace(Positions(), torch.randn(2, 3, 16, 16))
    result = suture.passes.precompute(graph)
    grown = total_bytes(result) - total_bytes(graph)
    word = "grows" if grown > 0 else "shrinks"
    assert any(f"the model {word} by {abs(grown):,} bytes" in note for note in result.history[-1].notes)


def test_a_product_of_weights_shrinks_the_model_and_is_stored() -> None:
    text = """graph g(%x: f32[batch, 4]) {
      parameter @a: f32[64, 32]
      parameter @b: f32[32, 4]
      %w: f32[64, 4] = matmul(@a, @b)
      %y: f32[batch, 64] = linear(%x, %w, _)
      return %y
    }"""
    graph = parse_graph(text)
    torch.manual_seed(0)
    for name in "ab":
        graph.parameters[name].assign(torch.randn(graph.parameters[name].data.shape))
    x = torch.randn(3, 4)
    result = suture.passes.precompute(graph)
    assert names(result) == ["linear"]
    assert total_bytes(result) < total_bytes(graph)
    expected = x @ (graph.parameters["a"].data @ graph.parameters["b"].data).T
    torch.testing.assert_close(evaluate(result, [x])[0], expected, rtol=1e-5, atol=1e-5)


def large(rows: int) -> Graph:
    graph = parse_graph(
        f"""graph g(%x: f32[{rows}, 256]) {{
          constant @c: f32[256]
          %e: f32[{rows}, 256] = expand(@c)
          %y: f32[{rows}, 256] = atan2(%x, %e)
          return %y
        }}"""
    )
    graph.parameters["c"].assign(torch.rand(256))
    return graph


def test_what_would_grow_the_model_without_paying_stays_and_says_why() -> None:
    result = suture.passes.precompute(large(4096))
    assert names(result) == ["expand", "atan2"]
    record = result.history[-1]
    assert record.outcome == "not applicable"
    assert any("stays computed: it would add 4,193,280 bytes for 1 node" in note for note in record.notes)


@pytest.mark.parametrize("growth", [0.0, 0.5])
def test_the_model_grows_by_no_more_than_is_allowed(growth: float) -> None:
    graph = large(32)
    weight = graph.add_parameter("w", torch.randn(300, 256))
    graph.set_outputs([graph.add("linear", [graph.outputs[0], weight, None]).output])
    result = suture.passes.precompute(graph, growth=growth)
    assert total_bytes(result) - total_bytes(graph) <= max(growth * total_bytes(graph), 65536)
    assert "expand" not in names(result)


def test_tensors_that_hold_the_same_are_stored_once() -> None:
    text = """graph g(%x: f32[batch, 4]) {
      constant @a: f32[2, 2]
      constant @b: f32[2, 2]
      %p: f32[4] = reshape(@a)
      %q: f32[4] = reshape(@b)
      %y: f32[batch, 4] = mul(%x, %p)
      %z: f32[batch, 4] = add(%y, %q)
      return %z
    }"""
    graph = parse_graph(text)
    for name in "ab":
        graph.parameters[name].assign(torch.tensor([[1.0, 2.0], [3.0, -0.0]]))
    result = suture.passes.precompute(graph)
    assert len([p for p in result.parameters.values() if p.uses]) == 1
    graph.parameters["b"].assign(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))  # another zero
    assert len([p for p in suture.passes.precompute(graph).parameters.values() if p.uses]) == 2


def test_the_parts_of_one_weight_are_stored_together_and_cost_nothing() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x @ part.T for part in self.inner.in_proj_weight.chunk(3)], -1)

    x = torch.randn(2, 5, 8)
    graph = suture.trace(Apart(), x)
    result = suture.passes.precompute(graph, growth=0.0)
    assert "split" not in names(result)
    assert total_bytes(result) == total_bytes(graph)
    torch.testing.assert_close(evaluate(result, [x])[0], x @ module.in_proj_weight.T, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_not_known_are_left() -> None:
    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], dtype=torch.float32)

    graph = suture.trace(Counted(), torch.randn(2, 5), dynamic={"x": {1: "n"}})
    assert "arange" in names(suture.passes.precompute(graph))


def test_a_model_of_shapes_only_is_planned() -> None:
    graph = parse_graph(
        """graph g(%x: f32[batch, 4]) {
          parameter @a: f32[2, 2]
          %p: f32[4] = reshape(@a)
          %y: f32[batch, 4] = mul(%x, %p)
          return %y
        }"""
    )
    graph.parameters["a"].assign(torch.empty(2, 2, device="meta"))
    result = suture.passes.precompute(graph)
    assert names(result) == ["mul"]
