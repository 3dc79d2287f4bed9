"""Stage-wise weight sharing: the auxiliary model and its descendants, held against the module with its blocks copied by hand."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from growable import TOKENS, Decoder, Shape
from torch import nn
from zoo import randomise

import suture
from suture import passes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import stack_at
from suture.passes.sharing.shared_stages import stage_lengths


@lru_cache(maxsize=8)
def original(layers: int) -> tuple[Decoder, Graph]:
    """A module, not to be changed, and its graph."""
    module = decoder(layers)
    return module, suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])


def decoder(layers: int, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return randomise(Decoder(Shape(layers=layers)), seed).double().eval()


def with_blocks(module: Decoder, order: list[int]) -> Decoder:
    """A decoder of those blocks of another, in that order."""
    result = decoder(len(order), seed=9)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("layers.")}
    for target, source in enumerate(order):
        state |= {f"layers.{target}.{n}": value for n, value in module.layers[source].state_dict().items()}
    result.load_state_dict(state, strict=True)
    return result


def run(graph: Graph) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(TOKENS)
    return result


@pytest.mark.parametrize(("initialise", "order"), [("first", [0, 0, 0, 3, 3]), ("middle", [1, 1, 1, 3, 3])])
def test_a_stage_shares_the_tensors_of_one_of_its_blocks(initialise: str, order: list[int]) -> None:
    module, dense = original(5)
    graph = passes.share_stages(dense, stages=(3, 2), initialise=initialise)
    torch.testing.assert_close(run(graph), with_blocks(module, order)(TOKENS), rtol=0, atol=1e-13)
    assert stage_lengths(stack_at(graph)) == (3, 2)
    held = dict(suture.to_torch(graph).named_parameters())
    assert sum(name.startswith("layers.") for name in held) == 2 * len(list(module.layers[0].named_parameters()))
    assert set(module.state_dict()) == set(suture.to_torch(graph).state_dict())


def test_a_stage_may_begin_as_the_mean_of_its_blocks() -> None:
    module, dense = original(4)
    graph = passes.share_stages(dense, stages=(2, 2), initialise="average")
    mean = (module.layers[2].feed.up.weight + module.layers[3].feed.up.weight) / 2
    torch.testing.assert_close(graph.parameters["layers.2.feed.up.weight"].data, mean.detach())


@pytest.mark.parametrize(("repeats", "tie"), [((1, 1), True), ((1, 4), False), ((3, 2), True), ((2, 3), False)])
def test_a_descendant_repeats_each_stage_and_loads_into_the_class(repeats: tuple[int, int], tie: bool) -> None:
    module, dense = original(4)
    auxiliary = passes.share_stages(dense, stages=(2, 2))
    descendant = passes.expand_stages(auxiliary, repeats=repeats, tie=tie)
    order = [0] * repeats[0] + [2] * repeats[1]
    oracle = with_blocks(module, order)
    torch.testing.assert_close(run(descendant), oracle(TOKENS), rtol=0, atol=1e-13)
    oracle.load_state_dict(suture.to_torch(descendant).state_dict(), strict=True)
    shared = [p for p in descendant.parameters.values() if p.aliases]
    assert bool(shared) == (tie and max(repeats) > 1)
    assert stage_lengths(stack_at(descendant)) == (repeats if tie else (1,) * sum(repeats))


def test_the_function_is_kept_only_at_the_trained_counts() -> None:
    auxiliary = passes.share_stages(original(4)[1], stages=(3, 1))
    same = passes.expand_stages(auxiliary, repeats=(3, 1))
    assert same.history[-1].contract == "exact"
    torch.testing.assert_close(run(same), run(auxiliary), rtol=0, atol=0)
    other = passes.expand_stages(auxiliary, repeats=(2, 2))
    assert other.history[-1].contract == "approximate" and other.history[-1].deviation > 1e-3
    again = passes.expand_stages(auxiliary, repeats=(3, 1), tie=True)
    assert again.history[-1].outcome == "not applicable"


def test_training_the_auxiliary_model_trains_every_descendant() -> None:
    auxiliary = passes.share_stages(suture.trace(decoder(4), TOKENS), stages=(2, 2))
    module = suture.to_torch(auxiliary)
    loss = module(TOKENS).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
    descendant = passes.expand_stages(auxiliary, repeats=(2, 2))  # the graph's tensors are the module's own
    torch.testing.assert_close(run(descendant), module(TOKENS).detach(), rtol=0, atol=1e-12)


def test_running_statistics_are_shared_with_the_rest() -> None:
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Tanh())  # noqa: E731
    module = randomise(nn.Sequential(*[block() for _ in range(4)])).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    graph = passes.share_stages(suture.trace(module, x), stages=(2, 2))
    expected = nn.Sequential(module[0], module[0], module[2], module[2])(x)
    torch.testing.assert_close(suture.to_torch(graph)(x), expected)
    deeper = passes.expand_stages(graph, repeats=(1, 3))
    torch.testing.assert_close(suture.to_torch(deeper)(x), nn.Sequential(module[0], module[2], module[2], module[2])(x))
    assert "3.1.num_batches_tracked" in suture.to_torch(deeper).state_dict()


@pytest.mark.parametrize("stages", [(2, 1), (4, 0), (5,), ()])
def test_stages_that_do_not_fit_the_stack_get_one_line(stages: tuple[int, ...]) -> None:
    with pytest.raises(SutureError, match="add up to 4") as caught:
        passes.share_stages(original(4)[1], stages=stages)
    assert caught.value.code is Code.GROWTH


@pytest.mark.parametrize("repeats", [(2,), (1, 2, 3), (0, 2)])
def test_repeats_that_do_not_fit_the_stages_get_one_line(repeats: tuple[int, ...]) -> None:
    auxiliary = passes.share_stages(original(4)[1], stages=(2, 2))
    with pytest.raises(SutureError, match="one number per stage") as caught:
        passes.expand_stages(auxiliary, repeats=repeats)
    assert caught.value.code is Code.GROWTH


def test_the_stack_that_has_stages_is_expanded() -> None:
    torch.manual_seed(0)
    small, large = (
        nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), *[nn.Linear(6, 6)] * extra, nn.Tanh()) for _ in range(3)])
        for extra in (0, 1)
    )
    graph = suture.trace(nn.Sequential(small, nn.Linear(6, 6), large).double(), torch.randn(2, 6, dtype=torch.float64))
    auxiliary = passes.share_stages(graph, at="0", stages=(2, 1))
    assert len(stack_at(passes.expand_stages(auxiliary, repeats=(3, 2)), "0")) == 5


def test_stages_of_one_block_are_not_applicable() -> None:
    assert passes.share_stages(original(2)[1], stages=(1, 1)).history[-1].outcome == "not applicable"
