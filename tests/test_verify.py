"""The verifier: each check has a graph that it, and no earlier one, refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import strategies
import torch
from hypothesis import given

from suture.ir import verify as checks
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Use
from suture.ir.sizes import symbol
from suture.ir.text import parse_graph
from suture.ir.types import TensorType
from suture.ir.verify import CHECKS, verify

SOUND = """
graph sound(%x: f32[batch, 4], %i: i64[batch]) {
  parameter @w: f32[6, 4] also tied.w
  buffer @table: f32[10, 6]
  %a: f32[batch, 6] = linear(%x, @w) at stem
  %e: f32[batch, 6] = embedding(@table, %i)
  %b: f32[batch, 6] = add(%a, %e) at sum
  %r: f32[batch, 2, 3] = reshape(%b)
  %s: f32[batch, 2, 1], %t: f32[batch, 2, 2] = split(%r) dim=2
  %p: bool[] = full() value=true dtype=bool
  %q: f32[batch, 6] = branch(%p, %b, @w) then=graph product(%b: f32[batch, 6], %w: f32[6, 4]) {
    %m: f32[batch, 4] = matmul(%b, %w)
    %l: f32[batch, 6] = linear(%m, %w)
    return %l
  } otherwise=graph same(%b: f32[batch, 6], %w: f32[6, 4]) {
    return %b
  }
  return %s as small, %t as large
}
"""
BATCH = symbol("batch")


def sound() -> Graph:
    return parse_graph(SOUND)


BROKEN: list[tuple[Callable[[Graph], None], str, Code, Callable[[Graph], Any]]] = []


def breaks(
    check: Callable[[Graph], None], words: str, code: Code = Code.GRAPH
) -> Callable[[Callable[[Graph], Any]], None]:
    """Register an edit that the check must refuse with these words."""

    def register(edit: Callable[[Graph], Any]) -> None:
        BROKEN.append((check, words, code, edit))

    return register


@breaks(checks.check_names, "two values are called %a")
def _same_name(graph: Graph) -> None:
    graph.nodes[2].output.name = "a"


@breaks(checks.check_names, "without a name")
def _no_name(graph: Graph) -> None:
    graph.inputs[0].name = ""


@breaks(checks.check_owner, "%x belongs to another graph")
def _foreign_input(graph: Graph) -> None:
    graph.inputs[0].graph = sound()


@breaks(checks.check_owner, "@w is an input or a parameter")
def _produced_parameter(graph: Graph) -> None:
    graph.parameters["w"].producer = graph.nodes[0]


@breaks(checks.check_owner, "%t does not know that it is result 0")
def _swapped_results(graph: Graph) -> None:
    node = graph.nodes[4]
    node.outputs = node.outputs[::-1]


@breaks(checks.check_owner, "a node of another graph")
def _foreign_node(graph: Graph) -> None:
    graph.nodes[0].graph = sound()


@breaks(checks.check_operands, "operand 0, %x, is no value of this graph")
def _foreign_operand(graph: Graph) -> None:
    graph.nodes[0].replace_input(0, sound().inputs[0])


@breaks(checks.check_operands, "operand 0, @table, is no value")
def _parameter_taken_away(graph: Graph) -> None:
    del graph.parameters["table"]


@breaks(checks.check_uses, "stated and not there")
def _stale_use(graph: Graph) -> None:
    graph.inputs[0]._uses[Use(graph.nodes[2], 0)] = None


@breaks(checks.check_uses, "there and not stated")
def _lost_use(graph: Graph) -> None:
    graph.inputs[0]._uses.clear()


@breaks(checks.check_order, "%a is read before it is computed")
def _wrong_order(graph: Graph) -> None:
    nodes = list(graph.nodes)
    graph._nodes = dict.fromkeys([*nodes[1:3], nodes[0], *nodes[3:]])


@breaks(checks.check_attributes, "the attribute dim is missing", Code.OPERATOR)
def _missing_attribute(graph: Graph) -> None:
    del graph.nodes[4].attributes["dim"]


@breaks(checks.check_attributes, "no attribute is called dims", Code.OPERATOR)
def _unknown_attribute(graph: Graph) -> None:
    graph.nodes[4].attributes["dims"] = 1


@breaks(checks.check_attributes, "dim is a list", Code.OPERATOR)
def _attribute_of_a_wrong_kind(graph: Graph) -> None:
    graph.nodes[4].attributes["dim"] = [1]  # type: ignore[assignment]


@breaks(checks.check_sizes, "%s has a size of -1", Code.SHAPE)
def _negative_size(graph: Graph) -> None:
    graph.nodes[4].outputs[0].type = TensorType(torch.float32, (BATCH, 2, -1))


@breaks(checks.check_sizes, "%x has a size of 4.0", Code.SHAPE)
def _size_that_is_no_integer(graph: Graph) -> None:
    graph.inputs[0].type = TensorType(torch.float32, (BATCH, 4.0))  # type: ignore[arg-type]


@breaks(checks.check_types, "%a has type", Code.SHAPE)
def _wrong_shape(graph: Graph) -> None:
    graph.nodes[0].output.type = TensorType(torch.float32, (BATCH, 5))


@breaks(checks.check_types, "%a has type", Code.DTYPE)
def _wrong_dtype(graph: Graph) -> None:
    graph.nodes[0].output.type = TensorType(torch.float64, (BATCH, 6))


@breaks(checks.check_types, "cannot be read as", Code.SHAPE)
def _reshape_that_loses_elements(graph: Graph) -> None:
    graph.nodes[3].output.type = TensorType(torch.float32, (BATCH, 2, 4))


@breaks(checks.check_types, "the parts must sum to the whole", Code.SHAPE)
def _split_that_loses_elements(graph: Graph) -> None:
    graph.nodes[4].outputs[0].type = TensorType(torch.float32, (BATCH, 2, 2))


@breaks(checks.check_types, "2 results; 1 would be right")
def _too_many_results(graph: Graph) -> None:
    node = graph.nodes[0]
    extra = type(node.output)(graph, "extra", node.output.type, node, 1)
    node.outputs = (node.output, extra)


@breaks(checks.check_outputs, "the output %x is no value of this graph")
def _foreign_output(graph: Graph) -> None:
    graph.set_outputs([sound().inputs[0]])


@breaks(checks.check_outputs, "1 names for 2 outputs")
def _too_few_output_names(graph: Graph) -> None:
    graph.output_names.pop()


@breaks(checks.check_outputs, "two outputs are called 'small'")
def _same_output_names(graph: Graph) -> None:
    graph.output_names = ["small", "small"]


@breaks(checks.check_parameters, "@w is kept as 'v'")
def _kept_under_another_name(graph: Graph) -> None:
    graph.parameters["v"] = graph.parameters.pop("w")


@breaks(checks.check_parameters, "@w is a 'weight'")
def _unknown_role(graph: Graph) -> None:
    graph.parameters["w"].role = "weight"


@breaks(checks.check_parameters, "@w has type f32\\[6, 4\\], its tensor f64\\[6, 4\\]")
def _tensor_of_another_type(graph: Graph) -> None:
    graph.parameters["w"].data = torch.zeros(6, 4, dtype=torch.float64)


@breaks(checks.check_parameters, "is to be trained", Code.DTYPE)
def _trained_integers(graph: Graph) -> None:
    graph.add_parameter("n", torch.zeros(2, dtype=torch.int64))


@breaks(checks.check_parameters, "@table and @w both go by 'tied.w'")
def _alias_of_two(graph: Graph) -> None:
    graph.parameters["table"].aliases = ("tied.w",)


def body(graph: Graph, name: str = "then") -> Graph:
    return graph.nodes[-1].bodies[name]


@breaks(checks.check_bodies, "the body then has a parameter of its own, @bias")
def _parameter_in_a_body(graph: Graph) -> None:
    body(graph).add_parameter("bias", torch.zeros(6))


@breaks(checks.check_bodies, "%m is read before it is computed")
def _wrong_order_in_a_body(graph: Graph) -> None:
    then = body(graph)
    then._nodes = dict.fromkeys(then.nodes[::-1])


@breaks(checks.check_bodies, r"%l has type f32\[batch, 7\]", Code.SHAPE)
def _wrong_type_in_a_body(graph: Graph) -> None:
    body(graph).outputs[0].type = TensorType(torch.float32, (BATCH, 7))


@breaks(checks.check_types, r"%w of the body otherwise is f32\[4, 4\], its operand f32\[6, 4\]", Code.SHAPE)
def _body_of_other_operands(graph: Graph) -> None:
    body(graph, "otherwise").inputs[1].type = TensorType(torch.float32, (4, 4))


@breaks(checks.check_types, "the body then takes 3 values and is given 2", Code.SHAPE)
def _body_of_more_operands(graph: Graph) -> None:
    body(graph).add_input("more", TensorType(torch.float32, ()))


@breaks(checks.check_types, r"then returns f32\[batch, 6\], otherwise f32\[6, 4\]", Code.SHAPE)
def _bodies_that_return_other_types(graph: Graph) -> None:
    body(graph, "otherwise").set_outputs([body(graph, "otherwise").inputs[1]])


@breaks(checks.check_types, r"%q has type f32\[batch, 6\]", Code.SHAPE)
def _branch_of_another_type(graph: Graph) -> None:
    for name in ("then", "otherwise"):
        body(graph, name).set_outputs([body(graph, name).inputs[1]])


@breaks(checks.check_types, r"the predicate is f32\[batch, 6\]", Code.DTYPE)
def _predicate_of_numbers(graph: Graph) -> None:
    graph.nodes[-1].replace_input(0, graph.nodes[0].output)


@breaks(checks.check_types, "then is a int", Code.OPERATOR)
def _body_that_is_none(graph: Graph) -> None:
    graph.nodes[-1].attributes["then"] = 1


@breaks(checks.check_symbols, "no input binds the size rows", Code.SIZE)
def _unbound_size_in_a_body(graph: Graph) -> None:
    body(graph).add("full", [], {"value": 0.0}, shapes=[(symbol("rows"), 2)])


@breaks(checks.check_symbols, "no input binds the size rows", Code.SIZE)
def _unbound_size(graph: Graph) -> None:
    graph.add("full", [], {"value": 0.0}, shapes=[(symbol("rows"), 2)])


@breaks(checks.check_symbols, "no input binds the size botch", Code.SIZE)
def _unbound_size_in_an_attribute(graph: Graph) -> None:
    graph.add("add", [graph.inputs[0], None], {"scalar": symbol("botch")})


@pytest.mark.parametrize(
    ("check", "words", "code", "edit"), BROKEN, ids=[edit.__name__.strip("_") for *_, edit in BROKEN]
)
def test_a_broken_graph_is_refused_by_its_check(
    check: Callable[[Graph], None], words: str, code: Code, edit: Callable[[Graph], Any]
) -> None:
    graph = sound()
    verify(graph)
    edit(graph)
    for earlier in CHECKS[: CHECKS.index(check)]:
        earlier(graph)
    for run in (check, verify):
        with pytest.raises(SutureError, match=words) as caught:
            run(graph)
        assert caught.value.code is code
        assert "\n" not in str(caught.value)
        assert caught.value.where
        assert caught.value.remedy


def test_every_check_has_a_broken_graph() -> None:
    defined = {value for name, value in vars(checks).items() if name.startswith("check_")}
    assert set(CHECKS) == defined == {check for check, *_ in BROKEN}


@given(strategies.graphs())
def test_sound_graphs_pass(graph: Graph) -> None:
    verify(graph)


def test_errors_name_the_node_and_its_module_path() -> None:
    graph = sound()
    graph.nodes[0].output.type = TensorType(torch.float32, (BATCH, 5))
    with pytest.raises(SutureError) as caught:
        verify(graph)
    assert caught.value.where == "%a (linear in stem)"
