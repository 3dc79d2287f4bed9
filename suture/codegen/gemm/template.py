"""The template of matrix products: `linear`, `matmul`, `addmm`, `einsum`, with the pointwise nodes behind them.

A block multiplies some register tiles of rows by one panel of the right matrix, so that the panel stays in the nearest cache; the epilogue (bias,
activation, residual, ...) runs on each tile while it is there. The left matrix is read where it lies, through views. Blocks are counted so that
all processors have the same to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from suture.codegen.access import is_view
from suture.codegen.cpp.strides import replaced, stride_of_load
from suture.codegen.epilogue import index_of_result, store_results
from suture.codegen.gemm.operands import (
    constant_of,
    copy_left,
    fill_panel,
    index_of,
    pack_parameter,
    pack_right,
    reads_left,
    reads_right,
    variables,
)
from suture.codegen.gemm.quantised import pack_quantised
from suture.codegen.gemm.roles import Roles, find_roles, operand_of
from suture.codegen.gemm.schedule import default_schedule
from suture.codegen.groups import Group
from suture.codegen.merging import MergingBuilder
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import GemmSchedule
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node, Parameter, Value
from suture.ir.kernel import (
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)
from suture.ir.sizes import Dim, floor_divide

_LIBRARYS = 32_000_000  # multiplications of two computed matrices from which on the library is quicker
_PANEL = 256 * 1024  # bytes of a panel that a block may bring near
_PAGE = 4096
_FEW = 2  # panels for which a prologue may be computed each time
_DEAR = frozenset(
    {"exp", "erf", "gelu", "tanh", "sigmoid", "silu", "log", "pow", "softplus", "elu", "sin", "cos", "mish", "div"}
)
_NEAR = 64 * 1024  # bytes of rows that a block may keep near
_REUSED = 4  # register tiles that make it worth it where the panel could be read as it lies
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def refuses(node: Node, context: Context) -> str | None:
    """Why a product is left to torch, or None."""
    if context.target != "cpp":
        return "the GPU's library multiplies"
    if any(value is not None and value.dtype not in _FLOATS for value in (*node.inputs, *node.outputs)):
        return "its numbers are no floats"
    if any(dim == 0 for value in (*node.inputs, *node.outputs) if value is not None for dim in value.shape):
        return "it has no elements"
    roles = find_roles(node, context.order(node.output))
    if isinstance(roles, str):
        return roles
    if context.alone or node.output.name in context.schedules or _is_constant(operand_of(node, roles.right)):
        return None
    work = roles.size((*roles.batch, *roles.rows, *roles.columns, *roles.inner))
    if isinstance(work, int) and work >= _LIBRARYS:
        return "the library is quicker with two large computed matrices"
    if not roles.columns or not roles.rows:
        return "the library is quicker with a computed matrix and a vector"
    return None


def _is_constant(value: Value) -> bool:
    """Whether a right matrix is packed when compiled."""
    node = value.producer
    return constant_of(value) is not None or (node is not None and node.operator.name == "dequantise")


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a product and its epilogue: those that make its operands ready, then the product."""
    anchor = group.anchor
    assert anchor is not None
    roles = find_roles(anchor, context.order(anchor.output))
    assert isinstance(roles, Roles)
    schedule = context.schedule(group, default_schedule(roles, anchor.output.dtype))
    return _Gemm(group, context, roles, schedule).steps()


def candidates(group: Group, context: Context) -> list[GemmSchedule]:
    """Schedules worth measuring, the default first."""
    anchor = group.anchor
    assert anchor is not None
    roles = find_roles(anchor, context.order(anchor.output))
    assert isinstance(roles, Roles)
    default = default_schedule(roles, anchor.output.dtype)
    narrow = [replace(default, group=count) for count in dict.fromkeys((default.group, 1, 2, 4, 8, 16))]
    if default.columns < 32:
        return narrow
    other = 64 if default.columns == 32 else 32
    return [*narrow, *(replace(default, columns=other, group=count) for count in (4, 16))]


