"""The graph's own book-keeping: use lists, edits, order, copies, costs."""

from __future__ import annotations

import pytest
import strategies
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from suture.ir.equality import same_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Record
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.text import parse_graph, print_graph
from suture.ir.types import TensorType
from suture.ir.verify import check_uses, verify

DIAMOND = """
graph diamond(%x: f32[batch, 4]) {
  parameter @w: f32[4, 4]
  parameter @unused: f32[2]
  %a: f32[batch, 4] = linear(%x, @w) at stem
  %b: f32[batch, 4] = relu(%a) at left
  %c: f32[batch, 4] = sigmoid(%a) at right
  %d: f32[batch, 4] = add(%b, %c)
  %e: f32[batch, 4] = mul(%d, %d)
  return %e as out
}
"""


def diamond() -> Graph:
    return parse_graph(DIAMOND)


def named(graph: Graph) -> dict[str, object]:
    return {value.name: value for value in graph.values()}


def test_a_use_is_an_operand_of_a_node() -> None:
    graph = diamond()
    a, b, c, d, e = graph.nodes
    assert a.output.uses == ((b, 0), (c, 0))
    assert d.output.uses == ((e, 0), (e, 1))
    assert graph.parameters["w"].uses == ((a, 1),)
    assert graph.inputs[0].uses == ((a, 0),)
    assert e.output.uses == ()
    assert e.output.is_graph_output()
    assert not d.output.is_graph_output()


def test_replacing_an_operand_moves_the_use() -> None:
    graph = diamond()
    _, b, c, d, _ = graph.nodes
    d.replace_input(1, b.output)
    assert d.inputs == (b.output, b.output)
    assert c.output.uses == ()
    assert b.output.uses == ((d, 0), (d, 1))
    d.replace_input(1, b.output)  # nothing to do
    assert b.output.uses == ((d, 0), (d, 1))
    check_uses(graph)


def test_replacing_uses_reaches_every_operand_and_the_outputs() -> None:
    graph = diamond()
    a, b, _, d, e = graph.nodes
    graph.replace_uses(d.output, a.output)
    assert e.inputs == (a.output, a.output)
    graph.replace_uses(e.output, b.output)
    assert graph.outputs == [b.output]
    assert graph.output_names == ["out"]
    verify(graph)


def test_replacing_uses_may_leave_out_the_node_that_wraps_the_value() -> None:
    graph = diamond()
    a, b, c, *_ = graph.nodes
    wrapped = graph.add("tanh", [a.output], before=b)
    graph.replace_uses(a.output, wrapped.output, keep=[wrapped])
    assert wrapped.inputs == (a.output,)
    assert b.inputs == c.inputs == (wrapped.output,)
    verify(graph)


def test_a_node_may_be_put_before_another() -> None:
    graph = diamond()
    a, b, *rest = graph.nodes
    new = graph.add("neg", [a.output], before=b)
    assert graph.nodes == (a, new, b, *rest)


def test_a_node_that_is_read_is_not_removed() -> None:
    graph = diamond()
    a, *_, e = graph.nodes
    for node in (a, e):
        with pytest.raises(SutureError, match="still read") as caught:
            graph.remove(node)
        assert caught.value.code is Code.GRAPH
    with pytest.raises(SutureError, match="still read"):
        graph.remove_parameter(graph.parameters["w"])


def test_removing_a_node_frees_its_operands_and_its_name() -> None:
    graph = diamond()
    *_, d, e = graph.nodes
    graph.set_outputs([d.output])
    graph.remove(e)
    assert d.output.uses == ()
    assert graph.add("relu", [d.output], name="e").output.name == "e"
    graph.remove_parameter(graph.parameters["unused"])
    assert list(graph.parameters) == ["w"]


def test_dead_nodes_go_and_live_ones_stay() -> None:
    graph = diamond()
    a, b, *_ = graph.nodes
    graph.set_outputs([b.output])
    assert graph.remove_dead() == 3
    assert graph.nodes == (a, b)
    assert graph.remove_dead() == 0
    assert list(graph.parameters) == ["w", "unused"]


def test_names_that_are_taken_get_a_number() -> None:
    graph = diamond()
    x = graph.inputs[0]
    assert [graph.add("relu", [x], name="a").output.name for _ in range(3)] == ["a_1", "a_2", "a_3"]
    assert graph.fresh_name("a") not in named(graph)
    assert graph.fresh_name("new") == "new"
    assert graph.fresh_name("") == "v"
    assert [graph.add("relu", [x]).output.name for _ in range(2)] == ["relu", "relu_1"]
    parts = graph.add("split", [x], {"dim": 1}, shapes=[(symbol("batch"), 1), (symbol("batch"), 3)], name=["head"])
    assert [value.name for value in parts.outputs] == ["head", "head_1"]


