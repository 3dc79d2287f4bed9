"""Compact materialisation: what is local to a node and a type is found, is computed once for each pair, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from gradients import read
from hypothesis import given, settings
from hypothesis import strategies as st
from message_passing import PROGRAMS, Sizes, assert_same, edges_for, outputs, program, some_sizes

import suture
from suture.ir.errors import SutureError
from suture.ir.semantics import evaluate
from suture.ir.verify import verify
from suture.passes.relational.compaction import lift_candidates, pair_candidates
from suture.passes.relational.locality import row_keys


def keys_by_name(name: str) -> dict[str, set[str] | None]:
    found = row_keys(program(name))
    return {
        value.name: None if keys is None else {key.name for key in keys}
        for value, keys in found.items()
        if value.producer is not None
    }


def test_locality_is_read_off_the_notation() -> None:
    found = keys_by_name("rgat")
    assert found["hs"] == {"src"}
    assert found["zs"] == found["ks"] == found["ss"] == {"src", "type"}
    assert found["sd"] == {"dst", "type"}
    assert found["s"] == {"src", "dst", "type"}
    assert found["t"] is None and found["m"] is None and found["y"] is None


def test_values_of_nodes_are_local_to_their_own_rows_only() -> None:
    found = keys_by_name("hgt")
    assert found["key"] is None
    assert found["ks"] == {"src"}
    assert found["ka"] == {"src", "type"}
    assert found["prior"] == {"type"}


def test_a_value_is_local_to_nothing_where_an_edge_has_features_of_its_own() -> None:
    assert keys_by_name("rgcn")["m"] is None


def test_both_ends_get_pairs_of_their_own() -> None:
    graph = program("rgat")
    assert set(pair_candidates(graph)) == {("type", "src"), ("type", "dst")}
    after = suture.passes.compact(graph)
    verify(after)
    inputs = edges_for(graph, Sizes(nodes=4, edges=60))
    rows: dict[str, int] = {}
    evaluate(after, inputs, watch=lambda value, tensor: rows.__setitem__(value.name, tensor.shape[0]))
    by_name = dict(zip((value.name for value in graph.inputs), inputs, strict=True))
    for end in ("src", "dst"):
        pairs = len(set(zip(by_name["type"].tolist(), by_name[end].tolist(), strict=True)))
        assert pairs < 60
        assert rows[f"z{end[0]}_by_{end}"] == pairs
    assert "zs" not in rows  # nothing reads it for each edge


def test_what_is_computed_of_a_product_comes_with_it() -> None:
    after = suture.passes.compact(program("rgat"))
    makers = {value.name: node.operator.name for node in after.nodes for value in node.outputs}
    assert makers["ss"] == makers["ks"] == "embedding"
    assert makers["ss_by_src"] == "typed_linear"
    assert makers["s"] == "add"


def test_what_is_local_to_one_end_is_computed_on_the_nodes() -> None:
    graph = program("plain")
    assert lift_candidates(graph) == ("src",)
    after = suture.passes.compact(graph)
    inputs = edges_for(graph, Sizes(nodes=7, edges=30))
    rows: dict[str, int] = {}
    evaluate(after, inputs, watch=lambda value, tensor: rows.__setitem__(value.name, tensor.shape[0]))
    assert rows["z_of_src"] == rows["s_of_src"] == 7
    assert not any(node.operator.name == "unique_rows" for node in after.nodes)


def test_the_side_may_be_chosen() -> None:
    after = suture.passes.compact(program("rgat"), by=("dst",))
    names = {value.name for node in after.nodes for value in node.outputs}
    assert "zd_by_dst" in names and "zs_by_src" not in names


def test_compacted_once_there_is_nothing_left() -> None:
    once = suture.passes.compact(program("rgat"))
    twice = suture.passes.compact(once)
    assert twice.history[-1].outcome == "not applicable"
    assert [node.operator.name for node in twice.nodes] == [node.operator.name for node in once.nodes]


def test_equal_pairs_are_looked_up_once() -> None:
    after = suture.passes.compact(program("hgt"))
    assert sum(node.operator.name == "unique_rows" for node in after.nodes) == 1


@pytest.mark.parametrize(
    "line",
    [
        "%z: f64[edges, 4] = typed_linear(%b, @w, %type)",
        "%p: f64[edges, 4] = typed_linear(%a, @w, %type)\n  %z: f64[edges, 4] = dropout(%p)",
        "%p: f64[edges, 4] = typed_linear(%a, @w, %type)\n  %z: f64[edges, 4] = cumsum(%p) dim=0",
    ],
)
def test_what_depends_on_more_stays_on_edges(line: str) -> None:
    graph = read(
        f"""
graph g(%x: f64[nodes, 4], %src: i64[edges], %dst: i64[edges], %type: i64[edges]) {{
  parameter @w: f64[5, 4, 4]

  %a: f64[edges, 4] = embedding(%x, %src)
  %c: f64[edges, 4] = embedding(%x, %dst)
  %b: f64[edges, 4] = mul(%a, %c)
  {line}
  return %z
}}
"""
    )
    after = suture.passes.compact(graph)
    value = next(value for node in after.nodes for value in node.outputs if value.name == "z")
    assert value.shape[0] == graph.inputs[1].shape[0]
    assert value.producer is not None and value.producer.operator.name != "embedding"
    inputs = edges_for(graph, Sizes(nodes=3, edges=20))
    torch.testing.assert_close(outputs(after, inputs), outputs(graph, inputs), rtol=0, atol=0)


def test_an_unknown_side_is_an_error() -> None:
    with pytest.raises(SutureError, match=r"S466.*'sorce'.*src"):
        suture.passes.compact(program("rgat"), by=("sorce",))


def test_a_graph_without_edges_is_left_alone() -> None:
    graph = read("graph g(%x: f64[n, 4]) {\n  %y: f64[n, 4] = relu(%x)\n  return %y\n}")
    assert suture.passes.compact(graph).history[-1].outcome == "not applicable"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), some_sizes(), st.integers(0, 1000))
def test_compaction_changes_neither_results_nor_gradients(name: str, sizes: Sizes, seed: int) -> None:
    graph = program(name, seed)
    assert_same(graph, suture.passes.compact(graph, check=False), edges_for(graph, sizes, seed))
