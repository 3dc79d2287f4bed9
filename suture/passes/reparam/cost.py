"""What a linear form costs on the operand at hand, so that merging is done where it pays.

The unit is a multiply-accumulate. A number read or written counts as several: an operator with little arithmetic is bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from suture.ir.graph import Graph, Parameter, Value
from suture.ir.sizes import Dim, evaluate_size, symbols_of
from suture.passes.reparam.linear_form import LinearForm
from suture.passes.reparam.reading import Reading, weight_of

MOVED = 16
"""Multiply-accumulates in the time that one number takes to move: about 50 GMAC/s of arithmetic by about 12 GB/s of memory, one core."""


@dataclass(frozen=True)
class Budget:
    """When one operator may take the place of several.

    :param always: whether it may be dearer than they are, and larger
    :param growth: the most bytes that it may add to the model
    """

    always: bool = False
    growth: int = 65536

    def reason(
        self, graph: Graph, form: LinearForm, operand: Value, result: Value, old: int, gone: Sequence[Reading]
    ) -> str:
        """Why the form does not pay, if it does not.

        :param old: the cost of what goes
        :param gone: what goes
        """
        if self.always:
            return ""
        new = form_cost(graph, form, operand, result, 1 if form.spread else form.outputs)
        if new >= old:
            return f"as one it would cost {new / max(old, 1):.2g} times as much"
        weights = [weight_of(reading.node) for reading in gone if reading.is_layer]
        freed = sum(weight.data.numel() for weight in weights if isinstance(weight, Parameter))
        added = (form.symmetric().kernel.numel() - freed) * result.dtype.itemsize
        return f"as one it would add {added:,} bytes to the model" if added > self.growth else ""


def form_cost(graph: Graph, form: LinearForm, operand: Value, result: Value, channels: int) -> int:
    """The cost of one operator with that form, per sample.

    :param channels: the channels of the result
    """
    read, written = elements(graph, operand), elements(graph, result)
    return _products(form.symmetric()) * (written // max(channels, 1)) + MOVED * (read + written)


def sum_cost(graph: Graph, result: Value) -> int:
    """The cost of adding two values."""
    return elements(graph, result) * (1 + 3 * MOVED)


def reading_cost(graph: Graph, reading: Reading) -> int:
    """The cost of a node that is a linear form."""
    channels = 1 if reading.form.spread else reading.form.outputs
    return form_cost(graph, reading.form, reading.operand, reading.node.output, channels)


def elements(graph: Graph, value: Value) -> int:
    """How many numbers a value holds, per sample."""
    return math.prod(_number(graph, dim) for dim in value.shape)


def _products(form: LinearForm) -> int:
    """Products for each position of the result."""
    return 1 if form.spread else form.kernel.numel()


def _number(graph: Graph, dim: Dim) -> int:
    known = {name: 1 if name == "batch" else graph.hints.get(name, 1) for name in symbols_of(dim)}
    return evaluate_size(dim, known)
