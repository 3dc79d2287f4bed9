"""Operators that are written out before kernels are: statistics, norms, losses, indices of extremes; and scalar functions of integers."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traversals import lowered, run

import suture
from suture.codegen.decompose.rules import decompose
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def agree(graph: Graph, *inputs: torch.Tensor, kernels: int | None = None) -> None:
    torch.manual_seed(0)
    for a, b in zip(evaluate(graph, list(inputs)), run(graph, list(inputs), {}), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5, equal_nan=True)
    if kernels is not None:
        assert len(lowered(graph)[2]) == kernels


REDUCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("var", {"correction": 1.0}), ("var", {"correction": 0.0}), ("any", {}), ("all", {}),
    *(("vector_norm", {"p": p}) for p in (0.0, 1.0, 2.0, 3.0, math.inf, -math.inf)),
]  # fmt: skip


@pytest.mark.parametrize("dims", [(2,), (0,), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_statistics_and_norms_over_any_dimensions(dims: tuple[int, ...], keep: bool) -> None:
    graph = Graph("statistics")
    x = graph.add_input("x", TensorType(torch.float32, (5, 3, 19)))
    rounded = graph.add("round", [x]).output  # zeros among them
    results = [graph.add(name, [rounded], {"dims": dims, "keepdim": keep, **more}).output for name, more in REDUCTIONS]
    graph.set_outputs(results)
    agree(graph, torch.randn(5, 3, 19))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_first_extreme_is_found_and_what_is_no_number_counts_as_one(name: str, dim: int) -> None:
    graph = Graph("extremes")
    x = graph.add_input("x", TensorType(torch.float32, (6, 5, 33)))
    graph.set_outputs([graph.add(name, [x], {"dims": (dim,), "keepdim": keep}).output for keep in (False, True)])
    inputs = torch.randn(6, 5, 33).round()
    agree(graph, inputs)
    inputs[3, 2, 20] = math.nan
    agree(graph, inputs)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_unit_vectors(p: float, dim: int) -> None:
    graph = Graph("unit")
    x = graph.add_input("x", TensorType(torch.float32, (4, 7, 20)))
    graph.set_outputs([graph.add("l_normalise", [x], {"p": p, "dim": dim}).output])
    inputs = torch.randn(4, 7, 20)
    inputs[1] = 0
    agree(graph, inputs, kernels=1)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_norms_by_the_statistics_of_what_they_are_given(name: str) -> None:
    graph = Graph("statistics")
    x = graph.add_input("x", TensorType(torch.float32, (3, 5, 4, 9)))
    gain, bias = (graph.add_parameter(each, torch.randn(5)) for each in ("gain", "bias"))
    graph.set_outputs([graph.add("relu", [graph.add(name, [x, gain, bias]).output]).output])
    agree(graph, torch.randn(3, 5, 4, 9), kernels=1)


@pytest.mark.parametrize("slopes", [1, 5])
def test_slopes_of_channels(slopes: int) -> None:
    graph = Graph("slopes")
    x = graph.add_input("x", TensorType(torch.float32, (3, 5, 6)))
    graph.set_outputs([graph.add("prelu", [x, graph.add_parameter("slope", torch.rand(slopes))]).output])
    agree(graph, torch.randn(3, 5, 6), kernels=1)


class _Loss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, y, **self.options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(9, 50), (4, 7, 5), (3, 130, 2, 2)], ids=str)
def test_cross_entropy_reads_its_rows_and_writes_none(reduction: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(shape) * 5, torch.randint(0, shape[1], (shape[0], *shape[2:]))
    y.view(-1)[::3] = 2
    module = _Loss(reduction=reduction, ignore_index=2)
    graph = suture.trace(module, (x, y))
    steps = lowered(graph)[2]
    assert not any(value.shape == shape for step in steps for value in step.writes)
    torch.testing.assert_close(run(graph, [x, y], {})[0], module(x, y), rtol=1e-5, atol=1e-5)


def test_losses_with_weights_or_smoothed_labels_stay_torchs() -> None:
    x, y = torch.randn(4, 7), torch.randint(0, 7, (4,))
    graph = suture.trace(_Loss(label_smoothing=0.1), (x, y))
    assert [node.operator.name for node in decompose(graph).nodes] == ["opaque"]
    compiled = suture.compile(graph)
    torch.testing.assert_close(compiled(x, y), _Loss(label_smoothing=0.1)(x, y))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_very_much_is_reduced_in_two_steps(name: str) -> None:
    graph = Graph("much")
    x = graph.add_input("x", TensorType(torch.float64, (300, 400)))
    square = graph.add("mul", [x, x]).output
    graph.set_outputs([graph.add(name, [square], {"dims": (0, 1), "keepdim": False}).output])
    agree(graph, torch.randn(300, 400, dtype=torch.float64), kernels=2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8], ids=str)
def test_scalar_functions_of_integers(dtype: torch.dtype) -> None:
    graph = Graph("integers")
    x, z = (graph.add_input(letter, TensorType(dtype, (7, 9))) for letter in "xz")
    names = [
        "add",
        "sub",
        "mul",
        "maximum",
        "minimum",
        "remainder",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "eq",
        "lt",
    ]
    graph.set_outputs(
        [graph.add(name, [x, z]).output for name in names]
        + [graph.add(name, [x]).output for name in ("bitwise_not", "relu", "abs", "sign")]
    )
    low = 0 if dtype == torch.uint8 else -20
    agree(graph, torch.randint(low, 20, (7, 9)).to(dtype), torch.randint(1, 9, (7, 9)).to(dtype))


def test_scalar_functions_of_truth_values() -> None:
    graph = Graph("truths")
    x, z = (graph.add_input(letter, TensorType(torch.bool, (40,))) for letter in "xz")
    names = ["bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor", "eq", "ne"]
    graph.set_outputs([graph.add(name, [x, z]).output for name in names] + [graph.add("bitwise_not", [x]).output])
    agree(graph, torch.rand(40) < 0.5, torch.rand(40) < 0.5)
