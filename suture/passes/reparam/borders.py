"""Padding with one number a channel, written out as zeros that are then painted over, side by side.

    y = pad(x); y[:, :, :k] = b; y[:, :, -k:] = b; ...        is        y = pad(x - b) + b

which is a shift, a padding with zeros and a shift, and so linear.
"""

from __future__ import annotations

from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.passes.reparam.branches import reads_alone
from suture.passes.reparam.writing import called
from suture.passes.rewriting import Rule

Side = tuple[int, str]


@dataclass(frozen=True, eq=False)
class _Painted:
    """One side of a value painted over: which, how wide, with what, and the value before."""

    side: Side
    width: int
    number: Value
    before: Value


def _repaint(graph: Graph, node: Node) -> str | None:
    sides: dict[Side, int] = {}
    numbers: dict[Value, None] = {}
    nodes, value = [], node.output if len(node.outputs) == 1 else None
    while value is not None and value.producer is not None and (painted := _painted(value.producer)) is not None:
        nodes.append(value.producer)
        sides.setdefault(painted.side, painted.width)
        numbers[painted.number] = None
        value = painted.before
        if not reads_alone(value):
            return None
    pad = value.producer if value is not None else None
    if not nodes or pad is None or len(numbers) != 1 or _padded(pad) != sides:
        return None
    (number,), operand = numbers, pad.inputs[0]
    assert operand is not None
    name = node.output.name
    inner = graph.add("sub", [operand, number], path=node.path, name=f"{name}_shifted", before=node).output
    padded = graph.add(
        "pad", [inner], {**pad.attributes, "value": 0.0}, path=pad.path, name=f"{name}_padded", before=node
    ).output
    result = graph.add("add", [padded, number], path=node.path, name=f"{name}_new", before=node).output
    graph.replace_uses(node.output, result)
    graph.remove(node)
    graph.rename_result(result, name)
    graph.remove_dead()
    return f"what {called(pad)} pads and then paints over is a shift, a padding with zeros and a shift"


PAINTED_BORDERS = Rule("border", _repaint)
"""The rule, applied at the last side that is painted."""


def _painted(node: Node) -> _Painted | None:
    """A side that a concatenation paints: what remains of a value, beside one number for each channel."""
    if node.operator.name != "concat" or len(node.inputs) != 2:
        return None
    dim = node.attributes["dim"]
    assert isinstance(dim, int)
    dim %= node.output.rank
    for index, end in ((0, "before"), (1, "after")):
        fresh, kept = node.inputs[index], node.inputs[1 - index]
        if fresh is None or kept is None or fresh.producer is None or kept.producer is None or dim < 2:
            continue
        width, number, part = (
            fresh.shape[dim],
            fresh.producer.inputs[0] if fresh.producer.inputs else None,
            kept.producer,
        )
        if fresh.producer.operator.name != "expand" or part.operator.name != "slice" or not isinstance(width, int):
            continue
        value, start = part.inputs[0], part.attributes["start"]
        along = part.attributes["dim"]
        assert isinstance(along, int)
        if number is None or value is None or value.type != node.output.type or not _by_channel(number, value):
            continue
        if along % value.rank == dim and part.attributes["step"] == 1 and start == (width if end == "before" else 0):
            return _Painted((dim, end), width, number, value)
    return None


def _by_channel(number: Value, value: Value) -> bool:
    offset = value.rank - number.rank
    return all(size == 1 or offset + dim == 1 for dim, size in enumerate(number.shape))


def _padded(pad: Node) -> dict[Side, int] | None:
    """The sides that a node pads, with their widths."""
    if pad.operator.name != "pad" or pad.attributes["mode"] != "constant":
        return None
    pads = pad.attributes["pads"]
    assert isinstance(pads, tuple)
    rank = len(pads) // 2
    sides = {(dim, "before"): pads[dim] for dim in range(rank)} | {
        (dim, "after"): pads[rank + dim] for dim in range(rank)
    }
    return {side: width for side, width in sides.items() if isinstance(width, int) and width}
