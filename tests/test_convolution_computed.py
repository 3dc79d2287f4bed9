"""Convolutions whose weights are computed, as those of a training step are: packed by a kernel, turned round, or images themselves."""

from __future__ import annotations

import pytest
import torch
from lowered import checking
from test_convolution_kernels import _widened, needs_compiler

import suture
from suture.backends.compiled import compile_program
from suture.backends.storage_orders import storage_orders
from suture.codegen.program import Program, lower
from suture.codegen.step import KernelStep
from suture.drivers.differentiating import cut
from suture.ir.graph import Graph
from suture.ir.kernel import Literal
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph

_OUTSIDE = (  # what each reads: an input and weights, both inputs of the graph
    ("conv", (2, 5, 6, 7), (20, 5, 3, 3), {"padding": (1, 1)}),  # the rows of a window at once, channels left over
    ("conv", (1, 17, 6, 5), (33, 17, 3, 2), {"stride": (2, 1), "dilation": (1, 2)}),  # channel by channel, two panels
    ("conv", (2, 8, 5, 4), (12, 2, 3, 3), {"groups": 4, "padding": (1, 1)}),  # groups that are joined
    ("conv", (1, 64, 3, 3), (96, 32, 1, 1), {"groups": 2}),  # groups that are not
    ("conv", (2, 6, 5, 6), (6, 1, 3, 3), {"groups": 6, "padding": (1, 1)}),  # depthwise
    ("conv_transpose", (2, 20, 5, 4), (20, 3, 3, 2), {"padding": (1, 0)}),  # turned round
    ("conv_transpose", (1, 3, 6), (3, 18, 3), {"dilation": (2,)}),  # along one dimension, the rows of a window at once
    ("conv", (14, 3, 7, 6), (9, 3, 5, 6), {"padding": (1, 1), "stride": (1, 2)}),  # an image for a window
    ("conv", (3, 2, 10, 10), (32, 2, 5, 5), {"padding": (1, 1), "dilation": (2, 2)}),  # of every second place
)


def several(cases: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, object]], ...]) -> Graph:
    """A graph of independent convolutions."""
    lines, given, results = [], [], []
    for k, (operator, image, weight, attributes) in enumerate(cases):
        given += [f"%x{k}: f32{list(image)}", f"%w{k}: f32{list(weight)}"]
        said = " ".join(f"{name}={value}" for name, value in attributes.items())
        function = getattr(torch.nn.functional, f"{operator}{len(image) - 2}d")
        shape = list(function(torch.zeros(image), torch.zeros(weight), **attributes).shape)
        lines.append(f"  %y{k}: f32{shape} = {operator}(%x{k}, %w{k}, _) {said}\n  %z{k}: f32{shape} = relu(%y{k})\n")
        results.append(f"%z{k} as r{k}")
    return parse_graph(f"graph g({', '.join(given)}) {{\n{''.join(lines)}  return {', '.join(results)}\n}}\n")


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(several(_OUTSIDE))


@needs_compiler
def test_computed_weights_stay_in_generated_code(program: Program) -> None:
    assert not program.left
    inputs = inputs_of(program.graph)
    wanted = evaluate(_widened(several(_OUTSIDE)), [each.double() for each in inputs])
    found = compile_program(program)(*inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-4)


def inputs_of(graph: Graph) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn([int(str(size)) for size in value.shape]) for value in graph.inputs]


@needs_compiler
@pytest.mark.parametrize("name", ["pack_weights", "correlation"])
def test_no_kernel_reads_or_writes_beside_its_memory(program: Program, name: str) -> None:
    steps = [step for step in program.steps if isinstance(step, KernelStep) and step.kernel.name.startswith(name)]
    for step in {step.kernel: step for step in steps}.values():
        results = []
        for backwards in (False, True):
            torch.manual_seed(1)
            tensors = [
                torch.full([int(str(dim)) for dim in value.shape], float("nan")) if value in step.writes
                else torch.randn([int(str(dim)) for dim in value.shape])
                for value in step.arguments
            ]  # fmt: skip
            checking(step.kernel, [], tensors, backwards=backwards)
            results.append(
                [tensor for value, tensor in zip(step.arguments, tensors, strict=True) if value in step.writes]
            )
        for one, other in zip(*results, strict=True):
            assert not one.isnan().any()
            assert torch.equal(one, other)


def test_a_derivative_in_the_weights_has_the_positions_that_are_read() -> None:
    graph = parse_graph(
        "graph g(%x: f32[3, 2, 10, 10], %w: f32[32, 2, 5, 5]) {\n"
        "  %y: f32[3, 32, 4, 4] = conv(%x, %w, _) padding=(1, 1) dilation=(2, 2)\n"
        "  %c: f32[3, 32, 3, 4] = slice(%y) dim=2 start=0\n"
        "  %d: f32[3, 32, 3, 3] = slice(%c) dim=3 start=0\n  %z: f32[3, 32, 3, 3] = relu(%d)\n  return %z as r\n}\n"
    )
    steps = [step for step in lower(graph).steps if isinstance(step, KernelStep) and "images" in step.why]
    assert [axis.count for axis in steps[0].kernel.grid[:2]] == [Literal(3), Literal(3)]


def test_large_windows_and_steps_of_transposed_convolutions_are_left_with_a_reason() -> None:
    left = lower(
        several(
            (
                ("conv", (1, 4, 30, 30), (8, 4, 9, 9), {}),
                ("conv_transpose", (1, 4, 5, 5), (4, 8, 2, 2), {"stride": (2, 2)}),
                ("conv_transpose", (1, 4, 5, 5), (4, 8, 3, 3), {"stride": (2, 2)}),
            )
        )
    ).left
    assert list(left.values()) == [
        "its weights are computed, and its window is large",
        "its weights are computed, so that they cannot be packed ahead",
        "its windows overlap, or leave gaps",
    ]


def test_what_is_kept_for_the_way_back_is_handed_on_as_it_lies() -> None:
    text = (
        "graph g(%x: f32[2, 3, 6, 7]) {\n  parameter @w: f32[8, 3, 3, 3]\n  parameter @v: f32[4, 8, 1, 1]\n"
        "  %a: f32[2, 8, 6, 7] = conv(%x, @w, _) padding=(1, 1)\n  %b: f32[2, 8, 6, 7] = silu(%a)\n"
        "  %y: f32[2, 4, 6, 7] = conv(%b, @v, _)\n  return %y as o\n}\n"
    )
    graph = parse_graph(text, {"w": torch.randn(8, 3, 3, 3), "v": torch.randn(4, 8, 1, 1)})
    both = suture.passes.gradient(graph, check=False)
    ways = cut(graph, both, storage_orders(both))
    kept = [value.shape for value in ways.forward.outputs[1:]]
    assert kept
    assert set(kept) == {(2, 6, 7, 8)}
    assert set(kept) <= {value.shape for value in ways.backward.inputs}
    assert {value.shape for value in cut(graph, both).forward.outputs[1:]} == {(2, 8, 6, 7)}
