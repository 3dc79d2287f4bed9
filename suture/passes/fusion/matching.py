"""Finding a template in a graph, from its last line backwards.

Letters and attributes are solved as they are met; the operands of a commutative operator are tried both ways only where both could fit, which one
look at the producers decides. What does not match says how far it came and why it ended there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from suture.ir.errors import SutureError
from suture.ir.graph import Node, Value
from suture.ir.operator import REQUIRED
from suture.ir.template import Line, Template, Variable, sizes_of

COMMUTATIVE = frozenset(
    {"add", "mul", "maximum", "minimum", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "bitwise_xor"}
)
_DIMENSIONS = frozenset({"dim", "dims"})  # attributes that may count from the back
_STEPS = 2000  # beyond them a graph is taken not to match

_Goals: TypeAlias = "tuple[tuple[str, Value | None], ...]"


@dataclass(frozen=True)
class Match:
    """A template found: what its names stand for.

    :param values: operands, inner values and results, by name
    :param known: attributes and sizes, by name
    :param nodes: the nodes that it covers, context aside, in order
    """

    template: Template
    values: Mapping[str, Value | None]
    known: Mapping[str, Any]
    nodes: tuple[Node, ...]

    def value(self, name: str) -> Value:
        """What a name stands for that must be there."""
        found = self.values[name]
        assert found is not None
        return found


@dataclass(frozen=True)
class Miss:
    """The best partial match: how many lines fit, and why the next one does not."""

    lines: int
    reason: str


def find_match(template: Template, root: Node) -> Match | Miss:
    """Look for a template whose last line is a node."""
    line = template.lines[-1]
    search = _Search(template)
    found = search.solve(((line.results[0], root.outputs[0]),), {}, {})
    if found is None:
        return search.best
    return _complete(template, *found)


def _complete(template: Template, values: Mapping[str, Value | None], attributes: Mapping[str, Any]) -> Match | Miss:
    """Solve for the sizes, and see that nothing else reads what lies inside."""
    every = len(template.lines)
    shapes = [None if (value := values.get(name)) is None else value.shape for name in template.operands]
    inner = {name: value.shape for name, value in values.items() if value is not None}
    numbers = {name: value for name, value in attributes.items() if type(value) is int}
    try:
        sizes = sizes_of(template, shapes, numbers, inner=inner)
    except SutureError as error:
        return Miss(every, error.what)
    unsolved = [letter for letter in template.letters if letter not in sizes]
    if unsolved:
        return Miss(every, f"the size {unsolved[0]} is not determined")
    covered: dict[Node, None] = {}
    for line in template.lines:
        producer = _made(values, line.results[0]).producer
        if producer is not None and not line.given:
            covered[producer] = None
    for name in (name for line in template.lines if not line.given for name in line.results):
        value = _made(values, name)
        outside = next((use.node for use in value.uses if use.node not in covered), None)
        if name in template.results or (outside is None and not value.is_graph_output()):
            continue
        return Miss(every, f"{value} is also {'read by ' + outside.where() if outside else 'an output'}")
    return Match(template, values, {**sizes, **attributes}, tuple(covered))


def _made(values: Mapping[str, Value | None], name: str) -> Value:
    found = values[name]
    assert found is not None
    return found


@dataclass
class _Search:
    """Depth first, with the reason of the attempt that came furthest."""

    template: Template
    best: Miss = field(default_factory=lambda: Miss(0, "nothing of it is there"))
    steps: int = 0

    def solve(
        self, goals: _Goals, values: dict[str, Value | None], attributes: dict[str, Any]
    ) -> tuple[dict[str, Value | None], dict[str, Any]] | None:
        """Meet goals: names that are to stand for values."""
        self.steps += 1
        if self.steps > _STEPS:
            self._fail(values, "there are too many ways to read it")
            return None
        if not goals:
            return values, attributes
        (name, value), *rest = goals
        if name in values:
            if values[name] is value:
                return self.solve(tuple(rest), values, attributes)
            self._fail(values, f"{name} would be {_text(values[name])} and {_text(value)}")
            return None
        line = self.template.maker(name)
        if line is None:
            spec = next(spec for spec in self.template.signature.operands if spec.name == name)
            if value is None and not spec.optional:
                self._fail(values, f"{name} is absent")
                return None
            return self.solve(tuple(rest), {**values, name: value}, attributes)
        reason, bound = _read_line(line, name, value, attributes)
        if reason is not None or value is None or value.producer is None:
            self._fail(values, reason or f"{name} is absent")
            return None
        known = {**values, **dict(zip(line.results, value.producer.outputs, strict=True))}
        for operands in self._orders(line, value.producer, known):
            found = self.solve((*operands, *rest), known, bound)
            if found is not None:
                return found
        return None

    def _orders(self, line: Line, node: Node, values: Mapping[str, Value | None]) -> Iterator[_Goals]:
        """The operands of a node against those of a line: as they stand, or the other way round where they may be."""
        given = [*node.inputs, *[None] * (len(line.operands) - len(node.inputs))]
        orders = [given, given[::-1]] if line.operator.name in COMMUTATIVE and len(given) == 2 else [given]
        likely = [order for order in orders if self._may_fit(line.operands, order, values)]
        for order in likely or orders[:1]:
            yield tuple((name, value) for name, value in zip(line.operands, order, strict=True) if name is not None)

    def _may_fit(
        self, names: Sequence[str | None], order: Sequence[Value | None], values: Mapping[str, Value | None]
    ) -> bool:
        """Whether a look at the producers lets operands stand in an order."""
        for name, value in zip(names, order, strict=True):
            line = None if name is None else self.template.maker(name)
            if name is None:
                fits = value is None
            elif name in values:
                fits = values[name] is value
            elif line is None:
                fits = value is not None or len(order) != 2
            else:
                fits = value is not None and value.producer is not None and value.producer.operator is line.operator
            if not fits:
                return False
        return True

    def _fail(self, values: Mapping[str, Value | None], reason: str) -> None:
        lines = sum(line.results[0] in values for line in self.template.lines)
        if lines > self.best.lines or self.best.lines == 0:
            self.best = Miss(lines, reason)


def _read_line(
    line: Line, name: str, value: Value | None, attributes: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """Hold one node against one line: why it is another, or the attributes that are known now."""
    bound = dict(attributes)
    if value is None or value.producer is None:
        return f"{name} is {_text(value)}, not made by {line.operator.name}", bound
    node = value.producer
    if node.operator is not line.operator:
        return f"{value} is made by {node.operator.name}, not by {line.operator.name}", bound
    if value.index != line.results.index(name) or len(node.outputs) != len(line.results):
        return f"{value} is result {value.index} of {len(node.outputs)}", bound
    if len(node.inputs) > len(line.operands) and any(item is not None for item in node.inputs[len(line.operands) :]):
        return f"{node.where()} reads more than {line}", bound
    for place, item in zip(line.operands, node.inputs, strict=False):
        if place is None and item is not None and line.operator.name not in COMMUTATIVE:
            return f"{node.where()} reads {item} too", bound
    for title, default in line.operator.attributes.items():
        wanted = line.attributes.get(title, default)
        actual = node.attributes[title]
        if isinstance(wanted, Variable):
            wanted = bound.setdefault(wanted.name, actual)
        if wanted is REQUIRED or not _same(title, wanted, actual, node):
            return f"{title} of {node.where()} is {actual}, not {wanted}", bound
    return None, bound


def _same(title: str, wanted: Any, actual: Any, node: Node) -> bool:
    if title in _DIMENSIONS and node.inputs and node.inputs[0] is not None:
        rank = max(node.inputs[0].rank, 1)
        return bool(_from_front(wanted, rank) == _from_front(actual, rank))
    if isinstance(wanted, float) and type(actual) in (int, float):
        return wanted == actual or math.isclose(wanted, actual, rel_tol=1e-6)
    return bool(wanted == actual) and isinstance(wanted, bool) == isinstance(actual, bool)


def _from_front(value: Any, rank: int) -> Any:
    if isinstance(value, tuple):
        return tuple(item % rank for item in value)
    return value % rank if isinstance(value, int) else value


def _text(value: Value | None) -> str:
    return "absent" if value is None else str(value)
