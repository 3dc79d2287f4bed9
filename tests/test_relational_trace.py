"""A message-passing program and its graph compute the same, on graphs of other sizes too, and so do their derivatives."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from message_graphs import EXAMPLES, message_graphs, random_graph
from torch import nn

import suture
from suture.ir.errors import Code, SutureError
from suture.relational import Index, MessageGraph, OneHot, bind, trace

sys.path.insert(0, str(EXAMPLES))

from compgcn import CompGCN
from gat import GAT
from gin import GIN
from hgt import HGT
from rgat import RGAT
from rgcn import RGCN
from sage import SAGE

TYPES, KINDS = 6, 3
PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "rgcn": lambda: RGCN(4, 6, TYPES),
    "rgcn sum": lambda: RGCN(4, 6, TYPES, aggregation="sum"),
    "rgcn bases": lambda: RGCN(4, 6, TYPES, bases=2),
    "rgcn blocks": lambda: RGCN(4, 6, TYPES, blocks=2),
    "rgat": lambda: RGAT(4, 3, TYPES, heads=2),
    "rgat within": lambda: RGAT(4, 3, TYPES, heads=2, within=True),
    "hgt": lambda: HGT(4, 4, KINDS, TYPES, heads=2),
    "hgt wider": lambda: HGT(4, 6, KINDS, TYPES, heads=2),
    "gat": lambda: GAT(4, 3, heads=2),
    "sage": lambda: SAGE(4, 3),
    "sage max": lambda: SAGE(4, 3, aggregation="max"),
    "gin": lambda: GIN(4, 5, 3),
    "compgcn": lambda: CompGCN(4, 3, TYPES),
    "compgcn mul": lambda: CompGCN(4, 3, TYPES, composition="mul"),
}


def tensors(module: nn.Module, g: MessageGraph) -> tuple[torch.Tensor, ...]:
    x = torch.randn(g.num_dst, 4, dtype=torch.float64)
    return (x, torch.randn(TYPES, 4, dtype=torch.float64)) if isinstance(module, CompGCN) else (x,)


def flat(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def spelled(graph: suture.Graph) -> list[str]:
    return [f"{value.name}: {value.type}" for value in graph.inputs]


@functools.cache
def traced(name: str) -> tuple[nn.Module, suture.Graph, suture.Graph]:
    """A module, its graph, and that with the way back; all share the parameters."""
    torch.manual_seed(0)
    module = PROGRAMS[name]().double()
    g = random_graph(types=TYPES, kinds=KINDS)
    graph = trace(module, g, *tensors(module, g))
    return module, graph, suture.passes.gradient(graph, check=False)


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=6)
@given(g=message_graphs(kinds=KINDS, most_types=TYPES))
def test_a_program_and_its_graph_compute_the_same(name: str, g: MessageGraph) -> None:
    module, graph, _ = traced(name)
    inputs = tensors(module, g)
    for made, wanted in zip(suture.evaluate(graph, bind(graph, g, *inputs)), flat(module(g, *inputs)), strict=True):
        torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=3)
@given(g=message_graphs(kinds=KINDS, most_types=TYPES))
def test_so_do_their_derivatives(name: str, g: MessageGraph) -> None:
    module, graph, both = traced(name)
    inputs = [each.requires_grad_() for each in tensors(module, g)]
    results = flat(module(g, *inputs))
    cotangents = [torch.randn_like(each) for each in results]
    made = dict(
        zip(
            both.output_names,
            suture.evaluate(both, [*bind(graph, g, *(x.detach() for x in inputs)), *cotangents]),
            strict=True,
        )
    )
    leaves = dict(module.named_parameters()) | dict(
        zip([value.name for value in graph.inputs][-len(inputs) :], inputs, strict=True)
    )
    wanted = torch.autograd.grad(results, [*leaves.values()], cotangents, allow_unused=True, materialize_grads=True)
    for leaf, gradient in zip(leaves, wanted, strict=True):
        unread = torch.zeros_like(gradient)  # what no output moves with has no gradient
        torch.testing.assert_close(made.get(f"grad_{leaf}", unread), gradient)


@pytest.mark.parametrize("name", ["rgcn", "rgat within", "hgt", "sage max", "compgcn"])
def test_a_graph_becomes_a_torch_module_again(name: str) -> None:
    module, graph, _ = traced(name)
    again, g = suture.to_torch(graph), random_graph(nodes=9, edges=31, types=TYPES, kinds=KINDS, seed=1)
    inputs = tensors(module, g)
    for made, wanted in zip(flat(again(*bind(graph, g, *inputs))), flat(module(g, *inputs)), strict=True):
        torch.testing.assert_close(made, wanted)


def test_inputs_are_the_integers_of_the_graph_then_the_arguments_of_forward() -> None:
    _, graph, _ = traced("hgt")
    assert spelled(graph) == [
        "src: i64[edges]", "dst: i64[edges]", "type: i64[edges]", "node_type: i64[nodes]", "x: f64[nodes, 4]",
    ]  # fmt: skip
    assert graph.hints == {"edges": 60, "nodes": 20}
    operators = [node.operator.name for node in graph.nodes]
    assert operators.count("typed_linear") == 6 and "index" not in operators


def test_a_module_is_left_as_it_was() -> None:
    module = PROGRAMS["rgcn"]().train()
    before = dict(vars(module))
    g = random_graph(types=TYPES)
    graph = trace(module, g, torch.randn(20, 4))
    assert vars(module) == before and module.training and "forward" not in vars(module)
    assert (
        graph.parameters["weight"].data is module.weight
        or graph.parameters["weight"].data.data_ptr() == module.weight.data_ptr()
    )


class Looked(nn.Module):
    """A row of a table for every type and node: no features at all."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, nodes, 3))

    def forward(self, g: MessageGraph, x: torch.Tensor | None = None) -> torch.Tensor:
        return g.sum(self.weight[g.edges.type, g.edges.src])


