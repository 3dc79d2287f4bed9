"""Low-rank adapters: exact when attached and when merged, alone in being trained; held against the definition in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growable import TOKENS, Decoder, Shape
from torch import nn
from zoo import ENTRIES, randomise

import suture
from suture import passes
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.adapters.adapter import find_adapters

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices here are too small for threads to be worth waking."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.deep = nn.Conv2d(16, 16, (3, 5), padding=(1, 4), dilation=(1, 2), groups=4)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.first(x)))).mean((2, 3))
        return self.down(F.gelu(self.up(x)))


@lru_cache(maxsize=2)
def network() -> tuple[Network, Graph, torch.Tensor]:
    torch.manual_seed(0)
    module = randomise(Network()).to(F64).eval()
    x = torch.randn(4, 3, 8, 8, dtype=F64)
    return module, suture.trace(module, x, dynamic=[{0: "batch"}]), x


def run(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = suture.to_torch(graph)(x)
    return result


def text(graph: Graph) -> list[str]:
    return [line for line in str(graph).splitlines() if not line.startswith("  history")]


def stirred(graph: Graph) -> Graph:
    """A copy whose trained tensors are random."""
    result = graph.copy()
    generator = torch.Generator().manual_seed(1)
    for parameter in result.parameters.values():
        if parameter.requires_grad:
            data = torch.randn(parameter.data.shape, generator=generator, dtype=F64) * 0.3
            parameter.assign(data.to(parameter.dtype).requires_grad_())
    return result


KINDS = {
    "lora": {},
    "lora-alpha": {"alpha": 16.0},
    "nola": {"bases": 5},
    "svd": {"start": "svd", "alpha": 4.0},
    "whitened": {"start": "whitened", "data": True},
    "corda": {"start": "corda", "components": "smallest", "data": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_nothing_until_trained_and_merge_exactly(kind: str) -> None:
    module, graph, x = network()
    options = dict(KINDS[kind])
    if options.pop("data", False):
        options["data"] = {"x": x}
    attached = passes.attach_adapters(graph, rank=2, **options)
    assert attached.history[-1].contract == "exact"
    torch.testing.assert_close(run(attached, x), module(x).detach(), rtol=0, atol=1e-13)
    trained = stirred(attached)
    merged = passes.merge_adapters(trained)
    torch.testing.assert_close(run(merged, x), run(trained, x), rtol=1e-12, atol=1e-12)
    assert text(merged) == text(graph)
    assert set(merged.parameters) == set(graph.parameters)


def test_lora_is_what_its_definition_says() -> None:
    module, graph, x = network()
    trained = stirred(passes.attach_adapters(graph, rank=3, alpha=6.0))
    p = {name: value.data.detach() for name, value in trained.parameters.items()}
    with torch.no_grad():
        y = module.first(x) + 2 * F.conv2d(F.conv2d(x, p["first.lora_a"], None, 2, 1), p["first.lora_b"])
        z = torch.relu(y)
        y = module.deep(z) + 2 * F.conv2d(
            F.conv2d(z, p["deep.lora_a"], None, 1, (1, 4), (1, 2), 4), p["deep.lora_b"], groups=4
        )
        z = torch.relu(y).mean((2, 3))
        y = F.gelu(module.up(z) + 2 * z @ p["up.lora_a"].T @ p["up.lora_b"].T)
        expected = module.down(y) + 2 * y @ p["down.lora_a"].T @ p["down.lora_b"].T
    torch.testing.assert_close(run(trained, x), expected, rtol=0, atol=1e-11)
    a = passes.attach_adapters(graph, rank=3).parameters["up.lora_a"].data.detach()
    assert float(a.abs().max()) <= 1 / math.sqrt(16) and float(a.abs().max()) > 0.8 / math.sqrt(16)


def test_nola_mixes_what_the_seed_gives() -> None:
    _, graph, _ = network()
    attached = passes.attach_adapters(graph, at="up", rank=2, bases=7, seed=3)
    assert {name for name, p in attached.parameters.items() if p.requires_grad} == {"up.nola_a", "up.nola_b"}
    assert attached.parameters["up.nola_a"].data.shape == (7,)
    assert "up.nola_a_basis" not in suture.to_torch(attached).state_dict()
    trained = stirred(attached)
    p = {name: value.data.detach() for name, value in trained.parameters.items()}
    a = sum(c * m for c, m in zip(p["up.nola_a"], p["up.nola_a_basis"], strict=True))
    b = sum(c * m for c, m in zip(p["up.nola_b"], p["up.nola_b_basis"], strict=True))
    merged = passes.merge_adapters(trained).parameters["up.weight"].data.detach()
    torch.testing.assert_close(merged, p["up.weight"] + b @ a, rtol=0, atol=1e-13)
    again = passes.attach_adapters(graph, at="up", rank=2, bases=7, seed=3)
    other = passes.attach_adapters(graph, at="up", rank=2, bases=7, seed=4)
    assert torch.equal(again.parameters["up.nola_a_basis"].data, p["up.nola_a_basis"])
    assert not torch.equal(other.parameters["up.nola_a_basis"].data, p["up.nola_a_basis"])


@pytest.mark.parametrize("components", ["largest", "smallest"])
def test_corda_takes_components_by_the_covariance(components: str) -> None:
    module, graph, x = network()
    attached = passes.attach_adapters(graph, at="up", rank=4, start="corda", components=components, data={"x": x})
    with torch.no_grad():
        z = torch.relu(module.deep(torch.relu(module.first(x)))).mean((2, 3))
    c = z.T @ z / len(z)
    c += 1e-9 * c.diagonal().mean() * torch.eye(16, dtype=F64)
    weight = module.up.weight.detach()
    u, s, v = np.linalg.svd((weight @ c).numpy(), full_matrices=False)
    chosen = slice(0, 4) if components == "largest" else slice(12, 16)
    expected = u[:, chosen] * s[chosen] @ v[chosen] @ np.linalg.inv(c.numpy())
    p = {name: value.data.detach() for name, value in attached.parameters.items()}
    held = p["up.lora_b"] @ p["up.lora_a"]
    torch.testing.assert_close(p["up.weight"] + held, weight, rtol=0, atol=1e-13)
    if components == "largest":  # of four samples the rest of the covariance is rounding
        np.testing.assert_allclose(held.numpy(), expected, atol=1e-5)
    else:
        assert float((held @ c).norm()) < 1e-6


def test_training_moves_the_adapters_alone_and_lowers_the_loss() -> None:
    module, graph, x = network()
    attached = passes.attach_adapters(graph, rank=2)
    trained = suture.to_torch(attached).train()
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    target = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(trained(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, p in trained.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert torch.equal(graph.parameters["up.weight"].data, module.up.weight.data)
    free = passes.attach_adapters(graph, rank=2, freeze=False)
    assert all(p.requires_grad for p in suture.to_torch(free).parameters())


def test_pruning_cuts_adapters_with_their_layers() -> None:
    """Structured Pruning Adapters (arXiv 2211.10155): attached, trained, cut with the layer, and merged into what is left."""
    _, graph, x = network()
    trained = stirred(passes.attach_adapters(graph, rank=2))
    slim = passes.prune(trained, at=("up", "first"), keep=0.5)
    assert slim.parameters["up.lora_b"].data.shape == (12, 2) and slim.parameters["down.lora_a"].data.shape == (2, 12)
    assert len(find_adapters(slim)) == 4
    merged = passes.merge_adapters(slim)
    assert not any("lora" in name for name in merged.parameters)
    assert merged.parameters["up.weight"].data.shape == (12, merged.parameters["up.weight"].data.shape[1])
    torch.testing.assert_close(run(merged, x), run(slim, x), rtol=0, atol=1e-12)


def test_layers_without_an_adapter_are_named_with_the_reason() -> None:
    _, graph, _ = network()
    attached = passes.attach_adapters(graph, rank=5, exclude="down")
    notes = "\n".join(attached.history[-1].notes)
    assert (
        "deep.weight gets no adapter: its full rank is 4" in notes and "down.weight gets no adapter: excluded" in notes
    )
    twice = passes.attach_adapters(attached, rank=5)
    assert any("first.weight gets no adapter: it has an adapter already" in note for note in twice.history[-1].notes)
    svd = passes.attach_adapters(graph, rank=2, start="svd").history[-1].notes
    assert any("deep.weight gets no adapter: its convolution has 4 groups" in note for note in svd)
    torch.manual_seed(0)
    tied = suture.trace(randomise(Decoder(Shape(tied=True))).eval(), TOKENS)
    record = passes.attach_adapters(tied, at="head", rank=2).history[-1]
    assert record.outcome == "not applicable" and "2 nodes read it" in record.notes[0]
    assert passes.attach_adapters(suture.trace(nn.ReLU(), torch.zeros(2))).history[-1].outcome == "not applicable"
    assert passes.merge_adapters(graph).history[-1].outcome == "not applicable"


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"rank": 0}, Code.RANK, "adapters of rank 0"),
        ({"alpha": 0.0}, Code.ADAPTER, "alpha=0"),
        ({"alpha": float("nan")}, Code.ADAPTER, "alpha=nan"),
        ({"bases": 0}, Code.ADAPTER, "mixtures of 0 matrices"),
        ({"bases": 3, "start": "svd"}, Code.ADAPTER, "mixtures that start as svd"),
        ({"start": "corda"}, Code.CALIBRATION, "corda has no calibration inputs"),
        ({"data": {"x": torch.zeros(1, 3, 8, 8)}}, Code.OPTION, "start='zero' does not read"),
        ({"at": "upp"}, Code.SITE, "the nearest is 'up'"),
        ({"at": "up", "rank": 2, "expect": 2}, Code.SITE, "2 expected"),
    ],
)
def test_bad_options_get_one_line(options: dict[str, object], code: Code, text: str) -> None:
    _, graph, _ = network()
    with pytest.raises(SutureError, match=text) as caught:
        passes.attach_adapters(graph, **options)
    assert caught.value.code == code


def test_merging_at_a_place_without_an_adapter_is_an_error() -> None:
    _, graph, x = network()
    attached = passes.attach_adapters(graph, at=("up", "down"), rank=2)
    with pytest.raises(SutureError, match="the pattern 'first' matches no layer with an adapter") as caught:
        passes.merge_adapters(attached, at="first")
    assert caught.value.code == Code.ADAPTER
    some = passes.merge_adapters(stirred(attached), at="up")
    assert len(find_adapters(some)) == 1 and not some.parameters["first.weight"].requires_grad
    torch.testing.assert_close(run(some, x), run(stirred(attached), x), rtol=0, atol=1e-12)


def test_half_precision_and_shapes_alone() -> None:
    _, graph, _ = network()
    planned = graph.copy()
    for name, parameter in graph.parameters.items():
        planned.parameters[name].assign(parameter.data.detach().to("meta"))
    for options in ({"rank": 2}, {"rank": 2, "bases": 3}, {"rank": 2, "start": "svd"}):
        attached = passes.attach_adapters(planned, **options)
        assert attached.stats() == passes.attach_adapters(graph, **options).stats()
        assert passes.merge_adapters(attached).stats() == graph.stats()
    half = suture.trace(nn.Sequential(nn.Linear(16, 24)).bfloat16(), torch.zeros(2, 16, dtype=torch.bfloat16))
    weight = half.parameters["0.weight"].data
    svd = passes.attach_adapters(half, rank=2, start="svd")
    held = svd.parameters["0.lora_b"].data.double() @ svd.parameters["0.lora_a"].data.double()
    assert {p.data.dtype for p in svd.parameters.values()} == {torch.bfloat16}
    torch.testing.assert_close(svd.parameters["0.weight"].data.double() + held, weight.double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_adapters_beside_the_layers_of_a_library(name: str) -> None:
    entry = ENTRIES[name]
    module = randomise(entry.module()).double()
    args, kwargs = entry.args()
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    trained = stirred(passes.attach_adapters(graph, rank=2, alpha=1.0))
    merged = passes.merge_adapters(trained)
    assert text(merged) == text(graph)
    with torch.no_grad():
        received, expected = (suture.to_torch(g)(*args, **kwargs).logits for g in (merged, trained))
    torch.testing.assert_close(received, expected, rtol=1e-9, atol=1e-9)
