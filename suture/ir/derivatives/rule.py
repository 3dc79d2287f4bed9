"""Rules of differentiation: one for each operator, and the operators that have none.

A rule takes the cotangents of a node's results and gives those of its operands: the vector-Jacobian product, as nodes.

    @rule("softmax")
    def _softmax(at: Site) -> Gradients:
        y, g = at.result(), at.g
        yield 0, y * (g - (g * y).sum(at.dim()))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from suture.ir.derivatives.formula import Formula, Writer
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Node, Value
from suture.ir.notation import Instance, Term

Gradients: TypeAlias = "Iterator[tuple[int, Formula]]"
Rule: TypeAlias = "Callable[[Site], Gradients]"

RULES: dict[str, Rule] = {}
"""Operator -> how cotangents go through it, from its results to its operands."""

CONSTANT: dict[str, str] = {}
"""Operators through which nothing goes: their results are integers or truths, or do not move with small moves of the operands; and why."""

REFUSED: dict[str, str] = {}
"""Operators that may have a derivative, but none here; and why."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register how cotangents go through operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


class Site:
    """A node on the way back: its operands and results, the cotangents of its results, and which operands want theirs."""

    def __init__(self, node: Node, writer: Writer, cotangents: Sequence[Value | None], wanted: Collection[int]) -> None:
        self.node = node
        self.writer = writer
        self.wanted = frozenset(wanted)
        self._cotangents = tuple(cotangents)

    @cached_property
    def instance(self) -> Instance:
        """The notation applied to the operands."""
        return self.node.operator.instance(self.node)

    def wants(self, *operands: int) -> bool:
        """Whether one of the operands wants its cotangent."""
        return not self.wanted.isdisjoint(operands)

    def has(self, index: int) -> bool:
        """Whether an optional operand is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def operand(self, index: int = 0) -> Formula:
        """An operand that must be there."""
        value = self.node.inputs[index]
        assert value is not None
        return self.writer.of(value)

    def result(self, index: int = 0) -> Formula:
        """A result."""
        return self.writer.of(self.node.outputs[index])

    def cotangent(self, index: int) -> Formula | None:
        """The cotangent of a result; None where nothing came back."""
        value = self._cotangents[index]
        return None if value is None else self.writer.of(value)

    @property
    def g(self) -> Formula:
        """The cotangent of the only result."""
        value = self._cotangents[0]
        assert value is not None
        return self.writer.of(value)

    def terms(self, index: int) -> tuple[Term, ...]:
        """The dimensions of an operand, in the letters of the notation."""
        found = self.instance.inputs[index]
        assert found is not None
        return found

    def __getitem__(self, attribute: str) -> Any:
        return self.node.attributes[attribute]

    def dim(self, name: str = "dim") -> int:
        """A dimension attribute, counted from the front."""
        return self.node.operator.call(self.node).dim(name)

    def dims(self, name: str = "dims") -> tuple[int, ...]:
        """An attribute that lists dimensions, counted from the front."""
        rank = max(self.operand().rank, 1)
        return tuple(dim % rank for dim in self.node.operator.call(self.node).ints(name))

    def refuse(self, reason: str, remedy: str) -> SutureError:
        """The error that this node has no derivative."""
        return refusal(self.node, reason, remedy)


def refusal(node: Node, reason: str, remedy: str) -> SutureError:
    """The error that a node has no derivative: it names the node, the operator and the module path."""
    return SutureError(
        Code.GRADIENT, f"{node.operator.name} has no derivative: {reason}", where=node.where(), remedy=remedy
    )
