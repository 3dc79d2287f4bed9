"""Graph text: what prints parses back to an equal graph, and what does not parse says where and why."""

from __future__ import annotations

import dataclasses
import math
import sys
from types import FrameType
from typing import Any

import pytest
import strategies
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st

from suture.ir.equality import same_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Record, Structure
from suture.ir.operator import OPERATORS
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.text import parse_graph, print_attribute, print_graph, print_node
from suture.ir.types import DTYPE_NAMES, TensorType
from suture.ir.verify import verify

TINY = """\
graph tiny(%x: f32[batch, 3, 8, 8], %mask: bool[batch]) {
  source "zoo:tiny"
  hints batch=2
  structure {"inputs": "spec", "outputs": "spec", "arguments": ["x", "mask"], "positional": 1}
  history {"name": "fold", "options": {"into": "auto"}, "contract": "exact", "outcome": "done", "notes": ["2 sites"], "deviation": 1e-07}
  parameter @conv.weight: f32[4, 3, 3, 3] frozen also tied.weight, "odd name"
  buffer @norm.mean: f32[4] transient
  constant @scale: f64[] persistent

  %conv: f32[batch, 4, 4, 4] = conv(%x, @conv.weight, _) stride=(2, 2) padding=(1, 1) at conv
  %gate: f32[batch, 4, 4, 4] = clamp(%conv) min=-0.5
  %flat: f32[batch, 64] = reshape(%gate) at head.flatten
  %low: f32[batch, 16], %high: f32[batch, 48] = split(%flat) dim=1
  %wide: f64[batch, 16] = cast(%low) dtype=f64
  return %wide as result, %high, @scale
}
"""


def weights(graph: Graph) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in graph.parameters.items()}


def assert_round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text, weights(graph))
    assert same_graph(graph, again, weights=True) is None
    assert print_graph(again) == text


def test_text_is_stable() -> None:
    graph = parse_graph(TINY)
    verify(graph)
    assert print_graph(graph) == TINY
    assert str(graph) == TINY


def test_text_says_everything_about_a_graph() -> None:
    graph = parse_graph(TINY)
    assert (graph.name, graph.source, graph.hints) == ("tiny", "zoo:tiny", {"batch": 2})
    assert graph.structure == Structure("spec", "spec", ("x", "mask"), 1)
    assert graph.history == (Record("fold", {"into": "auto"}, notes=("2 sites",), deviation=1e-7),)
    weight, mean, scale = graph.parameters.values()
    assert (weight.role, weight.requires_grad, weight.persistent) == ("parameter", False, True)
    assert weight.aliases == ("tied.weight", "odd name")
    assert (mean.role, mean.requires_grad, mean.persistent) == ("buffer", False, False)
    assert (scale.role, scale.requires_grad, scale.persistent) == ("constant", False, True)
    assert all(p.data.device.type == "meta" for p in graph.parameters.values())
    conv, gate, flat, parts, _ = graph.nodes
    assert conv.attributes == {"stride": (2, 2), "padding": (1, 1), "dilation": (1,), "groups": 1}
    assert conv.inputs == (graph.inputs[0], weight, None)
    assert gate.attributes == {"min": -0.5, "max": None}
    assert (flat.path, gate.path) == ("head.flatten", "")
    assert [value.name for value in parts.outputs] == ["low", "high"]
    assert graph.output_names == ["result", "high", "scale"]


def test_layout_and_comments_do_not_matter() -> None:
    crowded = "# before\n" + TINY.replace("\n  ", " ").replace(", ", " ,\n") + "# after"
    assert same_graph(parse_graph(crowded), parse_graph(TINY)) is None


def test_many_inputs_stand_one_to_a_line() -> None:
    graph = Graph("wide")
    for k in range(6):
        graph.add_input(f"past_key_values_{k}", TensorType(torch.float32, (symbol("batch"), 4, symbol("sequence"), 8)))
    graph.set_outputs(graph.inputs[:1])
    assert max(map(len, print_graph(graph).splitlines())) < 80
    assert_round_trip(graph)


@given(strategies.graphs())
def test_random_graphs_round_trip(graph: Graph) -> None:
    assert_round_trip(graph)


