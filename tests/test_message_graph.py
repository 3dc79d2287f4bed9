"""The graph of a message-passing program: what it takes, what it refuses, and its sums, means, maxima and softmaxes against plain loops."""

from __future__ import annotations

import copy
import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from message_graphs import message_graphs, random_graph

from suture.ir.errors import Code, SutureError
from suture.relational import MessageGraph

SRC, DST, TYPE = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2, 0, 0]), torch.tensor([0, 1, 1, 0])


def refused(code: Code, *args: Any, **options: Any) -> str:
    with pytest.raises(SutureError) as caught:
        MessageGraph(*args, **options)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_graph_says_what_it_is() -> None:
    g = MessageGraph(SRC, DST, TYPE, num_nodes=3)
    assert repr(g) == "MessageGraph(4 edges of 2 types, 3 nodes)"
    assert (g.num_edges, g.num_src, g.num_dst, g.num_types, len(g.edges), len(g.nodes)) == (4, 3, 3, 2, 4, 3)
    assert repr(MessageGraph(SRC, DST, num_src=3, num_dst=4)) == "MessageGraph(4 edges, 3 sources to 4 targets)"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_small_integers_are_integers(dtype: torch.dtype) -> None:
    g = MessageGraph(SRC.to(dtype), DST.to(dtype), TYPE.to(dtype), num_nodes=3)
    assert g.src.dtype == g.dst.dtype == torch.int64
    torch.testing.assert_close(g.dst, DST)


def test_masks_and_floats_are_no_numbers_of_nodes() -> None:
    assert "mask.nonzero()" in refused(Code.RELATION, SRC.bool(), DST, num_nodes=3)
    assert "float32" in refused(Code.RELATION, SRC, DST.float(), num_nodes=3)
    assert "types are of torch.bool" in refused(Code.RELATION, SRC, DST, TYPE.bool(), num_nodes=3)
    refused(Code.RELATION, SRC.tolist(), DST, num_nodes=3)
    refused(Code.RELATION, torch.stack([SRC, DST]), DST, num_nodes=3)


def test_numbers_out_of_range_are_counted_and_placed() -> None:
    assert "2 of 4 sources are out of range: 2 at edge 2; there are 2" in refused(
        Code.RELATION, SRC, DST, num_src=2, num_dst=3
    )
    assert "1 of 4 destinations are out of range: 2 at edge 1" in refused(Code.RELATION, SRC, DST, num_src=3, num_dst=2)
    assert "2 of 4 edge types are out of range: 1 at edge 1" in refused(
        Code.RELATION, SRC, DST, TYPE, num_nodes=3, num_types=1
    )
    assert "-1 at edge 3" in refused(Code.RELATION, torch.tensor([0, 1, 2, -1]), DST, num_nodes=3)
    assert "1 of 3 node types are out of range: 2 at node 2" in refused(
        Code.RELATION, SRC, DST, num_nodes=3, node_type=torch.arange(3), num_node_types=2
    )
    assert "there are none" in refused(Code.RELATION, SRC, DST, num_nodes=0)


def test_parts_that_do_not_fit_each_other() -> None:
    assert "4 src, 3 dst" in refused(Code.RELATION, SRC, DST[:3], num_nodes=3)
    assert "4 src, 4 dst, 2 type" in refused(Code.RELATION, SRC, DST, TYPE[:2], num_nodes=3)
    assert "2 node types for 3 nodes" in refused(Code.RELATION, SRC, DST, num_nodes=3, node_type=TYPE[:2])
    refused(Code.RELATION, SRC, DST)
    refused(Code.RELATION, SRC, DST, num_src=3)
    refused(Code.RELATION, SRC, DST, num_nodes=3, num_src=3)
    refused(Code.RELATION, SRC, DST, num_nodes=-1)
    refused(Code.RELATION, SRC, DST, num_nodes=2.5)
    assert "pair" in refused(Code.RELATION, SRC, DST, num_src=3, num_dst=3, node_type=torch.zeros(3).long())
    assert "one tensor" in refused(Code.RELATION, SRC, DST, num_nodes=3, node_type=(TYPE[:3], TYPE[:3]))


def test_a_graph_lies_on_one_device() -> None:
    assert "type on meta" in refused(Code.DEVICE, SRC, DST, TYPE.to("meta"), num_nodes=3, num_types=2)


def test_features_on_another_device_are_refused() -> None:
    g = MessageGraph(SRC, DST, TYPE, num_nodes=3)
    with pytest.raises(SutureError) as caught:
        torch.randn(3, 2, device="meta")[g.edges.src]
    assert caught.value.code is Code.DEVICE
    with pytest.raises(SutureError) as caught:
        g.sum(torch.randn(4, 2, device="meta"))
    assert caught.value.code is Code.DEVICE


def test_edges_and_nodes_without_types_have_none_to_ask_for() -> None:
    g = MessageGraph(SRC, DST, num_nodes=3)
    for ask in (lambda: g.edges.type, lambda: g.nodes.type, lambda: g.relations):
        with pytest.raises(SutureError) as caught:
            ask()
        assert caught.value.code is Code.RELATION


def test_messages_have_a_row_for_every_edge() -> None:
    with pytest.raises(SutureError) as caught:
        MessageGraph(SRC, DST, num_nodes=3).sum(torch.randn(3, 2))
    assert caught.value.code is Code.RELATION
    assert "[3, 2] along 4 edges" in str(caught.value)