def fronts(group: Group, operand: int, context: Context) -> bool:
    """Whether pointwise nodes may be a product's prologue: where their result is copied or packed anyway, or one panel or two read it."""
    anchor = group.anchor
    assert anchor is not None
    roles = find_roles(anchor, context.order(anchor.output))
    if isinstance(roles, str) or operand not in (roles.left, roles.right):
        return False
    value = operand_of(anchor, operand)
    if operand == roles.right:
        return not reads_right(context, (), roles, value)
    if not reads_left(context, (), roles, value):
        return True
    schedule = context.schedule(group, default_schedule(roles, anchor.output.dtype))
    columns, inner = roles.size(roles.columns), roles.size(roles.inner)
    if not (isinstance(columns, int) and isinstance(inner, int)):
        return False
    if columns > schedule.columns and any(node.operator.name in _DEAR for node in pointwise_makers(value)):
        return False
    bytes_ = schedule.rows * inner * compute_type(value.dtype).itemsize
    return columns <= _FEW * schedule.columns and bytes_ <= _NEAR


TEMPLATE = Template(lower, refuses, candidates=candidates, reshapes=True, fronts=fronts)
"""For `linear`, `matmul`, `addmm` and `einsum`."""


def pointwise_makers(value: Value) -> Iterator[Node]:
    """The pointwise nodes that a value is computed by, seen through views, up to what is not pointwise."""
    waiting, seen = [value], set[Node]()
    while waiting:
        maker = waiting.pop().producer
        if maker is None or maker in seen or not (is_view(maker) or maker.operator.pointwise):
            continue
        seen.add(maker)
        if not is_view(maker):
            yield maker
        waiting += [each for each in maker.inputs if each is not None]


def _front_of(group: Group, value: Value) -> list[Node]:
    """The part of a group's prologue that an operand is computed by."""
    makers = set(pointwise_makers(value))
    return [node for node in group.front if node in makers]


def _crowds(right: Load) -> bool:
    """Whether the rows of a matrix are whole pages apart: the same few places of a cache then take all of them."""
    stride = stride_of_load(right, "inner")
    return isinstance(stride, Literal) and int(stride.value) * right.dtype.itemsize % _PAGE == 0


