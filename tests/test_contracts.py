"""Contracts are held to on probes, and a broken one names the first value that differs."""

from __future__ import annotations

import pytest
import torch

from suture.ir.errors import Code, ContractError, SutureError
from suture.ir.graph import Graph
from suture.ir.sizes import symbol
from suture.ir.types import TensorType
from suture.passes import registry
from suture.passes.contract import Contract, check_contract, deviation
from suture.passes.counter import counter_bits, counter_normal, counter_uniform
from suture.passes.probes import bind_probes, draw_probes
from suture.passes.registry import Notes, register


@pytest.fixture(autouse=True)
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes registered in a test go away with it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def two_layers(dtype: torch.dtype = torch.float32) -> Graph:
    """Two linear layers with a tanh between."""
    generator = torch.Generator().manual_seed(0)
    graph = Graph("two")
    x = graph.add_input("x", TensorType(dtype, (symbol("batch"), 4)))
    for name in ("first", "second"):
        weight = graph.add_parameter(f"{name}.weight", torch.randn(4, 4, generator=generator).to(dtype))
        x = graph.add("linear", [x, weight, None], path=name, name=name).output
        x = graph.add("tanh", [x], path=name, name=f"{name}_tanh").output
    graph.set_outputs([x], ["y"])
    return graph


def scaled(graph: Graph, name: str, factor: float) -> Graph:
    """A copy with one parameter multiplied."""
    result = graph.copy()
    result.parameters[name].assign(result.parameters[name].data * factor)
    return result


def test_an_exact_pass_that_changes_the_function_is_named_with_the_first_value_that_differs() -> None:
    @register(contract=Contract.EXACT)
    def wrong(graph: Graph, notes: Notes) -> Graph:
        """Scale the second layer and call it exact."""
        return scaled(graph, "second.weight", 1.01)

    before = two_layers()
    text = str(before)
    with pytest.raises(
        ContractError,
        match=r"^\[S403\] second: the pass wrong promises the same function, but the value second is the first",
    ) as caught:
        wrong(before)
    assert caught.value.code is Code.CONTRACT
    assert str(before) == text
    assert before.history == ()
    assert wrong(before, check=False).history[0].deviation is None


def test_an_exact_pass_may_round() -> None:
    @register(contract=Contract.EXACT)
    def rounding(graph: Graph, notes: Notes) -> Graph:
        """Off by the last bits."""
        return scaled(graph, "first.weight", 1 + 2e-7)

    measured = rounding(two_layers()).history[0].deviation
    assert measured is not None
    assert measured < 1e-5
    with pytest.raises(ContractError):
        rounding(two_layers(torch.float64))
    with pytest.raises(ContractError):
        rounding(two_layers(), within=0.0)


def test_an_approximate_pass_is_measured_and_held_to_a_bound() -> None:
    @register(contract=Contract.APPROXIMATE)
    def rough(graph: Graph, notes: Notes) -> Graph:
        """Scale the first layer."""
        return scaled(graph, "first.weight", 1.05)

    before = two_layers()
    x = torch.randn(7, 4)
    result = rough(before, probes={"x": x})
    with torch.no_grad():
        first, second = (before.parameters[f"{name}.weight"].data for name in ("first", "second"))
        expected = torch.tanh(torch.tanh(x @ first.T) @ second.T)
        received = torch.tanh(torch.tanh(x @ (1.05 * first).T) @ second.T)
    want = float((expected - received).abs().max() / expected.abs().max())
    assert result.history[0].deviation == pytest.approx(want, rel=1e-3)
    with pytest.raises(ContractError, match=r"the pass rough moved the output y by .*, more than 0.0001"):
        rough(before, within=1e-4)


def test_a_structural_pass_is_held_to_types_only() -> None:
    @register(contract=Contract.STRUCTURAL)
    def anything(graph: Graph, notes: Notes) -> Graph:
        """Scale by a lot."""
        return scaled(graph, "first.weight", -9.0)

    @register(contract=Contract.STRUCTURAL)
    def narrower(graph: Graph, notes: Notes) -> Graph:
        """Return an integer instead."""
        result = graph.copy()
        result.set_outputs([result.add("cast", result.outputs, {"dtype": torch.int64}).output], ["y"])
        return result

    assert anything(two_layers()).history[0].deviation is None
    with pytest.raises(
        ContractError, match=r"the pass narrower made the output y i64\[batch, 4\]; it was f32\[batch, 4\]"
    ):
        narrower(two_layers())


def test_planning_on_shapes_alone_checks_types_and_runs_nothing() -> None:
    before = two_layers()
    for parameter in before.parameters.values():
        parameter.data = parameter.data.to("meta")
    assert check_contract(before, scaled(before, "first.weight", 2.0), Contract.EXACT, name="plan") is None


