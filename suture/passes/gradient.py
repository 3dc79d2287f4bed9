"""gradient: one graph for the way forward and the way back."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

from suture.ir.derivatives import differentiate, moved_by, prepare
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.interface import add_interface_input, add_interface_output
from suture.ir.types import DTYPE_NAMES
from suture.passes.contract import Contract
from suture.passes.recompute import kept_bytes, recompute_cheap
from suture.passes.registry import Notes, register

GRADIENT = "grad_"
"""What the names of cotangents and gradients begin with."""


@register(contract=Contract.STRUCTURAL)
def gradient(
    graph: Graph,
    notes: Notes,
    *,
    wrt: tuple[str, ...] = (),
    of: tuple[str, ...] = (),
    unit: bool = False,
    training: bool = False,
    recompute: Literal["cheap", "nothing"] = "cheap",
) -> Graph:
    """Add the way back: the graph takes a cotangent `grad_<output>` for every differentiated output, and returns a gradient `grad_<name>` besides.

    A gradient is the vector-Jacobian product: by how much the outputs, each weighted by its cotangent and summed, move with the input or parameter.
    All is written in the operators of graphs, so the result is fused, compiled, exported and differentiated again like any other.

    :param wrt: inputs and parameters, by name or pattern; all trained parameters and all floating-point inputs if none are named
    :param of: the outputs that are differentiated, by name or pattern; all floating-point ones if none are named
    :param unit: let the cotangent of an output that is one number (a loss) be 1, instead of an input
    :param training: differentiate the function of training: dropout drops, batch norm takes the batch's statistics; else that of evaluation
    :param recompute: "cheap" computes pointwise values and views again on the way back where fewer bytes have to be kept for it; "nothing" keeps all
    """
    result = graph.copy()
    wanted = _wanted(result, wrt)
    outputs = _differentiated(result, of)
    for text in prepare(result, wanted, training=training):
        notes.note(text)
    moved = moved_by(result.nodes, wanted)
    named = {value.name for value in wanted} & set(wrt)
    cotangents = _cotangents(result, [k for k in outputs if result.outputs[k] in moved], notes, unit=unit)
    forward = result.nodes
    found = differentiate(result, cotangents, wanted)
    for value in wanted:
        if value in found:
            _return(result, found[value], value.name, notes)
        elif value.name in named:
            raise SutureError(
                Code.GRADIENT, f"no output moves with {value}", where=result.name,
                remedy="name what a differentiated output depends on by differentiable operators",
            )  # fmt: skip
        else:
            notes.note(f"{value} has no gradient: no output moves with it")
    if not found:
        notes.not_applicable("no differentiated output moves with what is asked for")
        return graph
    result.remove_dead()
    _keep_less(result, [node for node in forward if node in result], notes, recompute, training=training)
    if not notes.interface.inputs and not training:
        notes.claim(Contract.EXACT)
    return result


def _wanted(graph: Graph, patterns: Sequence[str]) -> list[Value]:
    """The inputs, then the parameters, that are asked for.

    :raises SutureError: GRADIENT, for a name that there is none of, or that holds no floating-point numbers
    """
    known: dict[str, Value] = {**{value.name: value for value in graph.inputs}, **graph.parameters}
    if not patterns:
        trained = [p for p in graph.parameters.values() if p.requires_grad and (p.uses or p.is_graph_output())]
        return [value for value in (*graph.inputs, *trained) if value.dtype.is_floating_point]
    return [known[name] for name in _matching(known, patterns, graph, "input or parameter")]


def _differentiated(graph: Graph, patterns: Sequence[str]) -> list[int]:
    """The positions of the outputs that are differentiated."""
    known = dict(zip(graph.output_names, graph.outputs, strict=True))
    if not patterns:
        return [k for k, value in enumerate(graph.outputs) if value.dtype.is_floating_point]
    names = _matching(known, patterns, graph, "output")
    return [graph.output_names.index(name) for name in names]


def _matching(known: dict[str, Value], patterns: Sequence[str], graph: Graph, what: str) -> list[str]:
    """The names that patterns match, in the order of the graph; a pattern passes over integers, a name may not."""
    chosen: set[str] = set()
    for pattern in patterns:
        names = [name for name in known if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise SutureError(
                Code.GRADIENT, f"there is no {what} {pattern!r}", where=graph.name, remedy=nearest(pattern, known, what=what)
            )  # fmt: skip
        floating = [name for name in names if known[name].dtype.is_floating_point]
        if not floating:
            raise SutureError(
                Code.GRADIENT, f"the {what} {names[0]} is {DTYPE_NAMES[known[names[0]].dtype]}", where=graph.name,
                remedy="floating-point numbers would be right",
            )  # fmt: skip
        chosen.update(floating)
    return [name for name in known if name in chosen]


def _cotangents(graph: Graph, positions: Sequence[int], notes: Notes, *, unit: bool) -> dict[Value, Value]:
    """For each differentiated value its cotangent: an input, or 1; a value that is returned twice gets the sum."""
    found: dict[Value, Value] = {}
    for k in positions:
        value, name = graph.outputs[k], GRADIENT + graph.output_names[k]
        if unit and all(size == 1 for size in value.shape):
            arrived = graph.add(
                "full", [], {"value": 1.0, "dtype": value.dtype}, shapes=[value.shape], name=name
            ).output
        else:
            free = graph.fresh_name(name)
            arrived = add_interface_input(graph, free, value.type)
            notes.gains_input(free)
        found[value] = graph.add("add", [found[value], arrived]).output if value in found else arrived
    return found


def _return(graph: Graph, value: Value, of: str, notes: Notes) -> None:
    name = GRADIENT + of
    while name in graph.output_names:
        name += "_"
    add_interface_output(graph, value, name)
    notes.gains_output(name)
    if value.producer is not None and not isinstance(value, Parameter):
        graph.rename_result(value, name.replace(".", "_"))


def _keep_less(graph: Graph, forward: Sequence[Node], notes: Notes, recompute: str, *, training: bool) -> None:
    """Say how much is kept for the way back, and let less be."""
    known = set(forward)
    backward = [node for node in graph.nodes if node not in known]
    before = kept_bytes(graph, forward, backward)
    if recompute == "nothing":
        notes.note(f"{before:,} bytes live from the way forward to the way back")
        return
    added = recompute_cheap(graph, forward, backward, training=training)
    graph.remove_dead()
    after = kept_bytes(graph, [n for n in forward if n in graph], [n for n in graph.nodes if n not in known])
    notes.note(
        f"{after:,} bytes live from the way forward to the way back, of {before:,}: {len(added)} nodes are computed again"
    )
