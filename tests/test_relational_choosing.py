"""Statistics of edges, the cost model, and what they decide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from message_passing import PROGRAMS, Sizes, assert_same, edges_for, program, some_sizes

from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.verify import verify
from suture.passes.relational.choosing import Decisions, Step, apply, decide
from suture.passes.relational.costs import CPU, GPU, estimate
from suture.passes.relational.statistics import Statistics, assume, count_pairs, measure


def statistics(graph: Graph, *, edges: int, nodes: int, src: int, dst: int) -> Statistics:
    """Made-up statistics: `src` and `dst` are unique pairs with the type."""
    del graph
    distinct = {frozenset({"type", "src"}): src, frozenset({"type", "dst"}): dst}
    return Statistics({"edges": edges, "nodes": nodes}, distinct)


def kinds(decisions: Decisions) -> list[str]:
    return [step.kind for step in decisions.steps]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=30))
def test_unique_pairs_are_counted(pairs: list[tuple[int, int]]) -> None:
    a, b = (
        torch.tensor([p[0] for p in pairs], dtype=torch.int64),
        torch.tensor([p[1] for p in pairs], dtype=torch.int32),
    )
    assert count_pairs(a, b) == len(set(pairs))


def test_pairs_of_large_numbers_are_counted_without_a_table() -> None:
    a, b = torch.tensor([1 << 33, 5, 1 << 33, 5]), torch.tensor([7, 1 << 20, 7, 3])
    assert count_pairs(a, b) == 3


def test_edges_are_measured() -> None:
    graph = program("rgat")
    x = torch.zeros(4, 6, dtype=torch.float64)
    src, dst, type = torch.tensor([0, 0, 1, 3]), torch.tensor([2, 2, 2, 2]), torch.tensor([4, 4, 0, 4])
    found = measure(graph, [x, src, dst, type])
    assert found.sizes == {"nodes": 4, "edges": 4}
    assert found.pairs("type", "src") == found.pairs("src", "type") == 3
    assert found.pairs("type", "dst") == 2
    assert found.rows == {"type": (1, 0, 0, 0, 3)}
    assert "unique pairs of src and type: 3" in str(found)
    assert measure(graph, {"src": src, "dst": dst, "type": type}).distinct == found.distinct


def test_edges_parted_by_the_fewer_ends_are_measured() -> None:
    graph = program("rgcn")
    src, dst = [0, 0, 0, 0, 1, 2, 3, 2, 5, 4, 1], [1, 2, 3, 4, 0, 0, 0, 0, 2, 3, 1]
    edges = {"src": src, "dst": dst, "type": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3]}
    found = measure(graph, {name: torch.tensor(numbers) for name, numbers in edges.items()})
    after = apply(graph, Decisions((Step("aggregate by type", ("y",)),)))
    counted = [found.measured(node) for node in after.nodes if node.operator.measures]
    inputs = [torch.zeros(6, 6, dtype=torch.float64), *map(torch.tensor, edges.values()), torch.ones(11, 1).double()]
    rows: dict[str, int] = {}
    evaluate(after, inputs, watch=lambda value, tensor: rows.__setitem__(value.name, tensor.shape[0]))
    assert counted == [rows[node.outputs[0].name] for node in after.nodes if node.operator.measures]
    assert counted == [5, 4 + 4, 4 + 2 + 1 + 1]


def test_each_type_takes_its_own_side_where_types_differ() -> None:
    graph = program("rgcn")
    side = torch.arange(20_000)
    few = side % 3
    edges = {"src": torch.cat([side, few]), "dst": torch.cat([few, side]), "type": torch.cat([side % 2, 2 + side % 2])}
    found = decide(graph, measure(graph, edges), train=True)
    assert "aggregate by type" in kinds(found)


def test_inputs_that_do_not_exist_are_an_error() -> None:
    with pytest.raises(SutureError, match="sorce"):
        measure(program("rgat"), {"sorce": torch.zeros(3, dtype=torch.int64)})


def test_few_pairs_are_computed_once_and_many_are_not() -> None:
    graph = program("rgcn")
    few = decide(graph, statistics(graph, edges=1_000_000, nodes=10_000, src=100_000, dst=900_000))
    assert few.steps == (Step("compact", ("type", "src")),)
    many = decide(graph, statistics(graph, edges=1_000_000, nodes=900_000, src=1_000_000, dst=1_000_000))
    assert many.steps == ()


def test_sums_come_first_where_destinations_are_few() -> None:
    graph = program("rgcn")
    found = decide(graph, statistics(graph, edges=1_000_000, nodes=10_000, src=900_000, dst=20_000))
    assert kinds(found) == ["aggregate first"]
    other = decide(graph, statistics(graph, edges=1_000_000, nodes=10_000, src=20_000, dst=900_000))
    assert kinds(other) == ["compact"]


def test_scores_of_destinations_take_products_of_weights() -> None:
    graph = program("rgat")
    found = decide(graph, statistics(graph, edges=1_000_000, nodes=100_000, src=400_000, dst=400_000))
    assert Step("weights first", ("sd",)) in found.steps
    assert found.after[-1] < 0.8 * found.before


def test_what_comes_out_narrower_is_multiplied_first() -> None:
    graph = program("sage")
    found = decide(graph, statistics(graph, edges=1_000_000, nodes=100_000, src=1, dst=1))
    assert found.steps == (Step("transform first", ("y",)),)


def test_products_of_weights_are_left_where_edges_are_few() -> None:
    graph = program("hgt")
    found = decide(graph, statistics(graph, edges=4, nodes=4, src=4, dst=4))
    assert "weights first" not in kinds(found)


def test_effects_can_be_switched_off() -> None:
    graph = program("rgat")
    counts = statistics(graph, edges=1_000_000, nodes=100_000, src=400_000, dst=300_000)
    assert decide(graph, counts, compact=False, reorder=False).steps == ()
    assert set(kinds(decide(graph, counts, reorder=False))) == {"compact"}
    assert "compact" not in kinds(decide(graph, counts, compact=False))
    both = decide(graph, counts)
    assert both.after[-1] < decide(graph, counts, reorder=False).after[-1]
    assert both.after[-1] < decide(graph, counts, compact=False).after[-1]


def test_decisions_are_keys_and_replay() -> None:
    graph = program("rgat")
    decisions = decide(graph, statistics(graph, edges=1_000_000, nodes=10_000, src=100_000, dst=100_000))
    again = Decisions(decisions.steps, before=1.0, after=(0.5,) * len(decisions.steps))
    assert decisions == again and hash(decisions) == hash(again)
    assert str(apply(graph, decisions)) == str(apply(graph.copy(), again))
    assert "weights first sd" in str(decisions) and "us" in str(decisions)


def test_decisions_for_another_graph_are_an_error() -> None:
    with pytest.raises(SutureError, match="S466"):
        apply(program("rgcn"), Decisions((Step("weights first", ("sd",)),)))
    with pytest.raises(SutureError, match="S466"):
        apply(program("rgcn"), Decisions((Step("compact", ("type", "dst")),)))


def test_the_way_back_counts() -> None:
    graph = program("rgat")
    counts = statistics(graph, edges=100_000, nodes=10_000, src=50_000, dst=50_000)
    assert decide(graph, counts, train=True).before > 1.5 * decide(graph, counts).before


def test_costs_grow_with_edges_and_fall_with_speed() -> None:
    graph = program("rgat")
    small, large = (statistics(graph, edges=n, nodes=1000, src=n, dst=n) for n in (10_000, 100_000))
    assert estimate(graph, large).total > 5 * estimate(graph, small).total
    assert estimate(graph, large, GPU).total < estimate(graph, large, CPU).total
    assert estimate(graph, assume(graph)).total > 0


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(PROGRAMS)), some_sizes(), st.integers(0, 1000), st.floats(0.05, 1.0), st.floats(0.05, 1.0)
)
def test_what_is_decided_changes_neither_results_nor_gradients(
    name: str, sizes: Sizes, seed: int, sources: float, targets: float
) -> None:
    graph = program(name, seed)
    edges = 1_000_000
    counts = statistics(graph, edges=edges, nodes=50_000, src=round(edges * sources), dst=round(edges * targets))
    after = apply(graph, decide(graph, counts))
    verify(after)
    assert_same(graph, after, edges_for(graph, sizes, seed))
