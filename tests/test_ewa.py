"""Experts by random partition: exact in evaluation, each position by one expert in training, and averaged back into the layer that was."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ENTRIES, randomise

import suture
from suture import passes
from suture.drivers.ewa import WeightsAveraging, share_rate, train_with_ewa
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.experts.weight_averaging import stacked_parameters

GATED = {"norm": "rms", "bias": False, "groups": 2, "rotary": True, "gated": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices here are too small for threads to be worth waking."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@lru_cache(maxsize=4)
def original(**shape: object) -> tuple[Decoder, Graph]:
    torch.manual_seed(0)
    module = randomise(Decoder(Shape(**shape))).double().eval()  # type: ignore[arg-type]
    return module, suture.trace(module, TOKENS, dynamic=[{0: "batch", 1: "sequence"}])


def run(graph: Graph, x: torch.Tensor = TOKENS, *, train: bool = False) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph).train(train)(x)
    return result


def text(graph: Graph) -> list[str]:
    return [line for line in str(graph).splitlines() if not line.startswith("  history")]


@pytest.mark.parametrize("shape", [{}, GATED])
@pytest.mark.parametrize("experts", [2, 3])
def test_equal_experts_keep_the_function_in_evaluation_and_in_training(shape: dict[str, object], experts: int) -> None:
    module, graph = original(**shape)
    divided = passes.ewa(graph, experts=experts)
    assert divided.history[-1].contract == "exact"
    for train in (False, True):
        torch.testing.assert_close(run(divided, train=train), module(TOKENS).detach(), rtol=0, atol=1e-13)
    assert divided.stats().macs == graph.stats().macs  # each position has one expert
    collapsed = passes.collapse_experts(divided)
    assert collapsed.history[-1].contract == "exact"
    assert text(collapsed) == text(graph)
    torch.testing.assert_close(run(collapsed), module(TOKENS).detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [{}, GATED])
def test_evaluation_is_that_of_the_collapsed_model(shape: dict[str, object]) -> None:
    _, graph = original(**shape)
    divided = passes.ewa(graph, experts=3, noise=0.5)
    assert divided.history[-1].contract == "approximate"
    assert torch.equal(run(divided), run(divided))
    collapsed = passes.collapse_experts(divided)
    assert collapsed.history[-1].contract == "exact" and text(collapsed) == text(graph)
    torch.testing.assert_close(run(collapsed), run(divided), rtol=0, atol=1e-12)
    weights = divided.parameters["layers.0.feed.up.weight"].data.detach()
    torch.testing.assert_close(collapsed.parameters["layers.0.feed.up.weight"].data.detach(), weights.mean(0))
    oracle = Decoder(Shape(**shape)).double().eval()  # type: ignore[arg-type]
    oracle.load_state_dict(suture.to_torch(collapsed).state_dict())
    torch.testing.assert_close(oracle(TOKENS).detach(), run(divided), rtol=0, atol=1e-12)


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=8)
def test_in_training_each_position_has_one_expert_and_experts_as_many(
    experts: int, batch: int, positions: int, seed: int
) -> None:
    torch.manual_seed(seed)
    graph = suture.trace(Feed().double(), torch.zeros(2, 3, 4).double(), dynamic=[{0: "batch", 1: "positions"}])
    divided = passes.ewa(graph, experts=experts, noise=1.0, seed=seed)
    p = {name: value.data.detach() for name, value in divided.parameters.items()}
    x = torch.randn(batch, positions, 4, dtype=torch.float64)
    each = torch.stack(
        [
            x
            + F.linear(
                torch.tanh(F.linear(x, p["up.weight"][e], p["up.bias"][e])), p["down.weight"][e], p["down.bias"][e]
            )
            for e in range(experts)
        ]
    )
    received = run(divided, x, train=True)
    distance = (each - received).abs().amax(-1)
    assert float(distance.amin(0).max()) < 1e-12
    counts = distance.argmin(0).flatten().bincount(minlength=experts)
    size = -(-batch * positions // experts)
    assert int(counts.max()) <= size and int((counts == size).sum()) == batch * positions // size
    torch.manual_seed(seed)
    one = run(divided, x, train=True)
    torch.manual_seed(seed)
    assert torch.equal(one, run(divided, x, train=True))


def test_every_expert_gets_gradients_in_training_and_its_share_in_evaluation() -> None:
    _, graph = original()
    module = suture.to_torch(passes.ewa(graph, experts=2, noise=0.1))
    for train in (True, False):
        module.zero_grad()
        module.train(train)(TOKENS).square().sum().backward()
        gradient = module.get_parameter("layers.0.feed.up.weight").grad
        assert gradient is not None and bool((gradient.abs().amax((1, 2)) > 0).all())
        assert torch.allclose(gradient[0], gradient[1]) == (not train)


def test_the_share_rate_grows_linearly() -> None:
    assert [share_rate(0.4, step, 4) for step in (1, 2, 4, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4])
    assert share_rate(0.4, 1, 4, "constant") == 0.4
    _, graph = original()
    divided = passes.ewa(graph, experts=3, noise=1.0)
    module = suture.to_torch(divided)
    averaging = WeightsAveraging(divided, module, rate=0.3, steps=3)
    before = {name: module.get_parameter(name).detach().clone() for name in stacked_parameters(divided)}
    assert averaging.share == 0 and averaging.step() == pytest.approx(0.1) == averaging.share
    for name, stacked in before.items():
        for i in range(3):
            others = torch.stack([stacked[j] for j in range(3) if j != i]).mean(0)
            torch.testing.assert_close(module.get_parameter(name)[i].detach(), 0.9 * stacked[i] + 0.1 * others)
        torch.testing.assert_close(module.get_parameter(name).detach().mean(0), stacked.mean(0))  # the mean stays
    assert set(before) == {
        f"layers.{k}.feed.{m}.{t}" for k in (0, 1) for m in ("up", "down") for t in ("weight", "bias")
    }


@pytest.mark.parametrize("experts", [2, 5])
def test_a_full_share_makes_the_experts_equal(experts: int) -> None:
    _, graph = original()
    divided = passes.ewa(graph, experts=experts, noise=1.0)
    module = suture.to_torch(divided)
    WeightsAveraging(divided, module, rate=1 - 1 / experts, steps=1).step()
    for name in stacked_parameters(divided):
        stacked = module.get_parameter(name).detach()
        torch.testing.assert_close(stacked, stacked.mean(0, keepdim=True).expand_as(stacked), rtol=0, atol=1e-12)


class Vision(nn.Module):
    """A vision transformer on images of eight by eight."""

    def __init__(self, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
                for _ in range(depth)
            ]
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


def digits(count: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten glyphs of eight by eight with noise, and which they are."""
    generator = torch.Generator().manual_seed(0)
    glyphs = F.avg_pool2d(torch.randn(10, 1, 10, 10, generator=generator), 3, 1)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return glyphs[labels] * 2 + 0.5 * torch.randn(count, 1, 8, 8, generator=generator), labels


