"""Passes made of rewrites: to a fixed point, each checked where it happens, and the wrong one found when only the end shows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import suture
from suture.ir.errors import ContractError
from suture.ir.graph import Graph, Node, Parameter
from suture.passes.contract import Contract
from suture.passes.proving import Proof
from suture.passes.registry import Notes, register
from suture.passes.rewriting import Refusal, Rule, rewrite


def _graph(depth: int = 6) -> Graph:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(4, 4), nn.ReLU()]
    return suture.trace(nn.Sequential(*layers), (torch.randn(3, 4),))


def _positive_twice(graph: Graph, node: Node) -> str | Refusal | None:
    """relu(x) = relu(relu(x))."""
    operand = node.inputs[0]
    if node.operator.name != "relu" or operand is None or operand.producer is None:
        return None
    if operand.producer.operator.name == "relu":
        return Refusal("it is positive already")
    if any(reader.operator.name == "relu" for reader, _ in node.output.uses):
        return None
    inner = graph.add("relu", [operand], path=node.path, name="inner", before=node)
    node.replace_input(0, inner.output)
    return "done twice"


def _spoil(at: int) -> Rule:
    """Doubles the bias of one linear layer, under the name that the value has."""
    seen: set[str] = set()

    def apply(graph: Graph, node: Node) -> str | None:
        if node.operator.name != "linear" or node.output.name in seen:
            return None
        seen.add(node.output.name)
        bias = node.inputs[2]
        assert isinstance(bias, Parameter)
        bias.assign(bias.data * (2 if len(seen) == at else 1))
        return "rewritten"

    return Rule("spoil", apply)


def test_rules_are_applied_until_none_applies_and_say_what_stays() -> None:
    graph, notes = _graph(3), Notes()
    stays = rewrite(graph, [Rule("twice", _positive_twice)], notes, proof=Proof.of(graph))
    assert [entry.rule for entry in notes.rewrites] == ["twice"] * 3
    assert sum(node.operator.name == "relu" for node in graph.nodes) == 6
    assert len(stays) == 3
    assert set(stays.values()) == {"it is positive already"}


def test_a_rewrite_that_changes_a_value_is_refused_where_it_happens() -> None:
    graph = _graph()
    with pytest.raises(ContractError, match=r"spoil at %\w+ \(linear in 6\).*the value \w+ moves"):
        rewrite(graph, [_spoil(4)], Notes(), proof=Proof.of(graph))


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_pass_that_breaks_its_contract_is_replayed_to_the_rewrite_to_blame(at: int) -> None:
    @register(contract=Contract.EXACT, name=f"spoiling_{at}")
    def spoiling(graph: Graph, notes: Notes) -> Graph:
        result = graph.copy()
        rewrite(result, [_spoil(at)], notes)
        return result

    with pytest.raises(
        ContractError, match=rf"rewrite {at} of 6 is to blame, spoil at %\w+ \(linear in {2 * (at - 1)}\)"
    ):
        spoiling(_graph())


def test_rules_that_undo_each_other_end() -> None:
    def rename(graph: Graph, node: Node) -> str:
        graph.rename_result(node.output, "other" if node.output.name != "other" else "back")
        return "renamed"

    with pytest.raises(RuntimeError, match="without end"):
        rewrite(_graph(1), [Rule("rename", rename)], Notes())


def test_a_limit_stops_after_so_many_rewrites() -> None:
    graph, notes = _graph(5), Notes(limit=2)
    rewrite(graph, [Rule("twice", _positive_twice)], notes)
    assert len(notes.rewrites) == 2
    assert sum(node.operator.name == "relu" for node in graph.nodes) == 7


def test_what_lies_behind_a_new_value_is_checked_at_the_next_known_one() -> None:
    """A layer's output takes another name; the value computed from it keeps its own and shows the mistake."""
    graph = _graph(2)
    proof = Proof.of(graph)
    assert proof is not None
    first = graph.nodes[0]
    bias = first.inputs[2]
    assert isinstance(bias, Parameter)
    graph.rename_result(first.output, "renamed")
    bias.assign(bias.data + 1)
    found = proof.first_difference(graph)
    assert found is not None
    assert found.name == graph.nodes[1].output.name