@given(strategies.graphs(max_steps=5))
def test_what_is_read_back_computes_the_same(graph: Graph) -> None:
    inputs = strategies.run_inputs(graph)
    again = parse_graph(print_graph(graph), weights(graph))
    for got, old in zip(evaluate(again, inputs), evaluate(graph, inputs), strict=True):
        assert torch.equal(got, old)


NAMES = st.one_of(
    st.text(min_size=1, max_size=8),
    st.sampled_from(["a b", "0", "größe", 'quo"te', "new\nline", "back\\slash", "return", "_", "a.b", "%", "#"]),
)


@given(st.lists(NAMES, min_size=6, max_size=6, unique=True))
def test_any_name_round_trips(names: list[str]) -> None:
    one, two, parameter, alias, path, output = names
    graph = Graph(one)
    x = graph.add_input(one, TensorType(torch.float32, (2,)))
    weight = graph.add_parameter(parameter, torch.ones(2), aliases=(alias,))
    y = graph.add("add", [x, weight], path=path, name=two).output
    graph.set_outputs([y], [output])
    graph.source, graph.hints = path, {alias: 3}
    assert_round_trip(graph)


ATTRIBUTES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=10), st.sampled_from([torch.float32, torch.bool]),
        st.complex_numbers(allow_nan=False), st.sampled_from([symbol("batch") * 2 + 1, symbol("a") // symbol("b"), -symbol("inf"), symbol("f32")]),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


@given(ATTRIBUTES)
def test_any_attribute_round_trips_with_its_type(value: Any) -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(torch.float32, (2,)))
    node = graph.add("relu", [x])
    node.attributes["value"] = value
    (stated,) = [line.partition(" value=")[2] for line in print_graph(graph).splitlines() if " value=" in line]
    from suture.ir.reader import Reader

    reader = Reader(stated, "test")
    again = reader.attribute()
    assert reader.space() == len(stated)
    assert again == value
    assert repr(again) == repr(value)  # 1, 1.0 and True are three things, 0.0 and -0.0 two


def test_infinities_and_nan_round_trip() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(torch.float32, (2,)))
    for number in (math.inf, -math.inf, math.nan, 1e-45, 0.1 + 0.2, -0.0):
        graph.add("add", [x, None], {"scalar": number})
    assert_round_trip(graph)


def test_every_element_type_round_trips() -> None:
    graph = Graph("g")
    for dtype, name in DTYPE_NAMES.items():
        graph.add_parameter(name, torch.empty(2, dtype=dtype, device="meta"), "buffer")
        graph.add_input(name, TensorType(dtype, (symbol("n"), 3)))
    assert_round_trip(graph)


def test_what_is_no_attribute_value_does_not_print() -> None:
    with pytest.raises(SutureError) as caught:
        print_attribute([1, 2])
    assert caught.value.code is Code.OPERATOR


def test_default_attributes_are_left_out_unless_their_type_differs() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(torch.float32, (2,)))
    assert print_node(graph.add("elu", [x], {"alpha": 1.0})) == "%elu: f32[2] = elu(%x)"
    assert print_node(graph.add("elu", [x], {"alpha": 1})) == "%elu_1: f32[2] = elu(%x) alpha=1"


def test_every_default_prints() -> None:
    for operator in OPERATORS.values():
        for value in operator.attributes.values():
            assert repr(value) == "REQUIRED" or print_attribute(value)  # type: ignore[arg-type]


def test_records_with_tuples_round_trip() -> None:
    graph = parse_graph(TINY)
    graph.record(
        Record("prune", {"keep": 0.5, "at": ("a", ("b",)), "seed": None}, "approximate", "not applicable", (), math.inf)
    )
    again = parse_graph(print_graph(graph))
    assert again.history == graph.history


def test_weights_are_found_by_alias_and_checked() -> None:
    graph = parse_graph(TINY)
    tensors = {
        "tied.weight": torch.ones(4, 3, 3, 3),
        "norm.mean": torch.zeros(4),
        "scale": torch.ones((), dtype=torch.float64),
    }
    again = parse_graph(TINY, tensors)
    assert again.parameters["conv.weight"].data is tensors["tied.weight"]
    assert same_graph(graph, again) is None
    assert same_graph(graph, again, weights=True) == "@conv.weight: the tensors differ"
    for wrong, words in (
        ({"norm.mean": torch.zeros(5)}, "f32\\[4\\] would be right"),
        ({"scale": torch.ones(())}, "f64\\[\\] would be right"),
    ):
        with pytest.raises(SutureError, match=words) as caught:
            parse_graph(TINY, {**tensors, **wrong})
        assert caught.value.code is Code.WEIGHTS
    del tensors["scale"]
    with pytest.raises(SutureError, match="no tensor for @scale") as caught:
        parse_graph(TINY, tensors)
    assert caught.value.code is Code.WEIGHTS