@pytest.mark.parametrize("given", [(), (None,)])
def test_a_program_without_features_has_an_input_that_counts_the_nodes(given: tuple[None, ...]) -> None:
    g = random_graph()
    module = Looked(20)
    graph = trace(module, MessageGraph(g.src, g.dst, g.type, num_nodes=20), *given)
    assert spelled(graph)[-1] == "nodes: f32[nodes, 0]"
    torch.testing.assert_close(suture.evaluate(graph, bind(graph, g))[0], module(g))


class Between(nn.Module):
    """Sources and targets apart, values along edges, a pair of features, and a number."""

    def forward(
        self, g: MessageGraph, pair: tuple[torch.Tensor, torch.Tensor], along: torch.Tensor, *, scale: float = 1.0
    ) -> torch.Tensor:
        return g.sum(along * pair[0][g.edges.src]) * scale + pair[1]


def test_a_graph_between_two_sets_of_nodes() -> None:
    g = MessageGraph(torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 0, 1, 1, 1]), num_src=3, num_dst=2)
    pair, along = (torch.randn(3, 4), torch.randn(2, 4)), torch.randn(5, 4)
    graph = trace(Between(), g, pair, along, scale=2.0)
    assert spelled(graph) == [
        "src: i64[edges]", "dst: i64[edges]", "pair_0: f32[sources, 4]", "pair_1: f32[targets, 4]", "along: f32[edges, 4]",
    ]  # fmt: skip
    torch.testing.assert_close(
        suture.evaluate(graph, bind(graph, g, pair, along))[0], Between()(g, pair, along, scale=2.0)
    )


