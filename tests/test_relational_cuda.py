"""Relational functions compiled for a GPU, on the stand-in: the same kernels launched in the same order, results and gradients as torch's."""

from __future__ import annotations

import cuda_stand_in
import pytest
import torch
from message_graphs import random_graph
from test_relational_function import Attention, Convolution
from torch import nn

from suture import relational
from suture.backends import compiled_cuda
from suture.drivers.relational import variants
from suture.ir.graph import Graph


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda_stand_in.device()

    def compile_for_it(graph: Graph, trusted: tuple[str, ...] = ()) -> compiled_cuda.CompiledCudaGraph:
        return compiled_cuda.compile_graph_for_cuda(graph, device, trusted)

    monkeypatch.setattr(variants, "compile_graph_for_cuda", compile_for_it)


@pytest.mark.parametrize("module", [Convolution(5, 6, 6), Attention(5, 6, 2, 4)], ids=lambda each: type(each).__name__)
def test_results_and_gradients_are_those_of_the_program(module: nn.Module) -> None:
    g, x = random_graph(), torch.randn(20, 6)
    found = []
    for function in (module, relational.compile(module, target="cuda")):
        leaf = x.clone().requires_grad_()
        y = function(g, leaf)
        y = y[0] if isinstance(y, tuple) else y
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])])
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
