"""Compiled layers against PyTorch Geometric's, on drawn graphs: float64 to 1e-10, float32 to 1e-4."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from accelerating import DOUBLE, agree, drawn, edge_index, edges_and_types, features, types
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import suture

pytest.importorskip("torch_geometric")
from torch_geometric.nn import FastRGCNConv, GATConv, GATv2Conv, HGTConv, RGATConv, RGCNConv, SAGEConv

RELATIONS = 5
TYPED: dict[str, Any] = {
    "rgcn": lambda: RGCNConv(6, 4, RELATIONS),
    "rgcn, bases, sum": lambda: RGCNConv(6, 4, RELATIONS, num_bases=2, aggr="sum"),
    "rgcn, blocks": lambda: RGCNConv(6, 4, RELATIONS, num_blocks=2),
    "rgcn, fast": lambda: FastRGCNConv(6, 4, RELATIONS),
    "rgat": lambda: RGATConv(6, 4, RELATIONS, heads=2),
    "rgat, within": lambda: RGATConv(6, 4, RELATIONS, attention_mechanism="within-relation"),
}
UNTYPED: dict[str, Any] = {
    "gat": lambda: GATConv(6, 4, 2),
    "gat, second": lambda: GATv2Conv(6, 4, 2),
    "sage": lambda: SAGEConv(6, 4),
    "sage, maximum": lambda: SAGEConv(6, 4, aggr="max"),
}


@cache
def pair(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A layer and its accelerated copy, which keeps what it compiled from graph to graph."""
    layer = drawn((TYPED | UNTYPED)[name](), dtype=dtype)
    return layer, suture.accelerate(copy.deepcopy(layer))


@pytest.mark.parametrize("name", [*TYPED, *UNTYPED])
@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(graph=edges_and_types(relations=RELATIONS))
def test_drawn_graphs(name: str, graph: tuple[int, torch.Tensor, torch.Tensor]) -> None:
    nodes, index, kinds = graph
    layer, other = pair(name, DOUBLE)
    agree(layer, features(nodes, 6), index, *([kinds] if name in TYPED else []), other=other)


@pytest.mark.parametrize("name", ["rgcn", "rgat", "gat", "sage"])
def test_single_precision(name: str) -> None:
    layer, other = pair(name, torch.float32)
    x = features(50, 6, dtype=torch.float32)
    agree(
        layer,
        x,
        edge_index(50, 50, 300),
        *([types(RELATIONS, 300)] if name in TYPED else []),
        other=other,
        tolerance=1e-4,
    )


def test_five_hundred_relations_and_one() -> None:
    for relations in (500, 1):
        agree(drawn(RGCNConv(6, 4, relations)), features(40, 6), edge_index(40, 40, 900), types(relations, 900))
        agree(
            drawn(RGATConv(6, 4, relations, heads=2)), features(40, 6), edge_index(40, 40, 900), types(relations, 900)
        )


NAMES = ("a", "b", "c")
KINDS = [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a"), ("c", "w", "b")]


@cache
def transformer() -> tuple[Any, Any]:
    layer = drawn(HGTConv(8, 8, (list(NAMES), KINDS), 2))
    return layer, suture.accelerate(copy.deepcopy(layer))


@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(
    counts=st.tuples(*[st.integers(1, 6)] * 3),
    edges=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    seed=st.integers(0, 999),
)
def test_transformers_on_drawn_graphs(counts: tuple[int, ...], edges: list[int], seed: int) -> None:
    by_name = dict(zip(NAMES, counts, strict=True))
    index = {
        kind: edge_index(by_name[kind[0]], by_name[kind[2]], count, seed + k)
        for k, (kind, count) in enumerate(zip(KINDS, edges, strict=True))
    }
    layer, other = transformer()
    agree(layer, {name: features(count, 8) for name, count in by_name.items()}, index, other=other)


def test_dropout_draws_what_the_layer_draws() -> None:
    layer = drawn(GATConv(6, 4, 2, dropout=0.5))
    agree(layer, features(20, 6), edge_index(20, 20, 80))


def test_nodes_without_features() -> None:
    agree(drawn(RGCNConv(30, 4, RELATIONS)), None, edge_index(30, 30, 90), types(RELATIONS, 90))


def test_numbers_of_rows_change_while_edges_stay() -> None:
    layer = drawn(RGCNConv(30, 4, RELATIONS))
    other = suture.accelerate(copy.deepcopy(layer))
    index, kinds = edge_index(30, 30, 90), types(RELATIONS, 90)
    for seed in range(3):
        agree(layer, types(30, 30, seed), index, kinds, other=other)


def test_results_are_the_same_bits_at_every_run() -> None:
    other = suture.accelerate(drawn(RGATConv(6, 4, RELATIONS, heads=2)))
    index, kinds, x = edge_index(50, 50, 900), types(RELATIONS, 900), features(50, 6).requires_grad_()

    def run() -> tuple[torch.Tensor, ...]:
        made = other(x, index, kinds)
        return made.detach(), *torch.autograd.grad(made.square().sum(), [x, *other.parameters()], allow_unused=True)

    for a, b in zip(run(), run(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
