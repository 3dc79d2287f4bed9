"""Learned growth: it begins as the direct operators, its maps are LiGO's formula, it learns, and it bakes to an ordinary graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from growable import TOKENS, Decoder, Shape
from torch import nn

import suture
from suture.ir.errors import SutureError
from suture.ir.splice import arrange
from suture.passes.growth.learned_growth import LearnedGrowth
from suture.passes.growth.width.widen import plan_widen


def traced(shape: Shape) -> suture.Graph:
    torch.manual_seed(0)
    return suture.trace(zoo.randomise(Decoder(shape)).double().eval(), (TOKENS,))


def loss_of(model: Any, step: int = 0) -> torch.Tensor:
    return F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


@pytest.mark.parametrize(
    "shape", [Shape(), Shape("rms", False, 4, 2, True, True, True)], ids=["layer norm", "rms norm, grouped, tied"]
)
def test_it_begins_as_splitting_and_stacking(shape: Shape) -> None:
    graph = traced(shape)
    plan = plan_widen(graph, factor=2)
    order = (0, 1, 0, 1)
    direct = plan.apply()
    arrange(suture.ir.regions.stack_at(direct), order)
    baked = LearnedGrowth(graph, plan, order).bake()
    assert set(baked.parameters) == set(direct.parameters)
    for name, parameter in direct.parameters.items():
        torch.testing.assert_close(baked.parameters[name].data, parameter.data, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(suture.evaluate(baked, [TOKENS])[0], suture.evaluate(direct, [TOKENS])[0])


def test_width_alone_begins_with_the_same_function() -> None:
    graph = traced(Shape())
    growth = LearnedGrowth(graph, plan_widen(graph, factor=2))
    torch.testing.assert_close(growth(TOKENS), suture.evaluate(graph, [TOKENS])[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(growth(tokens=TOKENS), growth(TOKENS))
    # one matrix an atom: the stream's ties everything that it meets
    assert [tuple(m.shape) for m in growth.matrices.values()] == [(32, 16), (8, 4), (40, 20), (8, 4), (40, 20)]


def test_the_formula_of_one_layer() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)).double()
    graph = suture.trace(net.eval(), (x,))
    growth = LearnedGrowth(graph, plan_widen(graph, to=6, at=("0",)), noise=0.5, seed=3)
    (matrix,) = growth.matrices.values()
    grown = growth.grown()
    reading = matrix / matrix.square().sum(0)
    torch.testing.assert_close(grown["0.weight"], matrix @ net[0].weight)
    torch.testing.assert_close(grown["0.bias"], matrix @ net[0].bias)
    torch.testing.assert_close(grown["2.weight"], net[2].weight @ reading.T)
    torch.testing.assert_close(reading.T @ matrix.detach(), reading.T @ matrix)


def test_depth_mixes_blocks_kind_by_kind() -> None:
    graph = traced(Shape())
    growth = LearnedGrowth(graph, order=(0, 1, 0, 1), noise=0.5, seed=1)
    assert not growth.matrices
    assert {tuple(w.shape) for w in growth.mixing.values()} == {(4, 2)}
    mixture = growth._mixtures["layers.2.feed.up.weight"]
    weights = growth.mixing[mixture.weights]
    small = [graph.parameters[f"layers.{k}.feed.up.weight"].data for k in range(2)]
    torch.testing.assert_close(
        growth.grown()["layers.2.feed.up.weight"], weights[2, 0] * small[0] + weights[2, 1] * small[1]
    )
    assert growth._mixtures["layers.2.feed.down.weight"].weights != mixture.weights


def test_blocks_share_their_matrices_when_they_are_mixed() -> None:
    graph = traced(Shape())
    plan = plan_widen(graph, factor=2)
    assert len(LearnedGrowth(graph, plan).matrices) == 5
    assert len(LearnedGrowth(graph, plan, (0, 1, 0, 1)).matrices) == 3


def test_training_the_maps_lowers_the_loss_and_leaves_the_small_model() -> None:
    graph = traced(Shape())
    held = {name: parameter.data.clone() for name, parameter in graph.parameters.items()}
    growth = LearnedGrowth(graph, plan_widen(graph, factor=2), (0, 1, 0, 1), noise=0.05)
    losses = growth.fit(loss_of, 12, learning_rate=1e-2)
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(tensor, graph.parameters[name].data) for name, tensor in held.items())
    baked = growth.bake()
    with torch.no_grad():
        torch.testing.assert_close(suture.evaluate(baked, [TOKENS])[0], growth.eval()(TOKENS))
    module = suture.to_torch(baked)
    loss_of(module).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_pass_records_what_it_learned_and_a_seed_repeats_it() -> None:
    graph = traced(Shape(layers=2))
    options = {"loss": loss_of, "steps": 3, "factor": 2.0, "order": (0, 0, 1, 1), "seed": 4}
    once, again = (suture.passes.ligo(graph, **options) for _ in range(2))
    assert once.history[-1].contract == "structural"
    assert (
        once.history[-1].notes[-1].startswith("1,")
        and "entries of maps trained for 3 steps: loss" in once.history[-1].notes[-1]
    )
    assert all(torch.equal(p.data, again.parameters[n].data) for n, p in once.parameters.items())
    assert once.parameters["layers.3.feed.up.weight"].shape == (40, 32)


BAD = {
    "nothing to grow": ({}, "S455", "neither a width nor an order of blocks to grow to"),
    "no such block": ({"order": (0, 7)}, "S455", "the order names block 7 of 2"),
    "no such stack": ({"order": (0, 1, 1), "stack": "layerz"}, "S451", "layerz"),
    "not a number": ({"factor": 2, "loss": lambda model, step: model(TOKENS)}, "S461", "step 0: the loss is a tensor of shape [2, 5, 11]"),
    "not a tensor": ({"factor": 2, "loss": lambda model, step: 0.5}, "S461", "step 0: the loss is a float"),
    "constant": ({"factor": 2, "loss": lambda model, step: torch.zeros(())}, "S461", "the loss does not depend on the growth"),
    "infinite": ({"factor": 2, "loss": lambda model, step: loss_of(model) / 0}, "S461", "the loss is inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_gets_one_line(name: str) -> None:
    options, code, text = BAD[name]
    with pytest.raises(SutureError) as caught:
        suture.passes.ligo(traced(Shape()), **{"loss": loss_of, "steps": 2, **options})
    assert caught.value.code.value == code and text in str(caught.value), str(caught.value)


def test_growth_by_padding_cannot_be_learned() -> None:
    graph = traced(Shape("rms"))
    with pytest.raises(SutureError, match="the growth does not begin with copies"):
        LearnedGrowth(graph, plan_widen(graph, to=24, at=("embed",), method="zero"))


def test_a_single_block_grows_in_depth() -> None:
    graph = traced(Shape(layers=1))
    baked = LearnedGrowth(graph, order=(0, 0, 0), at="layers.0").bake()
    direct = graph.copy()
    arrange(suture.ir.regions.stack_at(direct, "layers.0"), (0, 0, 0))
    assert set(baked.parameters) == set(direct.parameters)
    torch.testing.assert_close(suture.evaluate(baked, [TOKENS])[0], suture.evaluate(direct, [TOKENS])[0])
