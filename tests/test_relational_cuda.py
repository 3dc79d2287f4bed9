"""Relational functions and layers on a GPU, by the stand-in: the same kernels launched in the same order, results and gradients as torch's.

What would be left behind on the CPU is found as well (`cuda_stand_in.places`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cuda_stand_in
import pytest
import torch
from accelerating import drawn, edge_index, features, leaves, types
from cuda_stand_in.places import Elsewhere
from message_graphs import random_graph
from test_relational_function import Attention, Convolution
from torch import nn

import suture
from suture import relational
from suture.backends import compiled_cuda
from suture.drivers.accelerating import running
from suture.drivers.relational import calling
from suture.frontends.messages import tracing
from suture.ir.graph import Value


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cuda, "find_device", cuda_stand_in.device)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Follows what is on the GPU: what kernels and torch's nodes are given must be there, forwards and backwards."""
    mode = Elsewhere()
    enter, backward = compiled_cuda._Call.enter, calling._Differentiable.backward

    def checked(self: Any, value: Value, tensor: torch.Tensor) -> None:
        if value.name.startswith("grad"):  # torch made it, on the device of what it is the gradient of
            mode.put(tensor)
        assert mode.may_have(tensor) or not tensor.dim(), f"{value} is on the CPU"
        enter(self, value, tensor)

    def followed(context: Any, *cotangents: torch.Tensor | None) -> Any:
        with mode:
            return backward(context, *cotangents)

    monkeypatch.setattr(compiled_cuda._Call, "enter", checked)
    monkeypatch.setattr(calling._Differentiable, "backward", staticmethod(followed))
    return mode


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


def _layers() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    geometric = pytest.importorskip("torch_geometric.nn")
    kinds = [("a", "x", "b"), ("b", "y", "a")]
    counts = {"a": 5, "b": 6}
    index = {kind: edge_index(counts[kind[0]], counts[kind[2]], 9, k) for k, kind in enumerate(kinds)}
    by_type = {name: features(count, 8, dtype=torch.float32) for name, count in counts.items()}
    x = features(30, 6, dtype=torch.float32)
    return {
        "rgcn": lambda: (geometric.RGCNConv(6, 4, 5, num_bases=2), (x, edge_index(30, 30, 90), types(5, 90))),
        "gat": lambda: (geometric.GATv2Conv(6, 4, 2), (x, edge_index(30, 30, 90))),
        "hgt": lambda: (geometric.HGTConv(8, 8, (list(counts), kinds), 2), (by_type, index)),
    }


@pytest.mark.parametrize("name", ["rgcn", "gat", "hgt"])
def test_accelerated_layers_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere, name: str) -> None:
    chosen = running.Compiled._function
    monkeypatch.setattr(running.Compiled, "_function", lambda self, device: chosen(self, "cuda"))
    layer, args = _layers()[name]()
    layer = drawn(layer, dtype=torch.float32)
    fast = suture.accelerate(copy.deepcopy(layer))
    found = []
    for each in (layer, fast):
        given = [tensor.detach().requires_grad_() for tensor in leaves(args)]
        if each is fast:
            elsewhere.put(each)
            elsewhere.put(args)
            with elsewhere:
                outputs = list(leaves(each(*args)))
            assert all(map(elsewhere.may_have, outputs))
        else:
            outputs = list(leaves(each(*args)))
        wrt = [*given, *each.parameters()]
        loss = torch.stack([y.square().sum() for y in outputs]).sum()
        found.append([*outputs, *torch.autograd.grad(loss, wrt, materialize_grads=True)])
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_a_graph_trains_with_parameters_on_the_gpu(elsewhere: Elsewhere) -> None:
    module, g, x = Convolution(5, 6, 6), random_graph(), torch.randn(20, 6)
    graph = tracing.trace(copy.deepcopy(module), g, x)
    compiled = suture.compile(graph, target="cuda", train=True)
    edges = {value.name: elsewhere.put(g.tensors[value.name]) for value in graph.inputs if value.name in g.tensors}
    elsewhere.put([x, *compiled.parameters()])
    with elsewhere:
        y = compiled(*[edges.get(value.name, x) for value in graph.inputs])
    y.square().sum().backward()
    expected = module(g, x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for mine, own in zip(dict(compiled.named_parameters()).values(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, own.grad, rtol=1e-4, atol=1e-4)


def test_an_operand_that_was_left_behind_is_found() -> None:
    mode, left = Elsewhere(), torch.arange(4)
    there = mode.put(torch.arange(4))
    with mode:
        assert mode.may_have(there * 2 + torch.arange(4, device=there.device)) and not mode.may_have(left + 1)
        with pytest.raises(RuntimeError, match=r"add: an operand of shape \[4\] is on the CPU"):
            there + left
