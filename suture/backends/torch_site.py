"""Writing one node of a graph as `torch.fx` code: its operands, and the means to write calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from suture.ir.graph import Node

Argument = Any  # what fx takes as an argument: nodes, numbers, dtypes, nested tuples of those


class Site:
    """One node being written: its operands and attributes as fx arguments, and the means to write calls."""

    def __init__(
        self,
        graph: fx.Graph,
        node: Node,
        operands: Sequence[fx.Node | None],
        attributes: Mapping[str, Argument],
        shapes: Sequence[tuple[Argument, ...]],
        training: Callable[[], fx.Node],
        device: Callable[[], Argument],
    ) -> None:
        self.graph = graph
        self.node = node
        self.operands = list(operands)
        self.attributes = dict(attributes)
        self.shapes = list(shapes)  # of the results
        self.training = training
        self.device = device

    def operand(self, index: int) -> fx.Node | None:
        """An operand, None where it is absent or was left out at the end."""
        return self.operands[index] if index < len(self.operands) else None

    def call(self, function: Callable[..., Any], *arguments: Argument, **keywords: Argument) -> fx.Node:
        """Write a call."""
        return self.graph.call_function(function, arguments, keywords)

    def method(self, name: str, *arguments: Argument, **keywords: Argument) -> fx.Node:
        """Write a call of a method of the first argument."""
        return self.graph.call_method(name, arguments, keywords)

    def rank(self, index: int = 0) -> int:
        """The rank of an operand."""
        value = self.node.inputs[index]
        return 0 if value is None else value.rank


Writer = Callable[[Site], "fx.Node"]


def plus(site: Site, a: Argument, b: Argument) -> Argument:
    """Write a sum of sizes, or compute it."""
    return a + b if isinstance(a, int | float) and isinstance(b, int | float) else site.call(operator.add, a, b)


def times(site: Site, a: Argument, b: Argument) -> Argument:
    """Write a product of sizes, or compute it."""
    return a * b if isinstance(a, int | float) and isinstance(b, int | float) else site.call(operator.mul, a, b)


def front(site: Site, name: str) -> int:
    """A dimension attribute, counted from the front."""
    dim: int = site.attributes[name]
    return dim % site.rank()


def call_of(function: Callable[..., Any], *names: str) -> Writer:
    """A call of the operands, then the named attributes, in order."""

    def write(site: Site) -> fx.Node:
        return site.call(function, *site.operands, *(site.attributes[name] for name in names))

    return write
