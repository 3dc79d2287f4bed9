"""Graphs that leave early: one with a branch per exit, or an ordinary one per exit."""

from __future__ import annotations

import math

from suture.ir.control import guard
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.interface import remove_interface_output
from suture.ir.regions import Region
from suture.ir.regions.cuts import ancestors
from suture.passes.contract import Contract
from suture.passes.exits.sites import exit_name, exits_of, gate_name, result_of
from suture.passes.exits.thresholds import NEVER
from suture.passes.registry import Notes, register
from suture.passes.unread import drop_unread, read_names


@register(contract=Contract.APPROXIMATE)
def early_exit(graph: Graph, notes: Notes, *, thresholds: tuple[float, ...]) -> Graph:
    """Leave at the first exit whose gate reaches its threshold: one graph, with a branch per exit.

    A batch leaves where all of its samples would: what is computed is computed for the whole batch. Give single samples, or batches of samples alike,
    to leave early often.

    :param thresholds: one per exit, in order of depth; above 1, an exit is never taken
    :raises SutureError: EXIT, if the graph has no exits, not as many as thresholds, or exits of another type than its result
    """
    exits = exits_of(graph)
    if len(thresholds) != len(exits):
        raise SutureError(
            Code.EXIT, f"{len(thresholds)} thresholds for {len(exits)} exits", where=graph.name, remedy="one each"
        )
    if any(math.isnan(threshold) for threshold in thresholds):
        raise SutureError(Code.EXIT, "a threshold is no number", where=graph.name, remedy="give numbers from 0 to 1")
    result = graph.copy()
    final, exits = result_of(result), exits_of(result)
    for item, threshold in zip(exits, thresholds, strict=True):
        if item.logits.type != final.type:
            raise SutureError(
                Code.EXIT, f"{exit_name(item.number)} is {item.logits.type}, the result {final.type}", where=graph.name,
                remedy="exits with the model's classes would be right",
            )  # fmt: skip
        for name in (exit_name(item.number), gate_name(item.number)):
            remove_interface_output(result, name)
            notes.loses_output(name)
        notes.note(f"{exit_name(item.number)} is taken from a gate of {threshold:.4g} on")
    before: set[Node] = set()  # what has run by the time of each exit
    early: list[set[Node]] = []
    for item in exits:
        before = before | ancestors(item.logits) | ancestors(item.gate)
        early.append(before)
    for item, threshold, done in reversed(list(zip(exits, thresholds, early, strict=True))):
        goes_on = _goes_on(result, item.gate, threshold)
        rest = ancestors(final) - done
        nodes = [node for node in result.nodes if node in rest]
        final = guard(Region(result, nodes, f"rest_{item.number}"), goes_on, instead=item.logits)
    result.remove_dead()
    if all(threshold > 1 for threshold in thresholds):
        notes.claim(Contract.EXACT)
    return result


def _goes_on(graph: Graph, gate: Value, threshold: float) -> Value:
    """Whether some sample of the batch needs more than this exit."""
    path = gate.producer.path if gate.producer is not None else ""
    limit = min(threshold, NEVER)
    fires = graph.add("ge", [gate], {"scalar": limit}, path=path).output
    every = graph.add("all", [fires], {"dims": (0,)}, path=path).output
    return graph.add("logical_not", [every], path=path).output


def submodels(graph: Graph) -> tuple[Graph, ...]:
    """One ordinary graph per exit, and the model itself, last: nested, for they share their parameters.

    Each returns logits under the name, and nested the way, of the model's own result.

    :raises SutureError: EXIT, if the graph has no exits
    """
    exits, final = exits_of(graph), result_of(graph)
    name = graph.output_names[next(k for k, value in enumerate(graph.outputs) if value is final)]
    found: list[Graph] = []
    for number in range(len(exits) + 1):
        result = graph.copy()
        logits = exits_of(result)[number].logits if number < len(exits) else result_of(result)
        for item in exits:
            for title in (exit_name(item.number), gate_name(item.number)):
                remove_interface_output(result, title)
        result.set_outputs([logits], [name])
        result.name = f"{graph.name}_{exit_name(number)}" if number < len(exits) else graph.name
        result.remove_dead()
        drop_unread(result, read_names(graph))
        found.append(result)
    return tuple(found)
