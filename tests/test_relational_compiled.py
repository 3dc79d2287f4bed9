"""suture.compile of a graph with relational operators: a function of tensors, edges among them."""

from __future__ import annotations

import pytest
import torch

import suture
from suture.drivers.relational import incidence
from suture.drivers.relational.compiled import CompiledRelationalGraph, is_relational
from suture.ir.errors import Code, SutureError
from suture.ir.text import parse_graph

TEXT = """
graph attention(
    %x: f64[nodes, 4],
    %src: i64[edges],
    %dst: i64[edges],
    %type: i64[edges],
) {
  parameter @w: f64[3, 4, 5]
  parameter @a: f64[3, 5, 1]
  buffer @fixed: f64[5]

  %sources: f64[edges, 4] = embedding(%x, %src)
  %z: f64[edges, 5] = typed_linear(%sources, @w, %type)
  %score: f64[edges, 1] = typed_linear(%z, @a, %type)
  %share: f64[edges, 1] = segment_softmax(%score, %dst) segments=size(nodes)
  %message: f64[edges, 5] = mul(%z, %share)
  %sum: f64[nodes, 5] = segment_sum(%message, %dst)
  %y: f64[nodes, 5] = add(%sum, @fixed)
  return %y, %share
}
"""


def attention() -> suture.Graph:
    shapes = {"w": (3, 4, 5), "a": (3, 5, 1), "fixed": (5,)}
    return parse_graph(TEXT, {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()})


def inputs(nodes: int = 20, edges: int = 90) -> list[torch.Tensor]:
    ends = [torch.randint(nodes, (edges,)) for _ in range(2)]
    return [torch.randn(nodes, 4, dtype=torch.float64), *ends, torch.randint(3, (edges,))]


def test_it_computes_what_the_graph_means_for_any_number_of_edges() -> None:
    graph = attention()
    compiled = suture.compile(graph)
    assert isinstance(compiled, CompiledRelationalGraph)
    for given in (inputs(), inputs(7, 0), inputs(1, 3), inputs(300, 2000)):
        for found, expected in zip(compiled(*given), suture.evaluate(graph, given), strict=True):
            torch.testing.assert_close(found, expected)
    x, src, dst, type = inputs()
    torch.testing.assert_close(compiled(x, type=type, dst=dst, src=src)[0], compiled(x, src, dst, type)[0])


def test_views_of_one_tensor_are_known_again() -> None:
    compiled, (x, src, dst, type) = suture.compile(attention()), inputs()
    ends = torch.stack([src, dst])
    first = compiled(x, ends[0], ends[1], type)[0]
    known = len(incidence._KNOWN)
    assert torch.equal(compiled(x, *ends, type)[0], first)
    assert len(incidence._KNOWN) == known


def test_gradients_flow_to_inputs_and_parameters_and_an_optimiser_is_seen() -> None:
    graph, given = attention(), inputs()
    compiled = suture.compile(graph, train=True)
    given[0].requires_grad_()
    parameters = dict(compiled.named_parameters())
    assert set(parameters) == {"w", "a"}
    wanted = [given[0], *parameters.values()]
    y, share = compiled(*given)
    found = torch.autograd.grad(y.square().sum() + share.sin().sum(), wanted)
    y, share = suture.evaluate(graph, given, parameters=parameters)
    expected = torch.autograd.grad(y.square().sum() + share.sin().sum(), wanted)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        parameters["w"].zero_()
    assert not (compiled(*given)[0] - graph.parameters["fixed"].data).any()


def test_gradcheck_holds() -> None:
    graph, (x, src, dst, type) = attention(), inputs(5, 12)
    compiled = suture.compile(graph, train=True)
    assert torch.autograd.gradcheck(lambda each: compiled(each, src, dst, type), x.requires_grad_())


def test_what_does_not_fit_is_refused() -> None:
    compiled, (x, src, dst, type) = suture.compile(attention()), inputs()
    for given, code in (
        ((x, src, dst), Code.INPUT),
        ((x, src, dst, type[:-1]), Code.INPUT),
        ((x, src.int(), dst, type), Code.INPUT),
        ((x, src, dst, type.bool()), Code.INPUT),
        ((x.float(), src, dst, type), Code.INPUT),
        ((x, src, dst, type + 1), Code.INPUT),
        ((x, src - 1, dst, type), Code.INPUT),
        ((x.to("meta"), src, dst, type), Code.DEVICE),
        ((x.clone().requires_grad_(), src, dst, type), Code.GRADIENT),
    ):
        with pytest.raises(SutureError) as caught:
            compiled(*given)
        assert caught.value.code == code


def test_graphs_without_edges_are_compiled_as_before() -> None:
    plain = "graph g(%x: f32[n, 4]) {\n  %y: f32[n, 4] = relu(%x)\n  return %y\n}"
    assert not is_relational(parse_graph(plain))
    assert is_relational(attention())