@settings(max_examples=8)
@given(edges=st.sampled_from([4, 7]), types=st.sampled_from([4, 7]))
def test_sizes_that_are_equal_by_chance_stay_apart(edges: int, types: int) -> None:
    class Along(nn.Module):
        def forward(self, g: MessageGraph, weight: torch.Tensor, along: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return g.sum(along * (x[g.edges.src] * weight[g.edges.type])) + x

    g = random_graph(nodes=4, edges=edges, types=types)
    inputs = torch.randn(types, 3), torch.randn(edges, 3), torch.randn(4, 3)
    graph = trace(Along(), g, *inputs)
    assert [str(value.type) for value in graph.inputs[-3:]] == [f"f32[{types}, 3]", "f32[edges, 3]", "f32[nodes, 3]"]
    torch.testing.assert_close(suture.evaluate(graph, bind(graph, g, *inputs))[0], Along()(g, *inputs))


def test_one_may_say_what_a_tensor_runs_along() -> None:
    class Scaled(nn.Module):
        def forward(self, g: MessageGraph, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return g.sum(x[g.edges.src]) * c.sum()

    g = random_graph(nodes=4)
    inputs = torch.randn(4, 3), torch.randn(4)
    assert str(trace(Scaled(), g, *inputs).inputs[-1].type) == "f32[nodes]"
    assert str(trace(Scaled(), g, *inputs, dims={"c": None}).inputs[-1].type) == "f32[4]"
    for dims in ({"y": "nodes"}, {"c": "people"}):
        with pytest.raises(SutureError) as caught:
            trace(Scaled(), g, *inputs, dims=dims)
        assert caught.value.code is Code.MODULE


def test_parts_of_a_program_are_modules_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.drop = RGCN(4, 5, 5), GAT(5, 3), nn.Dropout(0.5)

        def forward(self, g: MessageGraph, x: torch.Tensor) -> torch.Tensor:
            return self.second(g, self.drop(torch.relu(self.first(g, x))))

    module, g, x = Two().eval(), random_graph(), torch.randn(20, 4)
    graph = trace(module, g, x)
    torch.testing.assert_close(suture.evaluate(graph, bind(graph, g, x))[0], module(g, x))
    assert "first.weight" in graph.parameters and {"first", "second"} <= {
        node.path.split(".")[0] for node in graph.nodes
    }
    assert any(node.operator.name == "dropout" for node in graph.nodes)


@pytest.mark.parametrize(
    ("forward", "code"),
    [
        (lambda self, g, x: g.sum(x[g.edges.src] @ torch.randn(3, 4, 4)[g.edges.type]), Code.RELATION),
        (lambda self, g, x: g.sum(x), Code.RELATION),
        (lambda self, g, x: x if x.sum() > 0 else -x, Code.EXPORT),
        (lambda self, g, src: src, Code.MODULE),
        (lambda self, g: g.sum(torch.zeros(g.num_edges)), Code.MODULE),
    ],
)
def test_programs_that_cannot_be_traced_say_why(forward: Callable[..., Any], code: Code) -> None:
    module = type("Wrong", (nn.Module,), {"forward": forward})()
    with pytest.raises(SutureError) as caught:
        trace(module, random_graph(), torch.randn(20, 4))
    assert caught.value.code is code
    assert "\n" not in str(caught.value)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(SutureError) as caught:
        trace(torch.relu, random_graph())  # type: ignore[arg-type]
    assert caught.value.code is Code.MODULE


def test_too_few_tensors_do_not_bind() -> None:
    _, graph, _ = traced("rgcn")
    with pytest.raises(SutureError) as caught:
        bind(graph, random_graph())
    assert caught.value.code is Code.INPUT
    assert "give x" in str(caught.value)


@pytest.mark.parametrize(
    "program", [lambda: RGAT(9, 3, TYPES, heads=2, within=True), lambda: RGCN(9, 4, TYPES, bases=2)]
)
def test_one_hot_features_are_an_input_of_numbers(program: Callable[[], nn.Module]) -> None:
    module = program().double()
    graph = trace(module, random_graph(types=TYPES, kinds=KINDS), OneHot(torch.arange(20) % 9, 9))
    assert spelled(graph)[-1] == "x_numbers: i64[nodes]"
    other, numbers = random_graph(nodes=31, edges=70, types=TYPES, kinds=KINDS, seed=1), torch.arange(31) * 5 % 9
    (found,) = suture.evaluate(graph, bind(graph, other, OneHot(numbers, 9)))
    torch.testing.assert_close(found, module(other, F.one_hot(numbers, 9).double()))


def test_a_program_is_traced_by_torch_itself_too() -> None:
    class Flat(nn.Module):
        def forward(self, src: torch.Tensor, dst: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            g = MessageGraph(src, dst, num_nodes=x.shape[0], validate=False)
            return g.sum(x[g.edges.src]) + x[Index(dst, 5, "nodes")].sum()

    src, dst, x = torch.tensor([0, 1, 4]), torch.tensor([1, 1, 2]), torch.randn(5, 3)
    program = torch.export.export(Flat(), (src, dst, x), strict=False)
    assert torch.ops.suture.lookup.default in {node.target for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(src, dst, x), Flat()(src, dst, x))
    graph = suture.trace(Flat(), (src, dst, x))
    assert {"embedding", "segment_sum"} <= {node.operator.name for node in graph.nodes}
    torch.testing.assert_close(suture.evaluate(graph, [src, dst, x])[0], Flat()(src, dst, x))
