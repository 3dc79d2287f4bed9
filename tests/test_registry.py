"""The register of passes: what is registered is found, typed and recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import suture.passes
from suture.ir.errors import Code, ContractError, SutureError
from suture.ir.graph import Graph
from suture.ir.types import TensorType
from suture.passes import registry
from suture.passes.contract import Contract
from suture.passes.options import Option, describe
from suture.passes.registry import Notes, find, passes, register


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes registered in a test go away with it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def line() -> Graph:
    """relu(x)."""
    graph = Graph("line")
    x = graph.add_input("x", TensorType(torch.float32, (2, 3)))
    graph.set_outputs([graph.add("relu", [x]).output], ["y"])
    return graph


def test_importing_the_package_loads_no_pass() -> None:
    code = "import sys, suture.passes; print([m for m in sys.modules if m.startswith('suture.passes.')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_pass_stays_callable_after_its_module_of_the_same_name_is_imported() -> None:
    code = "import suture.passes.fold, suture.passes; print(suture.passes.fold.__name__, callable(suture.passes.fold))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["fold", "True"]


def test_passes_are_listed_by_name() -> None:
    names = list(passes())
    assert "fold" in names
    assert names == sorted(names)
    assert find("fold").call is suture.passes.fold
    assert find("fold").contract is Contract.EXACT
    assert find("fold").summary


def test_an_unknown_pass_is_answered_with_the_nearest() -> None:
    with pytest.raises(SutureError, match=r"^\[S401\] there is no pass 'fodl'; the nearest is 'fold'$") as caught:
        find("fodl")
    assert caught.value.code is Code.PASS
    with pytest.raises(AttributeError, match="nearest is 'fold'"):
        suture.passes.fodl


@pytest.mark.usefixtures("scratch_registry")
def test_what_was_done_is_recorded() -> None:
    @register(contract=Contract.APPROXIMATE)
    def soften(graph: Graph, notes: Notes, *, slope: float = 0.5, kind: Literal["leaky", "other"] = "leaky") -> Graph:
        """Give negative numbers a slope.

        :param slope: what negative numbers
            are multiplied by
        """
        result = graph.copy()
        for node in result.nodes:
            soft = result.add("leaky_relu", node.inputs, {"negative_slope": slope}, before=node)
            result.replace_uses(node.output, soft.output)
            result.remove(node)
            notes.note(f"{kind} relu")
        return result

    before = line()
    after = soften(before, slope=1)
    assert before.history == ()
    (record,) = after.history
    assert (record.name, record.contract, record.outcome, record.notes) == (
        "soften",
        "approximate",
        "done",
        ("leaky relu",),
    )
    assert record.options == {"slope": 1.0}
    assert isinstance(record.options["slope"], float)
    assert record.deviation is not None
    assert record.deviation > 0.1
    entry = find("soften")
    assert [option.name for option in entry.options] == ["slope", "kind"]
    assert entry.options[0].doc == "what negative numbers are multiplied by"
    assert str(entry.options[1]) == "kind: one of 'leaky', 'other' = 'leaky'"


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slop": 0.1}, r"the pass soften has no option 'slop'; the nearest is 'slope'"),
        ({"slope": "steep"}, r"option 'slope' of the pass soften cannot be 'steep'; it takes a number"),
        ({"slope": True}, r"option 'slope' of the pass soften cannot be True; it takes a number"),
        ({"slope": 0.1, "kind": "soft"}, r"cannot be 'soft'; it takes one of 'leaky', 'other'"),
        ({"kind": "leaky"}, r"the pass soften needs the option 'slope'; it takes a number"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    @register(contract=Contract.EXACT)
    def soften(graph: Graph, notes: Notes, *, slope: float, kind: Literal["leaky", "other"] = "leaky") -> Graph:
        """Never runs."""
        raise AssertionError

    with pytest.raises(SutureError, match=message) as caught:
        soften(line(), **options)
    assert caught.value.code is Code.OPTION
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "given", "converted"),
    [
        (float, 1, 1.0),
        (int | None, None, None),
        (tuple[str, ...], "layer1.*", ("layer1.*",)),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[int, int], [1, 2], (1, 2)),
        (Literal["l1", "l2"] | Callable[..., Any], "l1", "l1"),
        (Literal["l1", "l2"] | Callable[..., Any], len, len),
        (float | str, "half", "half"),
        (int | float, 3, 3),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Path | dict, "plan.json", Path("plan.json")),
    ],
)
def test_option_values_are_converted(kind: Any, given: Any, converted: Any) -> None:
    value = Option("o", kind, None, True, "").convert(given, "a pass")
    assert value == converted
    assert type(value) is type(converted)


@pytest.mark.parametrize(
    ("kind", "given"), [(int, 1.5), (bool, 1), (tuple[int, int], [1]), (Literal[1, 2], True), (str | None, 3)]
)
def test_option_values_of_another_type_are_refused(kind: Any, given: Any) -> None:
    with pytest.raises(SutureError, match=r"option 'o' of a pass cannot be"):
        Option("o", kind, None, True, "").convert(given, "a pass")


def test_types_are_described_for_people() -> None:
    assert describe(tuple[str, ...] | None) == "several of: a text or nothing"
    assert describe(Literal["l1", "l2"] | Callable[..., Any]) == "one of 'l1', 'l2' or a function"


@pytest.mark.usefixtures("scratch_registry")
def test_a_pass_that_does_not_apply_says_why_and_changes_nothing() -> None:
    @register(contract=Contract.EXACT)
    def nothing(graph: Graph, notes: Notes) -> Graph:
        """Find nothing."""
        notes.not_applicable("there is nothing")
        return graph

    before = line()
    after = nothing(before)
    assert after is not before
    assert before.history == ()
    assert [node.operator.name for node in after.nodes] == ["relu"]
    assert (after.history[0].outcome, after.history[0].notes) == ("not applicable", ("there is nothing",))


@pytest.mark.usefixtures("scratch_registry")
def test_options_are_recorded_as_plain_data() -> None:
    @register(contract=Contract.EXACT)
    def measured(
        graph: Graph, notes: Notes, *, by: Callable[..., Any], data: dict[str, Any], at: tuple[str, ...]
    ) -> Graph:
        """Do nothing with many options."""
        return graph.copy()

    after = measured(line(), by=torch.linalg.norm, data={"x": torch.zeros(2, 3)}, at="a")
    assert after.history[0].options == {"by": "linalg_norm", "data": {"x": "f32[2, 3]"}, "at": ("a",)}
    assert "linalg_norm" in str(after)


@pytest.mark.usefixtures("scratch_registry")
def test_a_pass_may_not_be_silent() -> None:
    @register(contract=Contract.EXACT)
    def silent(graph: Graph, notes: Notes) -> Graph:
        """Do nothing and say nothing."""
        return graph

    with pytest.raises(ContractError, match="the pass silent did nothing and gave no reason"):
        silent(line())


@pytest.mark.usefixtures("scratch_registry")
def test_a_pass_may_not_change_the_graph_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_VERIFY", "1")

    @register(contract=Contract.EXACT)
    def careless(graph: Graph, notes: Notes) -> Graph:
        """Rewrite in place."""
        result = graph.copy()
        graph.nodes[0].path = "elsewhere"
        graph.set_outputs([graph.inputs[0]], ["y"])
        return result

    with pytest.raises(ContractError, match="the pass careless changed the graph that it was given"):
        careless(line())


@pytest.mark.usefixtures("scratch_registry")
def test_a_pass_may_not_write_into_shared_parameters() -> None:
    @register(contract=Contract.EXACT)
    def careless(graph: Graph, notes: Notes) -> Graph:
        """Write into a tensor that the copy shares."""
        result = graph.copy()
        result.parameters["w"].data.zero_()
        return result

    graph = line()
    graph.add_parameter("w", torch.ones(3), "buffer")
    with pytest.raises(ContractError, match="the pass careless changed the parameter w that it was given"):
        careless(graph)


@pytest.mark.usefixtures("scratch_registry")
def test_probes_reach_a_pass_that_asks_for_them() -> None:
    seen: list[Any] = []

    @register(contract=Contract.EXACT)
    def calibrate(graph: Graph, notes: Notes, *, probes: Any = None) -> Graph:
        """Look at the probes."""
        seen.append(probes)
        return graph.copy()

    x = torch.randn(2, 3)
    calibrate(line(), probes=[x])
    assert seen[0][0] is x
    assert find("calibrate").options == ()


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("claims", [True, False])
def test_a_claim_of_one_application_is_held_to(claims: bool) -> None:
    @register(contract=Contract.APPROXIMATE)
    def bend(graph: Graph, notes: Notes, *, by: float = 0.0) -> Graph:
        """Add a number to the output."""
        result = graph.copy()
        moved = result.add("add", [result.outputs[0], None], {"scalar": by})
        result.set_outputs([moved.output], result.output_names)
        if claims:
            notes.claim(Contract.EXACT)
        return result

    kept = bend(line())
    assert kept.history[-1].contract == ("exact" if claims else "approximate")
    if claims:
        with pytest.raises(ContractError, match=r"the pass bend promises the same function, but the output y"):
            bend(line(), by=0.5)
    else:
        assert bend(line(), by=0.5).history[-1].deviation > 0


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("declares", [True, False])
def test_inputs_and_outputs_come_and_go_only_if_the_pass_says_so(declares: bool) -> None:
    @register(contract=Contract.EXACT)
    def widen(graph: Graph, notes: Notes, *, what: Literal["input", "output"] = "output") -> Graph:
        """Add an input or an output."""
        result = graph.copy()
        if what == "input":
            result.add_input("k", TensorType(torch.int64, ()))
        else:
            result.set_outputs([result.inputs[0], *result.outputs], ["early", *result.output_names])
        if declares:
            (notes.gains_input if what == "input" else notes.gains_output)("k" if what == "input" else "early")
        return result

    for what in ("input", "output"):
        if declares:
            assert widen(line(), what=what).history[-1].outcome == "done"
        else:
            with pytest.raises(ContractError, match=rf"the pass widen made 2 {what}s of 1"):
                widen(line(), what=what)
