"""Graphs that train on a GPU: both ways run as its kernels, gradients are torch's, an optimiser's step is seen. Without one, on the stand-in."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from cuda_stand_in import devices, state
from standalone_nets import Attends, Mixer, traced
from torch import nn

import suture
from suture.backends import compiled_cuda
from suture.codegen.cuda.launch import Device
from suture.codegen.step import KernelStep
from suture.ir.errors import Code, SutureError

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = next(devices())
    monkeypatch.setattr(compiled_cuda, "find_device", lambda: found)
    return found


def moved(results: object, seeds: list[torch.Tensor], ends: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results, and the gradients of their weighted sum."""
    given = results if isinstance(results, tuple) else (results,)
    total = sum((each * seed.to(each.device)).sum() for each, seed in zip(given, seeds, strict=True))
    assert isinstance(total, torch.Tensor)
    return [*given, *torch.autograd.grad(total, ends)]


@pytest.mark.parametrize("name", ["mixer", "attends"])
def test_results_and_gradients_are_torchs(gpu: Device, name: str) -> None:
    torch.manual_seed(3)
    module, inputs = {
        "mixer": (Mixer(), (torch.randint(0, 11, (3, 4)), torch.randn(24))),
        "attends": (Attends(), (torch.randn(3, 7, 16),)),
    }[name]
    compiled = suture.compile(suture.trace(copy.deepcopy(module), inputs), target="cuda", train=True)
    assert any(isinstance(step, KernelStep) for step in compiled.backward.program.steps)
    assert {each.device for each in compiled.parameters()} == {gpu.place}
    sides = []
    expected = module(*inputs)
    seeds = [torch.randn_like(each) for each in (expected if isinstance(expected, tuple) else (expected,))]
    for function, place, parameters in (
        (compiled, gpu.place, dict(compiled.named_parameters())),
        (module, torch.device("cpu"), dict(module.named_parameters())),
    ):
        given = [x.detach().to(place).requires_grad_(x.is_floating_point()) for x in inputs]
        ends = [*(x for x in given if x.requires_grad), *(parameters[key] for key in sorted(parameters))]
        sides.append(moved(function(*given), seeds, ends))
    for found, wanted in zip(*sides, strict=True):
        assert found.device == gpu.place
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-4)


def test_an_optimiser_moves_what_the_next_call_reads_and_inputs_are_checked(gpu: Device) -> None:
    graph = traced("mlp")
    compiled, plain = suture.compile(graph, target="cuda", train=True), suture.to_torch(traced("mlp"))
    launched = state().launches
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    losses: list[list[float]] = []
    for function, parameters, place in (
        (compiled, compiled.parameters(), gpu.place),
        (plain, plain.parameters(), torch.device("cpu")),
    ):
        descent = torch.optim.SGD(parameters, 0.2)
        losses.append([])
        for _ in range(4):
            descent.zero_grad()
            loss = (function(x.to(place)) - y.to(place)).square().mean()
            loss.backward()
            descent.step()
            losses[-1].append(loss.item())
    assert losses[0][3] < losses[0][0]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-5)
    if gpu.place.type == "cpu":
        assert state().launches >= launched + 8
    with pytest.raises(SutureError, match="is on meta") as caught:
        compiled(torch.empty(8, 6, device="meta"))
    assert caught.value.code is Code.DEVICE


def test_one_graph_compiled_for_both_targets_runs_on_both(gpu: Device) -> None:
    graph, x = traced("mlp"), torch.randn(2, 6)
    here = suture.compile(graph, train=True)
    there = suture.compile(graph, target="cuda", train=True)
    assert here.operator is not there.operator
    before = state().launches
    expected = here(x)
    assert state().launches == before
    torch.testing.assert_close(there(x.to(gpu.place)).cpu(), expected, rtol=1e-5, atol=1e-5)
    if gpu.place.type == "cpu":
        assert state().launches > before


def test_an_index_outside_is_found_before_anything_moves(gpu: Device) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, i: torch.Tensor) -> torch.Tensor:
            return self.table(i).tanh().square()

    compiled = suture.compile(suture.trace(Looks(), (torch.zeros(3, dtype=torch.int64),)), target="cuda", train=True)
    with pytest.raises(SutureError, match="is not from 0 to below 7") as caught:
        compiled(torch.tensor([1, 7, 2], device=gpu.place))
    assert caught.value.code is Code.INPUT
