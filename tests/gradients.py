"""What tests of gradients share: small graphs in float64, and the gradients that torch finds in the evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph

F64 = torch.float64

MLP = """\
graph mlp(%x: f32[batch, 3]) {
  parameter @up: f32[4, 3]
  parameter @c: f32[4]
  parameter @down: f32[2, 4]

  %high: f32[batch, 4] = linear(%x, @up, @c) at up
  %bent: f32[batch, 4] = tanh(%high) at act
  %y: f32[batch, 2] = linear(%bent, @down) at down
  return %y
}
"""


def read(text: str, seed: int = 0) -> Graph:
    """A graph with random weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    graph = parse_graph(text.replace("f32", "f64"))
    for parameter in (p for p in graph.parameters.values() if p.dtype.is_floating_point):
        parameter.assign(torch.randn(parameter.data.shape, generator=generator, dtype=F64))
    return graph


def expected(
    graph: Graph, inputs: Mapping[str, torch.Tensor], cotangents: Sequence[torch.Tensor], *, training: bool = False
) -> dict[str, torch.Tensor | None]:
    """The gradients that torch finds in the evaluator."""
    leaves = {name: t.clone().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    weights = {
        name: p.data.clone().requires_grad_(p.requires_grad and p.dtype.is_floating_point)
        for name, p in graph.parameters.items()
    }
    results = evaluate(graph, leaves, parameters=weights, training=training)
    moved = [
        (t, c)
        for t, c in zip((t for t in results if t.is_floating_point()), cotangents, strict=True)
        if t.requires_grad
    ]
    asked = {name: t for name, t in {**leaves, **weights}.items() if t.requires_grad}
    found = torch.autograd.grad(
        [t for t, _ in moved], list(asked.values()), [c for _, c in moved], allow_unused=True
    )  # fmt: skip
    return {f"grad_{name}": t for name, t in zip(asked, found, strict=True)}


def drawn(graph: Graph, inputs: Mapping[str, torch.Tensor], seed: int = 7) -> list[torch.Tensor]:
    """A cotangent for every floating-point output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        results = evaluate(graph, inputs)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in results if t.is_floating_point()]


def assert_gradients(
    graph: Graph, made: Graph, inputs: Mapping[str, torch.Tensor], *, within: float = 1e-10, seed: int = 7
) -> None:
    """Every output is as it was, every gradient what torch finds, to a share of it or of a ten-thousandth of the largest one."""
    cotangents = drawn(graph, inputs, seed)
    with torch.no_grad():
        received = dict(zip(made.output_names, evaluate(made, [*inputs.values(), *cotangents]), strict=True))
        outputs = evaluate(graph, inputs)
    for name, right in zip(graph.output_names, outputs, strict=True):
        assert torch.equal(received.pop(name), right)
    gradients = expected(graph, inputs, cotangents)
    assert set(received) <= set(gradients)
    largest = max(float(t.abs().max()) for t in gradients.values() if t is not None and t.numel())
    for name, right in gradients.items():
        ours = received.get(name)
        if ours is None or right is None:
            assert all(t is None or not t.any() for t in (ours, right)), name
            continue
        scale = max(float(right.abs().max()) if right.numel() else 0.0, 1e-4 * largest)
        assert float((ours - right).abs().max() if right.numel() else 0.0) <= within * scale, name
