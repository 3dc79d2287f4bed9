"""Writing a node out: operators in front of it, and its operands and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim


class Writer:
    """Adds nodes in front of another one."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def __call__(
        self, operator: str, *operands: Value | None, shape: Sequence[Dim] | None = None, **attributes: Any
    ) -> Value:
        """What an operator makes of operands."""
        shapes = None if shape is None else [tuple(shape)]
        made = self.graph.add(
            operator, operands, attributes, shapes=shapes, path=self.node.path, name=f"{self.node.output.name}_part", before=self.node
        )  # fmt: skip
        return made.output

    def mean(self, x: Value, dims: tuple[int, ...]) -> Value:
        """The mean over some dimensions, which stay."""
        return self("mean", x, dims=dims, keepdim=True)

    def wide(self, x: Value) -> Value:
        """Statistics of short floats are taken in float32."""
        return self("cast", x, dtype=torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x

    def back(self, x: Value, like: Value) -> Value:
        """In the element type of another value."""
        return x if x.dtype == like.dtype else self("cast", x, dtype=like.dtype)

    def normalised(self, x: Value, dims: tuple[int, ...], eps: float) -> Value:
        """(x - mean) / sqrt(variance + eps).

        The mean is taken off twice: one unit in its last place would become 1 / sqrt(eps) of them where all of a row is nearly equal.
        """
        nearly = self("sub", x, self.mean(x, dims))
        centred = self("sub", nearly, self.mean(nearly, dims))
        variance = self.mean(self("mul", centred, centred), dims)
        return self("mul", centred, self("rsqrt", self("add", variance, None, scalar=eps)))


def operand(node: Node, index: int) -> Value | None:
    """An operand; None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def first(node: Node) -> Value:
    """The first operand."""
    found = node.inputs[0]
    assert found is not None
    return found


def number(node: Node, name: str) -> float:
    """An attribute that is a number."""
    value = node.attributes[name]
    assert isinstance(value, int | float)
    return float(value)