def test_a_vision_transformer_trains_with_experts_and_keeps_its_accuracy() -> None:
    images, labels = digits()
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    module = Vision()
    graph = suture.trace(module, images[:4], dynamic=[{0: "batch"}])
    reached: dict[str, float] = {}

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(images[600:]).argmax(1) == labels[600:]).float().mean())

    def train(model: nn.Module, averaging: WeightsAveraging) -> None:
        optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(50):
            rows = torch.arange(step * 48, step * 48 + 48) % 600
            loss = F.cross_entropy(model.train()(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            averaging.step()
        reached["divided"] = accuracy(model)

    trained = train_with_ewa(graph, train, steps=50, experts=2, rate=0.4)
    reached["collapsed"] = accuracy(suture.to_torch(trained))
    assert reached["collapsed"] == pytest.approx(reached["divided"], abs=0.01)
    assert reached["collapsed"] > 0.7
    assert text(trained) == text(graph)
    assert torch.equal(graph.parameters["head.weight"].data, module.head.weight.data)
    module.load_state_dict(suture.to_torch(trained).state_dict(), strict=True)


def test_routed_experts_collapse_by_what_the_gates_gave_them() -> None:
    module, graph = original()
    routed = passes.upcycle(graph, experts=3, top=1, noise=0.4, spread=1.0)
    collapsed = passes.collapse_experts(routed, data={"tokens": TOKENS})
    p = {name: value.data.detach() for name, value in routed.parameters.items()}
    with torch.no_grad():
        first = module.layers[0]
        x = module.embed(TOKENS)
        x = x + first.attention(first.before(x))
        chosen = F.linear(first.after(x), p["layers.0.feed.router.weight"]).argmax(-1).flatten()
    shares = chosen.bincount(minlength=3).double() / len(chosen)
    expected = sum(s * p[f"layers.0.feed.experts.{e}.up.weight"] for e, s in enumerate(shares))
    torch.testing.assert_close(collapsed.parameters["layers.0.feed.up.weight"].data.detach(), expected)
    assert text(collapsed) == text(passes.merge_experts(routed, by="mean"))
    equal = passes.collapse_experts(passes.upcycle(graph, experts=3), data={"tokens": TOKENS})
    torch.testing.assert_close(run(equal), module(TOKENS).detach(), rtol=0, atol=1e-12)
    alike = passes.collapse_experts(routed)
    means = torch.stack([p[f"layers.1.feed.experts.{e}.down.bias"] for e in range(3)]).mean(0)
    torch.testing.assert_close(alike.parameters["layers.1.feed.down.bias"].data.detach(), means)
    some = passes.collapse_experts(routed, at="layers.1.feed")
    assert "layers.0.feed.experts.0.up.weight" in some.parameters and "layers.1.feed.up.weight" in some.parameters


def test_layers_of_a_library_with_transposed_weights() -> None:
    entry = ENTRIES["gpt2"]
    module = randomise(entry.module())
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    divided = passes.ewa(graph, experts=2, noise=0.1)
    assert divided.stats().operators["expert_linear"] == 2 * sum("mlp.c_fc.weight" in name for name in graph.parameters)
    collapsed = passes.collapse_experts(divided)
    assert text(collapsed) == text(graph)
    with torch.no_grad():
        received, expected = (suture.to_torch(g)(*args, **kwargs).logits for g in (collapsed, divided))
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5)


def test_what_leaves_as_onnx_is_the_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4)
    graph = suture.trace(Feed(), x, dynamic=[{0: "batch", 1: "positions"}])
    divided = passes.ewa(graph, experts=3, noise=0.7)
    suture.export_onnx(divided, tmp_path / "divided.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "divided.onnx")
    received = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(received, run(divided, x).numpy(), atol=1e-6)


def test_other_layers_may_be_pruned_between_the_two() -> None:
    _, graph = original()
    slim = passes.prune(passes.ewa(graph, experts=2, noise=0.1), at="layers.*.feed.up", keep=0.5)
    assert slim.parameters["layers.0.feed.up.weight"].data.shape == (2, 10, 16)
    assert slim.parameters["layers.0.feed.down.weight"].data.shape == (2, 16, 10)
    torch.testing.assert_close(run(passes.collapse_experts(slim)), run(slim), rtol=0, atol=1e-12)


def test_what_cannot_have_experts_says_why() -> None:
    _, graph = original(layers=4)
    looped = passes.recurse(graph, blocks=2)
    record = passes.ewa(looped, experts=2).history[-1]
    assert record.outcome == "not applicable"
    assert passes.ewa(suture.trace(nn.Linear(2, 2), torch.zeros(1, 2))).history[-1].outcome == "not applicable"
    assert passes.collapse_experts(graph).history[-1].outcome == "not applicable"
    planned = graph.copy()
    for parameter in planned.parameters.values():
        parameter.assign(parameter.data.detach().to("meta"))
    divided = passes.ewa(planned, experts=2, noise=0.1)
    assert divided.stats() == passes.ewa(graph, experts=2).stats()
    assert passes.collapse_experts(divided).stats() == graph.stats()
    half = passes.ewa(suture.trace(Feed().bfloat16(), torch.zeros(2, 3, 4, dtype=torch.bfloat16)), experts=2)
    assert half.history[-1].contract == "exact" and half.parameters["up.weight"].data.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"experts": 1}, Code.GROWTH, "1 experts"),
        ({"noise": -1.0}, Code.GROWTH, "noise=-1"),
        ({"noise": float("nan")}, Code.GROWTH, "noise=nan"),
        ({"at": "layers.9"}, Code.SITE, "matches no feed-forward layer"),
    ],
)
def test_bad_options_get_one_line(options: dict[str, object], code: Code, text: str) -> None:
    _, graph = original()
    with pytest.raises(SutureError, match=text) as caught:
        passes.ewa(graph, **options)
    assert caught.value.code == code


def test_a_driver_that_is_misused_says_what_is_wrong() -> None:
    _, graph = original()
    divided = passes.ewa(graph, experts=2)
    module = suture.to_torch(divided)
    for options in ({"rate": 1.5, "steps": 1}, {"rate": 0.1, "steps": 0}, {"rate": float("nan"), "steps": 1}):
        with pytest.raises(SutureError, match="a rate of 0 to 1") as caught:
            WeightsAveraging(divided, module, **options)
        assert caught.value.code == Code.OPTION
    with pytest.raises(SutureError, match="the graph has no experts"):
        WeightsAveraging(graph, module, rate=0.1, steps=1)
    with pytest.raises(SutureError, match=r"the module has no parameter layers\.0\.feed\.up\.weight"):
        WeightsAveraging(divided, nn.Linear(2, 2), rate=0.1, steps=1)
    with pytest.raises(SutureError, match="returned a int") as caught:
        train_with_ewa(graph, lambda module, averaging: 3, steps=1)  # type: ignore[arg-type,return-value]
    assert caught.value.code == Code.TRAINING
    plain = suture.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(SutureError, match="no feed-forward layer"):
        train_with_ewa(plain, lambda module, averaging: None, steps=1)
