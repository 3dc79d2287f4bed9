"""A layer and its accelerated copy side by side: outputs, gradients of everything, dropout drawn from the same seed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import suture
from suture.drivers.accelerating import running
from suture.drivers.accelerating.swapping import Unaccelerated

DOUBLE = torch.float64


def run_eagerly(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let programs run as torch runs them; the graphs that they ran on are listed."""
    graphs: list[Any] = []

    def run(self: Any, graph: Any, tensors: Any, weights: Any) -> Any:
        graphs.append(graph)
        return torch.func.functional_call(self._program, dict(weights), (graph, *tensors))

    monkeypatch.setattr(running.Compiled, "__call__", run)
    return graphs


def drawn(layer: nn.Module, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Any:
    """The layer with random parameters; biases too, which are zero otherwise."""
    source = torch.Generator().manual_seed(seed)
    layer = layer.to(dtype)
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(torch.randn(each.shape, generator=source) / max(1, each.shape[-1]) ** 0.5)
    return layer


def edge_index(sources: int, targets: int, edges: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(high, (edges,), generator=source) for high in (sources, targets)])


def types(relations: int, edges: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(relations, (edges,), generator=torch.Generator().manual_seed(seed))


def features(*shape: int, seed: int = 2, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def edges_and_types(draw: st.DrawFn, *, relations: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many nodes, edges among them and their types: without edges, one node, loops, edges that come twice, relations without edges."""
    nodes, edges = draw(st.integers(1, 12)), draw(st.integers(0, 40))
    seed, used = draw(st.integers(0, 2**16)), draw(st.integers(1, relations))
    return nodes, edge_index(nodes, nodes, edges, seed), types(used, edges, seed)


def leaves(item: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors of arguments, or of results."""
    if isinstance(item, torch.Tensor):
        yield from [item] if item.is_floating_point() else []
    elif isinstance(item, (tuple, list)):
        yield from (tensor for each in item for tensor in leaves(each))
    elif isinstance(item, dict):
        yield from (tensor for each in item.values() for tensor in leaves(each))


def agree(layer: nn.Module, *args: Any, other: nn.Module | None = None, tolerance: float = 1e-10, **named: Any) -> Any:
    """Outputs and gradients of a layer and of its accelerated copy are the same; nothing ran the layer's own forward.

    :param other: the copy, if it is there already
    :param tolerance: of a difference, relative to the largest element, or to one
    :returns: the copy
    """
    other = suture.accelerate(copy.deepcopy(layer)) if other is None else other
    given = [each.requires_grad_() for each in leaves([args, named])]
    expected, found = (_run(each, given, args, named) for each in (layer, other))
    for name, a, b in zip(expected[0], expected[1], found[1], strict=True):
        if a is None or b is None:
            assert (a if b is None else b) is None or not (a if b is None else b).any(), name
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, name
        if a.numel():
            assert (a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1), name
    return other


def _run(
    layer: nn.Module, given: list[torch.Tensor], args: Any, named: Any
) -> tuple[list[str], list[torch.Tensor | None]]:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Unaccelerated)
        outputs = list(leaves(layer(*args, **named)))
    source = torch.Generator().manual_seed(7)
    loss = sum((each * torch.randn(each.shape, generator=source)).sum() for each in outputs)
    parameters = dict(layer.named_parameters())
    wrt = [*given, *parameters.values()]
    gradients = torch.autograd.grad(loss, wrt, allow_unused=True) if loss.requires_grad else [None] * len(wrt)
    names = [*(f"output {k}" for k in range(len(outputs))), *(f"input {k}" for k in range(len(given))), *parameters]
    return names, [*(each.detach() for each in outputs), *gradients]


def neighbourhood(
    seeds: torch.Tensor, edge_index: torch.Tensor, hops: int, fanout: int | None = None
) -> tuple[torch.Tensor, ...]:
    """What a NeighborLoader yields for seeds: the numbers of nodes, seeds first, of edges, and the edges between these nodes.

    :param fanout: how many edges into a node are kept at most; all, if absent
    """
    nodes, kept = seeds.tolist(), []
    place = {node: k for k, node in enumerate(nodes)}
    frontier = list(nodes)
    for _ in range(hops):
        reached = []
        for node in frontier:
            for edge in (edge_index[1] == node).nonzero().flatten().tolist()[:fanout]:
                source = int(edge_index[0, edge])
                if source not in place:
                    place[source] = len(nodes)
                    nodes.append(source)
                    reached.append(source)
                kept.append(edge)
        frontier = reached
    edges = torch.tensor(kept, dtype=torch.int64)
    renamed = torch.tensor([[place[int(end)] for end in row] for row in edge_index[:, edges]], dtype=torch.int64)
    return torch.tensor(nodes), edges, renamed.reshape(2, -1)
