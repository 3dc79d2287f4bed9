"""Graphs of many steps: a recurrence written out and joined lowers, compiles and computes, as deep as the logarithm of its length."""

from __future__ import annotations

import sys

import torch
from test_kernel_prints import needs_compiler
from torch import Tensor, nn

import suture
from suture.codegen.program import lower


class WrittenOut(nn.Module):
    """A leaky sum over time, a step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.linspace(0.1, 0.9, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Of [rows, time, 8] the same."""
        state, states = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            state = state * self.kept + step
            states.append(state)
        return torch.stack(states, 1) * torch.sigmoid(x)


@needs_compiler
def test_a_recurrence_of_many_steps_is_compiled() -> None:
    torch.manual_seed(0)
    model, x = WrittenOut(), torch.randn(3, 100, 8)
    graph = suture.trace(model, (x,))
    found = suture.compile(graph, target="cpp")(x)
    torch.testing.assert_close(found, model(x))


@needs_compiler
def test_a_long_chain_of_pointwise_nodes_is_cut_into_kernels() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(150):
                x = torch.relu(x) * 0.9 + x
            return x

    x = torch.linspace(-1, 1, 33).double()
    graph = suture.trace(Chain(), (x,))
    assert 1 < len(lower(graph, alone=True).steps) < 30
    torch.testing.assert_close(suture.compile(graph, target="cpp")(x), Chain()(x))


def test_many_parts_that_are_joined_do_not_nest_deeply() -> None:
    class Joined(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return torch.cat([part.transpose(0, 1) for part in parts], 1).relu()

    parts = tuple(torch.randn(1 + k % 3, 5) for k in range(300))
    graph = suture.trace(Joined(), parts)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        (step,) = lower(graph, alone=True).steps
    finally:
        sys.setrecursionlimit(limit)
    assert str(step)
