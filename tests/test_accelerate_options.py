"""Every option of PyTorch Geometric's layers: the program that stands for the layer, run eagerly, has its numbers and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from accelerating import agree, drawn, edge_index, features, run_eagerly, types

import suture
from suture.ir.errors import Code, SutureError

pytest.importorskip("torch_geometric")
from torch_geometric.nn import FastRGCNConv, GATConv, GATv2Conv, HGTConv, RGATConv, RGCNConv, SAGEConv

NODES, EDGES, RELATIONS = 9, 30, 4
INDEX, KINDS = edge_index(NODES, NODES, EDGES), types(RELATIONS, EDGES)
BETWEEN, BETWEEN_KINDS = edge_index(7, 5, 20), types(RELATIONS, 20)
X, BEGIN, END = features(NODES, 6), features(7, 6), features(5, 3)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs run as torch runs them, in torch's default type of double precision."""
    graphs = run_eagerly(monkeypatch)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    assert graphs


@pytest.mark.parametrize("more", [{}, {"num_bases": 2}, {"aggr": "sum"}, {"root_weight": False}], ids=str)
@pytest.mark.parametrize("kind", [RGCNConv, FastRGCNConv])
def test_rgcn_without_features(kind: Any, more: dict[str, Any]) -> None:
    layer = drawn(kind(NODES, 4, RELATIONS, **more))
    agree(layer, None, INDEX, KINDS)
    agree(layer, types(NODES, NODES), INDEX, KINDS)
    agree(drawn(kind((7, 7), 4, RELATIONS, **more)), (torch.arange(7), types(7, 5)), BETWEEN, BETWEEN_KINDS)


def test_rgcn_takes_a_maximum_over_nodes_without_features() -> None:
    agree(drawn(RGCNConv(NODES, 4, RELATIONS, aggr="max")), None, INDEX, KINDS)


@pytest.mark.parametrize("kind", [RGCNConv, FastRGCNConv])
def test_rgcn_between_two_sets_of_nodes_and_against_the_flow(kind: Any) -> None:
    agree(drawn(kind((6, 3), 4, RELATIONS)), (BEGIN, END), BETWEEN, BETWEEN_KINDS)
    agree(drawn(kind(6, 4, RELATIONS, flow="target_to_source")), X, INDEX, KINDS)
    agree(drawn(kind(6, 4, RELATIONS)), X, INDEX, KINDS.int())


def test_rgcn_with_short_integers_is_that_with_long_ones() -> None:
    other = suture.accelerate(drawn(RGCNConv(6, 4, RELATIONS)))
    x = X.clone().requires_grad_()
    results = [other(x, INDEX, KINDS), other(x, INDEX.int(), KINDS.int())]
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in results]
    assert torch.equal(*results) and torch.equal(*gradients)


RGAT_OPTIONS: list[dict[str, Any]] = [
    {}, {"num_bases": 2}, {"num_blocks": 2}, {"mod": "additive"}, {"mod": "scaled"}, {"mod": "f-additive"}, {"mod": "f-scaled"},
    {"dropout": 0.4}, {"edge_dim": 3, "bias": False}, {"concat": False}, {"negative_slope": 0.5, "aggr": "mean"},
]  # fmt: skip


@pytest.mark.parametrize("more", RGAT_OPTIONS, ids=str)
@pytest.mark.parametrize("mechanism", ["across-relation", "within-relation"])
@pytest.mark.parametrize("mode", ["additive-self-attention", "multiplicative-self-attention"])
def test_rgat(mechanism: str, mode: str, more: dict[str, Any]) -> None:
    dim = 1 if mode.startswith("additive") else 2
    layer = drawn(
        RGATConv(6, 4, RELATIONS, attention_mechanism=mechanism, attention_mode=mode, heads=2, dim=dim, **more)
    )
    named = {"edge_attr": features(EDGES, 3)} if "edge_dim" in more else {}
    agree(layer, X, INDEX, KINDS, **named)
    agree(layer, X, INDEX, KINDS, return_attention_weights=True, **named)
    agree(layer.eval(), X, INDEX, KINDS, **named)


