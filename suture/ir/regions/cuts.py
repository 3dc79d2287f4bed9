"""Cut values: the places where a model can be taken apart.

Walk the nodes in order, and keep the set of values that descend from the input and that something further on still reads. Where this set is a
single value, every path from the input to the outputs crosses that value: it dominates what follows and post-dominates what came before.
Whatever does not descend from the input (positions, rotary tables, masks of another input) is ambient and does not count.
"""

from __future__ import annotations

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Value
from suture.ir.paths import common_path
from suture.ir.regions.region import Region, private_nodes


def cuts(graph: Graph, source: Value | str | None = None) -> tuple[Value, ...]:
    """The single values that every path from an input to the outputs crosses, from the input to the output.

    :param source: the input; the one with most cut values behind it if absent (other inputs, such as masks, are then ambient)
    :raises SutureError: CUT, if there is no such value or the graph has no input
    """
    if source is not None:
        return _sweep(graph, value_of(graph, source))
    if not graph.inputs:
        raise SutureError(
            Code.CUT, "the graph has no input to cut behind", where=graph.name, remedy="name a value as source"
        )
    chains = [_sweep(graph, value) for value in graph.inputs]
    # a number (a route, a step) only chooses; what flows is a tensor of data
    return max(chains, key=lambda chain: (any(value.rank for value in chain[:1]), len(chain)))


def segments(graph: Graph, source: Value | str | None = None) -> tuple[Region, ...]:
    """The regions between consecutive cut values."""
    chain = cuts(graph, source)
    if len(chain) < 2:
        return ()
    position = {value: k for k, value in enumerate(chain)}
    # The last cut that each value lies behind: a node belongs to the segment that its operands have reached.
    reached: dict[Value, int] = {chain[0]: 0}
    members: list[list[Node]] = [[] for _ in chain[1:]]
    for node in graph.nodes:
        behind = [reached[value] for value in node.inputs if value in reached]
        if not behind:
            continue
        segment = max(behind)
        if segment < len(members):
            members[segment].append(node)
        for value in node.outputs:
            reached[value] = position.get(value, segment)
    flowing = descendants(graph, chain[0])
    return tuple(_region(graph, nodes, chain[k], chain[k + 1], flowing) for k, nodes in enumerate(members))


def between(graph: Graph, entry: Value | str, exit: Value | str) -> Region:
    """The region of all that leads from one value to another.

    :raises SutureError: CUT, if the second does not descend from the first, or if another value leaves the region on the way: it is named
    """
    first, last = value_of(graph, entry), value_of(graph, exit)
    after, before = descendants(graph, first), ancestors(last)
    nodes = [node for node in graph.nodes if node in after and node in before]
    if not nodes:
        raise SutureError(
            Code.CUT,
            f"nothing leads from {first} to {last}",
            where=graph.name,
            remedy="the second must follow from the first",
        )
    region = _region(graph, nodes, first, last, after | ancestors(first))
    crossing = [value for value in region.outputs if value is not last]
    if crossing:
        raise SutureError(
            Code.CUT, f"{last} is no cut behind {first}: {_listed(crossing)} cross{'es' if len(crossing) == 1 else ''} as well",
            where=graph.name, remedy=_remedy(graph, first),
        )  # fmt: skip
    return region


def crossing(graph: Graph, value: Value | str, source: Value | str | None = None) -> tuple[Value, ...]:
    """What else crosses where a value is made: the values behind the source, made before, that are read later on; none at a cut value."""
    found = value_of(graph, value)
    origin = cuts(graph, source)[0]
    live = _live_values(graph, origin, found)
    return tuple(item for item in live if item is not found)


def value_of(graph: Graph, value: Value | str) -> Value:
    """The value of that name.

    :raises SutureError: SITE, with the nearest name
    """
    if isinstance(value, Value):
        return value
    name = value.removeprefix("%")
    known = {item.name: item for item in graph.inputs} | {
        item.name: item for node in graph.nodes for item in node.outputs
    }
    if name not in known:
        raise SutureError(
            Code.SITE, f"the graph has no value {name!r}", where=graph.name, remedy=nearest(name, known, what="value")
        )
    return known[name]


def descendants(graph: Graph, value: Value) -> set[Node]:
    """The nodes that depend on a value."""
    reached: set[Value] = {value}
    found: set[Node] = set()
    for node in graph.nodes:
        if any(operand in reached for operand in node.inputs):
            found.add(node)
            reached.update(node.outputs)
    return found


def ancestors(value: Value) -> set[Node]:
    """The nodes that a value depends on."""
    found: set[Node] = set()
    waiting = [value.producer]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        waiting += [operand.producer for operand in node.inputs if operand is not None]
    return found


def _sweep(graph: Graph, source: Value) -> tuple[Value, ...]:
    counts = _useful_uses(graph, source)
    if source not in counts:
        return ()
    live = {source}
    chain = [source]
    for node in graph.nodes:
        if not any(value in counts for value in node.outputs) and not any(value in live for value in node.inputs):
            continue
        for value in node.inputs:
            if value in live:
                counts[value] -= 1
                if not counts[value]:
                    live.discard(value)
        made = [value for value in node.outputs if value in counts]
        live.update(made)
        if len(live) == 1 and made:
            chain.append(made[0])
    return tuple(chain)


def _live_values(graph: Graph, source: Value, stop: Value) -> list[Value]:
    counts = _useful_uses(graph, source)
    live = {source: None}
    for node in graph.nodes:
        for value in node.inputs:
            if value in live:
                counts[value] -= 1
                if not counts[value]:
                    del live[value]
        live.update({value: None for value in node.outputs if value in counts})
        if stop in node.outputs:
            break
    return list(live)


def _useful_uses(graph: Graph, source: Value) -> dict[Value, int]:
    """For every value that descends from the source and reaches an output, how often it is read on such a way; being returned counts once more."""
    returned = set(graph.outputs)
    useful: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(value in returned or any(use.node in useful for use in value.uses) for value in node.outputs):
            useful.add(node)
    after = descendants(graph, source)
    counts: dict[Value, int] = {}
    values = [source, *(value for node in graph.nodes if node in after and node in useful for value in node.outputs)]
    for value in values:
        count = sum(1 for use in value.uses if use.node in useful) + (value in returned)
        if count:
            counts[value] = count
    return counts


def _region(graph: Graph, nodes: list[Node], entry: Value, exit: Value, flowing: set[Node]) -> Region:
    scope = common_path(node.path for node in nodes)
    return Region(graph, private_nodes(graph, nodes, scope, flowing), f"{entry} .. {exit}", entry)


def _listed(values: list[Value]) -> str:
    shown = ", ".join(f"{value} ({value.type})" for value in values[:4])
    return shown + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _remedy(graph: Graph, entry: Value) -> str:
    chain = [value for value in _sweep(graph, entry) if value is not entry]
    if not chain:
        return "no single value follows"
    return f"the next value that all paths cross is {chain[0]}"
