"""DGL's RelGraphConv, from its state dict and swapped, against the layer's formula; DGL itself need not be there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerating import DOUBLE, agree, edge_index, features, run_eagerly, types
from torch import nn

from suture.drivers.accelerating.dgl import RelationalGraphConvolutions, RelGraphConv
from suture.drivers.accelerating.running import Choices
from suture.drivers.accelerating.swapping import swap
from suture.ir.errors import Code, SutureError
from suture.relational import MessageGraph

NODES, EDGES, RELATIONS, BASES = 9, 30, 4, 2
INDEX, KINDS, X, NORM = edge_index(NODES, NODES, EDGES), types(RELATIONS, EDGES), features(NODES, 6), features(EDGES, 1)
REGULARIZERS = [None, "basis", "bdd"]


class TypedLinear(nn.Module):
    """What a RelGraphConv keeps its matrices in."""

    def __init__(self, regularizer: str | None) -> None:
        super().__init__()
        self.regularizer, self.num_types, self.num_bases = regularizer, RELATIONS, BASES
        self.submat_in, self.submat_out = 6 // BASES, 4 // BASES
        shapes = {None: (RELATIONS, 6, 4), "basis": (BASES, 6, 4), "bdd": (RELATIONS, BASES * 3 * 2)}
        self.W = nn.Parameter(torch.randn(shapes[regularizer], dtype=DOUBLE))
        if regularizer == "basis":
            self.coeff = nn.Parameter(torch.randn(RELATIONS, BASES, dtype=DOUBLE))

    def matrices(self) -> torch.Tensor:
        if self.regularizer == "basis":
            return torch.einsum("rb,bio->rio", self.coeff, self.W)
        if self.regularizer == "bdd":
            return torch.stack([torch.block_diag(*each) for each in self.W.reshape(-1, BASES, 3, 2)])
        return self.W


class Reference(nn.Module):
    """The layer, edge by edge, with the names that DGL's has."""

    def __init__(self, regularizer: str | None, *, full: bool) -> None:
        super().__init__()
        self.linear_r = TypedLinear(regularizer)
        self.bias = True
        self.self_loop = self.layer_norm = full
        self.activation = torch.relu if full else None
        self.h_bias = nn.Parameter(torch.randn(4, dtype=DOUBLE))
        if full:
            self.loop_weight = nn.Parameter(torch.randn(6, 4, dtype=DOUBLE))
            self.layer_norm_weight = nn.LayerNorm(4, dtype=DOUBLE)
        self.dropout = nn.Dropout(0.0)

    def forward(
        self, g: Any, feat: torch.Tensor, etypes: torch.Tensor, norm: torch.Tensor | None = None
    ) -> torch.Tensor:
        src, dst = g.edges(order="eid")
        messages = torch.bmm(feat[src][:, None], self.linear_r.matrices()[etypes])[:, 0]
        messages = messages if norm is None else messages * norm
        h = torch.zeros(g.num_dst_nodes(), 4, dtype=DOUBLE).index_add(0, dst, messages)
        h = self.layer_norm_weight(h) if self.layer_norm else h
        h = h + self.h_bias
        h = h + feat[: len(h)] @ self.loop_weight if self.self_loop else h
        made: torch.Tensor = self.dropout(self.activation(h) if self.activation else h)
        return made


class Edges:
    """What is asked of a DGLGraph."""

    def __init__(self, index: torch.Tensor, targets: int, *, is_block: bool = False) -> None:
        self.index, self.targets, self.is_block = index, targets, is_block

    def edges(self, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.index[0].clone(), self.index[1].clone()

    def num_dst_nodes(self) -> int:
        return self.targets


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Programs run as torch runs them."""
    return run_eagerly(monkeypatch)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_state_dict_is_enough(regularizer: str | None, full: bool, eager: list[Any]) -> None:
    layer = Reference(regularizer, full=full)
    state = layer.state_dict()
    made = RelGraphConv(
        state, num_rels=RELATIONS, blocks=BASES if regularizer == "bdd" else None, activation=layer.activation
    )  # fmt: skip
    g = MessageGraph(INDEX[0], INDEX[1], KINDS, num_nodes=NODES, num_types=RELATIONS)
    expected = layer(Edges(INDEX, NODES), X, KINDS, NORM)
    torch.testing.assert_close(made(g, X, NORM), expected, rtol=1e-10, atol=1e-10)
    made.load_state_dict(state)
    made(g, X).sum().backward()
    layer(Edges(INDEX, NODES), X, KINDS).sum().backward()
    for name, each in layer.named_parameters():
        torch.testing.assert_close(made.get_parameter(name).grad, each.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_swapped_layers(regularizer: str | None, eager: list[Any]) -> None:
    layer = Reference(regularizer, full=True)
    other = copy.deepcopy(layer)
    swap(other, RelationalGraphConvolutions, Choices())
    graph = Edges(INDEX, NODES)
    agree(layer, graph, X, KINDS, NORM, other=other)
    graph.index = INDEX.flip(0)  # other edges of the same graph
    agree(layer, graph, X, KINDS, NORM, other=other)
    agree(layer, Edges(edge_index(NODES, 5, EDGES), 5, is_block=True), X, KINDS, other=other)


def test_compiled_layers() -> None:
    layer = Reference("basis", full=True)
    other = copy.deepcopy(layer)
    swap(other, RelationalGraphConvolutions, Choices())
    agree(layer, Edges(INDEX, NODES), X, KINDS, NORM, other=other)


@pytest.mark.parametrize(
    ("state", "options", "what"),
    [
        ({"weight": torch.ones(2)}, {}, "has 'weight'"),
        ({"h_bias": torch.ones(2)}, {}, "no 'linear_r.W'"),
        ({"linear_r.W": torch.ones(4, 12)}, {}, "2 dimensions"),
        ({"linear_r.W": torch.ones(3, 6, 4)}, {}, "weights for 3 relations"),
        ({"linear_r.W": torch.ones(4, 12)}, {"blocks": 2}, "how wide"),
    ],
)
def test_other_state_dicts_are_refused(state: dict[str, torch.Tensor], options: dict[str, int], what: str) -> None:
    with pytest.raises(SutureError, match=what) as caught:
        RelGraphConv(state, num_rels=RELATIONS, **options)
    assert caught.value.code is Code.WEIGHTS
