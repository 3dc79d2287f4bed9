"""What `x[e.src]` and `W[e.type]` mean: rows of a table, and products by type without a matrix for every edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from message_graphs import random_graph
from torch.utils._python_dispatch import TorchDispatchMode

from suture import relational
from suture.ir.errors import Code, SutureError

G = random_graph(nodes=12, edges=40, types=5, kinds=3)
E = G.edges
F64 = torch.float64


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64)


def one_by_one(
    x: torch.Tensor, weight: torch.Tensor, *, times: Callable[..., torch.Tensor] = torch.matmul
) -> torch.Tensor:
    """Each edge's row times the weight of its type."""
    return torch.stack([times(row, weight[type]) for row, type in zip(x, E.type.tensor, strict=True)])


@contextmanager
def largest() -> Iterator[list[int]]:
    """How many elements the largest tensor has that is made inside."""
    seen = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made = [
                each
                for each in (result if isinstance(result, tuple | list) else [result])
                if isinstance(each, torch.Tensor)
            ]
            seen[0] = max([seen[0], *(each.untyped_storage().nbytes() // each.element_size() for each in made)])
            return result

    with Watch():
        yield seen


def test_features_are_looked_up_at_the_ends_of_edges() -> None:
    x = randn(12, 3, 2)
    torch.testing.assert_close(x[E.src], x[G.src])
    torch.testing.assert_close(x[E.dst], x[G.dst])
    torch.testing.assert_close(torch.arange(12)[E.src], G.src)


def test_types_of_nodes_are_looked_up_at_the_ends_of_edges() -> None:
    assert G.nodes.type[E.src].count == 3
    torch.testing.assert_close(G.nodes.type[E.src].tensor, G.tensors["node_type"][G.src])


@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        ((4,), (4, 6)),
        ((3, 4), (3, 4, 6)),
        ((4,), (3, 4, 6)),
        ((1, 4), (3, 4, 6)),
        ((3, 4), (4, 6)),
        ((2, 1, 4), (3, 4, 6)),
    ],
)
def test_rows_times_the_matrices_of_their_types(rows: tuple[int, ...], weights: tuple[int, ...]) -> None:
    x, weight = randn(40, *rows), randn(5, *weights)
    heads = torch.broadcast_shapes(rows[:-1], weights[:-2])
    wanted = one_by_one(x, weight, times=lambda row, w: (row.unsqueeze(-2) @ w).squeeze(-2))
    made = x @ weight[E.type]
    assert made.shape == (40, *heads, 6)
    torch.testing.assert_close(made, wanted.reshape(made.shape))


def test_no_tensor_has_a_matrix_for_every_edge() -> None:
    x, weight, vector = randn(12, 16), randn(5, 16, 16), randn(5, 2, 8)
    with largest() as seen:
        z = x[E.src] @ weight[E.type]
        ((z.unflatten(-1, (2, 8)) * vector[E.type]).sum(-1)).sum()
    assert seen[0] <= 5 * 16 * 16 < 40 * 16 * 16
    with largest() as seen:
        x[E.src] * weight.sum(1)[E.type] + weight[E.type].sum(-1)
    assert seen[0] == 40 * 16 * 16  # asked for, and so it is there


def test_inner_products_with_the_vectors_of_types() -> None:
    z, vector = randn(40, 2, 3), randn(5, 2, 3)
    wanted = one_by_one(z, vector, times=lambda row, w: (row * w).sum(-1))
    torch.testing.assert_close((z * vector[E.type]).sum(-1), wanted)
    torch.testing.assert_close((vector[E.type] * z).sum(dim=-1), wanted)
    torch.testing.assert_close(torch.sum(torch.mul(z, vector[E.type]), -1, keepdim=True), wanted.unsqueeze(-1))
    torch.testing.assert_close(
        (z * vector[E.type]).sum(1), one_by_one(z, vector, times=lambda row, w: (row * w).sum(0))
    )
    torch.testing.assert_close((z * vector[E.type]).sum(), wanted.sum())
    torch.testing.assert_close(z[:, 0] @ vector[:, 0][E.type], one_by_one(z[:, 0], vector[:, 0], times=torch.dot))
    torch.testing.assert_close(
        (z[:, :1] * vector[E.type]).sum(-1), one_by_one(z[:, :1], vector, times=lambda row, w: (row * w).sum(-1))
    )


def test_anything_else_takes_the_rows() -> None:
    scale, x = randn(5, 3), randn(40, 3)
    rows = scale[G.tensors["type"]]
    for made, wanted in (
        (x * scale[E.type], x * rows),
        (x + scale[E.type], x + rows),
        (scale[E.type] - x, rows - x),
        (1 - scale[E.type], 1 - rows),
        (scale[E.type] / 2, rows / 2),
        (-scale[E.type], -rows),
        (scale[E.type] ** 2, rows**2),
        (torch.sigmoid(scale[E.type]), rows.sigmoid()),
        (scale[E.type].exp(), rows.exp()),
        (scale[E.type][:, 0], rows[:, 0]),
        (torch.cat([x, scale[E.type]], 1), torch.cat([x, rows], 1)),
        (2 * (x * scale[E.type]) + 1, 2 * x * rows + 1),
        (x - (x * scale[E.type]), x - x * rows),
        (x[scale[E.type][:, 0] > 0], x[rows[:, 0] > 0]),
        (x[:5][torch.ones(5, dtype=torch.int64)[E.type]], x[torch.ones(40, dtype=torch.int64)]),
        (torch.where(E.type == 1, 1, 0), torch.where(G.tensors["type"] == 1, 1, 0)),
    ):  # fmt: skip
        torch.testing.assert_close(made if isinstance(made, torch.Tensor) else made.rows(), wanted)


def test_a_lookup_by_type_and_node() -> None:
    table = randn(5, 12, 4)
    torch.testing.assert_close(table[E.type, E.src], table[G.tensors["type"], G.src])


def test_two_weights_of_one_type_are_multiplied_first() -> None:
    first, second, x = randn(5, 3, 4), randn(5, 4, 2), randn(40, 3)
    both = first[E.type] @ second[E.type]
    assert isinstance(both, relational.Typed)
    torch.testing.assert_close(x @ both, x @ first[E.type] @ second[E.type])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: randn(11, 3)[E.src], "values for 11 where the graph has 12 nodes"),
        (lambda: randn(4, 3, 3)[E.type], "weights for 4 where the graph has 5 types"),
        (lambda: randn(2, 3)[G.nodes.type], "weights for 2 where the graph has 3 node types"),
        (lambda: torch.tensor(1.0)[E.src], "a number where"),
        (lambda: randn(40, 3) @ randn(5, 4, 2)[E.type], "rows [40, 3] times matrices [5, 4, 2]"),
        (lambda: randn(5, 3, 3)[E.type] @ randn(40, 3, 3), "on the left of @"),
        (lambda: randn(12, 3)[E.src, 0], "together with other indices"),
        (lambda: relational.typed_linear(randn(40, 3), randn(5, 4, 2, 2), E.type), "times the matrices"),
        (lambda: relational.typed_linear(randn(39, 3), randn(5, 3, 2), E.type), "39"),
    ],
)
def test_what_does_not_fit_is_said(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(SutureError) as caught:
        wrong()
    assert caught.value.code is Code.RELATION
    assert words in str(caught.value)


def test_element_types_do_not_mix_in_products() -> None:
    with pytest.raises(SutureError) as caught:
        randn(40, 3).float() @ randn(5, 3, 2)[E.type]
    assert caught.value.code is Code.DTYPE


def test_a_type_without_a_weight_is_found_when_it_is_met() -> None:
    g = relational.MessageGraph(
        torch.tensor([0]), torch.tensor([0]), torch.tensor([7]), num_nodes=1, num_types=3, validate=False
    )
    with pytest.raises(SutureError) as caught:
        randn(1, 3) @ randn(3, 3, 2)[g.edges.type]
    assert caught.value.code is Code.INPUT


def test_products_by_type_have_derivatives() -> None:
    x, weight, vector = randn(12, 3).requires_grad_(), randn(5, 3, 4).requires_grad_(), randn(5, 4).requires_grad_()

    def run(x: torch.Tensor, weight: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        z = x[E.src] @ weight[E.type]
        return G.sum(G.softmax((z * vector[E.type]).sum(-1)).unsqueeze(-1) * z)

    assert torch.autograd.gradcheck(run, (x, weight, vector))


def test_no_rows_at_all_have_derivatives_too() -> None:
    none = torch.empty(0, dtype=torch.int64)
    g = relational.MessageGraph(none, none, none, num_nodes=3, num_types=2)
    weight = randn(2, 2, 3, 4).requires_grad_()
    g.sum(randn(3, 2, 3)[g.edges.src] @ weight[g.edges.type]).sum().backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight))


