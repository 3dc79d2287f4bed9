"""suture.accelerate: layers stay what they are; what is not covered runs as before, and says so."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerating import DOUBLE, agree, drawn, edge_index, features, neighbourhood, run_eagerly, types
from torch import nn

import suture
from suture.drivers.accelerating import structures
from suture.drivers.accelerating.accelerate import accelerated, decelerate
from suture.drivers.accelerating.swapping import Unaccelerated
from suture.ir.errors import Code, SutureError

pytest.importorskip("torch_geometric")
from torch_geometric.nn import GATConv, GCNConv, HGTConv, RGCNConv, SAGEConv

NODES, EDGES, RELATIONS = 20, 60, 4
INDEX, KINDS, X = edge_index(NODES, NODES, EDGES), types(RELATIONS, EDGES), features(NODES, 6)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = RGCNConv(6, 5, RELATIONS)
        self.rest = nn.ModuleList([RGCNConv(5, 5, RELATIONS, num_bases=2), nn.Linear(5, 3)])

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_type: torch.Tensor) -> torch.Tensor:
        x = self.first(x, edge_index, edge_type).relu()
        made: torch.Tensor = self.rest[1](self.rest[0](x, edge_index, edge_type).relu())
        return made


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Programs run as torch runs them; the graphs that they ran on are listed."""
    return run_eagerly(monkeypatch)


def test_a_model_trains_as_before() -> None:
    model = drawn(Model())
    other = suture.accelerate(copy.deepcopy(model))
    curves = []
    for each in (model, other):
        optimiser, losses = torch.optim.Adam(each.parameters(), lr=0.05), []
        for _ in range(4):
            optimiser.zero_grad()
            loss = each(X, INDEX, KINDS).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-10)
    assert curves[1][-1] < curves[1][0]


def test_layers_stay_instances_with_the_same_parameters(eager: list[Any]) -> None:
    model = drawn(Model())
    before = list(model.state_dict().items())
    parameters = list(model.parameters())
    assert suture.accelerate(model) is model
    assert list(accelerated(model)) == ["first", "rest.0"]
    assert isinstance(model.first, RGCNConv)
    assert str(model) == str(Model())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert [(name, each.tolist()) for name, each in before] == [
        (name, each.tolist()) for name, each in model.state_dict().items()
    ]
    suture.accelerate(model)  # twice is once
    assert type(model.first).__mro__[1] is RGCNConv


def test_loaded_weights_are_seen(eager: list[Any]) -> None:
    model, source = suture.accelerate(drawn(Model())), drawn(Model(), seed=5)
    model(X, INDEX, KINDS)
    model.load_state_dict(source.state_dict())
    torch.testing.assert_close(model(X, INDEX, KINDS), source(X, INDEX, KINDS), rtol=1e-10, atol=1e-10)
    model.first.weight = nn.Parameter(torch.zeros_like(source.first.weight))
    source.first.weight = nn.Parameter(torch.zeros_like(source.first.weight))
    torch.testing.assert_close(model(X, INDEX, KINDS), source(X, INDEX, KINDS), rtol=1e-10, atol=1e-10)


def test_copies_and_pickles_are_accelerated_and_independent(eager: list[Any]) -> None:
    model = suture.accelerate(drawn(Model()))
    expected = model(X, INDEX, KINDS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert list(accelerated(each)) == ["first", "rest.0"]
        assert torch.equal(each(X, INDEX, KINDS), expected)
        with torch.no_grad():
            each.first.bias.add_(1)
        assert not torch.equal(each(X, INDEX, KINDS), expected)
    assert torch.equal(model(X, INDEX, KINDS), expected)


def test_modes_hooks_and_parametrizations_work(eager: list[Any]) -> None:
    layer = drawn(GATConv(6, 4, dropout=0.5))
    other = suture.accelerate(copy.deepcopy(layer))
    agree(layer, X, INDEX, other=other)
    agree(layer.eval(), X, INDEX, other=other.eval())
    seen = []
    other.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    other(X, INDEX)
    assert seen == [(NODES, 4)]
    convolution = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS)))
    nn.utils.parametrizations.weight_norm(convolution, "root")
    convolution(X, INDEX, KINDS).sum().backward()
    assert all(each.grad is not None for each in convolution.parameters())


def test_lazy_layers_are_initialised_by_their_first_call(eager: list[Any]) -> None:
    layer = suture.accelerate(SAGEConv(-1, 4))
    x = features(NODES, 6, dtype=torch.float32)
    first = layer(x, INDEX)
    assert not eager
    torch.testing.assert_close(layer(x, INDEX), first)
    assert eager