def test_a_badly_conditioned_network_gets_the_tolerance_that_its_own_rounding_asks_for() -> None:
    # (x + 1e4) - 1e4 loses four digits: folding the shift is right, and still off by more than 1e-5
    def shifted(*shifts: float) -> Graph:
        graph = Graph("shift")
        x = graph.add_input("x", TensorType(torch.float32, (64,)))
        y = x
        for k, shift in enumerate(shifts):
            y = graph.add("add", [y, graph.add_parameter(f"shift{k}", torch.tensor([shift]))]).output
        graph.set_outputs([y], ["y"])
        return graph

    measured = check_contract(shifted(1e4, -1e4), shifted(0.0), Contract.EXACT, name="fold")
    assert measured is not None
    assert measured > 1e-5
    with pytest.raises(ContractError):
        check_contract(shifted(1e4, -1e4), shifted(0.5), Contract.EXACT, name="fold")


def test_deviation_is_relative_and_strict_about_what_is_not_finite() -> None:
    a = torch.tensor([1.0, -4.0, float("inf"), float("nan")])
    assert deviation(a, a.clone()) == 0.0
    assert deviation(a, torch.tensor([1.0, -4.4, float("inf"), float("nan")])) == pytest.approx(0.1)
    assert deviation(a, torch.tensor([1.0, -4.0, 3.0, float("nan")])) == float("inf")
    assert deviation(a, torch.tensor([1.0, float("nan"), float("inf"), float("nan")])) == float("inf")
    assert deviation(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.25
    assert deviation(a, a.double()) == float("inf")
    masked = torch.tensor([torch.finfo(torch.float32).min, 1.0])
    assert deviation(masked, torch.tensor([torch.finfo(torch.float32).min, 1.5])) == pytest.approx(0.5)


def lookup() -> Graph:
    """An embedding of 7 rows, read through a cast and an offset of 2, and a mask."""
    graph = Graph("lookup")
    shape = (symbol("batch"), symbol("sequence"))
    tokens = graph.add_input("tokens", TensorType(torch.int32, shape))
    mask = graph.add_input("attention_mask", TensorType(torch.int64, shape))
    flags = graph.add_input("flags", TensorType(torch.bool, shape))
    graph.hints = {"batch": 8, "sequence": 64}
    wide = graph.add("cast", [tokens], {"dtype": torch.int64}).output
    moved = graph.add("add", [wide, None], {"scalar": 2}).output
    rows = graph.add("embedding", [graph.add_parameter("rows", torch.randn(7, 3)), moved]).output
    graph.set_outputs([rows, mask, flags])
    return graph


def test_probes_fit_what_reads_them() -> None:
    tokens, mask, flags = draw_probes(lookup())
    assert tokens.shape == (8, 64)
    assert tokens.dtype == torch.int32
    assert set(tokens.unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(mask.unique().tolist()) == {0, 1}
    assert 0.75 < mask.double().mean() < 0.95
    assert bool(mask[:, 0].all())
    assert 0.4 < flags.double().mean() < 0.6


def test_probes_depend_on_seed_name_and_index_only() -> None:
    graph = lookup()
    small, large = draw_probes(graph, sizes={"batch": 2})[0], draw_probes(graph, sizes={"batch": 5})[0]
    assert torch.equal(small, large[:2])
    assert not torch.equal(small, draw_probes(graph, seed=1, sizes={"batch": 2})[0])


def test_counter_based_numbers_can_start_anywhere() -> None:
    whole = counter_bits(3, "w", 1000)
    assert torch.equal(whole[400:], counter_bits(3, "w", 600, start=400))
    assert not torch.equal(whole, counter_bits(3, "v", 1000))
    assert len(whole.unique()) == 1000
    uniform = counter_uniform(0, "u", 20000)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert torch.histc(uniform, 10, 0, 1).min() > 1800
    normal = counter_normal(0, "n", 20000)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert abs(float((normal[:-1] * normal[1:]).mean())) < 0.03


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ({"token": torch.zeros(1, 1)}, "the graph has no input 'token' for a probe; the nearest is 'tokens'"),
        ({"tokens": torch.zeros(1, 1, dtype=torch.int32)}, "there is no probe for the input 'attention_mask'"),
        ([torch.zeros(1, 1)], "1 probes for 3 inputs"),
        ([torch.zeros(1, 1)] * 3, "the probe for tokens is torch.float32"),
    ],
)
def test_probes_that_do_not_fit_are_one_line(probes: object, message: str) -> None:
    with pytest.raises(SutureError, match=message) as caught:
        bind_probes(lookup(), probes)  # type: ignore[arg-type]
    assert caught.value.code is Code.PROBE
