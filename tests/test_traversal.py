"""Traversals over any shape, order in memory and reduced dimensions compute what the evaluator does, in all prints of their kernels."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traversals import lowered, run

from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.ir.sizes import Dim, symbol
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 7, 16, 17, 33, 64, 65, 70])
MODES = st.sampled_from(["fast", "fast", "fast", "forwards", "backwards"])


def agree(
    graph: Graph, inputs: list[torch.Tensor], symbols: dict[str, int], orders: Any = None, mode: str = "fast"
) -> None:
    expected = evaluate(graph, inputs)
    for a, b in zip(expected, run(graph, inputs, symbols, orders, mode), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5, equal_nan=True)


@st.composite
def shapes(draw: st.DrawFn, most: int = 3000) -> tuple[tuple[Dim, ...], tuple[int, ...], dict[str, int]]:
    """A shape, some of it symbolic, with the numbers that the symbols stand for."""
    numbers: list[int] = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(SIZES)
        while size > 1 and torch.Size([*numbers, size]).numel() > most:
            size //= 2
        numbers.append(size)
    symbols: dict[str, int] = {}
    dims: list[Dim] = []
    for k, number in enumerate(numbers):
        if draw(st.integers(0, 3)) == 0:
            symbols[f"s{k}"] = number
            dims.append(symbol(f"s{k}"))
        else:
            dims.append(number)
    return tuple(dims), tuple(numbers), symbols


@settings(max_examples=40, deadline=None)
@given(shapes(), st.data(), MODES)
def test_reductions_over_any_dimensions_between_elementwise_nodes(
    shape: tuple[tuple[Dim, ...], tuple[int, ...], dict[str, int]], data: st.DataObject, mode: str
) -> None:
    dims, numbers, symbols = shape
    rank = len(dims)
    reduced = tuple(data.draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True)))
    name = data.draw(st.sampled_from(["sum", "mean", "amax", "amin"]))
    if name in ("amax", "amin") and any(numbers[dim] == 0 for dim in reduced):
        name = "sum"
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.int64, torch.bfloat16]))
    if not dtype.is_floating_point and name == "mean":
        name = "amax" if all(numbers) else "sum"
    keep = data.draw(st.booleans())
    graph = Graph("reduced")
    x = graph.add_input("x", TensorType(dtype, dims))
    z = graph.add_input("z", TensorType(dtype, tuple(1 if data.draw(st.booleans()) else dim for dim in dims)))
    both = graph.add("mul", [x, z]).output
    made = graph.add(name, [both], {"dims": reduced, "keepdim": keep}).output
    outputs = [graph.add("add", [made], {"scalar": 1}).output]
    if keep:
        outputs.append(graph.add("sub", [both, made]).output)
    graph.set_outputs(outputs)
    orders = {
        value.name: tuple(data.draw(st.permutations(range(value.rank))))
        for value in (x, z, *outputs)
        if data.draw(st.booleans())
    }
    torch.manual_seed(0)
    inputs = [_numbers(value, symbols) for value in (x, z)]
    if dtype == torch.bfloat16:  # eager rounds every step to it
        wide = [tensor.double() for tensor in inputs]
        product = wide[0] * wide[1]
        total = getattr(torch, name)(product, reduced, keepdim=keep)
        received = run(graph, inputs, symbols, orders, mode)
        torch.testing.assert_close(received[0].double(), total + 1, rtol=1e-2, atol=1e-2, equal_nan=True)
        return
    agree(graph, inputs, symbols, orders, mode)


def _numbers(value: Value, symbols: dict[str, int]) -> torch.Tensor:
    from suture.ir.sizes import evaluate_size

    shape = [evaluate_size(dim, symbols) for dim in value.shape]
    if value.dtype.is_floating_point:
        return torch.randn(shape).to(value.dtype)
    return torch.randint(-9, 9, shape).to(value.dtype)


@settings(max_examples=25, deadline=None)
@given(shapes(), st.data(), MODES)
def test_softmax_over_any_dimension(
    shape: tuple[tuple[Dim, ...], tuple[int, ...], dict[str, int]], data: st.DataObject, mode: str
) -> None:
    dims, _, symbols = shape
    graph = Graph("softmax")
    x = graph.add_input("x", TensorType(torch.float32, dims))
    dim = data.draw(st.integers(-len(dims), len(dims) - 1))
    name = data.draw(st.sampled_from(["softmax", "log_softmax"]))
    y = graph.add(name, [graph.add("mul", [x], {"scalar": 2.0}).output], {"dim": dim}).output
    graph.set_outputs([graph.add("neg", [y]).output])
    orders = {"x": tuple(data.draw(st.permutations(range(len(dims)))))} if data.draw(st.booleans()) else {}
    torch.manual_seed(0)
    agree(graph, [_numbers(x, symbols)], symbols, orders, mode)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 9), SIZES, SIZES, st.sampled_from([None, (0, 2, 3, 1)]), MODES
)
def test_group_norms_between_elementwise_nodes(
    n: int, groups: int, channels: int, height: int, width: int, order: tuple[int, ...] | None, mode: str
) -> None:
    height, width = max(height, 1), min(max(width, 1), 20)
    graph = Graph("group_norm")
    x = graph.add_input("x", TensorType(torch.float32, (n, groups * channels, height, width)))
    torch.manual_seed(0)
    gain, bias = (graph.add_parameter(name, torch.randn(groups * channels)) for name in ("gain", "bias"))
    y = graph.add("group_norm", [graph.add("relu", [x]).output, gain, bias], {"groups": groups, "eps": 1e-3}).output
    graph.set_outputs([graph.add("silu", [y]).output])
    orders = {} if order is None else {"x": order, graph.outputs[0].name: order}
    agree(graph, [torch.randn(n, groups * channels, height, width)], {}, orders, mode)


def test_a_group_norm_is_one_kernel_without_a_division_inside() -> None:
    graph = Graph("group_norm")
    x = graph.add_input("x", TensorType(torch.float32, (2, 12, 5, 7)))
    y = graph.add("group_norm", [x, graph.add_parameter("gain", torch.ones(12))], {"groups": 3}).output
    graph.set_outputs([graph.add("relu", [y]).output])
    _, _, steps = lowered(graph)
    assert len(steps) == 1
    assert not re.search(r"d\w+ (//|%)", str(steps[0].kernel))


VIEWS: dict[str, tuple[Any, ...]] = {
    "reshape": ("reshape", {}, (6, 35)),
    "flat": ("reshape", {}, (210,)),
    "split": ("reshape", {}, (2, 3, 5, 7)),
    "permute": ("permute", {"dims": (2, 0, 1)}, None),
    "slice": ("slice", {"dim": 2, "start": 1, "step": 2}, (6, 5, 3)),
    "select": ("select", {"dim": 1, "index": -1}, None),
    "flip": ("flip", {"dims": (1,)}, None),
    "roll": ("roll", {"dims": (2,), "shifts": (3,)}, None),
    "pad": ("pad", {"pads": (0, 1, 2, 0, 0, 1), "value": 0.5}, None),
    "triangle": ("triangle", {"diagonal": 1, "upper": True}, None),
}


def _viewed(graph: Graph, x: Value, name: str) -> Value:
    operator, attributes, shape = VIEWS[name]
    return graph.add(operator, [x], attributes, shapes=None if shape is None else [shape]).output


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("mode", ["fast", "backwards"])
def test_views_are_read_through_and_copied(name: str, mode: str) -> None:
    graph = Graph("viewed")
    x = graph.add_input("x", TensorType(torch.float32, (6, 5, 7)))
    view = _viewed(graph, x, name)
    done = graph.add("exp", [view]).output
    total = graph.add("sum", [done], {"dims": (done.rank - 1,), "keepdim": True}).output
    graph.set_outputs([graph.add("div", [done, total]).output, view])
    torch.manual_seed(0)
    agree(graph, [torch.randn(6, 5, 7)], {}, None, mode)


@pytest.mark.parametrize("mode", ["fast", "forwards"])
def test_joined_and_looked_up_values_are_read_where_they_lie(mode: str) -> None:
    graph = Graph("joined")
    x = graph.add_input("x", TensorType(torch.float32, (4, 3, 20)))
    i = graph.add_input("i", TensorType(torch.int64, (4, 5)))
    table = graph.add_parameter("table", torch.randn(9, 20))
    rows = graph.add("embedding", [table, i]).output
    both = graph.add("concat", [x, rows], {"dim": 1}).output
    mean = graph.add("mean", [both], {"dims": (2,), "keepdim": True}).output
    graph.set_outputs([graph.add("sub", [both, mean]).output])
    assert len(lowered(graph)[2]) == 1
    agree(graph, [torch.randn(4, 3, 20), torch.randint(0, 9, (4, 5))], {}, None, mode)


def test_what_lies_channels_last_is_read_along_its_channels() -> None:
    graph = Graph("last")
    x = graph.add_input("x", TensorType(torch.float32, (2, 48, 6, 5)))
    mean = graph.add("mean", [x], {"dims": (2, 3), "keepdim": False}).output
    graph.set_outputs([mean])
    for order, reads in (((0, 1, 2, 3), "x0[d0d1, "), ((0, 2, 3, 1), "x0[d0, ")):
        text = str(lowered(graph, {"x": order})[2][0].kernel)
        assert reads in text
    assert "reduce" not in str(lowered(graph, {"x": (0, 2, 3, 1)})[2][0].kernel)
    agree(graph, [torch.randn(2, 48, 6, 5)], {}, {"x": (0, 2, 3, 1)})


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 70), st.sampled_from([(), (1,), (3,), (8,), (2, 3), (17,)]), st.sampled_from([4, 7, 8, 16, 63, 64, 65, 200, 257]),
    st.booleans(), MODES,
)  # fmt: skip
def test_inner_products_of_rows_that_are_looked_up(
    rows: int, heads: tuple[int, ...], width: int, mean: bool, mode: str
) -> None:
    torch.manual_seed(0)
    n, tables = symbol("n"), (5, 9)
    graph = Graph("inner")
    found = [
        graph.add("embedding", [graph.add_input(f"x{k}", TensorType(torch.float32, (table, *heads, width))),
                                graph.add_input(f"i{k}", TensorType(torch.int64, (n,)))]).output
        for k, table in enumerate(tables)
    ]  # fmt: skip
    product = graph.add("mul", found).output
    summed = graph.add("mean" if mean else "sum", [product], {"dims": (product.rank - 1,), "keepdim": False}).output
    graph.set_outputs([graph.add("mul", [summed], {"scalar": 0.5}).output])
    inputs: list[torch.Tensor] = []
    for table in tables:
        x = torch.randn(table, *heads, width)
        x[1, ..., 0] = float("nan")
        inputs += [x, torch.randint(0, table, (rows,))]
    agree(graph, inputs, {"n": rows}, mode=mode)
