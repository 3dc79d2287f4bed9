"""The matrices of a product as a kernel reads them: where they lie, packed into panels of columns, or copied first.

A *panel* is a register tile's columns for all of the contracted dimension, one row of it after the other. Parameters are packed when compiled. Of
what is computed, a right matrix is read where it lies if its columns lie side by side, and packed by a kernel otherwise; a left matrix is read where
it lies if its elements are memory seen through views that cost nothing, and copied otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.codegen.access import free_view, is_view
from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.codegen.gemm.roles import Roles
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep, Recipe
from suture.ir.graph import Node, Parameter, Value
from suture.ir.kernel import Branch, Expression, Let, Literal, Load, Loop, Name, Statement, Store, Threads, cast
from suture.ir.semantics import run_node
from suture.ir.sizes import Dim, floor_divide, product
from suture.ir.types import TensorType

_LANES = 64


def index_of(roles: Roles, operand: int, letters: Mapping[str, Expression]) -> tuple[Expression, ...]:
    """An operand's index, given the letters' values."""
    return tuple(letters[term] if isinstance(term, str) else Literal(0) for term in roles.terms(operand))


def assigned(
    builder: MergingBuilder, roles: Roles, letters: Sequence[str], number: Expression
) -> dict[str, Expression]:
    """The values of letters that are the digits of a number; zero where a letter has one value."""
    sizes = [roles.instance.sizes[letter] for letter in letters]
    digits = builder.indices.digits(number, [builder.size(size) for size in sizes])
    fixed = [Literal(0) if size == 1 else digit for size, digit in zip(sizes, digits, strict=True)]
    return dict(zip(letters, fixed, strict=True))


# parameters


def constant_of(value: Value) -> tuple[Parameter, tuple[Node, ...]] | None:
    """The parameter that a value is, and the views that make it of it, first to last; None if it is computed."""
    through: list[Node] = []
    while (node := value.producer) is not None:
        if not (is_view(node) and free_view(node)) or len(node.inputs) != 1 or len(node.outputs) != 1:
            return None
        through.insert(0, node)
        (operand,) = node.inputs
        assert operand is not None
        value = operand
    known = isinstance(value, Parameter) and all(isinstance(dim, int) for node in through for dim in node.output.shape)
    return (value, tuple(through)) if known and isinstance(value, Parameter) else None


def pack_parameter(context: Context, roles: Roles, value: Value, width: int) -> Value | None:
    """A parameter in panels `[batch, panels, inner, width]`, zeros behind the last column; None if the value is computed."""
    found = constant_of(value)
    if found is None:
        return None
    parameter, views = found

    def recipe(tensor: torch.Tensor) -> torch.Tensor:
        for node in views:
            (tensor,) = run_node(node, [tensor], {})
        return tensor

    return make_panels(
        context, roles, parameter, value.dtype, width, ", ".join(node.output.name for node in views), recipe
    )


def make_panels(
    context: Context, roles: Roles, parameter: Parameter, dtype: torch.dtype, width: int, what: str, recipe: Recipe
) -> Value:
    """What a recipe makes of a parameter, a right matrix, in panels.

    :param dtype: of the numbers that the recipe makes
    :param what: tells recipes for one parameter apart
    """
    kept = [term for term in roles.terms(roles.right) if isinstance(term, str)]
    batch = roles.batch_of(roles.right)
    permutation = [kept.index(letter) for letter in (*batch, *roles.inner, *roles.columns)]
    sizes = {letter: _number(roles.instance.sizes[letter]) for letter in kept}
    outer, inner, columns = (
        _number(product([sizes[letter] for letter in each])) for each in (batch, roles.inner, roles.columns)
    )
    panels = -(-columns // width)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        flat = (
            recipe(tensor)
            .reshape([sizes[letter] for letter in kept])
            .permute(permutation)
            .reshape(outer, inner, columns)
        )
        padded = torch.nn.functional.pad(flat, (0, panels * width - columns))
        return padded.reshape(outer, inner, panels, width).transpose(1, 2)

    text = f"panels of {width}: {what} {permutation} {outer} {inner} {columns}"
    return context.prepared(parameter, text, pack, TensorType(dtype, (outer, panels, inner, width)))


def _number(dim: Dim) -> int:
    assert isinstance(dim, int), "parameters have fixed sizes"
    return dim


# what is computed


def reads_right(context: Context, nodes: Sequence[Node], roles: Roles, value: Value) -> bool:
    """Whether a right matrix can be read where it lies: its columns side by side, its rows evenly apart."""
    builder = MergingBuilder(context, nodes, "trial")
    load = _located(builder, roles, roles.right, value)
    return (
        load is not None and stride_of_load(load, "column") == Literal(1) and stride_of_load(load, "inner") is not None
    )


def reads_left(context: Context, nodes: Sequence[Node], roles: Roles, value: Value) -> bool:
    """Whether a left matrix can be read where it lies: the elements of a row evenly apart, of the type that sums are taken in."""
    if value.dtype != compute_type(value.dtype):
        return False
    load = _located(MergingBuilder(context, nodes, "trial"), roles, roles.left, value)
    return load is not None and stride_of_load(load, "inner") is not None


def _located(builder: MergingBuilder, roles: Roles, operand: int, value: Value) -> Load | None:
    sizes = [builder.size(roles.instance.sizes[letter]) for letter in roles.batch]
    letters = variables(builder, roles, [builder.variable(f"b{k}", Literal(0), size) for k, size in enumerate(sizes)])
    return builder.locate(value, index_of(roles, operand, letters))


def variables(builder: MergingBuilder, roles: Roles, batch: Sequence[Expression]) -> dict[str, Expression]:
    """Every letter's value, for the variables `row`, `column` and `inner` and those of the batch."""
    sizes = [roles.instance.sizes[letter] for letter in roles.batch]
    fixed = [Literal(0) if size == 1 else at for size, at in zip(sizes, batch, strict=True)]
    found: dict[str, Expression] = dict(zip(roles.batch, fixed, strict=True))
    for name, letters in (("row", roles.rows), ("column", roles.columns), ("inner", roles.inner)):
        number = builder.variable(name, Literal(0), builder.size(roles.size(letters)))
        found.update(assigned(builder, roles, letters, number))
    return found


