"""The way back through a graph: cotangents go from results to operands, node after node, and add up where a value was read more than once.

Only what depends on the wanted values is visited (nothing else has a use for a cotangent), and only what an output depends on gets one. The
contributions to a value are added in the order of the way back, so the sum is always the same sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from suture.ir.derivatives.formula import Formula, Writer
from suture.ir.derivatives.rule import CONSTANT, REFUSED, RULES, Rule, Site, refusal
from suture.ir.graph import Graph, Node, Value


def moved_by(nodes: Iterable[Node], wanted: Collection[Value]) -> set[Value]:
    """The floating-point values that move, by small amounts, when the wanted ones do; the wanted ones among them."""
    found = set(wanted)
    for node in nodes:
        if node.operator.name not in CONSTANT and any(value in found for value in node.inputs if value is not None):
            found.update(value for value in node.outputs if value.dtype.is_floating_point or value.dtype.is_complex)
    return found


def reverse(
    writer: Writer, nodes: Sequence[Node], cotangents: Mapping[Value, Formula], wanted: Collection[Value]
) -> dict[Value, Formula]:
    """Write the way back through nodes.

    :param writer: where the cotangents are written
    :param nodes: the nodes to go back through, in topological order
    :param cotangents: those of the nodes' results, as far as they are given
    :returns: the cotangents of the wanted values; one that no result depends on has none
    :raises SutureError: GRADIENT, naming the node, for an operator on the way that has no derivative
    """
    moved = moved_by(nodes, wanted)
    pending: dict[Value, list[Formula]] = {value: [cotangent] for value, cotangent in cotangents.items()}
    for node in reversed(nodes):
        asked = [k for k, value in enumerate(node.inputs) if value is not None and value in moved]
        given = [_total(pending, value) if value in moved else None for value in node.outputs]
        if not asked or all(cotangent is None for cotangent in given):
            continue
        writer.path = node.path
        for k, made in _rule_of(node)(Site(node, writer, [None if c is None else c.value for c in given], asked)):
            operand = node.inputs[k]
            if operand is None or k not in asked:
                continue
            if made.shape != operand.shape:
                raise refusal(
                    node, f"what comes back to {operand}, {operand.type}, is {made.value.type}", "specialise its sizes"
                )
            pending.setdefault(operand, []).append(made.cast(operand.dtype))
    totals = {value: _total(pending, value) for value in wanted}
    return {value: total for value, total in totals.items() if total is not None}


def derived(at: Site, results: Sequence[Formula]) -> dict[int, Formula]:
    """The cotangents of the operands of a node whose results are written out in other nodes: those nodes are gone back through.

    What the way back does not read of them is dead.

    :param results: formulas of the node's operands that say what its results are
    """
    graph = at.writer.graph
    operands = {value: k for k, value in enumerate(at.node.inputs) if k in at.wanted and value is not None}
    inside: set[Node] = set()
    waiting = [result.value for result in results]
    while waiting:
        value = waiting.pop()
        if value.producer is not None and value not in at.node.inputs and value.producer not in inside:
            inside.add(value.producer)
            waiting += [operand for operand in value.producer.inputs if operand is not None]
    cotangents = {
        result.value: cotangent
        for k, result in enumerate(results)
        if (cotangent := at.cotangent(k)) is not None
    }  # fmt: skip
    found = reverse(at.writer, [node for node in graph.nodes if node in inside], cotangents, operands)
    return {operands[value]: made for value, made in found.items()}


def _rule_of(node: Node) -> Rule:
    name = node.operator.name
    if name in RULES:
        return RULES[name]
    raise refusal(
        node,
        REFUSED.get(name, "no rule is known"),
        "leave it out of what is differentiated, or write it in other operators",
    )


def _total(pending: dict[Value, list[Formula]], value: Value) -> Formula | None:
    """The sum of what came back to a value, so far."""
    parts = pending.get(value)
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    pending[value] = [total]
    return total


def differentiate(graph: Graph, cotangents: Mapping[Value, Value], wanted: Collection[Value]) -> dict[Value, Value]:
    """Append the way back to a graph.

    :param cotangents: for values of the graph, the values (of the same type) that say how much each moves the final number
    :param wanted: the inputs, parameters or results whose cotangents are asked for
    :returns: the cotangents of the wanted values; one that nothing differentiable leads to has none
    :raises SutureError: GRADIENT, naming the node, for an operator on the way that has no derivative
    """
    writer, nodes = Writer(graph), graph.nodes
    given = {value: writer.of(cotangent) for value, cotangent in cotangents.items()}
    return {value: made.value for value, made in reverse(writer, nodes, given, wanted).items()}
