"""Where exits may hang, and where they hang in a graph that has some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Value
from suture.ir.regions import at_path, cuts, stack_at
from suture.ir.regions.cuts import crossing, value_of

PREFIX = "exits"
"""The module path below which exits have their parameters: `exits.0.head.weight`, `exits.0.gate.weight`."""


@dataclass(frozen=True)
class Exit:
    """One exit of a graph: what it says, and how sure its gate is that this will do."""

    number: int
    logits: Value
    gate: Value


def exit_name(number: int) -> str:
    """The name of the output that has an exit's logits."""
    return f"exit_{number}"


def gate_name(number: int) -> str:
    """The name of the output that has an exit's gate."""
    return f"gate_{number}"


def exits_of(graph: Graph) -> tuple[Exit, ...]:
    """The exits that `add_exits` hung on a graph, from the input on.

    :raises SutureError: EXIT, if there is none
    """
    named = dict(zip(graph.output_names, graph.outputs, strict=True))
    found: list[Exit] = []
    while (title := exit_name(len(found))) in named and gate_name(len(found)) in named:
        found.append(Exit(len(found), named[title], named[gate_name(len(found))]))
    if not found:
        raise SutureError(Code.EXIT, "the graph has no exits", where=graph.name, remedy="add_exits gives it some")
    return tuple(found)


def result_of(graph: Graph) -> Value:
    """The output that is no exit's.

    :raises SutureError: EXIT, if there are several
    """
    exits = exits_of(graph)
    own = {name for item in exits for name in (exit_name(item.number), gate_name(item.number))}
    results = [value for name, value in zip(graph.output_names, graph.outputs, strict=True) if name not in own]
    if len(results) != 1:
        raise SutureError(
            Code.EXIT, f"the graph returns {len(results)} values besides its exits", where=graph.name,
            remedy="a graph that returns its logits alone can be left early",
        )  # fmt: skip
    return results[0]


def exit_streams(graph: Graph, at: Sequence[str], count: int | None) -> tuple[Value, ...]:
    """The cut values at which exits are to hang, from the input on: those named, or those between the blocks of the stack of most parameters.

    :raises SutureError: EXIT, if a place is no cut value, or there are not as many places as exits; SITE, if a name names nothing
    """
    chain = [value for value in cuts(graph) if value not in graph.inputs and not value.is_graph_output()]
    if not at:
        return _between_blocks(graph, count)
    if count is not None:
        raise SutureError(
            Code.EXIT,
            "exits are placed by their places or by their number",
            where=graph.name,
            remedy="give at or count",
        )
    found = {_place(graph, name, chain): name for name in at}
    return tuple(value for value in chain if value in found)


def _between_blocks(graph: Graph, count: int | None) -> tuple[Value, ...]:
    stack = stack_at(graph)
    streams = [block.output for block in stack.blocks[:-1]]
    if count is None:
        return tuple(streams)
    if not 1 <= count <= len(streams):
        raise SutureError(
            Code.EXIT, f"{count} exits in a stack of {len(stack)} blocks", where=stack.name,
            remedy=f"1 to {len(streams)} would be right",
        )  # fmt: skip
    return tuple(streams[(k + 1) * len(stack) // (count + 1) - 1] for k in range(count))


def _place(graph: Graph, name: str, chain: Sequence[Value]) -> Value:
    values = {value.name for value in graph.values()}
    value = value_of(graph, name) if name.removeprefix("%") in values else at_path(graph, name).output
    if value in chain:
        return value
    others = crossing(graph, value)
    what = f"{value} is no cut value"
    if others:
        named = f"{', '.join(map(str, others[:3]))}{' and more' if len(others) > 3 else ''}"
        what += f": {named} cross{'es' if len(others) == 1 else ''} as well"
    raise SutureError(
        Code.EXIT, what, where=name, remedy=nearest(value.name, [cut.name for cut in chain], what="cut value")
    )
