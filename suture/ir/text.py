"""Graph text: what a graph prints as, and how that is read back.

    graph resnet18(%x: f32[batch, 3, 64, 64]) {
      hints batch=2
      parameter @conv1.weight: f32[64, 3, 7, 7]
      buffer @bn1.running_mean: f32[64]

      %conv1: f32[batch, 64, 32, 32] = conv(%x, @conv1.weight, _) stride=(2, 2) padding=(3, 3) at conv1
      return %conv1 as output
    }

`%` marks a value, `@` a parameter, `_` an absent operand; attributes that have their default are left out; `at` gives
the module path and `as` an output's name. The bodies of a branch stand in its attributes, as graphs without parameters:

      %y: f32[batch, 8] = branch(%taken, %x, @w) then=graph body(%x: f32[batch, 8], %w: f32[8, 8]) {
        %h: f32[batch, 8] = linear(%x, %w)
        return %h
      } otherwise=graph skip(%x: f32[batch, 8], %w: f32[8, 8]) {
        return %x
      } at layers.3

Names that are more than letters, digits, `_` and `.` stand in quotes. `#`
starts a comment. Tensors are not part of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Record, Value
from suture.ir.operator import REQUIRED, Operator
from suture.ir.parser import parse_graph
from suture.ir.sizes import Size
from suture.ir.types import DTYPE_NAMES

__all__ = ["parse_graph", "print_attribute", "print_graph", "print_node", "print_value", "record_json"]

_PLAIN = re.compile(r"[\w.]+")


def print_graph(graph: Graph) -> str:
    """The text of a graph; `parse_graph` reads it back."""
    return "\n".join(_lines(graph)) + "\n"


def print_node(node: Node) -> str:
    """The line of one node; several where it has bodies."""
    results = ", ".join(f"{print_value(value)}: {value.type}" for value in node.outputs)
    operands = ", ".join("_" if value is None else print_value(value) for value in node.inputs)
    defaults = _default_texts(node.operator)
    words = [f"{results} = {node.operator.name}({operands})"]
    for name, value in node.attributes.items():
        text = print_attribute(value)
        if text != defaults.get(name):
            words.append(f"{name}={text}")
    if node.path:
        words.append(f"at {_name(node.path)}")
    return " ".join(words)


def print_value(value: Value) -> str:
    """A reference to a value: `%conv1` or `@conv1.weight`."""
    return ("@" if isinstance(value, Parameter) else "%") + _name(value.name)


def print_attribute(value: Any) -> str:
    """An attribute's value, such that it reads back as the same type and number.

    :raises SutureError: OPERATOR, if it is no attribute value
    """
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case complex():
            return f"complex({value.real!r}, {value.imag!r})"
        case str():
            return json.dumps(value)
        case Size():
            return f"size({value})"
        case torch.dtype():
            return DTYPE_NAMES[value]
        case Graph():
            return "\n".join(_lines(value, body=True))
        case tuple():
            inner = ", ".join(map(print_attribute, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise SutureError(Code.OPERATOR, f"a {type(value).__name__} is no attribute value",
                      remedy="numbers, strings, sizes, dtypes, graphs and tuples of them are")  # fmt: skip


def _lines(graph: Graph, *, body: bool = False) -> Iterator[str]:
    inputs = [f"{print_value(value)}: {value.type}" for value in graph.inputs]
    head = f"graph {_name(graph.name)}("
    if len(head) + sum(map(len, inputs)) < 100:
        yield f"{head}{', '.join(inputs)}) {{"
    else:
        yield head
        yield from (f"    {text}," for text in inputs)
        yield ") {"
    if graph.source:
        yield f"  source {json.dumps(graph.source)}"
    if graph.hints:
        yield "  hints " + " ".join(f"{_name(name)}={number}" for name, number in graph.hints.items())
    if graph.structure is not None:
        stated = asdict(graph.structure)
        defaults = {field.name: field.default for field in fields(graph.structure)}
        yield f"  structure {json.dumps({key: value for key, value in stated.items() if value != defaults[key]})}"
    for record in graph.history:
        yield f"  history {record_json(record)}"
    for parameter in graph.parameters.values():
        yield f"  {_print_parameter(parameter)}"
    if not body:
        yield ""
    for node in graph.nodes:
        yield from (f"  {line}" for line in print_node(node).splitlines())
    yield f"  return {', '.join(_outputs(graph))}".rstrip()
    yield "}"


def _outputs(graph: Graph) -> Iterator[str]:
    for k, value in enumerate(graph.outputs):
        name = graph.output_names[k] if k < len(graph.output_names) else value.name
        yield print_value(value) + (f" as {_name(name)}" if name != value.name else "")


def _print_parameter(parameter: Parameter) -> str:
    text = f"{parameter.role} {print_value(parameter)}: {parameter.type}"
    if parameter.requires_grad != (parameter.role == "parameter"):
        text += " trained" if parameter.requires_grad else " frozen"
    if parameter.persistent != (parameter.role != "constant"):
        text += " persistent" if parameter.persistent else " transient"
    return text + (f" also {', '.join(map(_name, parameter.aliases))}" if parameter.aliases else "")


def record_json(record: Record) -> str:
    """A history record as one line of JSON; what JSON cannot say stands as its `str`."""
    return json.dumps({**asdict(record), "options": dict(record.options)}, default=str)


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


@lru_cache(maxsize=1024)
def _default_texts(operator: Operator) -> dict[str, str]:
    return {name: print_attribute(value) for name, value in operator.attributes.items() if value is not REQUIRED}
