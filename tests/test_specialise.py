"""Specialisation: inputs become constants, and the plain graph of one setting comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import strategies
import torch
from branching import SETTINGS, Switchable, switchable_graphs
from hypothesis import given, settings
from torch import nn

import suture
from suture.frontends.archive import load_graph, save_graph
from suture.ir.control import guard
from suture.ir.equality import same_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.interface import add_interface_input
from suture.ir.regions import at_path
from suture.ir.semantics import evaluate
from suture.ir.text import parse_graph
from suture.ir.types import TensorType
from suture.ir.verify import verify
from suture.passes import specialise

DEPTH = TensorType(torch.int64, ())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.fc(self.norm(x)))


class Net(nn.Module):
    def __init__(self, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def traced() -> tuple[Net, Graph]:
    torch.manual_seed(0)
    net = Net().eval()
    return net, suture.trace(net, (torch.randn(4, 5),), dynamic={"x": {0: "batch"}})


def by_depth() -> tuple[Net, Graph]:
    """A net, and its graph with an input `depth`: how many of the blocks run."""
    net, graph = traced()
    depth = add_interface_input(graph, "depth", DEPTH)
    for k in range(3):
        guard(at_path(graph, f"blocks.{k}"), graph.add("gt", [depth], {"scalar": k}).output)
    verify(graph)
    return net, graph


def shallower(net: Net, depth: int) -> Net:
    twin = Net().eval()
    twin.load_state_dict(net.state_dict())
    twin.blocks = twin.blocks[:depth]
    return twin


def test_every_setting_is_the_net_that_has_only_what_runs() -> None:
    net, graph = by_depth()
    x = torch.randn(6, 5)
    for depth in range(4):
        plain = specialise(graph, inputs={"depth": depth})
        verify(plain)
        expected = shallower(net, depth)
        module = suture.to_torch(plain)
        torch.testing.assert_close(module(x), expected(x))
        assert set(module.state_dict()) == set(expected.state_dict())
        assert all(plain.parameters[name].data is graph.parameters[name].data for name in plain.parameters)
        assert not any(node.bodies for node in plain.nodes)


def test_the_full_setting_is_the_graph_before_the_branches() -> None:
    _, graph = by_depth()
    _, before = traced()
    plain = specialise(graph, inputs={"depth": 3})
    plain.history = ()
    assert same_graph(plain, before) is None


def test_a_specialised_model_loads_into_the_smaller_class() -> None:
    net, graph = by_depth()
    smaller = Net(depth=1).eval()
    smaller.load_state_dict(suture.to_torch(specialise(graph, inputs={"depth": 1})).state_dict(), strict=True)
    x = torch.randn(2, 5)
    torch.testing.assert_close(smaller(x), shallower(net, 1)(x))


@settings(max_examples=40)
@given(switchable_graphs())
def test_random_branches_specialise_to_the_plain_graphs(drawn: Switchable) -> None:
    for setting in range(SETTINGS):
        plain = specialise(drawn.graph, inputs={"setting": torch.tensor(setting)})
        verify(plain)
        assert not any(node.bodies for node in plain.nodes)
        assert "table" not in plain.parameters
        assert len(plain) == len(drawn.plain[setting])
        for name, parameter in plain.parameters.items():
            assert parameter.data is drawn.graph.parameters[name].data
        inputs = strategies.run_inputs(drawn.plain[setting])
        results = suture.to_torch(plain)(*inputs)
        for runs in (evaluate(plain, inputs), results if isinstance(results, tuple) else (results,)):
            for a, b in zip(evaluate(drawn.plain[setting], inputs), runs, strict=True):
                torch.testing.assert_close(b, a, equal_nan=True)


def test_what_follows_from_a_bound_number_is_computed() -> None:
    graph = parse_graph("""graph g(%x: f32[batch, 2], %k: i64[]) {
      parameter @w: f32[2]
      constant @rows: f32[3, 2]
      %row: f32[2] = index(@rows, %k)
      %twice: f32[2] = mul(%row) scalar=2.0
      %scaled: f32[2] = mul(%twice, @w)
      %y: f32[batch, 2] = add(%x, %scaled)
      return %y, %twice as shift
    }""", {"w": torch.tensor([3.0, 5.0]), "rows": torch.arange(6.0).reshape(3, 2)})  # fmt: skip
    plain = specialise(graph, inputs={"k": 2})
    verify(plain)
    assert [node.operator.name for node in plain.nodes] == ["mul", "add"]
    assert plain.parameters["w"].data is graph.parameters["w"].data
    torch.testing.assert_close(plain.parameters["twice"].data, torch.tensor([8.0, 10.0]))
    y, shift = evaluate(plain, [torch.zeros(1, 2)])
    torch.testing.assert_close(y, torch.tensor([[24.0, 50.0]]))
    torch.testing.assert_close(shift, torch.tensor([8.0, 10.0]))


def test_a_predicate_that_trains_is_not_settled() -> None:
    graph = parse_graph("""graph g(%x: f32[2], %k: f32[]) {
      parameter @threshold: f32[]
      %sure: bool[] = gt(%k, @threshold)
      %y: f32[2] = branch(%sure, %x) then=graph a(%x: f32[2]) { %n: f32[2] = neg(%x) return %n } otherwise=graph b(%x: f32[2]) { return %x }
      return %y
    }""", {"threshold": torch.tensor(0.5)})  # fmt: skip
    plain = specialise(graph, inputs={"k": 1.0})
    verify(plain)
    assert [node.operator.name for node in plain.nodes] == ["gt", "branch"]
    torch.testing.assert_close(evaluate(plain, [torch.ones(2)])[0], -torch.ones(2))


def test_a_branch_on_a_constant_needs_no_input_to_be_bound() -> None:
    graph = parse_graph("""graph g(%x: f32[2]) {
      constant @yes: bool[]
      %y: f32[2] = branch(@yes, %x) then=graph a(%x: f32[2]) { %n: f32[2] = neg(%x) return %n } otherwise=graph b(%x: f32[2]) { return %x }
      return %y
    }""", {"yes": torch.tensor(True)})  # fmt: skip
    plain = specialise(graph)
    assert [node.operator.name for node in plain.nodes] == ["neg"]
    assert plain.nodes[0].output.name == "y"
    assert not plain.parameters
    assert plain.history[-1].notes == ("%y (branch): then is taken",)
    assert plain.history[-1].deviation == 0.0


def test_nothing_to_settle_is_said() -> None:
    _, graph = traced()
    record = specialise(graph).history[-1]
    assert record.outcome == "not applicable"
    assert record.notes == ("no input is bound, and no branch has a predicate that is known",)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"inputs": {"deep": 1}}, Code.INPUT, "no input 'deep'; the nearest is 'depth'"),
        ({"inputs": {"depth": [1, 2]}}, Code.INPUT, r"the input depth cannot be i64\[2\]; i64\[\] would be right"),
        ({"inputs": {"depth": 1.5}}, Code.INPUT, r"the input depth cannot be f32\[\]; i64\[\] would be right"),
        ({"inputs": {"depth": True}}, Code.INPUT, r"the input depth cannot be bool\[\]"),
        ({"inputs": {"depth": "one"}}, Code.INPUT, "the input depth cannot be a str"),
        (
            {"inputs": {"x": torch.zeros(4, 5)}},
            Code.INPUT,
            r"the input x cannot be f32\[4, 5\]; f32\[batch, 5\] would be right",
        ),
        ({"input": "depth"}, Code.OPTION, "1 inputs and 0 values"),
        ({"inputs": 3}, Code.OPTION, "it takes a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, object], code: Code, words: str) -> None:
    _, graph = by_depth()
    before = str(graph)
    with pytest.raises(SutureError, match=words) as caught:
        specialise(graph, **options)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    assert str(graph) == before


def test_a_script_specialises(tmp_path: Path) -> None:
    net, graph = by_depth()
    save_graph(graph, tmp_path / "net.suture-graph")
    script = tmp_path / "one.suture"
    script.write_text(
        'suture 1\n\nmodel net = graph "net.suture-graph"\nspecialise net input depth value 2\nsave net to "two.suture-graph"\n'
    )
    suture.run(script)
    plain = load_graph(tmp_path / "two.suture-graph")
    x = torch.randn(2, 5)
    torch.testing.assert_close(suture.to_torch(plain)(x), shallower(net, 2)(x))
