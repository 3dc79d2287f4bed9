"""Convolutions as kernels compute what torch does in float64, whatever the sizes, the order in memory and what is pointwise behind them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lowered import checking, lower_all

from suture.codegen.convolution.template import TEMPLATES, candidates, refuses
from suture.codegen.convolution.weights import groups_of
from suture.codegen.convolution.windows import channels_last
from suture.codegen.cuda.printer import print_cuda
from suture.codegen.groups import find_groups
from suture.codegen.step import Context
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def convolution(
    shape: tuple[Dim, ...],
    outputs: int,
    kernel: tuple[int, ...],
    *,
    bias: bool = True,
    behind: tuple[str, ...] = (),
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    **attributes: Any,
) -> Graph:
    """A graph of one convolution and pointwise nodes behind it."""
    graph = Graph("convolution")
    x = graph.add_input("x", TensorType(dtype, shape))
    inputs = shape[1]
    assert isinstance(inputs, int)
    weight = graph.add_parameter("weight", torch.randn(outputs, inputs // groups, *kernel, dtype=dtype))
    operands = [x, weight] + ([graph.add_parameter("bias", torch.randn(outputs, dtype=dtype))] if bias else [])
    value = graph.add("conv", operands, {"groups": groups, **attributes}).output
    for name in behind:
        if name == "residual":
            value = graph.add("add", (value, graph.add_input("rest", value.type))).output
        elif name == "scale":
            gain = graph.add_parameter("gain", torch.randn(outputs, *[1] * len(kernel), dtype=dtype))
            value = graph.add("mul", (value, gain)).output
        else:
            value = graph.add(name, (value,)).output
    graph.outputs.append(value)
    graph.output_names.append("result")
    return graph


def inputs_of(graph: Graph, **sizes: int) -> list[torch.Tensor]:

    return [
        torch.randn([evaluate_size(dim, sizes) for dim in value.shape], dtype=value.dtype) for value in graph.inputs
    ]


def orders(graph: Graph, last: tuple[bool, bool]) -> dict[Any, tuple[int, ...]]:
    """Inputs, and outputs, with channels innermost or not."""
    values = [*(graph.inputs if last[0] else ()), *(graph.outputs if last[1] else ())]
    return {value: channels_last(value.rank) for value in values}


def agree(graph: Graph, inputs: list[torch.Tensor], last: tuple[bool, bool], *, check: bool = True) -> None:
    """The kernels compute what the graph means, in float64."""
    wide = evaluate(_widened(graph), [tensor.double() for tensor in inputs])
    lowered = lower_all(graph, TEMPLATES, orders(graph, last))
    calls: list[Any] = [None]
    if check:
        calls += [functools.partial(checking, backwards=backwards) for backwards in (False, True)]
    for call in calls:
        for found, wanted in zip(lowered.run(inputs, call), wide, strict=True):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-4)


def _widened(graph: Graph) -> Graph:
    wide = graph.copy()
    for parameter in wide.parameters.values():
        parameter.assign(parameter.data.double())
    for value in (*wide.inputs, *(value for node in wide.nodes for value in node.outputs)):
        value.type = TensorType(torch.float64, value.shape)
    return wide


# every example is compiled: what fails is shown as it was drawn
FEW = settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
BEHIND = st.sampled_from(
    [(), ("relu",), ("hardswish", "residual"), ("residual", "relu"), ("scale", "gelu"), ("relu", "relu")]
)


@st.composite
def planes(draw: st.DrawFn, rank: int, depthwise: bool) -> tuple[Graph, list[torch.Tensor]]:
    """A convolution that fits its input, over one to three dimensions."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    kernel = tuple(number(1, 4 if rank < 3 else 2) for _ in range(rank))
    dilation, stride = tuple(number(1, 2) for _ in range(rank)), tuple(number(1, 3) for _ in range(rank))
    padding = tuple(number(0, 2) for _ in range(rank))
    size = tuple(
        max(d * (k - 1) + 1 - 2 * p, 1) + number(0, 14 if rank < 3 else 4)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    if depthwise:
        groups = number(2, 40)
        inputs, outputs = groups, groups * draw(st.sampled_from((1, 1, 2)))
    else:
        groups = draw(st.sampled_from((1, 1, 1, 2, 3, 8)))
        inputs, outputs = groups * number(1, 24), groups * number(1, 40)
    graph = convolution(
        (number(0, 3), inputs, *size), outputs, kernel, bias=draw(st.booleans()), behind=draw(BEHIND), groups=groups,
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    return graph, inputs_of(graph)


@needs_compiler
@FEW
@given(data=st.data(), rank=st.sampled_from((1, 2, 2, 2, 3)), last=st.tuples(st.booleans(), st.booleans()))
def test_dense_convolutions_compute_what_torch_does(data: st.DataObject, rank: int, last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    graph, inputs = data.draw(planes(rank, depthwise=False))
    agree(graph, inputs, last)


@needs_compiler
@FEW
@given(data=st.data(), rank=st.sampled_from((1, 2, 2, 2, 3)), last=st.tuples(st.booleans(), st.booleans()))
def test_depthwise_convolutions_compute_what_torch_does(
    data: st.DataObject, rank: int, last: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    graph, inputs = data.draw(planes(rank, depthwise=True))
    agree(graph, inputs, last)


@needs_compiler
@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "kernel"),
    [(3, 20, 1, 3), (24, 40, 1, 3), (24, 24, 24, 3), (24, 48, 2, 1), (5, 7, 1, 1)],
)
def test_sizes_may_be_symbols(channels: int, outputs: int, groups: int, kernel: int) -> None:
    torch.manual_seed(0)
    batch, height, width = symbol("batch"), symbol("height"), symbol("width")
    graph = convolution(
        (batch, channels, height, width), outputs, (kernel, kernel), groups=groups, behind=("relu", "residual"),
        stride=(2, 1), padding=(kernel // 2, kernel // 2), dilation=(1, 1),
    )  # fmt: skip
    lowered = lower_all(graph, TEMPLATES, orders(graph, (True, True)))
    for n, h, w in ((1, 9, 30), (2, 3, 3), (0, 5, 4), (3, 4, 65), (1, 1, 1)):
        inputs = inputs_of(graph, batch=n, height=h, width=w)
        for call in (None, functools.partial(checking, backwards=False), functools.partial(checking, backwards=True)):
            found, wanted = lowered.run(inputs, call), evaluate(graph, inputs)
            torch.testing.assert_close(found[0], wanted[0], rtol=2e-5, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("groups", [1, 32])
def test_every_schedule_computes_the_same(groups: int) -> None:
    torch.manual_seed(0)
    graph = convolution((2, 32, 9, 11), 32, (3, 3), groups=groups, behind=("relu",), padding=(1, 1))
    inputs = inputs_of(graph)
    wanted = evaluate(graph, inputs)[0]
    (group,) = find_groups(graph, lambda node: TEMPLATES.get(node.operator.name), least=1)
    choices = candidates(group, Context(graph))
    assert len(choices) > 3
    template = TEMPLATES["conv"]
    for schedule in choices:
        chosen = {"conv": type(template)(lambda g, c, s=schedule: template.lower(g, _with(c, g, s)), template.refuses)}
        found = lower_all(graph, chosen, orders(graph, (True, True))).run(inputs)[0]
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-4)


def _with(context: Context, group: Any, schedule: Any) -> Context:
    context.schedules = {group.key: schedule}
    return context


@needs_compiler
def test_an_input_that_is_a_view_is_read_through_it() -> None:
    torch.manual_seed(0)
    graph = Graph("view")
    x = graph.add_input("x", TensorType(torch.float32, (2, 6, 7, 20)))
    turned = graph.add("permute", (x,), {"dims": (0, 3, 1, 2)}).output
    weight = graph.add_parameter("weight", torch.randn(17, 20, 3, 3))
    graph.outputs.append(graph.add("conv", (turned, weight), {"padding": (1, 1)}).output)
    graph.output_names.append("result")
    lowered = lower_all(graph, TEMPLATES, {graph.outputs[0]: (0, 2, 3, 1)})
    assert len(lowered.steps) == 1  # no copy: the channels lie innermost already
    x_data = torch.randn(2, 6, 7, 20)
    torch.testing.assert_close(lowered.run([x_data])[0], evaluate(graph, [x_data])[0], rtol=2e-5, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("last", [(True, True), (False, False)])
@pytest.mark.parametrize(
    ("shape", "outputs", "window"),
    [((2, 5, 7), 3, (2,)), ((2, 20, 5, 6), 40, (2, 3)), ((0, 4, 3, 3), 4, (1, 2)), ((1, 3, 2, 3, 70), 17, (2, 1, 2))],
)
def test_transposed_convolutions_whose_windows_do_not_overlap(
    shape: tuple[int, ...], outputs: int, window: tuple[int, ...], last: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    graph = Graph("transposed")
    x = graph.add_input("x", TensorType(torch.float32, shape))
    weight = graph.add_parameter("weight", torch.randn(shape[1], outputs, *window))
    bias = graph.add_parameter("bias", torch.randn(outputs))
    space = {"stride": window, "padding": (0,) * len(window), "output_padding": (0,) * len(window)}
    made = graph.add("conv_transpose", (x, weight, bias), {**space, "dilation": (1,) * len(window)}).output
    graph.outputs.append(graph.add("relu", (made,)).output)
    graph.output_names.append("result")
    agree(graph, inputs_of(graph), last)


def test_transposed_convolutions_whose_windows_overlap_are_refused() -> None:
    graph = Graph("overlap")
    x = graph.add_input("x", TensorType(torch.float32, (1, 4, 5, 5)))
    weight = graph.add_parameter("weight", torch.randn(4, 4, 3, 3))
    space = {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1), "dilation": (1, 1)}
    node = graph.add("conv_transpose", (x, weight), space).output.producer
    assert node is not None
    assert "overlap" in (refuses(node, Context(graph)) or "")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize(("channels", "groups", "window"), [(3, 1, 7), (24, 1, 3), (24, 24, 3)])
def test_the_cuda_print_compiles(channels: int, groups: int, window: int, tmp_path: Path) -> None:
    graph = convolution((2, channels, 20, 20), 24, (window, window), groups=groups, behind=("gelu", "residual"))
    for step in lower_all(graph, TEMPLATES, orders(graph, (True, True)), "cuda").steps:
        source = tmp_path / f"{step.kernel.name}.cu"
        source.write_text(print_cuda(step.kernel))
        command = ["nvcc", "-arch=sm_80", "-cubin", str(source), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_small_groups_are_joined() -> None:
    node = convolution((1, 128, 8, 8), 128, (3, 3), groups=32).nodes[0]
    assert groups_of(node).count == 4
    assert groups_of(node).inputs == 32
    assert groups_of(convolution((1, 96, 8, 8), 96, (3, 3), groups=2).nodes[0]).joined == 1


def test_what_is_refused_says_why() -> None:
    graph = Graph("computed")
    x = graph.add_input("x", TensorType(torch.float32, (1, 4, 8, 8)))
    weight = graph.add_input("weight", TensorType(torch.float32, (4, 4, 2, 2)))
    computed = graph.add("conv_transpose", (x, weight), {"stride": (2, 2)}).output.producer
    assert computed is not None
    assert "weights are computed" in (refuses(computed, Context(graph)) or "")
    short = convolution((1, 4, 8, 8), 4, (3, 3), dtype=torch.bfloat16)
    assert "bfloat16" in (refuses(short.nodes[0], Context(short)) or "")
    fine = convolution((1, 4, 8, 8), 4, (3, 3))
    assert refuses(fine.nodes[0], Context(fine)) is None
