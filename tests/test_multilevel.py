"""Multi-level training: coarsening and refining are inverse where they must be, the closed forms, and the V-cycle driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from growable import IMAGES, TOKENS, Channels, Convolutional, Decoder, Shape
from torch import nn

import suture
from suture.drivers.cycle import adopt, v_cycle
from suture.ir.errors import SutureError

SHAPES = {
    "layer norm": Shape(layers=4),
    "rms norm, groups, rotary, gated, tied": Shape("rms", False, 4, 2, True, True, True, layers=4),
    "tied": Shape(tied=True, layers=4),
}


def traced(shape: Shape) -> suture.Graph:
    torch.manual_seed(0)
    return suture.trace(zoo.randomise(Decoder(shape)).double().eval(), (TOKENS,))


def equal(a: suture.Graph, b: suture.Graph) -> bool:
    return set(a.parameters) == set(b.parameters) and all(
        torch.equal(p.data, b.parameters[n].data) for n, p in a.parameters.items()
    )


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 1}, {"width": 1}, {"depth": 4, "exclude": ("*.q",)}],
    ids=["both", "width", "depth", "four blocks"],
)
def test_coarsening_what_was_refined_gives_it_back_to_the_last_bit(name: str, options: dict[str, Any]) -> None:
    graph = traced(SHAPES[name])
    coarse = suture.passes.coalesce(graph, **options)
    refined = suture.passes.decoalesce(coarse, like=graph, **options)
    assert {n: p.shape for n, p in refined.parameters.items()} == {n: p.shape for n, p in graph.parameters.items()}
    again = suture.passes.coalesce(refined, **options)
    assert equal(again, coarse)
    assert equal(suture.passes.decoalesce(again, like=graph, **options), refined)
    assert coarse.stats().parameters < graph.stats().parameters


@pytest.mark.parametrize("name", list(SHAPES))
def test_refining_in_width_keeps_the_function(name: str) -> None:
    graph = traced(SHAPES[name])
    coarse = suture.passes.coalesce(graph, depth=1)
    refined = suture.passes.decoalesce(coarse, like=graph, depth=1)
    assert refined.history[-1].contract == "exact"
    torch.testing.assert_close(
        suture.evaluate(refined, [TOKENS])[0], suture.evaluate(coarse, [TOKENS])[0], rtol=1e-12, atol=1e-12
    )


def test_the_closed_form_in_width() -> None:
    x = torch.randn(3, 5)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = suture.trace(net.eval(), (x,))
    average = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]])
    coarse = suture.passes.coalesce(graph)
    torch.testing.assert_close(coarse.parameters["0.weight"].data, average @ net[0].weight)
    torch.testing.assert_close(coarse.parameters["0.bias"].data, average @ net[0].bias)
    torch.testing.assert_close(coarse.parameters["2.weight"].data, net[2].weight @ (2 * average).T)
    assert equal(suture.passes.coalesce(graph, width=1, depth=1), graph)


def test_the_closed_form_in_depth_and_the_numbering() -> None:
    graph = traced(SHAPES["layer norm"])
    coarse = suture.passes.coalesce(graph, width=1)
    name = "layers.{}.feed.up.weight"
    assert name.format(1) in coarse.parameters and name.format(2) not in coarse.parameters
    for k in range(2):
        pair = [graph.parameters[name.format(2 * k + j)].data for j in range(2)]
        torch.testing.assert_close(coarse.parameters[name.format(k)].data, (pair[0] + pair[1]) / 2)
    refined = suture.passes.decoalesce(coarse, like=graph, width=1)
    assert [
        torch.equal(refined.parameters[name.format(k)].data, coarse.parameters[name.format(k // 2)].data)
        for k in range(4)
    ] == [True] * 4
    assert coarse.history[-1].notes == ("layers: 4 -> 2 blocks, averaged",)


def test_batch_norms_and_their_statistics_become_coarser() -> None:
    torch.manual_seed(0)
    module = zoo.randomise(Convolutional(Channels())).double().eval()
    graph = suture.trace(module, (IMAGES,))
    coarse = suture.passes.coalesce(graph)
    torch.testing.assert_close(
        coarse.parameters["norms.0.running_var"].data, module.norms[0].running_var.reshape(2, 4).mean(0)
    )
    refined = suture.passes.decoalesce(coarse, like=graph, depth=1)
    torch.testing.assert_close(suture.evaluate(refined, [IMAGES])[0], suture.evaluate(coarse, [IMAGES])[0])


def test_what_does_not_divide_is_left_alone_and_said() -> None:
    graph = traced(Shape(hidden=15, layers=3))
    coarse = suture.passes.coalesce(graph)
    notes = coarse.history[-1].notes
    assert "layers.0.feed.up.weight[0] left alone: 15 is no multiple of 2" in notes
    assert "layers left alone: 3 blocks are no multiple of 2" in notes
    assert equal(suture.passes.coalesce(suture.passes.decoalesce(coarse, like=graph)), coarse)


def test_interpolation() -> None:
    a, b = traced(Shape(layers=1)), traced(Shape(layers=1))
    for parameter in b.parameters.values():
        parameter.assign(parameter.data.detach() + 1)
    moved = suture.passes.interpolate(a, other=b, alpha=0.25)
    for name, parameter in moved.parameters.items():
        if parameter.role == "parameter":
            torch.testing.assert_close(parameter.data, a.parameters[name].data + 0.25)
    assert equal(suture.passes.interpolate(a, other=b, alpha=0.0), a)


def loss_of(module: nn.Module) -> torch.Tensor:
    return F.cross_entropy(module(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def test_a_cycle_trains_every_level_and_comes_back() -> None:
    seen: list[tuple[int, int, int]] = []

    def train(module: nn.Module, level: int, steps: int) -> nn.Module | Mapping[str, torch.Tensor] | None:
        seen.append((level, steps, module.get_parameter("layers.0.feed.up.weight").shape[0]))
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(module).backward()
            optimizer.step()
        return (module, module.state_dict(), None)[len(seen) % 3]

    graph = traced(Shape(layers=4))
    before, held = (
        float(loss_of(suture.to_torch(graph)).detach()),
        {n: p.data.clone() for n, p in graph.parameters.items()},
    )
    cycle = v_cycle(graph, train, (2, 3, 4, 3, 5))
    assert seen == [(0, 2, 20), (1, 3, 10), (2, 4, 5), (1, 3, 10), (0, 5, 20)]
    assert float(loss_of(suture.to_torch(cycle.graph)).detach()) < before
    assert all(torch.equal(tensor, graph.parameters[name].data) for name, tensor in held.items())
    assert {n: p.shape for n, p in cycle.graph.parameters.items()} == {n: p.shape for n, p in graph.parameters.items()}
    assert cycle.cost == sum(leg.steps * leg.macs for leg in cycle.legs) < 17 * graph.stats().macs
    assert str(cycle).splitlines()[2].startswith("level 2: 4 steps at ")


def spoilt(module: nn.Module, level: int, steps: int) -> dict[str, torch.Tensor]:
    return {name: tensor * float("nan") for name, tensor in module.state_dict().items()}


BAD_TRAINING = {
    "returns a number": (lambda module, level, steps: 0.5, "[S461] level 0: the training function returned a float; a module, a state dict, or nothing"),
    "returns another model": (lambda module, level, steps: nn.Linear(2, 2), "[S461] level 0: embed.weight of the trained model is missing"),
    "diverges": (spoilt, "[S461] level 0: embed.weight of the trained model is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_TRAINING))
def test_a_training_function_that_misbehaves(name: str) -> None:
    train, text = BAD_TRAINING[name]
    with pytest.raises(SutureError) as caught:
        v_cycle(traced(Shape(layers=2)), train, (1, 1, 1))
    assert text in str(caught.value)


def test_bad_input_gets_one_line() -> None:
    graph = traced(Shape(layers=2))
    other = traced(Shape(layers=2, hidden=24))
    coarse = suture.passes.coalesce(graph)
    cases = [
        (lambda: suture.passes.coalesce(graph, width=0), "width=0 is no size of a group"),
        (lambda: suture.passes.decoalesce(coarse, like=other), "layers.0.feed.up.weight of the coarse model has shape [10, 8]; shape [12, 8] would be right"),
        (lambda: suture.passes.interpolate(graph, other=coarse), "embed.weight has shape [11, 16], and the other model has one of shape [11, 8]"),
        (lambda: suture.passes.interpolate(graph, other=graph, alpha=2.0), "alpha=2 is no part of the way"),
        (lambda: v_cycle(graph, lambda *_: None, (1, 1)), "steps=(1, 1) is no cycle"),
        (lambda: v_cycle(graph, lambda *_: None, (0, 0, 0), width=1, depth=3), "nothing is left to coalesce at level 0"),
    ]  # fmt: skip
    for call, text in cases:
        with pytest.raises(SutureError) as caught:
            call()
        assert caught.value.code.value == "S455" and text in str(caught.value), str(caught.value)


def test_adopting_keeps_what_a_state_dict_does_not_hold() -> None:
    graph = traced(Shape("rms", rotary=True, layers=1))
    state = {name: tensor + 1 for name, tensor in suture.to_torch(graph).state_dict().items()}
    adopted = adopt(graph, state)
    torch.testing.assert_close(adopted.parameters["embed.weight"].data, graph.parameters["embed.weight"].data + 1)
    assert (
        adopted.parameters["layers.0.attention.frequencies"].data
        is graph.parameters["layers.0.attention.frequencies"].data
    )
