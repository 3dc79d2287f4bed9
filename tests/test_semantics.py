"""The evaluator: graphs compute what the same formulas give in torch, and inputs that do not fit are refused."""

from __future__ import annotations

from typing import Any

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.ir.sizes import evaluate_size
from suture.ir.text import parse_graph
from suture.ir.types import TensorType

BLOCK = """
graph block(%x: f32[batch, 3, 8, 8]) {
  hints batch=2
  parameter @w: f32[6, 3, 3, 3]
  parameter @gain: f32[6]
  parameter @bias: f32[6]
  buffer @mean: f32[6]
  buffer @var: f32[6]
  parameter @head: f32[5, 6]
  %c: f32[batch, 6, 8, 8] = conv(%x, @w, _) padding=(1, 1)
  %n: f32[batch, 6, 8, 8] = batch_norm(%c, @gain, @bias, @mean, @var)
  %r: f32[batch, 6, 8, 8] = relu(%n)
  %p: f32[batch, 6] = mean(%r) dims=(2, 3)
  %d: f32[batch, 6] = dropout(%p) p=0.5
  %y: f32[batch, 5] = linear(%d, @head, _)
  return %y as logits, %p as features
}
"""


def block(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(p.data.shape) for name, p in parse_graph(BLOCK).parameters.items()}
    return parse_graph(BLOCK, {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()})


def by_hand(graph: Graph, x: torch.Tensor, *, training: bool) -> list[torch.Tensor]:
    w, gain, bias, mean, var, head = (p.data.clone() for p in graph.parameters.values())
    features = F.relu(F.batch_norm(F.conv2d(x, w, padding=1), mean, var, gain, bias, training, 0.1, 1e-5)).mean((2, 3))
    return [F.linear(F.dropout(features, 0.5, training), head), features]


def test_a_graph_computes_what_the_same_lines_of_torch_do() -> None:
    graph, x = block(), torch.randn(4, 3, 8, 8)
    for got, expected in zip(evaluate(graph, [x]), by_hand(graph, x, training=False), strict=True):
        assert torch.equal(got, expected)


def test_training_takes_the_batchs_statistics_and_drops() -> None:
    graph, x = block(), torch.randn(4, 3, 8, 8)
    torch.manual_seed(3)
    expected = by_hand(graph, x, training=True)
    torch.manual_seed(3)
    results = evaluate(graph, [x], training=True)
    for got, other in zip(results, expected, strict=True):
        assert torch.equal(got, other)
    assert not torch.equal(results[1], evaluate(block(), [x])[1])
    assert torch.equal(evaluate(graph, [x])[1], by_hand(graph, x, training=False)[1])


def test_inputs_come_in_order_or_by_name() -> None:
    graph = parse_graph("graph g(%a: f32[2], %b: f32[2]) {\n  %d: f32[2] = sub(%a, %b)\n  return %d\n}")
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 5.0])
    assert torch.equal(evaluate(graph, [a, b])[0], a - b)
    assert torch.equal(evaluate(graph, {"b": b, "a": a})[0], a - b)


def test_other_parameters_may_stand_in() -> None:
    graph, x = block(), torch.randn(2, 3, 8, 8)
    zero = torch.zeros(5, 6)
    assert not evaluate(graph, [x], parameters={"head": zero})[0].any()
    assert evaluate(graph, [x])[0].any()


def test_inputs_and_parameters_may_be_outputs() -> None:
    graph = parse_graph(
        "graph g(%a: f32[2]) {\n  parameter @w: f32[2]\n  return %a, @w, %a as again\n}", {"w": torch.ones(2)}
    )
    a = torch.tensor([3.0, 4.0])
    assert [t.tolist() for t in evaluate(graph, [a])] == [[3, 4], [1, 1], [3, 4]]


def test_watching_sees_every_result_once_in_order() -> None:
    graph = block()
    seen: list[tuple[Value, tuple[int, ...]]] = []
    evaluate(graph, [torch.randn(2, 3, 8, 8)], watch=lambda value, tensor: seen.append((value, tuple(tensor.shape))))
    assert [value for value, _ in seen] == [value for node in graph.nodes for value in node.outputs]
    assert all(shape == tuple(evaluate_size(dim, {"batch": 2}) for dim in value.shape) for value, shape in seen)


def test_results_that_nothing_reads_any_more_are_freed() -> None:
    """A long chain needs memory for two of its values, not for all."""
    import weakref

    graph = Graph()
    value = graph.add_input("x", TensorType(torch.float32, (4,)))
    for _ in range(10):
        value = graph.add("relu", [value]).output
    graph.set_outputs([value])
    alive: list[int] = []
    references: list[weakref.ref[torch.Tensor]] = []

    def watch(_: Value, tensor: torch.Tensor) -> None:
        references.append(weakref.ref(tensor))
        alive.append(sum(reference() is not None for reference in references))

    evaluate(graph, [torch.ones(4)], watch=watch)
    assert max(alive) <= 3


