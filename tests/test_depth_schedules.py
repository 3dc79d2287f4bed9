"""Schedules as data, and the driver that walks over one with a user's training function."""

from __future__ import annotations

import functools

import growable
import pytest
import torch
from deep_models import PostBlock, decoder
from torch import nn

import suture
from suture import Code, Graph, SutureError
from suture.drivers.growing import Trained
from suture.drivers.growing import train_growing as train_and_check
from suture.passes.growth.schedules import (
    Schedule,
    Surgery,
    g_stack,
    gradual_stacking,
    masked_growth,
    multi_stage_layerwise,
    stacked_bert,
)


def train_growing(graph: Graph, schedule: Schedule, train, optimizer) -> Trained:
    return train_and_check(
        graph, schedule, train, optimizer, check=False
    )  # the passes' own tests hold them to their contracts


def traced(module: nn.Module) -> Graph:
    return suture.trace(module, growable.TOKENS, dynamic={"tokens": {0: "batch", 1: "sequence"}})


@functools.cache
def small_graph() -> Graph:
    return traced(decoder(growable.Shape()))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


class Trainer:
    """Next-token prediction on random tokens; remembers what it was called with and what the loss was."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.masks: list[float] = []

    def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        self.calls.append((start, stop))
        self.masks += [float(b) for name, b in module.named_buffers() if name.startswith("growth_mask") and not b.ndim]
        for step in range(start, stop):
            tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(step))
            loss = nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            self.losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def plainly_trained(steps: int) -> nn.Module:
    module = decoder(growable.Shape()).train()
    Trainer()(module, adamw(list(module.parameters())), 0, steps)
    return module


def test_a_schedule_without_growth_trains_as_torch_does():
    trained = train_growing(small_graph(), Schedule(6, (Surgery(2, ""), Surgery(4, ""))), Trainer(), adamw)
    for name, tensor in plainly_trained(6).state_dict().items():
        torch.testing.assert_close(trained.graph.parameters[name].data, tensor, rtol=1e-9, atol=1e-12)


def test_the_state_of_the_optimiser_goes_on_across_a_growth():
    # New blocks that are the identity and do not train leave the old ones to train as if nothing had happened.
    old = ("layers.[01].*", "embed*", "norm*", "head*")
    schedule = Schedule(6, (Surgery(3, "insert_identity", {"after": (1,)}, train=old),))
    trained = train_growing(small_graph(), schedule, Trainer(), adamw)
    assert "layers.2.feed.up.weight" in trained.graph.parameters
    for name, tensor in plainly_trained(6).state_dict().items():
        torch.testing.assert_close(trained.graph.parameters[name].data, tensor, rtol=1e-9, atol=1e-12)


def test_copies_begin_with_the_moments_of_what_they_copy():
    seen: list[dict[str, torch.Tensor]] = []

    def look(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        seen.append({names[p]: state["exp_avg_sq"].clone() for p, state in optimizer.state.items()})

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        look(module, optimizer)
        Trainer()(module, optimizer, start, stop)
        look(module, optimizer)

    train_growing(small_graph(), Schedule(4, (Surgery(2, "stack", {"how": "interpolate"}),)), train, adamw)
    _, before, after, _ = seen
    assert torch.equal(after["head.weight"], before["head.weight"])
    for place in range(4):
        for leaf in ("feed.up.weight", "attention.o.bias", "before.weight"):
            assert torch.equal(after[f"layers.{place}.{leaf}"], before[f"layers.{place // 2}.{leaf}"])


def test_an_exact_growth_leaves_no_spike():
    trainer = Trainer()
    train_growing(small_graph(), Schedule(1), trainer, adamw)
    grown = Trainer()
    train_growing(small_graph(), Schedule(1, (Surgery(0, "insert_identity"),)), grown, adamw)
    assert grown.losses == pytest.approx(trainer.losses, rel=1e-12)


def test_the_given_graph_stays_as_it_is():
    graph = small_graph()
    before = {name: parameter.data.detach().clone() for name, parameter in graph.parameters.items()}
    train_growing(graph, g_stack(4, 2, factor=2), Trainer(), adamw)
    assert all(torch.equal(graph.parameters[name].data, tensor) for name, tensor in before.items())


def test_what_is_trained_is_what_the_graph_computes():
    trained = train_growing(small_graph(), stacked_bert([2, 2]), Trainer(), adamw)
    assert len({name.split(".")[1] for name in trained.graph.parameters if name.startswith("layers.")}) == 4
    expected = trained.module(growable.TOKENS)
    torch.testing.assert_close(suture.evaluate(trained.graph, [growable.TOKENS])[0], expected, rtol=1e-12, atol=1e-12)
    assert [(stage.start, stage.stop) for stage in trained.stages] == [(0, 2), (2, 4)]
    assert "layers: 2 -> 4 blocks" in str(trained.stages[1])


def test_tied_weights_and_groups_of_the_optimiser_are_carried_over():
    def grouped(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2
        )

    graph = traced(decoder(growable.Shape(tied=True)))
    trained = train_growing(
        graph, Schedule(4, (Surgery(2, "insert_identity"), Surgery(3, "stack"))), Trainer(), grouped
    )
    assert [group["weight_decay"] for group in trained.optimizer.param_groups] == [0.1, 0.0]
    steps = {float(state["step"]) for state in trained.optimizer.state.values()}
    assert max(steps) == 4.0  # what was there from the start has counted every step


def test_masks_open_and_are_taken_away():
    trainer = Trainer()
    schedule = masked_growth(
        12, [(2, "insert_masked", {"count": 1}), (7, "widen", {"at": ("layers.*.feed.up",), "factor": 1.5})], ramp=4
    )
    trained = train_growing(small_graph(), schedule, trainer, adamw)
    assert trainer.calls == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (9, 10),
        (10, 11),
        (11, 12),
    ]
    assert trainer.masks == [0.25, 0.5, 0.75, 1.0] * 2
    assert not [name for name in trained.graph.parameters if name.startswith("growth_mask")]
    assert trained.graph.parameters["layers.2.feed.up.weight"].data.shape == (30, 16)


def test_layerwise_stages_train_the_new_blocks_alone_and_everything_in_the_end():
    moving: list[set[str]] = []

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        Trainer()(module, optimizer, start, stop)
        moving.append(
            {name.rpartition(".")[0] for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        )

    schedule = multi_stage_layerwise([2, 3], [1, 1], at="layers", head=("norm.*", "head.*"), finish=1)
    train_growing(small_graph(), schedule, train, adamw)
    assert any(path.startswith("layers.0") for path in moving[0])
    assert {path.split(".")[1] for path in moving[1] if path.startswith("layers")} == {"2"}
    assert {"norm", "head"} <= moving[1]
    assert {path.split(".")[1] for path in moving[2] if path.startswith("layers")} == {"0", "1", "2"}


SCHEDULES = [
    (g_stack(100, 30), ["G_stack: 100 steps", "step 30: stack(times=4)"]),
    (stacked_bert([5, 10], at="layers"), ["StackedBERT: 15 steps", "step 5: stack(at='layers', times=2)"]),
    (gradual_stacking([3, 5, 9], [1, 2, 3]), ["gradual stacking: 6 steps", "step 1: stack(to=5, how='gradual')", "step 3: stack(to=9, how='gradual')"]),
    (
        multi_stage_layerwise([1, 2], [3, 3], at="h", head=("head",), finish=2),
        ["multi-stage layerwise training: 8 steps", "step 3: stack(at='h', to=2, how='gradual'), training h.1.*, head", "step 6: everything trains"],
    ),
    (
        masked_growth(9, [(1, "insert_masked", {"count": 1}), (4, "widen", {"factor": 2.0})], ramp=2),
        [
            "masked structural growth: 9 steps", "step 1: insert_masked(count=1), masks open over 2 steps",
            "step 4: widen(factor=2.0, method='random', mask=True), masks open over 2 steps",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "lines"), SCHEDULES, ids=[schedule.name for schedule, _ in SCHEDULES])
def test_published_schedules_print_and_survive_json(schedule, lines):
    assert str(schedule).splitlines() == lines
    assert str(Schedule.from_json(schedule.to_json())) == str(schedule)


WRONG = [
    (lambda: Schedule(5, (Surgery(5, "stack"),)), "[S455] schedule: stack at step 5 is no part of 5 steps; a step from 0 to 4 would be right"),
    (lambda: Schedule(5, (Surgery(3, "stack"), Surgery(2, "stack"))), "[S455] schedule: step 2 follows step 3; order them by their steps"),
    (lambda: stacked_bert([]), "[S455] stages of [] steps; one number of steps, 1 or more, per stage would be right"),
    (lambda: gradual_stacking([3, 3], [1, 1]), "[S455] gradual stacking: depths [3, 3] do not grow; each must be more than the one before"),
    (lambda: gradual_stacking([3], [1, 1]), "[S455] gradual stacking: 1 depths for 2 stages; one depth per stage would be right"),
    (lambda: Schedule.from_json('{"format": 1}'), "[S455] schedule: this is no schedule; a schedule is what Schedule.to_json writes"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_schedule_that_cannot_be_is_refused(build, message):
    with pytest.raises(SutureError) as caught:
        build()
    assert str(caught.value) == message


def test_a_growth_that_does_nothing_is_an_error_with_its_reason():
    graph = traced(decoder(growable.Shape(), PostBlock))
    with pytest.raises(SutureError) as caught:
        train_growing(graph, Schedule(2, (Surgery(1, "insert_identity"),)), Trainer(), adamw)
    assert caught.value.code == Code.GROWTH
    assert str(caught.value).startswith(
        "[S455] step 1: insert_identity does nothing: a copy of layers.0 cannot be the identity: "
    )


def test_parameters_that_a_growth_reshapes_by_learned_maps_start_with_fresh_moments():
    def loss(module, step: int) -> torch.Tensor:
        tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(step))
        return nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    options = {"at": ("layers.*.feed.up",), "factor": 2.0, "loss": loss, "steps": 1}
    trained = train_growing(small_graph(), Schedule(2, (Surgery(1, "ligo", options),)), Trainer(), adamw)
    assert trained.graph.parameters["layers.0.feed.up.weight"].data.shape == (40, 16)


def test_masks_without_a_ramp_would_never_open():
    with pytest.raises(
        SutureError, match=r"step 1: insert_masked makes masks that would never open; give the surgery a ramp"
    ):
        train_growing(small_graph(), Schedule(2, (Surgery(1, "insert_masked"),)), Trainer(), adamw)


def test_weights_that_are_not_finite_are_named():
    def train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        with torch.no_grad():
            module.get_parameter("layers.1.feed.up.bias").fill_(float("nan"))

    with pytest.raises(SutureError) as caught:
        train_growing(small_graph(), g_stack(4, 2, factor=2), train, adamw)
    assert caught.value.code == Code.TRAINING
    assert "step 2: layers.1.feed.up.bias of the trained model is not finite" in str(caught.value)
