"""Inputs and outputs that come and go: the graph's lists, and with them the calling convention of the module that was traced.

A `Structure` keeps pytree specs as the JSON that torch writes, `[version, {"type", "context", "children_spec"}]`. They are edited as such, so that no
class that they name (a library's output class, say) has to be imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Parameter, Structure, Value
from suture.ir.types import TensorType

Spec = dict[str, Any]
_TUPLE, _LIST, _DICT = "builtins.tuple", "builtins.list", "builtins.dict"
_AROUND = '"added"'  # the context of a tuple that was put around a result to hold more than it did; torch reads no context of a tuple


def add_interface_input(graph: Graph, name: str, type_: TensorType) -> Value:
    """Add a graph input that the module takes by keyword, or as its last position.

    :raises SutureError: GRAPH, if the name is taken
    """
    taken = graph.structure is not None and name in graph.structure.arguments
    if taken or graph.fresh_name(name) != name:
        raise SutureError(Code.GRAPH, f"the name {name!r} is taken", where=graph.name, remedy="take another one")
    if graph.structure is not None:
        spec = _Spec(graph.structure.inputs)
        _append(spec.root["children_spec"][1], name)
        graph.structure = replace(graph.structure, inputs=str(spec), arguments=(*graph.structure.arguments, name))
    return graph.add_input(name, type_)


def bind_interface_input(graph: Graph, name: str, tensor: torch.Tensor) -> Parameter:
    """Let a constant stand where a graph input stood; the module no longer takes the argument.

    An argument that is nested in another one stays where it is, and is no longer read.

    :raises SutureError: INPUT, if there is no such input or the tensor is not of its type
    """
    known = {value.name: value for value in graph.inputs}
    if name not in known:
        raise SutureError(
            Code.INPUT, f"the graph has no input {name!r}", where=graph.name, remedy=nearest(name, known, what="input")
        )
    value = known[name]
    fits = tensor.dtype == value.dtype and tuple(tensor.shape) == value.shape
    if not fits:
        given = TensorType(tensor.dtype, tuple(tensor.shape))
        raise SutureError(
            Code.INPUT, f"the input {name} cannot be {given}", where=graph.name, remedy=f"{value.type} would be right"
        )
    if graph.structure is not None:
        graph.structure = _without_argument(graph.structure, graph.inputs.index(value))
    constant = graph.add_parameter(_free_parameter(graph, name), tensor.detach().clone(), "constant")
    graph.replace_uses(value, constant)
    graph.remove_input(value)
    return constant


def add_interface_output(graph: Graph, value: Value, name: str) -> None:
    """Return one more value: the module's result gets it as a further item, or becomes a tuple of what it was and the value.

    :raises SutureError: GRAPH, if an output has the name
    """
    if name in graph.output_names:
        raise SutureError(Code.GRAPH, f"an output is called {name!r}", where=graph.name, remedy="take another name")
    graph.set_outputs([*graph.outputs, value], [*graph.output_names, name])
    if graph.structure is None or not graph.structure.outputs:
        return
    spec = _Spec(graph.structure.outputs)
    if spec.root["type"] in (_TUPLE, _LIST, _DICT):
        _append(spec.root, name)
    else:
        spec.root = {"type": _TUPLE, "context": _AROUND, "children_spec": [spec.root, _leaf()]}
    graph.structure = replace(graph.structure, outputs=str(spec))


def remove_interface_output(graph: Graph, name: str) -> None:
    """Return one value less: the module's result loses the item, and is what it was before if that was the last one added.

    :raises SutureError: GRAPH, if there is no such output, or it is the only one
    """
    if name not in graph.output_names:
        remedy = nearest(name, graph.output_names, what="output")
        raise SutureError(Code.GRAPH, f"the graph has no output {name!r}", where=graph.name, remedy=remedy)
    if len(graph.outputs) == 1:
        raise SutureError(
            Code.GRAPH, f"{name} is the only output", where=graph.name, remedy="a graph returns something"
        )
    index = graph.output_names.index(name)
    kept = [k for k in range(len(graph.outputs)) if k != index]
    if graph.structure is not None and graph.structure.outputs:
        graph.structure = _without_result(graph.structure, index)
    graph.set_outputs([graph.outputs[k] for k in kept], [graph.output_names[k] for k in kept])


class _Spec:
    """A serialised pytree spec, opened."""

    def __init__(self, text: str) -> None:
        self.version, self.root = json.loads(text)

    def __str__(self) -> str:
        return json.dumps([self.version, self.root])


def _leaf() -> Spec:
    return {"type": None, "context": None, "children_spec": []}


def _append(spec: Spec, name: str) -> None:
    """One more leaf at the end of a tuple, a list or a dict."""
    spec["children_spec"].append(_leaf())
    if spec["type"] == _DICT:
        spec["context"] = json.dumps([*json.loads(spec["context"]), name])


def _leaves(spec: Spec) -> int:
    return sum(map(_leaves, spec["children_spec"])) if spec["type"] is not None else 1


def _without_argument(structure: Structure, index: int) -> Structure:
    """The convention without the argument that holds the graph input of that index; if it holds more, that leaf is no longer read."""
    spec = _Spec(structure.inputs)
    fixed: dict[str, Any] = json.loads(structure.fixed_inputs)
    leaves = _leaves(spec.root)
    leaf = [k for k in range(leaves) if str(k) not in fixed][index]
    positional, named = spec.root["children_spec"]
    for group, children in ((positional, positional["children_spec"]), (named, named["children_spec"])):
        start = 0 if group is positional else _leaves(positional)
        for k, child in enumerate(children):
            if start == leaf and child["type"] is None:
                del children[k]
                moved = _renumbered(fixed, lambda position: position - (position > leaf))
                arguments, count = _drop_argument(structure, group, k, is_positional=group is positional)
                return replace(structure, inputs=str(spec), fixed_inputs=moved, arguments=arguments, positional=count)
            start += _leaves(child)
    return replace(structure, fixed_inputs=json.dumps({**fixed, str(leaf): None}))


def _without_result(structure: Structure, index: int) -> Structure:
    """The convention without the graph output of that index; where it is nested in a class of its own, nothing stands in its place."""
    spec = _Spec(structure.outputs)
    fixed: dict[str, Any] = json.loads(structure.fixed_outputs)
    leaf = [k for k in range(_leaves(spec.root)) if str(k) not in fixed][index]
    start = 0
    for k, child in enumerate(spec.root["children_spec"]):
        if start == leaf and child["type"] is None and spec.root["type"] in (_TUPLE, _LIST, _DICT):
            _remove_child(spec, k)
            moved = _renumbered(fixed, lambda position: position - (position > leaf))
            return replace(structure, outputs=str(spec), fixed_outputs=moved)
        start += _leaves(child)
    return replace(structure, fixed_outputs=json.dumps({**fixed, str(leaf): None}))


def _remove_child(spec: _Spec, k: int) -> None:
    root = spec.root
    del root["children_spec"][k]
    if root["type"] == _DICT:
        keys = json.loads(root["context"])
        del keys[k]
        root["context"] = json.dumps(keys)
    if root["context"] == _AROUND and len(root["children_spec"]) == 1:
        spec.root = root["children_spec"][0]


def _drop_argument(structure: Structure, group: Spec, k: int, *, is_positional: bool) -> tuple[tuple[str, ...], int]:
    names = structure.arguments
    if is_positional:
        listed = k < structure.positional
        return (*names[:k], *names[k + 1 :]) if listed else names, structure.positional - listed
    keys = json.loads(group["context"])
    gone = keys.pop(k)
    group["context"] = json.dumps(keys)
    return tuple(name for name in names if name != gone), structure.positional


def _renumbered(fixed: dict[str, Any], move: Callable[[int], int]) -> str:
    return json.dumps({str(move(int(key))): value for key, value in fixed.items()})


def _free_parameter(graph: Graph, name: str) -> str:
    found, count = name, 1
    while found in graph.parameters:
        found, count = f"{name}_{count}", count + 1
    return found
