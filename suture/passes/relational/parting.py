"""A sum over edges, relations by relations: what is kept for pairs of all relations at once is kept for some of them at a time.

    y[n] = sum over parts of the sum over edges of the part into n of m[e]

Types are parted so that every part has about as many edges; edges of one type are in one part. Each part runs with indices of its own, adds to what
the parts before it left, and its rows for pairs lie where theirs lay. That takes less memory and the same arithmetic; only the order of sums is
another. It is right for messages that depend on edges of their own type alone: on what is summed, counted or paired within a type.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, Size, product, substitute, symbol, symbols_of
from suture.ir.types import Attribute
from suture.passes.recompute import bytes_of
from suture.passes.relational.compaction import fresh_symbol

MOST = 12  # parts
_SHARE = 0.8  # of the sum's own bytes that rows for pairs should take
_SMALL = 1 << 20  # bytes of rows for pairs that are no trouble

_MEETING = frozenset({"segment_sum", "segment_max", "segment_softmax"})


def parts_wanted(graph: Graph) -> int:
    """In how many parts the sum of a graph should be computed, by the sizes in its hints: so many that rows for pairs take less than the sum does."""
    found = _parted_sum(graph)
    if found is None:
        return 1
    total, _, inside = found
    held = sum(
        bytes_of(graph, node.output)
        for node in inside
        if node.operator.name in ("typed_linear", "segment_sum")
        and node.output is not total
        and product(node.output.shape[1:]) != 1
    )
    if held < _SMALL:
        return 1
    return max(1, min(MOST, round(held / (_SHARE * bytes_of(graph, total)))))


def part_sum(graph: Graph, parts: int) -> bool:
    """Let the sum over edges of a graph be computed in so many parts, in place; whether that was done."""
    found = _parted_sum(graph)
    if found is None or parts < 2:
        return False
    total, type, inside = found
    place = inside[0]
    edges = [value for value in graph.inputs if _is_of_edges(value, type)]
    w = next(node.inputs[1] for node in inside if node.operator.name == "typed_linear")
    assert w is not None
    starts = graph.add("run_pointers", [type], shapes=[(w.shape[0] + 1,)], before=place).output
    least = graph.add("embedding", [starts, type], before=place).output
    scaled = graph.add("mul", [least], {"scalar": parts}, before=place).output
    count = graph.add("slice", [starts], {"dim": 0, "start": w.shape[0], "step": 1}, shapes=[(1,)], before=place).output
    nothing = graph.add("full", [], {"value": 0, "dtype": torch.int64}, shapes=[(0,)], before=place).output
    sums: list[Value] = []
    for part in range(parts):
        own = graph.add(
            "ge", [scaled, graph.add("mul", [count], {"scalar": part}, before=place).output], before=place
        ).output
        if part + 1 < parts:
            end = graph.add("mul", [count], {"scalar": part + 1}, before=place).output
            own = graph.add(
                "logical_and", [own, graph.add("lt", [scaled, end], before=place).output], before=place
            ).output
        size = symbol(fresh_symbol(graph, f"part_{part}"))
        rows = graph.add("meeting_rows", [own, nothing], {"together": False}, shapes=[(size,)], before=place).output
        twins: dict[Value, Value] = {
            value: graph.add("embedding", [value, rows], name=[f"{value.name}_{part}"], before=place).output
            for value in edges
        }
        sums.append(_copied(graph, inside, twins, {str(type.shape[0]): size}, part, total, place))
    _add_up(graph, total, sums)
    graph.sort()
    graph.remove_dead()
    return True


def _add_up(graph: Graph, total: Value, sums: list[Value]) -> None:
    """The sum of the parts, behind what else is added to it: each part is added where the ones before it lie."""
    other = None
    use = total.uses[0] if len(total.uses) == 1 and not total.is_graph_output() else None
    if use is not None and use.node.operator.name == "add" and len(use.node.inputs) == 2:
        other = use.node.inputs[1 - use.index]
        if other is None or other is total or other.type != total.type:
            other = None
    made, rest = (sums[0], sums[1:]) if other is None else (other, sums)
    for each in rest:
        made = graph.add("add", [each, made], path=total.producer.path if total.producer else "").output
    graph.replace_uses(total if other is None or use is None else use.node.output, made)


def _copied(
    graph: Graph,
    inside: list[Node],
    twins: dict[Value, Value],
    sizes: dict[str, Dim],
    part: int,
    total: Value,
    before: Node,
) -> Value:
    """The sum of one part."""
    for node in inside:
        if node.operator.measures:
            for name in {name for value in node.outputs for dim in value.shape for name in symbols_of(dim)} - set(
                sizes
            ):
                sizes[name] = symbol(fresh_symbol(graph, f"{name}_{part}"))
        attributes = {name: _resized(value, sizes) for name, value in node.attributes.items()}
        shapes = [tuple(substitute(dim, sizes) for dim in value.shape) for value in node.outputs]
        for value in node.inputs:
            if value is not None and value not in twins and _is_filled(value, sizes):
                assert value.producer is not None
                filled = value.producer
                shape = [substitute(dim, sizes) for dim in value.shape]
                twins[value] = graph.add(filled.operator, [], filled.attributes, shapes=[shape], before=before).output
        operands = [None if value is None else twins.get(value, value) for value in node.inputs]
        copy = graph.add(
            node.operator,
            operands,
            attributes,
            shapes=shapes if node.operator.declared else None,
            path=node.path,
            before=before,
        )
        twins.update(zip(node.outputs, copy.outputs, strict=True))
    return twins[total]


def _is_filled(value: Value, sizes: Mapping[str, Dim]) -> bool:
    """Whether a value is made from nothing, over rows that a part has its own of."""
    made = value.producer is not None and not value.producer.inputs
    return made and any(name in sizes for dim in value.shape for name in symbols_of(dim))


def _resized(value: Attribute, sizes: dict[str, Dim]) -> Attribute:
    if isinstance(value, Size):
        return substitute(value, sizes)
    return tuple(_resized(each, sizes) for each in value) if isinstance(value, tuple) else value


def _parted_sum(graph: Graph) -> tuple[Value, Value, list[Node]] | None:
    """The last sum over edges of a graph, their types, and the nodes between the edges and it; None where its parts would not be its parts."""
    typed = [node for node in graph.nodes if node.operator.name == "typed_linear"]
    kinds = {_looked(node.inputs[2]) for node in typed}
    if len(kinds) != 1:
        return None
    (type,) = kinds
    if type is None or type.producer is not None or not isinstance(type.shape[0], Size):
        return None
    moved = {value for value in graph.inputs if _is_of_edges(value, type)}
    touched: list[Node] = []
    for node in graph.nodes:
        if any(value in moved for value in node.inputs):
            moved.update(node.outputs)
            touched.append(node)
    sums = [node for node in touched if node.operator.name == "segment_sum" and node.output.dtype.is_floating_point]
    last = [node for node in sums if _looked(node.inputs[1]) in graph.inputs]
    if len(last) != 1:
        return None
    total = last[0]
    inside: set[Node] = {total}
    for node in reversed(touched):
        if any(use.node in inside for value in node.outputs for use in value.uses):
            inside.add(node)
    alone = all(_within_type(node, type) for node in inside if node is not total and node.operator.name in _MEETING)
    return (total.output, type, [node for node in touched if node in inside]) if alone else None


def _within_type(node: Node, type: Value) -> bool:
    """Whether what meets has one type."""
    index = _looked(node.inputs[1])
    maker = None if index is None else index.producer
    return maker is not None and maker.operator.name == "unique_rows" and type in maker.inputs


def _looked(index: Value | None) -> Value | None:
    """What an index is looked up in."""
    while index is not None and index.producer is not None and index.producer.operator.name == "embedding":
        index = index.producer.inputs[0]
    return index


def _is_of_edges(value: Value, type: Value) -> bool:
    """Whether an input has a row for each edge."""
    return value.rank > 0 and value.shape[0] == type.shape[0]
