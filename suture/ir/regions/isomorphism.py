"""Whether two regions are alike: the same operators, attributes and shapes, wired the same way, whatever their paths and names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Node, Parameter, Value
from suture.ir.regions.region import Region
from suture.ir.text import print_attribute


@dataclass
class Correspondence:
    """What of one region stands where in another: values (the border included), nodes, parameters."""

    values: dict[Value, Value] = field(default_factory=dict)
    nodes: dict[Node, Node] = field(default_factory=dict)
    parameters: dict[Parameter, Parameter] = field(default_factory=dict)


class _Differ(Exception):
    pass


def difference(a: Region, b: Region) -> str | None:
    """The first difference between two regions, from their outputs backwards, in one line; None if they are isomorphic."""
    try:
        _match(a, b)
    except _Differ as found:
        return str(found)
    return None


def correspondence(a: Region, b: Region) -> Correspondence:
    """What of `a` stands where in `b`.

    :raises SutureError: REGION, naming the first difference, if they are not isomorphic
    """
    try:
        return _match(a, b)
    except _Differ as found:
        raise SutureError(
            Code.REGION,
            f"{a.name} and {b.name} are not alike: {found}",
            remedy="regions of the same structure would be right",
        ) from None


def signature(region: Region) -> tuple[Any, ...]:
    """A value that isomorphic regions share: what each node does, and which earlier nodes, parameters and border values it reads."""
    numbers: dict[Value, tuple[str, int]] = {}
    rows: list[Any] = []

    def number(value: Value) -> tuple[str, int]:
        if value not in numbers:
            kind = "parameter" if isinstance(value, Parameter) else "stream" if value is region.stream else "ambient"
            numbers[value] = (kind, len(numbers))
            rows.append((kind, value.type, value.role if isinstance(value, Parameter) else ""))
        return numbers[value]

    for node in _in_dependence_order(region):
        operands = tuple(None if value is None else number(value) for value in node.inputs)
        rows.append((node.operator.name, _attributes(node), operands, tuple(value.type for value in node.outputs)))
        for value in node.outputs:
            numbers[value] = ("result", len(numbers))
    rows.append(tuple(numbers[value] for value in region.outputs))
    return tuple(rows)


def _in_dependence_order(region: Region) -> list[Node]:
    """The nodes as a walk from the outputs meets them, operands first: an order that does not depend on how the graph lists them."""
    done: dict[Node, None] = {}
    for output in region.outputs:
        waiting: list[tuple[Node, bool]] = [(output.producer, False)] if output.producer is not None else []
        while waiting:
            node, ready = waiting.pop()
            if node in done:
                continue
            if ready:
                done[node] = None
                continue
            waiting.append((node, True))
            producers = [value.producer for value in node.inputs if value is not None]
            waiting += [(p, False) for p in reversed(producers) if p is not None and p in region.members]
    return list(done)


def _match(a: Region, b: Region) -> Correspondence:
    if len(a.outputs) != len(b.outputs):
        raise _Differ(f"{len(a.outputs)} outputs and {len(b.outputs)}")
    found = Correspondence()
    taken: dict[Value, Value] = {}
    waiting = list(zip(a.outputs, b.outputs, strict=True))[::-1]
    while waiting:
        left, right = waiting.pop()
        if left in found.values or right in taken:
            if found.values.get(left) is not right:
                raise _Differ(f"{left} meets {right}, but stands for {found.values.get(left) or taken.get(right)}")
            continue
        found.values[left], taken[right] = right, left
        waiting += _match_values(a, b, left, right, found)
    if len(a) != len(b):
        raise _Differ(f"{len(a)} nodes and {len(b)}")
    _match_unread(a, b, found)
    return found


def _match_values(a: Region, b: Region, left: Value, right: Value, found: Correspondence) -> list[tuple[Value, Value]]:
    kinds = _kind(a, left), _kind(b, right)
    if kinds[0] != kinds[1]:
        raise _Differ(f"{left} is {kinds[0]}, {right} {kinds[1]}")
    if left.type != right.type:
        raise _Differ(f"{left} is {left.type}, {right} {right.type}")
    if isinstance(left, Parameter) and isinstance(right, Parameter):
        if left.role != right.role:
            raise _Differ(f"{left} is a {left.role}, {right} a {right.role}")
        found.parameters[left] = right
        return []
    if kinds[0] != "a result":
        return []
    one, other = left.producer, right.producer
    assert one is not None and other is not None
    _match_nodes(one, other)
    found.nodes[one] = other
    pairs: list[tuple[Value, Value]] = []
    for x, y in zip(one.inputs, other.inputs, strict=True):
        if (x is None) != (y is None):
            raise _Differ(f"{one.where()} and {other.where()}: an operand is given in one only")
        if x is not None and y is not None:
            pairs.append((x, y))
    return pairs[::-1]


def _match_nodes(one: Node, other: Node) -> None:
    if one.operator is not other.operator:
        raise _Differ(f"{one.where()} and {other.where()}: {one.operator.name} is not {other.operator.name}")
    for name, value in one.attributes.items():
        theirs = other.attributes[name]
        if value is not theirs and print_attribute(value) != print_attribute(theirs):
            raise _Differ(
                f"{one.where()} and {other.where()}: {name}={print_attribute(value)} and {print_attribute(theirs)}"
            )
    types = [value.type for value in one.outputs], [value.type for value in other.outputs]
    if len(one.inputs) != len(other.inputs) or types[0] != types[1]:
        raise _Differ(f"{one.where()} and {other.where()}: they take or give other values")


def _match_unread(a: Region, b: Region, found: Correspondence) -> None:
    """Tensors that nothing reads (counters) correspond by their names within their modules."""
    modules = {
        x.name.rpartition(".")[0]: y.name.rpartition(".")[0]
        for x, y in found.parameters.items()
        if "." in x.name and "." in y.name
    }
    theirs = {parameter.name: parameter for parameter in b.parameters}
    for parameter in a.parameters:
        module, _, leaf = parameter.name.rpartition(".")
        twin = theirs.get(f"{modules.get(module, '')}.{leaf}")
        if parameter not in found.parameters and twin is not None and twin.type == parameter.type:
            found.parameters[parameter] = twin


def _kind(region: Region, value: Value) -> str:
    if isinstance(value, Parameter):
        return "a parameter"
    if value.producer in region.members:
        return "a result"
    return "the stream" if value is region.stream else "ambient"


def _attributes(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple((name, print_attribute(value)) for name, value in sorted(node.attributes.items()))
