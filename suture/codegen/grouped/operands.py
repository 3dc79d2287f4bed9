"""The operands of products by type: what is refused, pointers, and the type of a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.codegen.access import is_view
from suture.codegen.builder import KernelBuilder
from suture.codegen.indices import clamped
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context
from suture.ir.graph import Node, Value
from suture.ir.kernel import Expression, Let, Literal, Name, cast
from suture.ir.kernel_ranges import Range
from suture.ir.sizes import Dim

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def operand(node: Node, position: int) -> Value:
    """An operand; those of products by type are all there."""
    found = node.inputs[position]
    assert found is not None
    return found


def refuses(node: Node, context: Context) -> str | None:
    """Why a product by type is left to torch, or None."""
    numbers = (operand(node, 0), operand(node, 1), node.output)
    if any(value.dtype not in _FLOATS for value in numbers):
        return "its numbers are no floats"
    if len({compute_type(value.dtype) for value in numbers}) > 1:
        return "its numbers are of several types"
    if any(dim == 0 for value in (*node.inputs, node.output) if value is not None for dim in value.shape):
        return "it has no elements"
    if is_computed(operand(node, 2)):
        return "where its rows begin is computed"
    if (order := order_of(node)) is not None and (context.alone or order not in context.graph.inputs):
        return "it is not known that the order of its rows is one"
    return None


def is_computed(pointers: Value) -> bool:
    """Whether pointers are no value in memory of which it is known that they rise."""
    return pointers.producer is not None and is_view(pointers.producer)


def fixed(shape: Sequence[Dim], index: Sequence[Expression]) -> tuple[Expression, ...]:
    """An index, zero in dimensions that have one element."""
    return tuple(Literal(0) if size == 1 else at for size, at in zip(shape, index, strict=True))


def row_variable(builder: KernelBuilder, name: str, rows: Dim) -> Name:
    """A variable for a row of a segment. Unlike that of a loop over all rows it does not say that there are any."""
    builder.indices.ranges.variables[name] = Range(0, builder.indices.dim(builder.size(rows)) - 1)
    return Name(name)


def pointer(builder: KernelBuilder, value: Value, at: Expression) -> Expression:
    """Where a segment begins."""
    return cast(builder.place(value, (at,)), Literal(0).dtype)


def row_of_result(builder: KernelBuilder, anchor: Node) -> tuple[Name, tuple[Let, ...]]:
    """The row of the result that the variable `row` becomes, and what says so: itself, or where the operand that orders rows puts it."""
    order = order_of(anchor)
    if order is None:
        return Name("row"), ()
    builder.permutation(order)
    to = row_variable(builder, "to", anchor.output.shape[0])
    return to, (Let(to, cast(builder.place(order, (Name("row"),)), to.dtype)),)


def order_of(node: Node) -> Value | None:
    """Where a product by type puts its rows; None where they stay."""
    return node.inputs[4] if len(node.inputs) > 4 else None


def chosen(builder: KernelBuilder, types: Value, tile: Name, count: Dim) -> Expression:
    """The type of a tile, kept inside."""
    return clamped(cast(builder.seen(types, (tile,)), Literal(0).dtype), builder.size(count))