class _Gemm:
    """Writes the kernels of one product."""

    def __init__(self, group: Group, context: Context, roles: Roles, schedule: GemmSchedule) -> None:
        anchor = group.anchor
        assert anchor is not None
        self.group, self.context, self.roles, self.schedule, self.anchor = group, context, roles, schedule, anchor
        self.dtype = compute_type(anchor.output.dtype)
        self.lanes = min(32, schedule.columns)
        self.builder = MergingBuilder(context, group.nodes, "gemm")
        self.before: list[KernelStep] = []
        self.scale: Parameter | None = None
        self.staging: tuple[Statement, ...] = ()
        self.nearing: tuple[Statement, ...] = ()

    def steps(self) -> list[KernelStep]:
        builder, roles, schedule = self.builder, self.roles, self.schedule
        rows = roles.size(roles.rows)
        tiles = floor_divide(rows + (schedule.rows - 1), schedule.rows)
        batch = [builder.grid(f"b{k}", builder.size(roles.instance.sizes[x])) for k, x in enumerate(roles.batch)]
        below = builder.grid("below", builder.size(floor_divide(tiles + (schedule.group - 1), schedule.group)))
        panels = floor_divide(roles.size(roles.columns) + (schedule.columns - 1), schedule.columns)
        panel = builder.grid("panel", builder.size(panels))
        self.letters = variables(builder, roles, batch)
        self.sums = builder.local("sum", self.dtype, (schedule.rows, schedule.columns // self.lanes), Scope.THREAD)
        tile = Name("tile")
        body = self._tile(panel, tile, rows, tiles)
        if not (isinstance(tiles, int) and tiles % schedule.group == 0):
            body = (Branch(tile < builder.size(tiles), body),)
        statements: tuple[Statement, ...] = (Let(tile, below), *body)
        if schedule.group > 1:
            step = Name("step")
            let = Let(tile, below * schedule.group + step)
            statements = (Loop(step, Literal(0), Literal(schedule.group), (let, *body)),)
        statements = (*self.staging, *statements)
        why = f"{self.group}; tiles of {schedule.rows} x {schedule.columns}, {schedule.group} in a block"
        return [*self.before, builder.finish(statements, why, schedule)]

    def _tile(self, panel: Name, tile: Name, rows: Dim, tiles: Dim) -> tuple[Statement, ...]:
        """One register tile; the last has what is left."""
        start, height, most = Name("start"), Name("height"), self.schedule.rows
        lets: list[Statement] = [Let(start, tile * most)]
        count: Expression = Literal(most)
        if not (isinstance(rows, int) and rows % most == 0):
            lets.append(Let(height, apply("min", Literal(most), self.builder.size(rows) - start)))
            count = height
        product = self._product(panel, start, count, tiles)
        return (*lets, *self.nearing, product, self._epilogue(panel, start, count))

    def _product(self, panel: Name, start: Name, count: Expression, tiles: Dim) -> MultiplyAccumulate:
        roles, builder, width = self.roles, self.builder, self.schedule.columns
        i, j, k = Name("i"), Name("j"), Name("k")
        columns = roles.size(roles.columns)
        left = self._left(start, count)
        right = self._right(panel, j, tiles)
        there: Expression = Literal(width)
        if not (isinstance(columns, int) and columns % width == 0):
            there = apply("min", Literal(width), builder.size(columns) - panel * width)
        names: dict[str, Expression] = {"row": start + i, "near_row": i, "inner": k, "column": panel * width + j}
        return MultiplyAccumulate(
            self.sums, replaced(left, names), replaced(right, names), i, j, k, count, there,
            builder.size(roles.size(roles.inner)), self.lanes, self.lanes, False, (self._towards(names),),
        )  # fmt: skip

    def _towards(self, names: dict[str, Expression]) -> Load:
        """Where the sums, or what is made of them, will lie."""
        first = self.group.outputs[0]
        at = index_of_result(self.builder.lane(), self.group, first, self._result())
        found = replaced(self.builder.place(first, at), names)
        assert isinstance(found, Load)
        return found

    def _result(self) -> tuple[Expression, ...]:
        """The result's index."""
        return tuple(self.letters[x] if isinstance(x, str) else Literal(0) for x in self.roles.instance.outputs[0])

    def _left(self, start: Name, count: Expression) -> Load:
        roles, builder, value = self.roles, self.builder, operand_of(self.anchor, self.roles.left)
        if reads_left(self.context, self.group.nodes, roles, value):
            found = builder.locate(value, index_of(roles, roles.left, self.letters))
            assert found is not None
            return found
        front = _front_of(self.group, value)
        if front and reads_left(self.context, (), roles, value):
            return self._bring(value, start, count)
        copied, step = copy_left(self.context, roles, value, front)
        self.before.append(step)
        return builder.place(copied, (self._matrix(roles.left), Name("row"), Name("inner")))

    def _bring(self, value: Value, start: Name, count: Expression) -> Load:
        """The rows of a tile in the block's own memory, and the region that computes them."""
        roles, builder, lane, r = self.roles, self.builder, Name("t"), Name("near_row")
        inner = roles.size(roles.inner)
        assert isinstance(inner, int)
        near = builder.local("rows", self.dtype, (self.schedule.rows, inner), Scope.SHARED)
        reader, at = builder.lane(), Name("inner")
        found = reader.value(value, index_of(roles, roles.left, self.letters))
        lanes = self.lanes
        body: tuple[Statement, ...] = (*reader.statements, Store(near, (r, at), cast(found, self.dtype)))
        turn, turns = Name("turn"), (Literal(inner) - lane + (lanes - 1)) // lanes
        along = Loop(turn, Literal(0), turns, (Let(at, turn * lanes + lane), *body))
        rows = Loop(r, Literal(0), count, (Let(Name("row"), start + r), along))
        self.nearing = (Threads(lane, lanes, (rows,)),)
        return near[r, at]

    def _right(self, panel: Name, column: Name, tiles: Dim) -> Load:
        """The right matrix: packed, where it lies, or a panel of it that the block brings near first."""
        roles, builder, value = self.roles, self.builder, operand_of(self.anchor, self.roles.right)
        packed = pack_parameter(self.context, roles, value, self.schedule.columns)
        quantised = pack_quantised(self.context, roles, value, self.schedule.columns)
        if quantised is not None:
            packed, self.scale = quantised.panels, quantised.scale
        if packed is None:
            inner = roles.size(roles.inner)
            small = isinstance(inner, int) and inner * self.schedule.columns * value.dtype.itemsize <= _PANEL
            if reads_right(self.context, self.group.nodes, roles, value):
                found = builder.locate(value, index_of(roles, roles.right, self.letters))
                assert found is not None
                crowded = small and _crowds(found) and isinstance(tiles, int) and tiles >= _REUSED
                return self._stage(panel, value, column) if crowded else found
            if small:
                return self._stage(panel, value, column)
            front = _front_of(self.group, value)
            packed, step = pack_right(self.context, roles, value, self.schedule.columns, front)
            self.before.append(step)
        return builder.place(packed, (self._matrix(roles.right), panel, Name("inner"), column))

    def _stage(self, panel: Name, value: Value, column: Name) -> Load:
        """A panel in the block's own memory, and the region that fills it."""
        roles, builder, lane, width = self.roles, self.builder, Name("t"), self.schedule.columns
        inner = roles.size(roles.inner)
        assert isinstance(inner, int)
        near = builder.local("near", value.dtype, (inner, width), Scope.SHARED)
        batch = {letter: self.letters[letter] for letter in roles.batch}
        body: list[Statement] = []
        for at in range(0, width, self.lanes):
            place = near[Name("inner"), lane + at]
            body += fill_panel(builder, roles, value, batch, panel * width + at, lane, self.lanes, place)
        self.staging = (Threads(lane, self.lanes, tuple(body)),)
        return near[Name("inner"), column]

    def _matrix(self, operand: int) -> Expression:
        """Which of an operand's matrices it is."""
        batch, sizes = self.roles.batch_of(operand), self.roles.instance.sizes
        return self.builder.indices.horner(
            [self.letters[x] for x in batch], [self.builder.size(sizes[x]) for x in batch]
        )

    def _epilogue(self, panel: Name, start: Name, count: Expression) -> Threads:
        """What is added and the nodes behind, on the sums of one tile."""
        roles, builder, width = self.roles, self.builder, self.schedule.columns
        lane, r, c = Name("t"), Name("r"), Name("c")
        reader = builder.lane()
        total: Expression = Load(self.sums, (r, c if width > self.lanes else Literal(0)))
        if self.scale is not None:
            total = total * cast(reader.value(self.scale, (Name("column"),)[: self.scale.rank]), self.dtype)
        if roles.added is not None:
            value = operand_of(self.anchor, roles.added)
            added = reader.value(value, index_of(roles, roles.added, self.letters))
            total = total + cast(added, self.dtype)
        summed = Name("total", self.dtype)
        reader.statements.append(Let(summed, total))
        store_results(reader, self.group, self._result(), summed)
        columns = roles.size(roles.columns)
        column = panel * width + (c * self.lanes + lane if width > self.lanes else lane)
        body: tuple[Statement, ...] = tuple(reader.statements)
        if not (isinstance(columns, int) and columns % width == 0):
            body = (Branch(Name("column") < builder.size(columns), body),)
        body = (Let(Name("column"), column), *body)
        if width > self.lanes:
            body = (Loop(c, Literal(0), Literal(width // self.lanes), body),)
        return Threads(lane, self.lanes, (Loop(r, Literal(0), count, (Let(Name("row"), start + r), *body)),))
