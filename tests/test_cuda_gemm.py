"""Products written for a GPU: every way in which operands lie, epilogues, tensor cores; and what is left to the library."""

from __future__ import annotations

import shutil

import pytest
import torch
from cuda_stand_in import devices
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import suture
from suture.backends.compiled_cuda import compile_cuda
from suture.codegen.cuda import gemm as cuda_gemm
from suture.codegen.cuda.printer import print_cuda
from suture.codegen.decompose.rules import decompose
from suture.codegen.program import Program, lower, plan
from suture.codegen.schedule import CudaGemmSchedule, from_json, to_json
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.contract import deviation

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
SMALL, LARGE = CudaGemmSchedule(64, 64, 32, 128), CudaGemmSchedule(128, 128, 32, 256)
_DTYPES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Layer(nn.Module):
    """A layer with what follows it: bias, activation, residual."""

    def __init__(self, inner: int, columns: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inner, columns)

    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.layer(x)) + rest


class Heads(nn.Module):
    """Both products of attention, of views."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(x.shape[0], x.shape[1], 3, 8).transpose(1, 2) for x in (q, k, v))
        return torch.tanh(q @ k.transpose(-1, -2)) @ v


class Turned(nn.Module):
    """Operands whose rows lie side by side."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("km,kn->mn", a, b) * 0.5


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Graph, list[Tensor]]:
    tensors = [each.to(dtype) for each in inputs]
    names = module.forward.__code__.co_varnames[1 : len(inputs) + 1]
    sizes = {name: {0: "n"} for name in names}
    return suture.trace(module.to(dtype), tuple(tensors), dynamic=sizes), tensors


def lowered(graph: Graph, schedule: CudaGemmSchedule = SMALL) -> Program:
    products = [
        node for node in decompose(graph).nodes if node.operator.name in ("linear", "matmul", "addmm", "einsum")
    ]
    assert products
    return lower(graph, "cuda", {node.outputs[0].name: schedule for node in products})


def agree(graph: Graph, inputs: list[Tensor], tolerance: float, schedule: CudaGemmSchedule = SMALL) -> Program:
    program = lowered(graph, schedule)
    assert any(isinstance(step, KernelStep) and isinstance(step.schedule, CudaGemmSchedule) for step in program.steps)
    (expected,) = evaluate(graph, inputs)
    for gpu in devices():
        received = compile_cuda(program, gpu)(*[each.to(gpu.place) for each in inputs])
        assert received.dtype == expected.dtype
        assert deviation(expected, received.cpu()) < tolerance
    return program