def pack_right(
    context: Context, roles: Roles, value: Value, width: int, front: Sequence[Node] = ()
) -> tuple[Value, KernelStep]:
    """A kernel that packs a computed matrix into panels `[batch, panels, inner, width]`, zeros behind the last column.

    :param front: the nodes that it computes on the way
    """
    batch, inner, columns = roles.batch_of(roles.right), roles.size(roles.inner), roles.size(roles.columns)
    panels = floor_divide(columns + (width - 1), width)
    packed = context.temporary(value.dtype, (roles.size(batch), panels, inner, width), "panels")
    builder = MergingBuilder(context, front, "pack")
    outer = builder.grid("matrix", builder.size(roles.size(batch)))
    panel = builder.grid("panel", builder.size(panels))
    builder.variable("inner", Literal(0), builder.size(inner))
    lane = Name("t")
    place = builder.place(packed, (outer, panel, Name("inner"), lane))
    letters = assigned(builder, roles, batch, outer)
    body = fill_panel(builder, roles, value, letters, panel * width, lane, width, place)
    why = f"{computing(front)}{value.name} in panels of {width} columns"
    return packed, builder.finish([Threads(lane, width, body)], why)


def fill_panel(
    builder: MergingBuilder, roles: Roles, value: Value, batch: Mapping[str, Expression], first: Expression, lane: Name, lanes: int, place: Load
) -> tuple[Statement, ...]:  # fmt: skip
    """What a lane does to bring a column of a right matrix to where a panel of it lies, zeros if there is none.

    :param batch: the values of the letters of the batch
    :param first: the column that the first of the lanes brings
    :param place: where it goes, an element over the variable `inner`
    """
    columns, column, row = builder.size(roles.size(roles.columns)), Name("column"), Name("inner")
    builder.variable(column.name, Literal(0), columns)
    letters = {**batch, **assigned(builder, roles, roles.columns, column), **assigned(builder, roles, roles.inner, row)}
    index, stop = index_of(roles, roles.right, letters), builder.size(roles.size(roles.inner))
    own = first + lane
    direct = builder.locate(value, index)
    if direct is not None:
        # nothing but a store of what is loaded: printers know such loops, whichever side lies side by side
        whole: tuple[Statement, ...] = (
            Loop(row, Literal(0), stop, (Store(place.buffer, place.index, replaced(direct, {column.name: own})),)),
        )
    else:
        reader = builder.lane()
        found = cast(reader.value(value, index), value.dtype)
        taken = (*reader.statements, Store(place.buffer, place.index, found))
        whole = (Let(column, own), Loop(row, Literal(0), stop, taken))
    size = roles.size(roles.columns)
    if isinstance(size, int) and size % lanes == 0:
        return whole
    zero = cast(Literal(0.0, compute_type(value.dtype)), value.dtype)
    empty = Loop(row, Literal(0), stop, (Store(place.buffer, place.index, zero),))
    return (Branch(first + lanes <= columns, whole, (Branch(own < columns, whole, (empty,)),)),)


def computing(front: Sequence[Node]) -> str:
    """What is computed on the way, for a description."""
    return f"{', '.join(node.operator.name for node in front)}, then " if front else ""


def copy_left(context: Context, roles: Roles, value: Value, front: Sequence[Node] = ()) -> tuple[Value, KernelStep]:
    """A kernel that copies a computed matrix, rows one after the other `[batch, rows, inner]`, in the type that sums are taken in.

    :param front: the nodes that it computes on the way
    """
    batch, rows, inner = roles.batch_of(roles.left), roles.size(roles.rows), roles.size(roles.inner)
    wide = compute_type(value.dtype)
    copied = context.temporary(wide, (roles.size(batch), rows, inner), "rows")
    builder = MergingBuilder(context, front, "copy")
    outer = builder.grid("matrix", builder.size(roles.size(batch)))
    row = builder.grid("row", builder.size(rows))
    letters = assigned(builder, roles, batch, outer) | assigned(builder, roles, roles.rows, row)
    at = builder.variable("inner", Literal(0), builder.size(inner))
    letters |= assigned(builder, roles, roles.inner, at)
    place = builder.place(copied, (outer, row, at))
    reader = builder.lane()
    found = reader.value(value, index_of(roles, roles.left, letters))
    lane, turn = Name("t"), Name("turn")
    body: tuple[Statement, ...] = (
        Let(at, turn * _LANES + lane), *reader.statements, Store(place.buffer, place.index, cast(found, wide)),
    )  # fmt: skip
    stop = (builder.size(inner) - lane + (_LANES - 1)) // _LANES
    region = Threads(lane, _LANES, (Loop(turn, Literal(0), stop, body),))
    return copied, builder.finish([region], f"{computing(front)}{value.name} in rows")