def test_a_parameters_name_is_taken_once() -> None:
    graph = diamond()
    with pytest.raises(SutureError, match="exists already") as caught:
        graph.add_parameter("w", torch.zeros(1))
    assert caught.value.code is Code.GRAPH


def test_assigning_a_tensor_changes_the_type() -> None:
    w = diamond().parameters["w"]
    w.assign(torch.zeros(2, 3, dtype=torch.float64))
    assert w.type == TensorType(torch.float64, (2, 3))


def test_only_one_result_is_the_output() -> None:
    graph = diamond()
    batch = symbol("batch")
    node = graph.add("split", [graph.inputs[0]], {"dim": 1}, shapes=[(batch, 1), (batch, 3)])
    with pytest.raises(SutureError, match="2 results"):
        node.output


def test_sorting_brings_producers_first_and_moves_no_more_than_needed() -> None:
    graph = diamond()
    a, b, c, d, e = graph.nodes
    late = graph.add("tanh", [a.output])
    c.replace_input(0, late.output)
    with pytest.raises(SutureError, match="before it is computed"):
        verify(graph)
    graph.sort()
    assert graph.nodes == (a, b, late, c, d, e)
    verify(graph)


def test_sorting_a_sorted_graph_changes_nothing() -> None:
    graph = diamond()
    before = graph.nodes
    graph.sort()
    assert graph.nodes == before


def test_a_circle_is_an_error() -> None:
    graph = diamond()
    _, b, _, d, _ = graph.nodes
    b.replace_input(0, d.output)
    with pytest.raises(SutureError, match="circle") as caught:
        graph.sort()
    assert caught.value.code is Code.GRAPH


def test_sorting_a_deep_graph_needs_no_deep_stack() -> None:
    graph = Graph()
    value = graph.add_input("x", TensorType(torch.float32, (2,)))
    for _ in range(5000):
        value = graph.add("relu", [value]).output
    graph.set_outputs([value])
    graph.sort()
    assert len(graph.copy()) == 5000


@given(strategies.graphs(), st.randoms(use_true_random=False))
def test_sorting_restores_any_order(graph: Graph, random: object) -> None:
    twin = graph.copy()
    nodes = list(twin.nodes)
    random.shuffle(nodes)  # type: ignore[attr-defined]
    twin._nodes = dict.fromkeys(nodes)
    twin.sort()
    verify(twin)
    inputs = strategies.run_inputs(graph)
    for got, old in zip(evaluate(twin, inputs), evaluate(graph, inputs), strict=True):
        assert torch.equal(got, old)


@given(strategies.graphs())
def test_a_copy_is_equal_and_shares_tensors_and_nothing_else(graph: Graph) -> None:
    text = print_graph(graph)
    twin = graph.copy()
    verify(twin)
    assert same_graph(graph, twin, weights=True) is None
    assert not set(graph.values()) & set(twin.values())
    assert all(twin.parameters[name].data is p.data for name, p in graph.parameters.items())
    for node in twin.nodes:
        node.attributes["changed"] = 1
        node.path = "elsewhere"
    twin.set_outputs([twin.inputs[0]])
    twin.remove_dead()
    twin.hints["batch"] = 99
    twin.record(Record("prune"))
    assert print_graph(graph) == text
    verify(graph)


def test_stats_count_what_is_there() -> None:
    graph = diamond()
    graph.hints = {"batch": 8}
    stats = graph.stats()
    assert stats.nodes == 5
    assert stats.parameters == 16  # the unused parameter is none of the model's
    assert stats.bytes == 64
    assert stats.macs == 16  # per sample
    assert str(stats.symbolic_macs) == "16*batch"
    assert stats.operators == {"add": 1, "linear": 1, "mul": 1, "relu": 1, "sigmoid": 1}
    assert str(stats) == "5 nodes, 16 parameters, 64 bytes, 16 MACs"


@pytest.mark.parametrize("name", ["resnet18", "llama", "lstm"])
def test_macs_of_traced_models_are_half_of_the_flops_that_torch_counts(name: str) -> None:
    from suture.frontends.torch_export import trace

    entry = zoo.ENTRIES[name]
    module = entry.module()
    graph = trace(module, *entry.args(), dynamic=entry.dynamic)
    arguments, keywords = entry.args(1)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.backends.mkldnn.flags(enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        module(*arguments, **keywords)
    assert graph.stats().macs == counter.get_total_flops() // 2


def test_symbols_come_in_order_of_appearance() -> None:
    graph = parse_graph("graph g(%x: f32[n, 2*length], %z: i64[length, k + 1]) {\n  return %x\n}")
    assert graph.symbols() == ("n", "length", "k")