def test_a_graph_between_two_sets_has_types_of_both() -> None:
    kinds = (torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 2]))
    g = MessageGraph(SRC, DST, TYPE, num_src=3, num_dst=4, node_type=kinds)
    assert g.num_node_types == 3
    torch.testing.assert_close(g.sources.type.tensor, kinds[0])
    torch.testing.assert_close(g.targets.type.tensor, kinds[1])
    assert g.sum(torch.ones(4, 2)).shape == (4, 2)
    turned = g.reversed()
    torch.testing.assert_close(turned.targets.type.tensor, kinds[0])
    torch.testing.assert_close(turned.sum(torch.ones(4)), torch.tensor([1.0, 1.0, 2.0]))


def test_moving_a_graph_keeps_one_that_is_there() -> None:
    g = random_graph()
    assert g.to("cpu") is g
    moved = g.to("meta")
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.num_types == g.num_types and moved.num_src == g.num_src


def test_copies_leave_behind_what_was_computed() -> None:
    g = random_graph()
    g.cache["kept"] = lambda: None  # what cannot be pickled
    values = torch.randn(g.num_edges, 2)
    wanted = g.mean(values, per_relation=True)
    for made in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert not made.cache and g.cache and repr(made) == repr(g)
        torch.testing.assert_close(made.mean(values, per_relation=True), wanted)


def by_group(g: MessageGraph, values: torch.Tensor, *, per_relation: bool) -> dict[Any, list[torch.Tensor]]:
    """The rows of each destination, or of each destination and type, collected one by one."""
    assert g.type is not None
    found: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for dst, type, row in zip(g.dst.tolist(), g.type.tolist(), values, strict=True):
        found[(dst, type) if per_relation else (dst,)].append(row)
    return found


def reduced(
    g: MessageGraph, values: torch.Tensor, reduce: Callable[..., torch.Tensor], *, per_relation: bool
) -> torch.Tensor:
    made = torch.zeros(g.num_dst, *values.shape[1:], dtype=values.dtype)
    for (dst, *_), rows in by_group(g, values, per_relation=per_relation).items():
        made[dst] += reduce(torch.stack(rows))
    return made


@settings(max_examples=30)
@given(message_graphs())
def test_reductions_are_what_loops_compute(g: MessageGraph) -> None:
    values = torch.randn(g.num_edges, 2, 3, dtype=torch.float64)
    close = torch.testing.assert_close
    close(g.sum(values), reduced(g, values, lambda rows: rows.sum(0), per_relation=False))
    for per_relation in (False, True):
        close(
            g.mean(values, per_relation=per_relation),
            reduced(g, values, lambda rows: rows.mean(0), per_relation=per_relation),
        )
        close(
            g.max(values, per_relation=per_relation),
            reduced(g, values, lambda rows: rows.amax(0), per_relation=per_relation),
        )
        softmax = g.softmax(values, per_relation=per_relation)
        assert softmax.shape == values.shape
        parts, wanted = (by_group(g, each, per_relation=per_relation) for each in (softmax, values))
        for group, rows in wanted.items():
            close(torch.stack(parts[group]), torch.stack(rows).softmax(0))


@settings(max_examples=20)
@given(message_graphs())
def test_degrees_are_counts(g: MessageGraph) -> None:
    ones = torch.ones(g.num_edges, dtype=torch.int64)
    counts = reduced(g, ones, lambda rows: rows.sum(0), per_relation=False)
    torch.testing.assert_close(g.in_degree(), counts)
    torch.testing.assert_close(g.out_degree(), g.reversed().in_degree())
    assert g.type is not None
    same = (g.dst[:, None] == g.dst) & (g.type[:, None] == g.type)
    torch.testing.assert_close(g.in_degree(per_relation=True), same.sum(1))


@settings(max_examples=15)
@given(message_graphs())
def test_what_is_computed_for_each_relation_goes_on_to_its_node(g: MessageGraph) -> None:
    values, weight = (
        torch.randn(g.num_edges, 3, dtype=torch.float64),
        torch.randn(g.num_types, 3, 2, dtype=torch.float64),
    )
    r = g.relations
    made = r.into_nodes(r.mean(values) @ weight[r.type])
    torch.testing.assert_close(made, g.mean(values @ weight[g.edges.type], per_relation=True))


def test_the_softmax_of_large_scores_is_finite() -> None:
    g = MessageGraph(SRC, DST, num_nodes=3)
    scores = torch.tensor([1e4, -1e4, 3e4, 3e4])
    torch.testing.assert_close(g.softmax(scores), torch.tensor([1.0, 1.0, 0.5, 0.5]))


def test_what_is_not_a_number_passes_through() -> None:
    g = MessageGraph(SRC, DST, num_nodes=3)
    x = torch.tensor([[math.nan], [1.0], [2.0]])
    for reduce in (g.sum, g.mean, g.max):
        assert reduce(x[g.edges.src]).isnan().flatten().tolist() == [False, True, False]


def test_a_graph_without_edges_sums_to_zeros() -> None:
    none = torch.empty(0, dtype=torch.int64)
    g = MessageGraph(none, none, none, num_nodes=3, num_types=2)
    x = torch.randn(3, 4)
    for reduce in (g.sum, g.mean, g.max):
        torch.testing.assert_close(reduce(x[g.edges.src] @ torch.randn(2, 4, 5)[g.edges.type]), torch.zeros(3, 5))
    torch.testing.assert_close(g.mean(x[g.edges.src], per_relation=True), torch.zeros(3, 4))


@settings(max_examples=10)
@given(message_graphs())
def test_reductions_have_derivatives(g: MessageGraph) -> None:
    values = torch.randn(g.num_edges, 2, dtype=torch.float64, requires_grad=True)
    for per_relation in (False, True):
        for reduce in (g.mean, g.max, g.softmax):
            assert torch.autograd.gradcheck(lambda v, f=reduce, p=per_relation: f(v, per_relation=p), (values,))
