"""Optimiser state that grows: moments are gradients of the grown model, the closed form, and the next step has no spike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from growable import TOKENS, Decoder, Shape
from torch import nn

import suture
from suture.ir.errors import SutureError
from suture.passes.growth.optimizer_state import ParameterSource, map_optimizer_state
from suture.passes.growth.width.widen import plan_widen


def loss_of(module: nn.Module) -> torch.Tensor:
    logits = module(TOKENS)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def gradients(graph: suture.Graph) -> dict[str, torch.Tensor]:
    module = suture.to_torch(graph)
    loss_of(module).backward()
    return {name: p.grad for name, p in module.named_parameters()}


def traced(shape: Shape) -> suture.Graph:
    torch.manual_seed(0)
    return suture.trace(zoo.randomise(Decoder(shape)).double().eval(), (TOKENS,))


@pytest.mark.parametrize("shape", [
    Shape(layers=1), Shape("rms", False, 4, 2, True, True, False, layers=1), Shape(tied=True, layers=1), Shape("rms", True, 4, 2, True, True, True, layers=1),
], ids=["layer norm", "rms norm, groups, rotary, gated", "tied", "rms norm, tied"])  # fmt: skip
@pytest.mark.parametrize("split", ["even", "uneven"])
def test_moments_are_the_gradients_of_the_grown_model(shape: Shape, split: str) -> None:
    graph = traced(shape)
    # uneven copies on a normed stream share its statistics evenly: there the old gradient does not say how the new one divides
    plan = plan_widen(
        graph, factor=2, split=split, every=True, exclude=("embed", "*.o", "*.down") if split == "uneven" else ()
    )
    assert plan.exact
    sources = plan.sources()
    old, new = gradients(graph), gradients(plan.apply())
    assert set(sources) >= set(new)
    for name, gradient in new.items():
        torch.testing.assert_close(sources[name].first_moment(old[sources[name].name]), gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            sources[name].second_moment(old[name].square()), gradient.square(), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    ("shape", "method"), [(Shape("rms", layers=1), "zero"), (Shape("rms", tied=True, layers=1), "zero")]
)
def test_what_was_there_before_padding_keeps_its_moments(shape: Shape, method: str) -> None:
    graph = traced(shape)
    plan = plan_widen(graph, to=24, at=("embed",), method=method)
    assert plan.exact
    old, new = gradients(graph), gradients(plan.apply())
    for name, source in plan.sources().items():
        if name not in new:
            continue
        mapped = source.first_moment(old[name])
        inside = tuple(slice(0, size) for size in old[name].shape)
        torch.testing.assert_close(mapped[inside], new[name][inside], rtol=1e-9, atol=1e-12)
        added = mapped.clone()
        added[inside] = 0
        assert not added.any()
        squares = source.second_moment(old[name].square())
        assert bool((squares > 0).all()) or not bool((old[name] != 0).all())


@pytest.mark.parametrize("options", [{"factor": 2, "split": "uneven"}, {"to": 24, "at": ("embed",), "method": "mean"}])
def test_moments_pulled_back_along_the_growth_are_the_old_ones(options: dict[str, Any]) -> None:
    graph = traced(Shape(layers=1))
    plan = plan_widen(graph, **options)
    old, new, sources = gradients(graph), gradients(plan.apply()), plan.sources()
    for name, gradient in new.items():

        def grow(w: torch.Tensor, source: ParameterSource = sources[name]) -> torch.Tensor:
            for dimension in source.dimensions:
                w = dimension.apply(w)
            return w if source.factor is None else w * source.factor

        _, pull = torch.func.vjp(grow, graph.parameters[name].data)
        for candidate in (gradient, sources[name].first_moment(old[name])):
            torch.testing.assert_close(pull(candidate)[0], old[name], rtol=1e-9, atol=1e-12)


def test_the_closed_form_of_a_split() -> None:
    x = torch.randn(6, 5)
    net = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2))
    plan = plan_widen(suture.trace(net.eval(), (x,)), to=6, at=("0",), split="uneven", alpha=0.7)
    sources, moment = plan.sources(), torch.rand(4, 5)
    share = torch.tensor([0.7, 0.7, 1, 1, 0.3, 0.3])[:, None]
    rows = torch.cat([moment, moment[:2]])
    torch.testing.assert_close(sources["0.weight"].first_moment(moment), share * rows)
    torch.testing.assert_close(sources["0.weight"].second_moment(moment), share.square() * rows)
    moment = torch.rand(2, 4)
    torch.testing.assert_close(sources["2.weight"].first_moment(moment), torch.cat([moment, moment[:, :2]], 1))


def trained(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(module)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    return [*losses, float(loss_of(module).detach())]


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def test_training_goes_on_without_a_spike() -> None:
    small = suture.to_torch(traced(Shape("rms", layers=1)))
    before = torch.optim.AdamW(small.parameters(), lr=1e-2)
    trained(small, before, 40)
    graph = suture.trace(small.eval(), (TOKENS,))
    plan = plan_widen(graph, factor=2, split="uneven")
    grown, fresh = suture.to_torch(plan.apply()), suture.to_torch(plan.apply())
    continued = torch.optim.AdamW(grown.parameters(), lr=1e-2)
    continued.load_state_dict(
        map_optimizer_state(before.state_dict(), names_of(small), names_of(grown), plan.sources())
    )
    old = trained(small, before, 1)
    warm, cold = trained(grown, continued, 4), trained(fresh, torch.optim.AdamW(fresh.parameters(), lr=1e-2), 4)
    assert warm[0] == pytest.approx(old[0], rel=1e-9) == cold[0]
    assert max(warm) <= warm[0] * 1.001, "the loss goes on falling"
    assert max(cold) > 1.02 * max(warm), "a fresh optimiser takes full steps at once"


def test_two_groups_and_sgd_momentum() -> None:
    small = suture.to_torch(traced(Shape(layers=1)))

    def groups(module: nn.Module) -> list[dict[str, Any]]:
        matrices = [p for p in module.parameters() if p.ndim > 1]
        return [{"params": matrices, "weight_decay": 0.1}, {"params": [p for p in module.parameters() if p.ndim == 1]}]

    def names(module: nn.Module) -> list[str]:
        return [n for n, p in module.named_parameters() if p.ndim > 1] + [
            n for n, p in module.named_parameters() if p.ndim == 1
        ]

    before = torch.optim.SGD(groups(small), lr=0.01, momentum=0.9)
    trained(small, before, 2)
    plan = plan_widen(suture.trace(small.eval(), (TOKENS,)), factor=2)
    grown = suture.to_torch(plan.apply())
    after = torch.optim.SGD(groups(grown), lr=0.01, momentum=0.9)
    after.load_state_dict(map_optimizer_state(before.state_dict(), names(small), names(grown), plan.sources()))
    moments = {n: before.state[p]["momentum_buffer"] for n, p in small.named_parameters()}
    for name, parameter in grown.named_parameters():
        torch.testing.assert_close(
            after.state[parameter]["momentum_buffer"], plan.sources()[name].first_moment(moments[name])
        )


def test_stacked_blocks_copy_and_what_has_no_source_starts_afresh() -> None:
    moment = torch.rand(3, 3)
    state = {
        "state": {0: {"step": torch.tensor(5.0), "exp_avg": moment, "exp_avg_sq": moment.square()}},
        "param_groups": [{"lr": 1.0, "params": [0]}],
    }
    sources: Mapping[str, ParameterSource] = {
        f"layers.{k}.weight": ParameterSource("layers.0.weight") for k in range(2)
    }
    grown = map_optimizer_state(
        state, ["layers.0.weight"], ["layers.0.weight", "head.bias", "layers.1.weight"], sources
    )
    assert grown["param_groups"][0] == {"lr": 1.0, "params": [0, 1, 2]} and set(grown["state"]) == {0, 2}
    assert torch.equal(grown["state"][2]["exp_avg"], moment) and grown["state"][2]["exp_avg"] is not moment
    assert float(grown["state"][2]["step"]) == 5


STATE = {"state": {0: {"exp_avg": torch.rand(3, 3)}}, "param_groups": [{"params": [0]}]}


def test_bad_input_gets_one_line() -> None:
    plan = plan_widen(traced(Shape(layers=1)), factor=2)
    cases: list[tuple[Any, list[str], Mapping[str, ParameterSource], str]] = [
        ({"a": 1}, ["w"], {}, "this is no optimiser's state; give what optimizer.state_dict() returns"),
        (STATE, ["w", "v"], {}, "2 names for an optimiser of 1 parameters"),
        (STATE, ["w"], {"norm.weight": ParameterSource("x")}, "norm.weight is made of x, which the optimiser does not have"),
        ({**STATE, "state": {0: {"strange": torch.rand(3)}}}, ["norm.weight"], plan.sources(), "'strange' of norm.weight is of no known kind"),
        (STATE, ["norm.weight"], plan.sources(), "the optimiser's entry 'exp_avg' of norm.weight has shape [3, 3]; dimension 0 should have 16"),
    ]  # fmt: skip
    for state, names, sources, text in cases:
        with pytest.raises(SutureError) as caught:
            map_optimizer_state(state, names, ["norm.weight"], sources)
        assert caught.value.code.value == "S455" and text in str(caught.value), str(caught.value)