@needs_compiler
@pytest.mark.parametrize("dtype", list(_DTYPES), ids=str)
@settings(max_examples=3, deadline=None)
@given(n=st.integers(0, 40), inner=st.integers(1, 70), columns=st.integers(1, 140), seed=st.integers(0, 9))
def test_layers_with_what_follows_them(dtype: torch.dtype, n: int, inner: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    graph, _ = _traced(Layer(inner, columns), (torch.randn(3, 5, inner), torch.randn(3, 5, columns)), dtype)
    inputs = [torch.randn(n, 5, size).to(dtype) for size in (inner, columns)]
    schedule = CudaGemmSchedule(64, 64, 16, 256) if dtype == torch.float64 else SMALL
    program = agree(graph, inputs, _DTYPES[dtype], schedule)
    assert ("mma.sync" in print_cuda(*program.kernels)) == (dtype.itemsize == 2)
    # a vector has tiles of its own
    assert program.kernels[0].threads == (32 if columns == 1 else schedule.lanes)


@needs_compiler
@pytest.mark.parametrize(("rows", "columns"), [(1, 40), (30, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_row_or_one_column(dtype: torch.dtype, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    module, inputs = (
        Layer(50, columns).to(dtype),
        (torch.randn(rows, 50).to(dtype), torch.randn(rows, columns).to(dtype)),
    )
    graph = suture.trace(module, inputs)
    program = lower(graph, "cuda", alone=True)
    (expected,) = evaluate(graph, list(inputs))
    for gpu in devices():
        received = compile_cuda(program, gpu)(*[each.to(gpu.place) for each in inputs])
        assert deviation(expected, received.cpu()) < _DTYPES[dtype]


@needs_compiler
@pytest.mark.parametrize("schedule", [LARGE, CudaGemmSchedule(32, 32, 16, 64), CudaGemmSchedule(128, 64, 16, 256)])
def test_tiles_of_many_sizes(schedule: CudaGemmSchedule) -> None:
    torch.manual_seed(0)
    graph, inputs = _traced(Layer(48, 136), (torch.randn(7, 30, 48), torch.randn(7, 30, 136)), torch.float32)
    agree(graph, inputs, 2e-5, schedule)
    assert from_json(to_json(schedule)) == schedule


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operands_that_are_views_of_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    graph, inputs = _traced(Heads(), tuple(torch.randn(2, length, 24) for length in (9, 70, 70)), dtype)
    program = agree(graph, inputs, _DTYPES[dtype])
    assert sum(isinstance(step, KernelStep) for step in program.steps) == len(program.steps) == 2


@needs_compiler
def test_rows_that_lie_side_by_side_are_read_side_by_side() -> None:
    torch.manual_seed(0)
    graph, inputs = _traced(Turned(), (torch.randn(33, 50), torch.randn(33, 20)), torch.float32)
    program = agree(graph, inputs, 2e-5)
    (step,) = program.steps
    assert isinstance(step, KernelStep)
    # the first operand comes element by element, lanes along its rows; the second is a rectangle
    assert "copy" in str(step.kernel)
    assert "let u = element % 64" in str(step.kernel)


def test_weights_become_matrices_of_whole_vectors() -> None:
    graph, _ = _traced(Layer(12, 21), (torch.randn(3, 5, 12), torch.randn(3, 5, 21)), torch.float32)
    program = lowered(graph)
    (constant,) = program.constants
    made = constant.make()
    assert made.shape == (12, 24)
    torch.testing.assert_close(made[:, :21], graph.parameters["layer.weight"].data.t())
    assert not made[:, 21:].any()


def test_products_convolutions_and_attention_are_the_librarys_unless_chosen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(self.conv(x).flatten(2).transpose(1, 2))
            return torch.nn.functional.scaled_dot_product_attention(y, y, y)

    graph = suture.trace(Net(), (torch.randn(1, 3, 8, 8),))
    program = lower(graph, "cuda")
    assert sorted(program.left.values()) == [
        "the GPU's library convolves", "the GPU's library has flash attention", "the GPU's library multiplies"
    ]  # fmt: skip
    assert not program.storage
    assert "# the GPU's library multiplies" in str(program)
    alone = lower(graph, "cuda", alone=True)
    assert not alone.left
    assert all(isinstance(step, KernelStep) for step in alone.steps)


@pytest.mark.parametrize(
    ("dtype", "rows", "columns", "expected"),
    [
        (torch.float32, 5, 9, CudaGemmSchedule(64, 64, 16, 128)),
        (torch.bfloat16, 5, 9, CudaGemmSchedule(64, 64, 32, 128)),
        (torch.bfloat16, 4096, 4096, CudaGemmSchedule(128, 128, 32, 256)),
        (torch.float64, 4096, 4096, CudaGemmSchedule(64, 64, 16, 256)),
    ],
    ids=str,
)
def test_sane_schedules_without_a_search(
    dtype: torch.dtype, rows: int, columns: int, expected: CudaGemmSchedule
) -> None:
    graph = suture.trace(nn.Linear(8, columns, dtype=dtype), (torch.randn(rows, 8, dtype=dtype),))
    context, groups, _ = plan(graph, "cuda", alone=True)
    found = cuda_gemm.candidates(groups[0], context)
    assert found[0] == expected
    assert len(found) > 1
    assert all(each.rows % (each.lanes // 32) == 0 and each.columns % 32 == 0 for each in found)