@given(strategies.graphs())
def test_values_have_the_types_they_state_at_any_batch(graph: Graph) -> None:
    for batch in (1, 2, 5) if graph.symbols() else (2,):
        sizes = {"batch": batch}

        def check(value: Value, tensor: torch.Tensor, sizes: dict[str, int] = sizes) -> None:
            assert TensorType(tensor.dtype, tuple(tensor.shape)) == TensorType(
                value.dtype, tuple(evaluate_size(d, sizes) for d in value.shape)
            )

        evaluate(graph, strategies.run_inputs(graph, **sizes), watch=check)


@pytest.mark.parametrize(
    ("shapes", "given_shapes", "symbols"),
    [
        ("f32[n]", [(3,)], {"n": 3}),
        ("f32[2*n + 1]", [(7,)], {"n": 3}),
        ("f32[n, n]", [(3, 3)], {"n": 3}),
        ("f32[n - 1]", [(7,)], {"n": 8}),
        ("f32[n, n*m]", [(3, 12)], {"n": 3, "m": 4}),
        ("f32[n*m, n]", [(12, 3)], {"n": 3, "m": 4}),
        ("f32[(n // 2), n]", [(2, 5)], {"n": 5}),
        ("f32[-n + 10]", [(7,)], {"n": 3}),
    ],
)
def test_sizes_are_bound_by_the_inputs(
    shapes: str, given_shapes: list[tuple[int, ...]], symbols: dict[str, int]
) -> None:
    from suture.ir.semantics import bind_symbols

    graph = parse_graph(f"graph g(%x: {shapes}) {{\n  return %x\n}}")
    assert bind_symbols(graph, [torch.zeros(shape) for shape in given_shapes]) == symbols


TWO = "graph g(%x: f32[batch, 4], %i: i64[batch], %h: f32[2*half]) {\n  return %x\n}"
GOOD = (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(6))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([GOOD[0], GOOD[1]], "2 inputs for a graph of 3; it takes x, i, h"),
        ([torch.zeros(3, 5), *GOOD[1:]], "input x has shape \\[3, 5\\]; f32\\[batch, 4\\] would be right"),
        ([torch.zeros(3, 4, 1), *GOOD[1:]], "input x has shape"),
        ([GOOD[0], torch.zeros(4, dtype=torch.int64), GOOD[2]], "input i has 4 where its size is batch; with batch=3"),
        ([GOOD[0], torch.zeros(3), GOOD[2]], "input i is torch.float32; i64\\[batch\\] would be right"),
        ([GOOD[0].int(), *GOOD[1:]], "input x is torch.int32"),
        ([*GOOD[:2], torch.zeros(5)], "input h has 5 where its size is 2\\*half"),
        ([[1.0], *GOOD[1:]], "input x is a list"),
        ({"x": GOOD[0], "i": GOOD[1]}, "missing h"),
        ({"x": GOOD[0], "i": GOOD[1], "h": GOOD[2], "z": GOOD[2]}, "unknown z"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any, words: str) -> None:
    with pytest.raises(SutureError, match=words) as caught:
        evaluate(parse_graph(TWO), inputs)
    assert caught.value.code is Code.INPUT


def test_a_float_of_another_width_is_taken() -> None:
    """A graph may be run in float64, with its parameters replaced, as an oracle."""
    graph, x = block(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wide = {name: p.data.double() for name, p in graph.parameters.items()}
    results = evaluate(graph, [x], parameters=wide)
    assert results[0].dtype == torch.float64
    torch.testing.assert_close(results[0].float(), evaluate(graph, [x.float()])[0], rtol=1e-4, atol=1e-5)


def test_evaluating_leaves_the_graph_as_it_was() -> None:
    graph = block()
    before = {name: p.data.clone() for name, p in graph.parameters.items()}
    for training in (False, True):
        evaluate(graph, [torch.randn(2, 3, 8, 8)], training=training)
    assert all(torch.equal(p.data, before[name]) for name, p in graph.parameters.items())


def test_running_statistics_are_updated_in_tensors_of_the_callers() -> None:
    graph, x = block(), torch.randn(4, 3, 8, 8)
    mean = torch.zeros(6)
    evaluate(graph, [x], training=True, parameters={"mean": mean})
    expected = 0.1 * F.conv2d(x, graph.parameters["w"].data, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(mean, expected)


def test_what_comes_from_nothing_stands_on_the_inputs_device() -> None:
    graph = Graph("positions")
    x = graph.add_input("x", TensorType(torch.float32, (2, 3)))
    position = graph.add("arange", [], {"dtype": torch.float32}, shapes=[(3,)])
    ones = graph.add("full", [], {"value": 1.0, "dtype": torch.float32}, shapes=[(2, 3)])
    total = graph.add("add", [graph.add("add", [x, position.output]).output, ones.output])
    graph.set_outputs([total.output])
    devices = []
    (result,) = evaluate(
        graph, [torch.empty(2, 3, device="meta")], watch=lambda value, tensor: devices.append(tensor.device.type)
    )
    assert result.device.type == "meta" and set(devices) == {"meta"}
