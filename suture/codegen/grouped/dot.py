"""Rows times a matrix of a few columns, on a processor: inner products, lanes over a row's features, which stay in registers until they are summed.

Scores are such products: one number for each row.
"""

from __future__ import annotations

from suture.codegen.grouped.operands import chosen, fixed, operand, pointer, row_of_result, row_variable
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep
from suture.ir.kernel import (
    Branch,
    Buffer,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Reduce,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    cast,
)

_MOST = 4  # columns that are a few
_LEAST, _LONGEST = 16, 4096  # features of a row that lanes share


def is_narrow(group: Group) -> bool:
    """Whether each row gives a few numbers, of more that it has."""
    assert group.anchor is not None
    shape, inner = group.anchor.output.shape, operand(group.anchor, 1).shape[-2]
    one_head = all(size == 1 for size in shape[1:-1])
    few = isinstance(shape[-1], int) and shape[-1] <= _MOST
    return one_head and few and isinstance(inner, int) and _LEAST <= inner <= _LONGEST


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of inner products and its epilogue."""
    return [_Dot(group, context).step()]


class _Dot:
    """Writes the kernel."""

    def __init__(self, group: Group, context: Context) -> None:
        assert group.anchor is not None
        self.group, self.anchor = group, group.anchor
        self.rows, self.matrices, self.tiles, self.types = (operand(self.anchor, k) for k in range(4))
        self.dtype = compute_type(self.anchor.output.dtype)
        self.builder = MergingBuilder(context, group.nodes, "grouped_dot")
        self.builder.pointers(self.tiles, self.rows.shape[0])
        inner, columns = self.matrices.shape[-2:]
        assert isinstance(inner, int) and isinstance(columns, int)
        self.inner, self.columns = inner, columns
        self.lanes = next((lanes for lanes in (16, 32, 48) if inner <= lanes), 64)
        self.heads = (Literal(0),) * (self.anchor.output.rank - 2)

    def step(self) -> KernelStep:
        builder = self.builder
        tile = builder.grid("tile", builder.size(self.types.shape[0]))
        row_variable(builder, "row", self.rows.shape[0])
        builder.variable("inner", Literal(0), Literal(self.inner))
        builder.variable("kind", Literal(0), builder.size(self.matrices.shape[0]))
        lets = (
            Let(Name("kind"), chosen(builder, self.types, tile, self.matrices.shape[0])),
            Let(Name("begin"), pointer(builder, self.tiles, tile)),
            Let(Name("end"), pointer(builder, self.tiles, tile + 1)),
        )
        near = builder.local("near", self.dtype, (self.columns, self.inner), Scope.SHARED)
        parts = [builder.local(f"part{c}", self.dtype, (), Scope.THREAD) for c in range(self.columns)]
        totals = [builder.local(f"total{c}", self.dtype, (), Scope.UNIFORM) for c in range(self.columns)]
        reduces = [Reduce(total, "+", part, self.lanes) for total, part in zip(totals, parts, strict=True)]
        body: tuple[Statement, ...] = (self._sums(near, parts), *reduces, self._epilogue(totals))
        loop = Loop(Name("row"), Name("begin"), Name("end"), body)
        return builder.finish(
            (*lets, self._near(near), loop), f"{self.group}; a row's features over {self.lanes} lanes"
        )

    def _over(self, body: tuple[Statement, ...]) -> Threads:
        """The features of a row over lanes."""
        lane, turn = Name("t"), Name("turn")
        turns = (Literal(self.inner) - lane + (self.lanes - 1)) // self.lanes
        if self.inner % self.lanes == 0:
            turns = Literal(self.inner // self.lanes)
        every = Loop(turn, Literal(0), turns, (Let(Name("inner"), turn * self.lanes + lane), *body))
        return Threads(lane, self.lanes, (every,))

    def _near(self, near: Buffer) -> Threads:
        """The type's matrix, column by column."""
        reader, body = self.builder.lane(), []
        for column in range(self.columns):
            index = fixed(self.matrices.shape, (Name("kind"), *self.heads, Name("inner"), Literal(column)))
            value = reader.value(self.matrices, index)
            body.append(Store(near, (Literal(column), Name("inner")), value))
        return self._over((*reader.statements, *body))

    def _sums(self, near: Buffer, parts: list[Buffer]) -> Threads:
        """What lanes have of the inner products of one row."""
        reader = self.builder.lane()
        value = reader.value(self.rows, fixed(self.rows.shape, (Name("row"), *self.heads, Name("inner"))))
        updates = (
            Update(part, (), "+", value * Load(near, (Literal(column), Name("inner"))))
            for column, part in enumerate(parts)
        )
        region = self._over((*reader.statements, *updates))
        clear = tuple(Store(part, (), Literal(0.0, self.dtype)) for part in parts)
        return Threads(region.variable, region.count, (*clear, *region.body))

    def _epilogue(self, totals: list[Buffer]) -> Threads:
        """The nodes behind, by one lane."""
        reader, result = self.builder.lane(), self.anchor.output
        row, moved = row_of_result(self.builder, self.anchor)
        for column, total in enumerate(totals):
            at: Expression = Literal(0) if self.columns == 1 else Literal(column)
            index = fixed(result.shape, (row, *self.heads, at))
            reader.know(result, index, Load(total, ()))
            for value in self.group.outputs:
                reader.store(value, index, cast(reader.value(value, index), value.dtype))
        lane = Name("t")
        return Threads(lane, self.lanes, (Branch(lane < 1, (*moved, *reader.statements)),))
