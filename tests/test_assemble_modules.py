"""Deep incubation: modules trained apart inside a shallow model, against models put together from copies of torch modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from growable import Block, Decoder, Shape
from torch import nn
from zoo import randomise

import suture
from suture import Code, SutureError
from suture.drivers.incubating import incubate
from suture.ir.graph import Graph
from suture.passes import meta_model
from suture.passes.assembly.incubation import incubation

TOKENS = torch.arange(10).reshape(2, 5) % 11


def decoder(layers: int = 5, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(Decoder(Shape(layers=layers, **options)), seed).double().eval()


def trace(module: nn.Module) -> Graph:
    return suture.trace(module, TOKENS)


def run(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(TOKENS)


def with_layers(base: nn.Module, layers: list[Block]) -> nn.Module:
    made = copy.deepcopy(base)
    made.layers = nn.ModuleList(layers)
    return made


def renewed(module: nn.Module, seed: int) -> nn.Module:
    """The same architecture with other weights, as training gives."""
    return randomise(copy.deepcopy(module), seed).double()


def same(graph: Graph, oracle: nn.Module) -> None:
    torch.testing.assert_close(run(suture.to_torch(graph)), run(oracle), rtol=1e-10, atol=1e-12)


PARTS = [[0, 1], [2, 3], [4]]  # five blocks in three modules


def test_the_meta_model_has_the_first_blocks_of_each_module() -> None:
    net = decoder()
    meta = meta_model(trace(net), modules=3)
    same(meta, with_layers(net, [net.layers[k] for k in (0, 2, 4)]))
    shared = {id(p.data) for p in trace(net).parameters.values()} & {id(p.data) for p in meta.parameters.values()}
    assert not shared
    assert len(meta.history[-1].notes) == 3
    two = meta_model(trace(decoder(6)), modules=2, blocks=2)
    same(two, with_layers(decoder(6), [decoder(6).layers[k] for k in (0, 1, 3, 4)]))


def test_a_hybrid_is_one_module_within_the_frozen_meta_model() -> None:
    net, shallow = decoder(), decoder(3, seed=4)
    meta = trace(shallow)
    plan = incubation(trace(net), 3, meta=meta)
    for number, part in enumerate(PARTS):
        hybrid = plan.hybrid(number)
        layers = [*shallow.layers[:number], *(net.layers[k] for k in part), *shallow.layers[number + 1 :]]
        oracle = with_layers(shallow, layers)
        if number == 0:  # what stands before the stack is the first module's, what stands behind it the last one's
            oracle.embed = net.embed
        if number == 2:
            oracle.norm, oracle.head = net.norm, net.head
        same(hybrid, oracle)
        names = {name for name, parameter in suture.to_torch(hybrid).named_parameters() if parameter.requires_grad}
        trained = {f"layers.{number + k}." for k in range(len(part))}
        trained |= {0: {"embed."}, 1: set(), 2: {"norm.", "head."}}[number]
        assert {name for name in names if not name.startswith(tuple(trained))} == set()
        assert all(any(name.startswith(start) for name in names) for start in trained)
        frozen = [p for p in hybrid.parameters.values() if p.role == "parameter" and not p.requires_grad]
        storage = {p.data.data_ptr() for p in meta.parameters.values()}
        assert frozen
        assert {p.data.data_ptr() for p in frozen} <= storage  # shared, not copied


def test_gradients_reach_the_module_alone() -> None:
    hybrid = incubation(trace(decoder()), 3, meta=trace(decoder(3, seed=4))).hybrid(1)
    module = suture.to_torch(hybrid)
    module(TOKENS).square().sum().backward()
    with_gradient = {name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == {"1", "2"}


def test_what_is_assembled_is_the_modules_one_behind_the_other() -> None:
    net = decoder()
    plan = incubation(trace(net), 3)
    same(plan.assemble([plan.hybrid(k) for k in range(3)]), net)  # nothing was trained


def test_the_driver_trains_the_meta_model_and_each_module(monkeypatch: pytest.MonkeyPatch) -> None:
    net = decoder()
    graph = trace(net)
    before = {name: parameter.data.clone() for name, parameter in graph.parameters.items()}
    seen: list[str] = []
    trained: dict[str, nn.Module] = {}

    def train(module: nn.Module, stage: str) -> None:
        seen.append(stage)
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            module(TOKENS).square().mean().backward()
            optimizer.step()
        trained[stage] = copy.deepcopy(module)

    result = incubate(graph, train, modules=3)
    assert seen == ["meta", "module 0", "module 1", "module 2"]
    for name, data in before.items():
        assert torch.equal(graph.parameters[name].data, data)
    oracle = copy.deepcopy(net)
    for number, part in enumerate(PARTS):
        hybrid = trained[f"module {number}"]
        for k, index in enumerate(part):
            oracle.layers[index].load_state_dict(
                hybrid.get_submodule(f"layers.{number + k}").state_dict(), strict=False
            )
    oracle.embed.load_state_dict(trained["module 0"].get_submodule("embed").state_dict())
    for name in ("norm", "head"):
        getattr(oracle, name).load_state_dict(trained["module 2"].get_submodule(name).state_dict())
    same(result, oracle)
    assert not torch.equal(run(oracle), run(net))


class Normed(nn.Module):
    """Blocks with running statistics."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(blocks))
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


def test_running_statistics_of_the_meta_model_are_not_moved_by_a_hybrid() -> None:
    torch.manual_seed(0)
    graph = suture.trace(Normed().eval(), torch.randn(4, 3), dynamic=[{0: "batch"}])
    plan = incubation(graph, 2)
    held = {name: p.data.clone() for name, p in plan.meta.parameters.items()}
    module = suture.to_torch(plan.hybrid(0)).train()
    module(torch.randn(8, 3) + 3)
    for name, data in held.items():
        assert torch.equal(plan.meta.parameters[name].data, data), name


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda g: incubation(g, 6), Code.GROWTH, "5 blocks are not 6 modules"),
        (lambda g: incubation(g, 3, blocks=2), Code.GROWTH, "at least 2"),
        (lambda g: incubation(g, 0), Code.GROWTH, "0 modules"),
        (lambda g: incubation(g, 2, at="layer"), Code.SITE, "layers"),
        (lambda g: incubation(g, 3).hybrid(3), Code.REGION, "no module 3"),
        (lambda g: incubation(g, 3).assemble([]), Code.TRAINING, "0 hybrids"),
        (lambda g: (lambda p: p.assemble([p.hybrid(2), p.hybrid(1), p.hybrid(0)]))(incubation(g, 3)), Code.TRAINING, "is frozen in"),
        (lambda g: incubate(g, lambda module, stage: 3, modules=2), Code.TRAINING, "returned a int"),
        (lambda g: incubate(g, lambda module, stage: {}, modules=2), Code.TRAINING, "missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_or_trained_is_refused(make: Any, code: Code, words: str) -> None:
    with pytest.raises(SutureError) as caught:
        make(trace(decoder()))
    assert caught.value.code is code
    assert words in str(caught.value)


def test_a_function_that_trains_what_is_frozen_is_refused() -> None:
    def train(module: nn.Module, stage: str) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1)

    with pytest.raises(SutureError) as caught:
        incubate(trace(decoder()), train, modules=2)
    assert caught.value.code is Code.TRAINING
    assert "frozen" in str(caught.value)
