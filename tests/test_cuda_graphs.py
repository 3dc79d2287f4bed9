"""Whole graphs compiled for a GPU compute what the evaluator does, on a GPU with `--device cuda`, else on the stand-in."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cuda_stand_in
import pytest
import torch
import zoo
from cuda_stand_in import devices, state
from hypothesis import given, settings
from hypothesis import strategies as st
from standalone_nets import traced
from strategies import graphs
from torch import nn

import suture
from suture.backends import compiled_cuda
from suture.backends.compiled_cuda import CompiledCudaGraph, compile_cuda
from suture.codegen.program import lower
from suture.codegen.step import KernelStep
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.contract import deviation
from suture.passes.probes import draw_probes

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def compiled(graph: Graph) -> CompiledCudaGraph:
    return compile_cuda(lower(graph, "cuda"), cuda_stand_in.device())


def agree(graph: Graph, inputs: list[torch.Tensor], tolerance: float) -> None:
    program = lower(graph, "cuda")
    expected = evaluate(graph, inputs)
    for gpu in devices():
        received = compile_cuda(program, gpu)(*[tensor.to(gpu.place) for tensor in inputs])
        for a, b in zip(expected, received if isinstance(received, tuple) else (received,), strict=True):
            assert b.dtype == a.dtype
            assert b.device == gpu.place
            assert deviation(a, b.cpu()) < tolerance


@settings(max_examples=12, deadline=None)
@given(graphs(), st.integers(0, 3))
def test_random_graphs_compute_the_same(graph: Graph, seed: int) -> None:
    agree(graph, draw_probes(graph, seed=seed), 2e-5)


@pytest.mark.parametrize("name", ["hf_vit", "llama", "unet"])
def test_whole_models_at_another_size_than_traced(name: str) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    torch.manual_seed(1)
    args, kwargs = entry.args(batch=3, sequence=9)
    tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
    agree(graph, tensors, 2e-4)


class _Mixed(nn.Module):
    """Kernels and torch's nodes in turn, an intermediate result that is returned too, numbers from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.nn.functional.gelu(self.first(x) * 2 + 1)
        z = self.second(y.cumsum(-1)) + torch.arange(12)
        return torch.softmax(z.sigmoid() + x, -1), y


def _mixed() -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    module = _Mixed()
    return module, suture.trace(module, (torch.randn(3, 12),), dynamic={"x": {0: "n"}})


def test_kernels_and_torch_in_turn_at_many_sizes() -> None:
    module, graph = _mixed()
    for gpu in devices():
        fn = compile_cuda(lower(graph, "cuda"), gpu)
        assert sum(isinstance(step, KernelStep) for step in fn.program.steps) >= 2
        for rows in (3, 1, 40, 0, 3):
            x = torch.randn(rows, 12)
            for a, b in zip(module(x), fn(x.to(gpu.place)), strict=True):
                torch.testing.assert_close(b.cpu(), a.detach(), rtol=1e-5, atol=1e-5)


def test_results_of_one_call_outlive_the_next() -> None:
    _, graph = _mixed()
    fn = compiled(graph)
    x = torch.randn(4, 12)
    first = fn(x)
    kept = [tensor.clone() for tensor in first]
    fn(torch.randn(4, 12))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_pieces_of_tensors_that_start_anywhere_or_lie_otherwise() -> None:
    module, graph = _mixed()
    fn = compiled(graph)
    flat = torch.randn(200)
    for x in (flat[1:61].view(5, 12), flat[:60].view(12, 5).t(), flat[3:123].view(5, 24)[:, ::2]):
        torch.testing.assert_close(fn(x)[0], module(x)[0].detach(), rtol=1e-5, atol=1e-5)


def test_inputs_that_do_not_fit_or_are_elsewhere() -> None:
    _, graph = _mixed()
    fn = compiled(graph)
    for wrong in (torch.randn(4, 13), torch.randn(4), torch.zeros(4, 12, dtype=torch.int64)):
        with pytest.raises(SutureError) as caught:
            fn(wrong)
        assert caught.value.code is Code.INPUT
    with pytest.raises(SutureError, match=r"the input x is on meta; it runs on cpu: move it there") as caught:
        fn(torch.randn(4, 12, device="meta"))
    assert caught.value.code is Code.DEVICE
    state().fails = 2
    with pytest.raises(SutureError, match="unspecified launch failure") as caught:
        fn(torch.randn(4, 12))
    state().fails = 0
    assert caught.value.code is Code.DEVICE


@pytest.mark.parametrize("options", [{}, {"train": True}, {"search": 1.0, "sizes": {"n": 3}}], ids=str)
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    graph = traced("mlp")
    with pytest.raises(SutureError, match=r"CUDA driver|sees no GPU") as caught:
        suture.compile(graph, target="cuda", **options)  # type: ignore[call-overload]
    assert caught.value.code is Code.DEVICE


def test_operands_by_name() -> None:
    module, graph = _mixed()
    x = torch.randn(2, 12)
    torch.testing.assert_close(compiled(graph)(x=x)[1], module(x)[1].detach(), rtol=1e-5, atol=1e-5)


class _Page(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = self.first(x)
        return torch.nn.functional.gelu(linear) * 2


def test_what_the_page_says_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "cuda.md").read_text(encoding="utf-8")
    first, second, third = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.setattr(compiled_cuda, "find_device", cuda_stand_in.device)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    module, x = _Page(), torch.randn(3, 24)
    names = {"module": module, "inputs": (x,), "x": x}
    exec(first, names)
    torch.testing.assert_close(names["y"], module(x).detach(), rtol=1e-5, atol=1e-5)
    exec(second.replace('"linear"', repr(names["graph"].nodes[0].outputs[0].name)), names)
    assert "through shared memory" in str(names["program"])
    if shutil.which("nvcc"):
        exec(third, names)
