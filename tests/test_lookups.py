"""Which indices are checked when a compiled graph runs, which were seen to be right before, and that the check says what torch would."""

from __future__ import annotations

import pytest
import torch

import suture
from suture.codegen.lookups import check_lookups
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph
from suture.ir.types import TensorType


def graph(body: str, inputs: str = "%x: f32[n, 6], %i: i64[m]", **tensors: torch.Tensor) -> Graph:
    lines = "\n".join(f"  {line}" for line in body.strip().splitlines())
    return parse_graph(f"graph g({inputs}) {{\n{lines}\n}}\n", tensors or None)


def flags(checked: Graph, own: int, *inputs: torch.Tensor) -> list[bool]:
    return [bool(each.item()) for each in evaluate(checked, list(inputs))[own:]]


def test_indices_that_data_hold_get_an_output_each() -> None:
    given = graph("%y: f32[n, m] = index(%x, %i) dims=(1,)\n%z: f32[n, m] = index(%x, %i) dims=(1,)\nreturn %y, %z")
    checked, lookups = check_lookups(given)
    assert len(lookups) == 1 and str(lookups[0]) == "an index of index y is not from -6 to below 6"
    assert len(checked.outputs) == 3 and len(given.outputs) == 2
    x = torch.randn(2, 6)
    assert flags(checked, 2, x, torch.tensor([0, 5, -6])) == [False]
    assert flags(checked, 2, x, torch.zeros(0, dtype=torch.long)) == [False]


@pytest.mark.parametrize(
    ("index", "wrong"), [([0, 5], False), ([6], True), ([-7], True), ([-6], False), ([2**40], True)]
)
def test_the_output_says_whether_one_lies_outside(index: list[int], wrong: bool) -> None:
    checked, _ = check_lookups(graph("%y: f32[n, m] = index(%x, %i) dims=(1,)\nreturn %y"))
    kept = torch.tensor(index)
    checked.set_outputs(checked.outputs[1:])  # the look-up itself would raise
    checked.remove_dead()
    assert [bool(each.item()) for each in evaluate(checked, [torch.randn(2, 6), kept])] == [wrong]


def test_a_table_of_symbolic_length_is_checked_at_the_length_it_has() -> None:
    checked, lookups = check_lookups(graph("%y: f32[m, 6] = index(%x, %i) dims=(0,)\nreturn %y"))
    assert str(lookups[0]).endswith("is not from -n to below n")
    checked.set_outputs(checked.outputs[1:])
    checked.remove_dead()
    for rows, index, wrong in ((3, [2], False), (2, [2], True), (3, [-3], False), (3, [-4], True)):
        assert [bool(each.item()) for each in evaluate(checked, [torch.randn(rows, 6), torch.tensor(index)])] == [wrong]


def test_embeddings_and_gathers_count_from_zero_alone() -> None:
    body = "%y: f32[m, 6] = embedding(%x, %i)\nreturn %y"
    assert "from 0 to below n" in str(check_lookups(graph(body))[1][0])
    body = "%y: f32[m, 6] = gather(%x, %j) dim=0\nreturn %y"
    assert "from 0 to below n" in str(check_lookups(graph(body, "%x: f32[n, 6], %j: i64[m, 6]"))[1][0])


def test_what_parameters_and_counting_decide_is_seen_before() -> None:
    counted = "%a: i64[4] = arange() start=2\n%y: f32[n, 4] = index(%x, %a) dims=(1,)\nreturn %y"
    assert check_lookups(graph(counted, "%x: f32[n, 6]"))[1] == ()
    beyond = "%a: i64[5] = arange() start=2\n%y: f32[n, 5] = index(%x, %a) dims=(1,)\nreturn %y"
    assert len(check_lookups(graph(beyond, "%x: f32[n, 6]"))[1]) == 1
    for values, checks in (([0, 5, -6], 0), ([0, 6], 1)):
        kept = f"buffer @at: i64[{len(values)}]\n%b: i64[{len(values)}] = add(%at) scalar=0\n%y: f32[n, {len(values)}] = index(%x, %b) dims=(1,)\nreturn %y"
        found = graph(kept.replace("add(%at)", "add(@at)"), "%x: f32[n, 6]", at=torch.tensor(values))
        assert len(check_lookups(found)[1]) == checks


def test_a_graph_that_looks_nothing_up_is_itself() -> None:
    given = graph("%y: f32[n, 6] = relu(%x)\nreturn %y")
    assert check_lookups(given) == (given, ())


@pytest.mark.parametrize("operator", ["embedding", "gather", "index"])
def test_what_torch_looks_up_itself_says_the_same(operator: str) -> None:
    graph = Graph("looked_up")
    table = graph.add_input("table", TensorType(torch.float32, (4, 2)))
    rows = graph.add_input("rows", TensorType(torch.int64, (3, 2)))
    attributes = {"embedding": {}, "gather": {"dim": 0}, "index": {"dims": (0,)}}[operator]
    graph.set_outputs([graph.add(operator, [table, rows], attributes).output])
    wrong = torch.tensor([[0, 3], [4, 1], [2, 2]])
    with pytest.raises(SutureError) as caught:
        suture.compile(graph)(torch.randn(4, 2), wrong)
    assert caught.value.code is Code.INPUT
