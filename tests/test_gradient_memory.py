"""What the way back keeps of the way forward, and what it computes again."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import zoo
from gradients import F64, MLP, drawn, read
from hypothesis import given, settings
from hypothesis import strategies as st

import suture
from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType
from suture.passes import recompute


def halves(made: Graph, forward: int) -> tuple[list[Any], list[Any]]:
    return list(made.nodes[:forward]), list(made.nodes[forward:])


def test_cheap_values_are_computed_again_where_that_keeps_less() -> None:
    entry = zoo.ENTRIES["unet"]
    args, _ = entry.args()
    graph = suture.trace(entry.module().double(), args[0].double())
    keeps, makes = suture.passes.gradient(graph, recompute="nothing"), suture.passes.gradient(graph)
    bytes_of = [recompute.kept_bytes(made, *halves(made, len(graph))) for made in (keeps, makes)]
    assert bytes_of[1] < 0.7 * bytes_of[0]
    assert (
        f"{bytes_of[1]:,} bytes live from the way forward to the way back, of {bytes_of[0]:,}"
        in makes.history[-1].notes[-1]
    )
    expensive = [sum(not recompute.is_cheap(node) for node in made.nodes) for made in (keeps, makes)]
    assert expensive[0] == expensive[1]
    given = [args[0].double(), *drawn(graph, {graph.inputs[0].name: args[0].double()})]
    for a, b in zip(evaluate(keeps, given), evaluate(makes, given), strict=True):
        assert torch.equal(a, b)


def test_what_is_computed_again_stands_behind_the_way_forward_under_a_name_of_its_own() -> None:
    graph = read(MLP.replace("tanh", "gelu"))
    made = suture.passes.gradient(graph)
    assert [node.output.name for node in made.nodes if node.operator.name == "gelu"] == ["bent", "bent_again"]
    assert made.history[-1].notes[-1].endswith("1 nodes are computed again")


def test_canonicalise_takes_equal_nodes_as_one_again() -> None:
    made = suture.passes.gradient(read(MLP.replace("tanh", "gelu")))
    merged = suture.passes.canonicalise(made)
    assert sum(node.operator.name == "gelu" for node in merged.nodes) == 1
    assert "equal: 1" in merged.history[-1].notes


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """A few nodes, some cheap and some not, each of one or two earlier values, of several widths."""
    graph = Graph("chain")
    values: list[Value] = [graph.add_input("x", TensorType(F64, (2, 3)))]
    for _ in range(draw(st.integers(2, 7))):
        x = draw(st.sampled_from(values))
        match draw(st.sampled_from(["exp", "mul", "softmax", "sum", "matmul"])):
            case "mul":
                same = [value for value in values if value.shape[0] == x.shape[0]]
                values.append(graph.add("mul", [x, draw(st.sampled_from([v for v in same if 1 in (v.shape[1], x.shape[1]) or v.shape == x.shape]))]).output)  # fmt: skip
            case "sum":
                values.append(graph.add("sum", [x], {"dims": (1,), "keepdim": True}).output)
            case "matmul":
                weight = graph.add_parameter(f"w{len(graph)}", torch.zeros(x.shape[1], 4, dtype=F64))  # type: ignore[arg-type]
                values.append(graph.add("matmul", [x, weight]).output)
            case name:
                values.append(graph.add(name, [x]).output)
    graph.set_outputs([values[-1]])
    return graph


@given(chains(), st.data())
@settings(max_examples=80)
def test_no_other_choice_keeps_fewer_bytes(graph: Graph, data: st.DataObject) -> None:
    made = [value for node in graph.nodes for value in node.outputs]
    wanted = data.draw(st.lists(st.sampled_from(made), min_size=1, unique=True))
    graph.set_outputs([])
    kept = recompute.smallest_cut(graph, wanted)

    def enough(choice: set[Value]) -> bool:
        there: set[Value] = {*graph.inputs, *graph.parameters.values(), *choice}
        for node in graph.nodes:
            if recompute.is_cheap(node) and all(value in there for value in node.inputs if value is not None):
                there.update(node.outputs)
        return all(value in there for value in wanted)

    def cost(choice: set[Value]) -> int:
        return sum(recompute.bytes_of(graph, value) for value in choice)

    assert enough(kept)
    choices = (set(c) for n in range(len(made) + 1) for c in itertools.combinations(made, n))
    assert cost(kept) == min(cost(choice) for choice in choices if enough(choice))