# errors: the edit of TINY, where it is found, and what the message says

ERRORS = [
    ("graph tiny", "grph tiny", "grph", "expected 'graph'", Code.TEXT),
    ("(%x:", "(x:", "x:", "expected '%'", Code.TEXT),
    ("%mask: bool", "%x: bool", "x: bool", "%x is defined twice", Code.TEXT),
    ("bool[batch]", "boool[batch]", "boool", "'boool' is no element type; the nearest is 'bool'", Code.TEXT),
    ("f32[batch, 3, 8, 8]", "f32[batch, 3,, 8]", "f32[batch, 3,,", "is not a size", Code.TEXT),
    ('"zoo:tiny"', "zoo:tiny", "zoo:", "expected a string in quotes", Code.TEXT),
    ('"zoo:tiny"', '"zoo:\\q"', '"zoo', "expected a string with JSON's escapes", Code.TEXT),
    ("batch=2", "batch=two", "two", "expected a number", Code.TEXT),
    ('{"inputs"', '["inputs"', '["inputs"', "expected a JSON object", Code.TEXT),
    ('"positional": 1', '"position": 1', "structure", "wrong fields", Code.TEXT),
    ("buffer @", "bufer @", "bufer", "expected a node such as", Code.TEXT),
    ("buffer @norm.mean", "buffer @conv.weight", "buffer", "the parameter conv.weight exists already", Code.GRAPH),
    ("@norm.mean: f32[4]", "@norm.mean: f32[c]", "buffer", "expected a parameter of fixed sizes", Code.TEXT),
    ("= conv(", "= cnv(", "cnv(", "there is no operator 'cnv'; the nearest is 'conv'", Code.OPERATOR),
    ("stride=", "strid=", "conv(", "conv has no attribute 'strid'; the nearest is 'stride'", Code.OPERATOR),
    ("(2, 2)", "(2, two)", "two", "expected a number, a string", Code.TEXT),
    ("padding=(1, 1)", "padding=(1, 1) padding=1", "padding=1", "expected the attribute padding once", Code.TEXT),
    ("_) stride", "@bias) stride", "@bias", "@bias is not defined here", Code.TEXT),
    ("conv(%x,", "conv(%y,", "%y,", "%y is not defined here; known values: mask, x", Code.TEXT),
    ("_) stride", "_ stride", "stride", "expected ')'", Code.TEXT),
    ("4, 4] = conv", "4, 5] = conv", "conv: f32", "%conv is written as f32[batch, 4, 4, 5]; conv gives f32[batch, 4, 4, 4]", Code.TEXT),
    ("64] = reshape", "63] = reshape", "reshape", "cannot be read as [batch, 63]", Code.SHAPE),
    ("%gate: f32", "%conv: f32", "conv: f32[batch, 4, 4, 4] = clamp", "%conv is defined twice", Code.TEXT),
    ("%low: f32[batch, 16], ", "", "split", "parts of 48", Code.SHAPE),
    ("dtype=f64", "dtype=f65", "f65", "expected a number, a string", Code.TEXT),
    ("%wide as result", "%wid as result", "%wid ", "%wid is not defined here; the nearest is 'wide'", Code.TEXT),
    ("%wide as result", "%wide as high", None, "two outputs are called 'high'", Code.GRAPH),
    ("scale\n}\n", "scale\n", "", "the text ends; expected '}'", Code.TEXT),
    ("scale\n}\n", "scale\n}\n]", "]", "expected the end of the text", Code.TEXT),
    ("@scale: f64[] persistent", "@scale: f64[] also norm.mean", None, "both go by 'norm.mean'", Code.GRAPH),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "words", "code"), ERRORS, ids=[new[:24].strip() for _, new, *_ in ERRORS])