def test_edges_are_looked_at_once_while_they_are(eager: list[Any]) -> None:
    layer = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS)))
    index, kinds = INDEX.clone(), KINDS.clone()
    for _ in range(2):
        layer(X, index, kinds)
    assert eager[0] is eager[1]
    kinds[0] = (kinds[0] + 1) % RELATIONS
    written = layer(X, index, kinds)
    assert eager[2] is not eager[0]
    torch.testing.assert_close(written, decelerate(copy.deepcopy(layer))(X, index, kinds), rtol=1e-10, atol=1e-10)
    kept = len(structures._MADE)
    eager.clear()
    del index
    gc.collect()
    assert len(structures._MADE) < kept


def test_decelerate_gives_the_own_forward_back(eager: list[Any]) -> None:
    layer = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS)))
    assert type(decelerate(layer)) is RGCNConv
    layer(X, INDEX, KINDS)
    assert not eager and not list(accelerated(layer))


def test_what_is_not_covered_runs_as_before_and_says_so(eager: list[Any]) -> None:
    layer = drawn(GATConv(6, 4))
    other = suture.accelerate(copy.deepcopy(layer))
    sparse = torch.sparse_coo_tensor(INDEX.flip(0), torch.ones(EDGES, dtype=DOUBLE), (NODES, NODES)).coalesce()
    with pytest.warns(Unaccelerated, match="sparse adjacency"):
        made = other(X, sparse)
    torch.testing.assert_close(made, layer(X, sparse))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(X, sparse)  # once is enough
    other.register_message_forward_hook(lambda module, given, result: result)
    with pytest.warns(Unaccelerated, match="hooks inside"):
        other(X, INDEX)
    assert not eager
    with pytest.warns(Unaccelerated, match="aggregation"):
        assert type(suture.accelerate(SAGEConv(6, 4, aggr="median"))) is SAGEConv


def test_a_derived_class_is_left_alone() -> None:
    class Louder(RGCNConv):
        def message(self, x_j: torch.Tensor, edge_type_ptr: Any) -> torch.Tensor:
            return 2 * x_j

    with pytest.warns(Unaccelerated, match="Louder"):
        assert type(suture.accelerate(Louder(6, 4, RELATIONS))) is Louder


def test_the_layers_own_errors_stay(eager: list[Any]) -> None:
    layer = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS, num_blocks=2)))
    with pytest.raises(ValueError, match="non-continuous"):
        layer(torch.arange(NODES), INDEX, KINDS)


def test_bad_edges_are_refused() -> None:
    layer = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS)))
    with pytest.raises(SutureError, match="types are out of range") as caught:
        layer(X, INDEX, KINDS + 1)
    assert caught.value.code is Code.RELATION
    with pytest.raises(SutureError, match="sources are out of range"):
        layer(X, INDEX + torch.tensor([[5], [0]]), KINDS)


def test_a_model_without_known_layers_is_refused() -> None:
    for module in (GCNConv(6, 4), nn.Linear(2, 2), "model"):
        with pytest.raises(SutureError) as caught:
            suture.accelerate(module)  # type: ignore[type-var]
        assert caught.value.code is Code.MODULE


def test_edge_types_in_another_order_go_by_their_names(eager: list[Any]) -> None:
    counts, kinds = {"a": 5, "b": 4}, [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a")]
    layer = drawn(HGTConv(8, 8, (list(counts), kinds), 2))
    x = {name: features(count, 8) for name, count in counts.items()}
    edges = {kind: edge_index(counts[kind[0]], counts[kind[2]], 7, seed) for seed, kind in enumerate(kinds)}
    expected, other = layer(x, edges), suture.accelerate(copy.deepcopy(layer))
    with pytest.warns(Unaccelerated, match="another order"):
        made = other(x, dict(reversed(edges.items())))
    for name in counts:
        torch.testing.assert_close(made[name], expected[name], rtol=1e-10, atol=1e-10)


def test_batches_of_neighbours_have_the_numbers_of_the_whole_graph() -> None:
    model = drawn(Model())
    expected, other = model(X, INDEX, KINDS), suture.accelerate(copy.deepcopy(model))
    for seeds in torch.arange(NODES).split(6):
        nodes, edges, index = neighbourhood(seeds, INDEX, hops=2)
        found = other(X[nodes], index, KINDS[edges])[: len(seeds)]
        torch.testing.assert_close(found, expected[seeds], rtol=1e-10, atol=1e-10)


def test_the_page_of_the_documentation_runs() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "accelerate.md"
    exec("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)), {"__name__": "page"})
