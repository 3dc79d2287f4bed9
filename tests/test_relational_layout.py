"""Laying out: the same numbers, from rows in an order; and the parting of what edges decide from what runs at every call."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from relational_graphs import PROGRAMS, Program, edges, inputs_of

import suture
from suture.ir.equality import same_graph
from suture.ir.graph import Graph
from suture.ir.semantics import bind_symbols
from suture.ir.text import parse_graph
from suture.ir.verify import verify
from suture.passes import gradient, lay_out
from suture.passes.relational.inspection import inspect, split_inspector
from suture.passes.relational.structure import INDICES

UNSORTED = {"segment_sum", "segment_max", "segment_softmax", "typed_linear", "typed_outer"}
INSPECTORS = {"sort_order", "inverse_order", "run_pointers", "unique_rows", "tile_runs", "fewer_ends", "meeting_rows"}
CASES = [(name, train) for name in PROGRAMS for train in (False, True)]


class Laid(NamedTuple):
    graph: Graph
    laid: Graph
    inspector: Graph
    executor: Graph


@functools.cache
def laid_out(name: str, train: bool) -> Laid:
    graph = PROGRAMS[name]()
    graph = gradient(graph, check=False) if train else graph
    laid = lay_out(graph, check=False)
    return Laid(graph, laid, *split_inspector(laid))


def operators(graph: Graph) -> list[str]:
    return [node.operator.name for node in graph.nodes]


def agree(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "train"), CASES)
@settings(max_examples=10)
@given(edges())
def test_rows_in_order_give_the_same_numbers(name: str, train: bool, drawn: dict[str, int]) -> None:
    """Of the graph that was laid out, and of its executor from what its inspector found."""
    graph, laid, inspector, executor = laid_out(name, train)
    inputs = inputs_of(graph, drawn)
    expected = suture.evaluate(graph, inputs)
    agree(expected, suture.evaluate(laid, inputs))
    sizes = bind_symbols(graph, [inputs[value.name] for value in graph.inputs])
    known = {**inputs, **inspect(inspector, inputs, sizes)}
    agree(expected, suture.evaluate(executor, {value.name: known[value.name] for value in executor.inputs}))


@pytest.mark.parametrize(("name", "train"), CASES)
def test_what_is_laid_out_verifies_prints_and_holds_nothing_unsorted(name: str, train: bool) -> None:
    graph, laid, inspector, executor = laid_out(name, train)
    for each in (laid, inspector, executor):
        verify(each)
        assert same_graph(each, parse_graph(str(each))) is None
    assert not UNSORTED & {
        node.operator.name for node in laid.nodes if any(value.dtype.is_floating_point for value in node.outputs)
    }
    assert [value.name for value in laid.inputs] == [value.name for value in graph.inputs]
    assert laid.output_names == graph.output_names


@pytest.mark.parametrize(("name", "train"), CASES)
def test_the_inspector_reads_indices_alone_and_the_executor_has_none_of_its_operators(name: str, train: bool) -> None:
    graph, _, inspector, executor = laid_out(name, train)
    assert all(value.dtype in INDICES or value.shape[1:] == (0,) for value in inspector.inputs)
    assert not INSPECTORS & set(operators(executor))
    kept = [value.name for value in graph.inputs if value.name in {v.name for v in executor.inputs}]
    assert [value.name for value in executor.inputs] == [*kept, *inspector.output_names]
    assert {value.name for value in graph.inputs if value.dtype.is_floating_point} <= set(kept)


def test_edges_are_sorted_by_destination_then_type_and_meet_without_a_lookup() -> None:
    laid = laid_out("attention", False).laid
    assert "edges rows sorted by dst, then type; also by type, then dst" in laid.history[-1].notes
    sums = [node for node in laid.nodes if node.operator.name == "csr_sum"]
    assert {node.inputs[1].name for node in sums if node.inputs[1] is not None} == {"dst_runs"}
    assert all(node.inputs[0] is not None and node.inputs[0].producer is not None for node in sums)
    assert {node.inputs[0].producer.operator.name for node in sums} == {"mul", "exp"}  # type: ignore[union-attr]


def test_pairs_that_come_sorted_by_type_are_not_sorted_again() -> None:
    laid = laid_out("compact_pairs", False).laid
    (product,) = (node for node in laid.nodes if node.operator.name == "grouped_linear")
    rows = product.inputs[0]
    assert rows is not None
    assert rows.producer is not None
    assert rows.producer.inputs[0] is laid.inputs[0]
    assert operators(laid).count("sort_order") == 1
    assert any(note.startswith("pairs rows in the order in which they come") for note in laid.history[-1].notes)


def test_the_mean_of_a_relation_needs_no_order_of_its_own() -> None:
    """Edges sorted by destination, then type, are sorted by the number of that pair too."""
    laid, inspector = laid_out("convolution", False).laid, laid_out("convolution", False).inspector
    assert operators(laid).count("sort_order") == 2  # by (dst, type) and by type
    assert any(value.dtype.is_floating_point for value in inspector.outputs)  # one over a degree is computed once


def test_an_order_that_matters_is_kept() -> None:
    laid = laid_out("in_order", False).laid
    (running,) = (node for node in laid.nodes if node.operator.name == "cumsum")
    rows = running.inputs[0]
    assert rows is not None
    assert rows.producer is not None
    assert rows.producer.inputs[1] is laid.inputs[1]


def test_wide_products_are_made_again_in_the_order_of_sources_on_the_way_back() -> None:
    """What goes back to sources is a product of lookups: it is looked up in their order, not kept and permuted."""
    p = Program("scaled")
    share = p.input("share", torch.float64, *p.src.shape, 1)
    graph = gradient(p.returns(p.total(p.op("mul", p.at(p.x, p.src), share), p.dst)), wrt=("x",), check=False)
    laid = lay_out(graph, check=False)
    back = next(value for value, name in zip(laid.outputs, laid.output_names, strict=True) if name == "grad_x")
    assert back.producer is not None
    assert back.producer.operator.name == "csr_sum"
    product = back.producer.inputs[0]
    assert product is not None
    assert product.producer is not None
    assert product.producer.operator.name == "mul"


def test_a_graph_without_relations_is_left_alone() -> None:
    graph = parse_graph("graph plain(%x: f32[n, 4]) {\n  %y: f32[n, 4] = relu(%x)\n  return %y\n}")
    laid = lay_out(graph)
    assert laid.history[-1].outcome == "not applicable"
    assert operators(laid) == ["relu"]


def test_the_contract_is_checked_on_probes() -> None:
    graph = PROGRAMS["attention"]()
    graph.hints = {"nodes": 5, "edges": 17}
    assert lay_out(graph).history[-1].outcome == "done"


def test_tiles_have_as_many_rows_as_asked_for() -> None:
    laid = lay_out(PROGRAMS["products_alone"](), rows=16, check=False)
    (cut,) = (node for node in laid.nodes if node.operator.name == "tile_runs")
    assert cut.attributes == {"rows": 16}
