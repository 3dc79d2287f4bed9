"""Edges as other libraries keep them, as message graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerating import edge_index, features, types

from suture import relational
from suture.frontends.messages.conversions import stack
from suture.ir.errors import Code, SutureError
from suture.relational import MessageGraph, Stack


def passed(g: MessageGraph, x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The sums of the sources' features."""
    messages = x[g.edges.src]  # type: ignore[index]
    return g.sum(messages if weights is None else messages * weights[:, None])


def test_edge_indices() -> None:
    index, kinds = edge_index(7, 7, 20), types(3, 20)
    g = relational.from_edge_index(index, kinds, num_nodes=9, num_types=4)
    assert (g.num_src, g.num_dst, g.num_types, g.bipartite) == (9, 9, 4, False)
    assert torch.equal(g.src, index[0]) and torch.equal(g.dst, index[1])
    assert relational.from_edge_index(torch.tensor([[4], [2]])).num_dst == 5
    between = relational.from_edge_index(edge_index(7, 5, 20).int(), num_nodes=(7, 5))
    assert (between.num_src, between.num_dst, between.bipartite) == (7, 5, True)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
@pytest.mark.parametrize("shape", [(6, 6), (4, 6)])
def test_sparse_matrices_are_products(layout: torch.layout, shape: tuple[int, int]) -> None:
    dense = features(*shape) * (features(*shape, seed=9) > 0)
    g, values = relational.from_sparse(dense.to_sparse(layout=layout))
    x = features(shape[1], 3)
    torch.testing.assert_close(passed(g, x, values), dense @ x)
    g, values = relational.from_sparse(dense.to_sparse(layout=layout), rows="sources")
    x = features(shape[0], 3)
    torch.testing.assert_close(passed(g, x, values), dense.T @ x)


def test_values_of_a_sparse_matrix_may_be_types() -> None:
    matrix = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 1]]), torch.tensor([2, 0]), (2, 2))
    g, _ = relational.from_sparse(matrix, types=True)
    assert g.type is not None and g.type.tolist() == [2, 0] and g.num_types == 3


COUNTS = {"paper": 6, "author": 4}
KINDS = [("author", "writes", "paper"), ("paper", "cites", "paper"), ("paper", "by", "author")]


def hetero() -> Any:
    data = pytest.importorskip("torch_geometric").data.HeteroData()
    for name, count in COUNTS.items():
        data[name].x = features(count, 3, seed=count)
    for seed, kind in enumerate(KINDS):
        data[kind].edge_index = edge_index(COUNTS[kind[0]], COUNTS[kind[2]], 8, seed)
    return data


def test_types_of_nodes_and_edges_are_stacked() -> None:
    data = hetero()
    made = relational.from_hetero(data)
    g = made.graph
    assert (made.names, made.counts, made.kinds) == (("paper", "author"), (6, 4), tuple(KINDS))
    assert made.first("author") == 6
    assert g.nodes.type.tensor.tolist() == [0] * 6 + [1] * 4
    found = made.parts(passed(g, made.features(data.x_dict)))
    for name in COUNTS:
        expected = torch.zeros_like(found[name])
        for kind in KINDS:
            if kind[2] == name:
                src, dst = data[kind].edge_index
                expected.index_add_(0, dst, data[kind[0]].x[src])
        torch.testing.assert_close(found[name], expected)


def test_types_keep_their_numbers_where_some_are_missing() -> None:
    data = hetero()
    del data[KINDS[0]]
    made = relational.from_hetero(data, kinds=KINDS, names=["author", "paper"])
    assert made.graph.num_types == 3 and set(made.graph.edges.type.tensor.tolist()) == {1, 2}
    assert made.names == ("author", "paper")
    with pytest.raises(SutureError, match="is not known"):
        relational.from_hetero(hetero(), kinds=KINDS[1:])


def test_batches_of_neighbours() -> None:
    data = pytest.importorskip("torch_geometric").data
    batch = data.Data(x=features(7, 3), edge_index=edge_index(7, 7, 12), edge_type=types(3, 12), batch_size=2)
    g, seeds = relational.from_neighbor_batch(batch, num_types=5)
    assert isinstance(g, MessageGraph) and (g.num_dst, g.num_types, seeds) == (7, 5, 2)
    mixed = hetero()
    mixed["paper"].batch_size = 3
    made, by_name = relational.from_neighbor_batch(mixed, kinds=KINDS)
    assert isinstance(made, Stack) and by_name == {"paper": 3}


def test_loaded_batches_of_neighbours() -> None:
    pytest.importorskip("torch_sparse", reason="NeighborLoader needs pyg-lib or torch-sparse")
    from torch_geometric.loader import NeighborLoader

    loader = NeighborLoader(hetero(), num_neighbors=[2, 2], batch_size=2, input_nodes="paper")
    for batch in loader:
        made, seeds = relational.from_neighbor_batch(batch, kinds=KINDS)
        assert isinstance(made, Stack) and made.kinds == tuple(KINDS)
        assert seeds == {"paper": 2}
        assert passed(made.graph, made.features(batch.x_dict)).shape == (sum(made.counts), 3)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: relational.from_edge_index(torch.zeros(3, 2)), r"an edge index \[3, 2\]"),
        (lambda: relational.from_edge_index(torch.tensor([[9], [0]]), num_nodes=3), "out of range"),
        (lambda: relational.from_sparse(torch.eye(3)), "a matrix of 2 dimensions"),
        (lambda: relational.from_sparse(torch.eye(3).to_sparse(), types=True), "types of torch.float32"),
        (lambda: relational.from_hetero(SimpleNamespace()), "has no types"),
        (lambda: relational.from_neighbor_batch(SimpleNamespace()), "without edge_index"),
        (lambda: relational.from_neighbor_batch(SimpleNamespace(edge_index=torch.zeros(2, 0))), "without batch_size"),
        (
            lambda: stack({"a": 2, "b": 3}, {("a", "x", "b"): torch.tensor([[2], [0]])}, [("a", "x", "b")]),
            "1 sources of",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, what: str) -> None:
    with pytest.raises(SutureError, match=what) as caught:
        make()
    assert caught.value.code is Code.RELATION


def test_features_that_do_not_fit_are_refused() -> None:
    made = relational.from_hetero(hetero())
    with pytest.raises(SutureError, match="no features"):
        made.features({"paper": features(6, 3)})
    with pytest.raises(SutureError, match="2 rows"):
        made.features({"paper": features(6, 3), "author": features(2, 3)})