@pytest.mark.parametrize("more", [{}, {"num_bases": 2}, {"dropout": 0.4}, {"edge_dim": 3}], ids=str)
@pytest.mark.parametrize("mechanism", ["across-relation", "within-relation"])
def test_rgat_on_numbers_is_rgat_on_one_hot_features(mechanism: str, more: dict[str, Any]) -> None:
    layer = drawn(RGATConv(9, 4, RELATIONS, attention_mechanism=mechanism, heads=2, **more))
    ours = suture.accelerate(copy.deepcopy(layer))
    nodes = torch.arange(len(X)) * 2 % 9
    named = {"edge_attr": features(EDGES, 3)} if "edge_dim" in more else {}
    results = []
    for each, x in ((layer, functional.one_hot(nodes, 9).to(X.dtype)), (ours, nodes)):
        torch.manual_seed(0)
        result = each(x, INDEX, KINDS, **named)
        result.square().sum().backward()
        results.append(result)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    for (name, one), other in zip(layer.named_parameters(), ours.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-10, msg=name)
    with pytest.raises(SutureError, match=r"one-hot numbers are out of range: 9 at row 3") as failure:
        ours(torch.arange(len(X)) + 6, INDEX, KINDS, **named)
    assert failure.value.code == Code.RELATION


GAT_OPTIONS: list[dict[str, Any]] = [
    {}, {"residual": True, "bias": False}, {"dropout": 0.5}, {"concat": False}, {"add_self_loops": False}, {"edge_dim": 1},
    *({"edge_dim": 3, "fill_value": fill} for fill in ("mean", "add", "max", "min", "mul", 2.0, features(3))),
    {"edge_dim": 3, "add_self_loops": False, "dropout": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("more", GAT_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_gat(kind: Any, more: dict[str, Any]) -> None:
    layer = drawn(kind(6, 4, 2, **more))
    edge_attr = None if "edge_dim" not in more else features(EDGES) if more["edge_dim"] == 1 else features(EDGES, 3)
    agree(layer, X, INDEX, edge_attr)
    agree(layer, X, INDEX, edge_attr, return_attention_weights=True)
    agree(layer.eval(), X, INDEX, edge_attr)


def test_gat_options_of_one_of_the_two() -> None:
    agree(drawn(GATConv(6, 4, 2, aggr="mean")), X, INDEX)
    agree(drawn(GATv2Conv(6, 4, 2, share_weights=True)), X, INDEX)
    agree(drawn(GATv2Conv(6, 4, 2, share_weights=True)), (features(7, 6), features(5, 6)), BETWEEN)


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_gat_between_two_sets_of_nodes_and_against_the_flow(kind: Any) -> None:
    for loops in (True, False):
        agree(drawn(kind((6, 3), 4, 2, add_self_loops=loops, residual=True)), (BEGIN, END), BETWEEN)
    agree(drawn(kind(6, 4, 2)), (features(7, 6), features(5, 6)), BETWEEN)
    agree(drawn(kind(6, 4, 2, flow="target_to_source", edge_dim=3)), X, INDEX, features(EDGES, 3))


@pytest.mark.parametrize(
    "more", [{}, {"normalize": True}, {"project": True}, {"root_weight": False, "bias": False}], ids=str
)
@pytest.mark.parametrize("aggr", ["mean", "sum", "max", "min"])
def test_sage(aggr: str, more: dict[str, Any]) -> None:
    agree(drawn(SAGEConv(6, 4, aggr=aggr, **more)), X, INDEX)
    agree(drawn(SAGEConv((6, 3), 4, aggr=aggr, **more)), (BEGIN, END), BETWEEN)
    agree(drawn(SAGEConv(6, 4, aggr=aggr, flow="target_to_source", **more)), X, INDEX)


COUNTS = {"a": 5, "b": 4, "c": 3}
HETERO = [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a"), ("c", "w", "b"), ("b", "x", "b")]


def hetero_edges() -> dict[Any, torch.Tensor]:
    return {kind: edge_index(COUNTS[kind[0]], COUNTS[kind[2]], 7, seed) for seed, kind in enumerate(HETERO)}


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("widths", [(6, 6, 6), (8, 8, 8), (6, 8, 3)], ids=["projected", "gated", "mixed"])
def test_hgt(heads: int, widths: tuple[int, ...]) -> None:
    by_name = dict(zip(COUNTS, widths, strict=True))
    layer = drawn(HGTConv(by_name, 8, (list(COUNTS), HETERO), heads))
    x = {name: features(count, by_name[name]) for name, count in COUNTS.items()}
    agree(layer, x, hetero_edges())
    agree(layer, x, dict(list(hetero_edges().items())[1:]))