NUMBERS = torch.arange(12) * 5 % 9
ONE_HOT, DENSE = relational.OneHot(NUMBERS, 9), torch.nn.functional.one_hot(NUMBERS, 9).to(F64)


@pytest.mark.parametrize("shape", [(5, 9, 4), (5, 2, 9, 4)])
def test_one_hot_rows_times_matrices_of_types_are_rows_of_these(shape: tuple[int, ...]) -> None:
    weight = randn(*shape).requires_grad_()
    made, wanted = (x[E.src] @ weight[E.type] for x in (ONE_HOT, DENSE))
    torch.testing.assert_close(made, wanted)
    cotangent = torch.randn_like(made)
    torch.testing.assert_close(*(torch.autograd.grad(each, weight, cotangent)[0] for each in (made, wanted)))
    kinds = randn(3, 9, 4)
    torch.testing.assert_close(ONE_HOT @ kinds[G.nodes.type], DENSE @ kinds[G.nodes.type])


def test_one_hot_rows_are_never_built_for_products() -> None:
    many, weight, root = relational.OneHot(torch.arange(12), 5000), randn(5, 5000, 2), randn(5000, 2)
    with largest() as seen:
        made = many[E.src] @ weight[E.type]
        torch.matmul(many, root)
    assert made.shape == (40, 2)
    assert seen[0] <= weight.numel()


def test_one_hot_rows_are_a_tensor_to_everything_else() -> None:
    weight = randn(9, 4)
    torch.testing.assert_close(torch.matmul(ONE_HOT, weight), DENSE @ weight)
    torch.testing.assert_close(ONE_HOT.rows().to(F64), DENSE)
    torch.testing.assert_close(ONE_HOT.sum(0).to(F64), DENSE.sum(0))
    torch.testing.assert_close(G.sum(ONE_HOT[E.src]).to(F64), G.sum(DENSE[E.src]))
    assert str(ONE_HOT) == "one-hot rows of 9 columns"


def test_one_hot_rows_that_do_not_fit_are_refused() -> None:
    for wrong in (
        lambda: relational.OneHot(NUMBERS, 8),
        lambda: relational.OneHot(NUMBERS > 3, 9),
        lambda: ONE_HOT[E.src] @ randn(5, 8, 4)[E.type],
        lambda: ONE_HOT[E.src] @ randn(5, 9)[E.type],
        lambda: ONE_HOT @ randn(8, 4),
        lambda: relational.OneHot(NUMBERS[1:], 9)[E.src],
    ):
        with pytest.raises(SutureError) as failure:
            wrong()
        assert failure.value.code == Code.RELATION