def test_errors_say_where_and_what_would_be_right(old: str, new: str, at: str | None, words: str, code: Code) -> None:
    head, found, tail = TINY.partition(old)
    assert found
    text = head + new + tail
    with pytest.raises(SutureError) as caught:
        parse_graph(text, file="t.graph")
    message = str(caught.value)
    assert words in message
    assert caught.value.code is code
    assert "\n" not in message
    place = "tiny"
    if at is not None:
        position = text.rindex(at) if at in ("", "]") else text.index(at)
        place = f"t.graph:{text.count(chr(10), 0, position) + 1}:{len(text[:position].rpartition(chr(10))[2]) + 1}"
    assert caught.value.where.partition(": ")[0] == place, message


@given(st.integers(0, len(TINY)), st.text(max_size=3), st.integers(0, 3))
def test_damaged_text_gives_an_error_or_a_sound_graph(position: int, inserted: str, lost: int) -> None:
    """Whatever is cut out or put in, nothing but a SutureError comes out."""
    try:
        graph = parse_graph(TINY[:position] + inserted + TINY[position + lost :])
    except SutureError:
        return
    verify(graph)


def chain(length: int) -> Graph:
    graph = Graph("chain")
    value = graph.add_input("x", TensorType(torch.float32, (symbol("batch"), 16)))
    for k in range(length // 2):
        weight = graph.add_parameter(f"layers.{k}.weight", torch.empty(16, 16, device="meta"))
        value = graph.add("linear", [value, weight, None], path=f"layers.{k}").output
        value = graph.add("relu", [value], path=f"layers.{k}.act").output
    graph.set_outputs([value])
    return graph


def test_a_thousand_nodes_make_the_round_trip() -> None:
    graph = chain(1000)
    assert same_graph(graph, parse_graph(print_graph(graph))) is None


def test_work_is_linear_in_the_text() -> None:
    """Counted in calls, not in seconds: eight times the nodes make eight times the calls."""

    def calls(length: int) -> int:
        graph, count = chain(length), 0

        def note(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            parse_graph(print_graph(graph))
        finally:
            sys.setprofile(None)
        return count

    calls(10)  # what is cached once is not counted
    assert calls(1600) < 8.5 * calls(200)


# equality


def test_equality_names_the_first_difference() -> None:
    graph = parse_graph(TINY)
    for old, new, words in (
        ("graph tiny", "graph tin", "name: tiny and tin"),
        ("hints batch=2", "hints batch=3", "hints"),
        ("frozen", "", "@conv.weight"),
        ("at head.flatten", "", "node 2"),
        ("min=-0.5", "min=0.5", "node 1"),
        ("as result", "as results", "output names"),
        (', "deviation": 1e-07', ', "deviation": 1e-06', "record 0"),
        ("%mask: bool", "%mask: i64", "inputs"),
        ('"zoo:tiny"', '"zoo:other"', "source"),
        ('"positional": 1', '"positional": 2', "structure"),
    ):
        difference = same_graph(graph, parse_graph(TINY.replace(old, new)))
        assert difference is not None
        assert difference.startswith(words)


def test_equality_sees_attributes_of_another_type() -> None:
    graph = parse_graph(TINY)
    other = graph.copy()
    other.nodes[1].attributes["min"] = -1
    graph.nodes[1].attributes["min"] = -1.0
    assert same_graph(graph, other) is not None


def test_equality_sees_missing_nodes_and_records() -> None:
    graph = parse_graph(TINY)
    shorter = graph.copy()
    shorter.set_outputs(graph.copy().outputs[2:])
    shorter.outputs = [shorter.parameters["scale"]]
    shorter.remove_dead()
    assert same_graph(graph, shorter) is not None
    forgetful = graph.copy()
    forgetful.history = ()
    assert same_graph(graph, forgetful) == "number of records: 1 and 0"
    changed = graph.copy()
    changed.history = (dataclasses.replace(graph.history[0], name="prune"),)
    assert (same_graph(graph, changed) or "").startswith("record 0")


# real models


@pytest.mark.parametrize("name", ["resnet18", "swin", "llama", "t5", "lstm"])
def test_traced_models_round_trip(name: str) -> None:
    from suture.frontends.torch_export import trace

    entry = next(entry for key, entry in zoo.ENTRIES.items() if name in key.lower())
    args, kwargs = entry.args()
    graph = trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
    verify(graph)
    assert_round_trip(graph)
