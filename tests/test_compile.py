"""Compiled graphs compute what the evaluator does: every scalar function, random graphs, whole models, other sizes than traced."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs
from torch import nn

import suture
from suture.backends.compiled import CompiledGraph
from suture.codegen.groups import Group, find_groups, schedule
from suture.codegen.program import KernelStep, lower
from suture.codegen.scalars import SCALARS
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.kernel_text import parse_kernel
from suture.ir.operator import OPERATORS
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph
from suture.ir.types import TensorType
from suture.passes.contract import deviation
from suture.passes.probes import draw_probes

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def fused(compiled: CompiledGraph) -> list[str]:
    return [step.why for step in compiled.program.steps if isinstance(step, KernelStep)]


_TWO = {
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "remainder",
    "atan2",
}
_ATTRIBUTES = {"clamp": {"min": -0.5, "max": 1.5}, "cast": {"dtype": torch.float32}}
_SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 6.0, -3.0, math.inf, -math.inf, math.nan, 1e-20, -1e-20, 60.0, -60.0, 1e30]


def _every_operator(dtype: torch.dtype) -> tuple[Graph, list[torch.Tensor]]:
    """Every scalar function of two inputs, each an output of its own."""
    graph = Graph("scalars")
    x, z = (graph.add_input(letter, TensorType(dtype, (len(_SPECIAL) ** 2,))) for letter in "xz")
    results = []
    for name in sorted(set(SCALARS) - {"dropout", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"}):
        assert name in OPERATORS
        operands = [x, z] if name in _TWO else [x]
        if name == "where":
            operands = [graph.add("lt", [x, z]).output, x, z]
        made = graph.add(name, operands, _ATTRIBUTES.get(name), name=f"{name}_result").output
        results.append(made)
    for exponent in (-2, -1, -0.5, 0.5, 1, 2, 3, 4, 2.5):
        results.append(graph.add("pow", [x], {"scalar": exponent}).output)
    graph.set_outputs(results)
    special = torch.tensor(_SPECIAL, dtype=dtype)
    return graph, [special.repeat(len(_SPECIAL)), special.repeat_interleave(len(_SPECIAL))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_scalar_function_is_torchs(dtype: torch.dtype) -> None:
    graph, inputs = _every_operator(dtype)
    compiled = suture.compile(graph)
    assert all(isinstance(step, KernelStep) for step in compiled.program.steps)
    for name, expected, received in zip(graph.output_names, evaluate(graph, inputs), compiled(*inputs), strict=True):
        # x * sigmoid(x) at -inf and the like: zero times infinity in one order, a quotient in the other
        loose = name.removesuffix("_result") in {
            "silu",
            "selu",
            "elu",
            "celu",
            "mish",
            "gelu",
            "softsign",
            "hardswish",
            "log_sigmoid",
        }
        kept = expected.isfinite() if loose else torch.ones_like(expected, dtype=torch.bool)
        if name in ("sin_result", "cos_result"):
            kept &= inputs[0].abs() < 1e29
        if (
            name == "remainder_result"
        ):  # torch's own answer depends on how many elements there are where the quotient overflows
            kept &= (inputs[0].double() / inputs[1].double()).abs() < 1e38
        tolerance = 2e-6 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(
            received[kept], expected[kept], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(graphs(), st.integers(0, 3))
def test_random_graphs_compute_the_same(graph: Graph, seed: int) -> None:
    inputs = draw_probes(graph, seed=seed)
    results = suture.compile(graph)(*inputs)
    for expected, received in zip(
        evaluate(graph, inputs), results if isinstance(results, tuple) else (results,), strict=True
    ):
        assert received.dtype == expected.dtype
        assert deviation(expected, received) < 2e-5


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_steps_come_after_what_they_read_and_every_node_once(graph: Graph) -> None:
    groups = find_groups(graph)
    known = {*graph.inputs, *graph.parameters.values()}
    seen = []
    for item in schedule(graph, groups):
        assert all(value is None or value in known for value in item.inputs)
        nodes = item.nodes if isinstance(item, Group) else [item]
        seen += nodes
        known |= {value for node in nodes for value in node.outputs}
    assert sorted(map(id, seen)) == sorted(map(id, graph.nodes))


_MODELS = ("mobilenetv3_large_100", "hf_vit", "bert", "gpt2", "llama", "t5", "unet")


@pytest.mark.parametrize("name", _MODELS)
def test_whole_models_at_another_size_than_traced(name: str) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    compiled = suture.compile(graph)
    assert fused(compiled)
    assert not any("not proved safe" in reason for reason in compiled.program.left.values())
    for kernel in compiled.program.kernels:
        assert parse_kernel(str(kernel)) == kernel
    torch.manual_seed(1)
    args, kwargs = entry.args(batch=3, sequence=9)
    tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
    expected = evaluate(graph, tensors)
    received = compiled(*tensors)
    for a, b in zip(expected, received if isinstance(received, tuple) else (received,), strict=True):
        assert deviation(a, b) < 2e-4


class _Chain(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = torch.where(mask, x * 0.5, -math.inf)
        return torch.softmax(scores, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_short_floats_are_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 5, 70).to(dtype), torch.rand(3, 1, 70) < 0.7
    graph = suture.trace(_Chain(), (x, mask), dynamic={"x": {2: "n"}, "mask": {2: "n"}})
    compiled = suture.compile(graph)
    assert "reducing n" in fused(compiled)[0]
    received = compiled(x, mask)
    assert received.dtype == dtype
    assert deviation(_Chain()(x.double(), mask).to(dtype), received) < {torch.float32: 1e-6, torch.float64: 1e-14}.get(
        dtype, 1e-2
    )


@pytest.mark.parametrize("width", [5, 7, 36, 100])
def test_norms_of_rows_of_equal_numbers_do_not_amplify_the_rounding_of_their_mean(width: int) -> None:
    module = nn.Sequential(nn.LayerNorm(width), nn.Tanh())
    compiled = suture.compile(suture.trace(module, (torch.randn(3, width),)))
    x = torch.tensor([0.1, 17.7, 1000.1])[:, None].expand(3, width).contiguous()
    torch.testing.assert_close(compiled(x), torch.zeros_like(x), rtol=0, atol=1e-6)


def test_rows_numbers_leave_the_kernel_too() -> None:
    graph = parse_graph(
        "graph rows(%x: f32[n, 40]) {\n  %m: f32[n, 1] = mean(%x) dims=(1,) keepdim=true\n  %c: f32[n, 40] = sub(%x, %m)\n"
        "  %s: f32[n, 40] = mul(%c, %c)\n  %v: f32[n, 1] = mean(%s) dims=(1,) keepdim=true\n  return %m, %v, %c\n}\n"
    )
    x = torch.randn(6, 40)
    compiled = suture.compile(graph)
    assert len(fused(compiled)) == 1
    mean, variance, centred = compiled(x)
    torch.testing.assert_close(mean, x.mean(1, keepdim=True))
    torch.testing.assert_close(variance, x.var(1, correction=0, keepdim=True))
    torch.testing.assert_close(centred, x - x.mean(1, keepdim=True))


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("width", [0, 1, 63, 64, 65, 4096, 5000])
def test_long_short_and_empty_rows(rows: int, width: int) -> None:
    graph = suture.trace(_Pointwise(), (torch.randn(2, 8),), dynamic={"x": {0: "n", 1: "m"}})
    x = torch.randn(rows, width)
    torch.testing.assert_close(suture.compile(graph)(x), _Pointwise()(x), rtol=1e-6, atol=1e-6)


class _Extremes(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.amax(1), x.softmax(1), x.sum(0)


def test_the_largest_of_nothing_is_refused_as_torch_does_and_a_softmax_of_nothing_is_not() -> None:
    module = _Extremes()
    compiled = suture.compile(suture.trace(module, (torch.randn(3, 5),), dynamic={"x": {0: "n", 1: "m"}}))
    for shape in ((3, 0), (0, 0)):
        with pytest.raises(IndexError):
            module(torch.zeros(shape))
        for _ in range(2):  # what is known of a shape does not let it pass the second time
            with pytest.raises(SutureError) as caught:
                compiled(torch.zeros(shape))
            assert caught.value.code is Code.INPUT and "amax amax is over no elements" in str(caught.value)
    for rows in (0, 2):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(compiled(x), module(x))
    assert [str(each) for each in lower(parse_graph(_NORMS)).extremes] == [
        "vector_norm a is over no elements",
        "argmax i is over no elements",
    ]
    bare = suture.compile(suture.trace(_Softmax(), (torch.randn(3, 5),), dynamic={"x": {1: "m"}}))
    assert bare(torch.zeros(3, 0)).shape == (3, 0)


_NORMS = """\
graph g(%x: f32[n, m], %z: f32[k, 4]) {
  %a: f32[n] = vector_norm(%x) dims=(1,) p=inf
  %b: f32[n] = vector_norm(%x) dims=(1,) p=2.0
  %c: f32[k] = amin(%z) dims=(1,)
  %i: i64[4] = argmax(%z) dims=(0,)
  return %a as a, %b as b, %c as c, %i as i
}
"""


class _Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(1)


class _Pointwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(1.7 * x + 0.3) * x + torch.tanh(x)


def test_operands_that_are_not_contiguous_and_inputs_that_do_not_fit() -> None:
    compiled = suture.compile(suture.trace(_Pointwise(), (torch.randn(4, 8),)))
    x = torch.randn(8, 4).t()
    torch.testing.assert_close(compiled(x), _Pointwise()(x))
    for wrong in (torch.randn(4, 9), torch.randn(4), torch.zeros(4, 8, dtype=torch.int64)):
        with pytest.raises(SutureError) as caught:
            compiled(wrong)
        assert caught.value.code is Code.INPUT


def test_equal_kernels_are_compiled_once() -> None:
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()) for _ in range(4)])
    program = lower(suture.trace(blocks, (torch.randn(2, 16),)))
    called = [step.kernel.name for step in program.steps if isinstance(step, KernelStep)]
    assert called.count("traversal_0") == 4
    assert "traversal_1" not in called and "traversal_0: " in str(program)


def test_what_is_fused_does_not_change_with_the_order_of_hashing() -> None:
    graph = suture.trace(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Softmax(-1)), (torch.randn(2, 4),)
    )
    assert str(lower(graph)) == str(lower(graph.copy()))
