"""The traversal template: one pass, or a few, over a group's domain, row by row.

The domain's last dimensions are the row, taken by lanes; what is left is the grid. Reductions split the work into stages: a value is computed in the
first stage that needs it, and kept for later ones where it is dear, in registers if rows have a fixed length, else in a result that is
written later anyway. Dimensions that all operands have in the same way are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from suture.codegen.groups import REDUCTIONS, Group
from suture.codegen.scalars import compute_type, lower_scalar
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Apply,
    Branch,
    Buffer,
    Expression,
    Grid,
    Kernel,
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
    apply,
    cast,
    parts,
)
from suture.ir.sizes import Dim, product

LANES = 64
TILE = 4096  # elements of a row that one block takes, where rows are long and nothing is reduced
_HELD = 16384  # elements of a row that lanes keep, at most

_DEAR = frozenset({"exp", "log", "tanh", "erf", "sin", "cos", "pow", "/", "rsqrt", "sqrt"})


@dataclass(frozen=True)
class Traversal:
    """A kernel, what it reads and writes, and how tensors are viewed for it.

    :param reads: the group's inputs, then its outputs, in the order of the kernel's arguments
    :param views: the shape in which the kernel sees each
    """

    kernel: Kernel
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    views: tuple[tuple[Dim, ...], ...]


def lower_group(group: Group, name: str) -> Traversal:
    """The kernel of a group."""
    return _Builder(group).build(name)


@dataclass
class _Domain:
    """A domain whose dimensions were merged: grid variables with their sizes, and the length of a row."""

    sizes: list[Dim]
    starts: list[tuple[int, int]]  # which dimensions of the group's shape each stands for
    row: Dim
    inner: int

    def view(self, value: Value, rank: int) -> tuple[tuple[Dim, ...], tuple[int, ...], bool]:
        """A value's shape over the merged dimensions, those that it has, and whether it has the row."""
        shape = (*[1] * (rank - value.rank), *value.shape)
        outer = tuple(k for k, (start, stop) in enumerate(self.starts) if any(dim != 1 for dim in shape[start:stop]))
        # a row of one element is mentioned all the same: so lanes beyond it are seen to have nothing to do
        has_row = self.row == 1 or any(dim != 1 for dim in shape[rank - self.inner :])
        sizes = [self.sizes[k] for k in outer] + ([self.row] if has_row else [])
        return tuple(sizes), outer, has_row


def _merge(group: Group) -> _Domain:
    """Neighbouring dimensions that every operand has together or not at all become one; the last such run is the row."""
    rank = len(group.shape)
    values = [*group.inputs, *(node.output for node in group.nodes)]
    shapes = [(*[1] * (rank - value.rank), *value.shape) for value in values if value.rank <= rank]

    def has(shape: Sequence[Dim], dim: int) -> bool | None:
        return None if group.shape[dim] == 1 else shape[dim] != 1

    def alike(first: int, second: int) -> bool:
        pairs = ((has(shape, first), has(shape, second)) for shape in shapes)
        return all(a is None or b is None or a == b for a, b in pairs)

    runs: list[tuple[int, int]] = []
    for dim in range(rank):
        boundary = bool(group.inner) and dim == rank - group.inner
        if runs and not boundary and all(alike(other, dim) for other in range(*runs[-1])):
            runs[-1] = (runs[-1][0], dim + 1)
        else:
            runs.append((dim, dim + 1))
    if not runs:
        return _Domain([], [], 1, 0)
    *outer, (start, stop) = runs
    sizes = [product(group.shape[a:b]) for a, b in outer]
    return _Domain(sizes, outer, product(group.shape[start:stop]), stop - start)


@dataclass
class _Builder:
    """Builds one kernel."""

    group: Group
    names: dict[str, Name] = field(default_factory=dict)
    buffers: dict[Value, Buffer] = field(default_factory=dict)
    places: dict[Value, tuple[Expression, ...]] = field(default_factory=dict)
    locals: list[Buffer] = field(default_factory=list)
    uniform: dict[Value, Buffer] = field(default_factory=dict)
    held: dict[Value, Load] = field(default_factory=dict)
    stage: dict[Value, int] = field(default_factory=dict)

    def build(self, name: str) -> Traversal:
        group = self.group
        self.domain = _merge(group)
        self.rank = len(group.shape)
        self.lanes = LANES
        self.grid = [Name(f"i{k}") for k in range(len(self.domain.sizes))]
        self.row_size = self.size(self.domain.row)
        self.tiled = not group.inner and not (isinstance(self.domain.row, int) and self.domain.row <= TILE)
        self.position = Name("i")
        arguments = [self.argument(value, f"x{k}") for k, value in enumerate(group.inputs)]
        arguments += [self.argument(value, f"y{k}") for k, value in enumerate(group.outputs)]
        self.assign_stages()
        self.choose_held()
        body = [statement for stage in range(self.stages) for statement in self.run_stage(stage)]
        grid = [Grid(variable, self.size(size)) for variable, size in zip(self.grid, self.domain.sizes, strict=True)]
        if self.tiled:
            grid.append(Grid(Name("tile"), (self.row_size + (TILE - 1)) // TILE))
        sizes = tuple(sorted(self.names.values(), key=lambda each: each.name))
        kernel = Kernel(name, sizes, (), tuple(arguments), tuple(self.locals), tuple(grid), tuple(body))
        values = (*group.inputs, *group.outputs)
        views = tuple(self.domain.view(value, self.rank)[0] for value in values)
        return Traversal(kernel, group.inputs, group.outputs, views)

    def size(self, dim: Dim) -> Expression:
        """A size as an expression: a number, or a name of its own for each symbolic size."""
        if isinstance(dim, int):
            return Literal(dim)
        return self.names.setdefault(str(dim), Name(f"n{len(self.names)}"))

    def argument(self, value: Value, name: str) -> Buffer:
        shape, outer, has_row = self.domain.view(value, self.rank)
        buffer = Buffer(name, value.dtype, tuple(self.size(dim) for dim in shape))
        self.buffers[value] = buffer
        self.places[value] = (*(self.grid[k] for k in outer), *((self.position,) if has_row else ()))
        return buffer

    # stages

    def assign_stages(self) -> None:
        """The stage in which a value is first known: that of its operands, and one more behind a reduction."""
        for node in self.group.nodes:
            before = max((self.stage.get(value, 0) for value in node.inputs if value is not None), default=0)
            self.stage[node.output] = before + (node.operator.name in REDUCTIONS)
        self.stages = max(self.stage.values(), default=0) + 1

    def choose_held(self) -> None:
        """Which values lanes keep from one stage to the next: dear ones that later stages need."""
        if self.stages == 1:
            return
        fixed = isinstance(self.domain.row, int) and self.domain.row <= _HELD
        free = [value for value in self.group.outputs if not self._per_row(value)]
        for node in self.group.nodes:
            value = node.output
            if node.operator.name in REDUCTIONS or self._per_row(value) or not self._is_dear(node):
                continue
            later = {self._needed(reader) for reader, _ in value.uses if reader in self.group.nodes}
            if value in self.group.outputs:
                later.add(self.stage[value])
            if len(later) < 2:
                continue
            if fixed:
                turns = -(-int(str(self.domain.row)) // self.lanes)
                buffer = self.local(f"kept{len(self.held)}", compute_type(value.dtype), (Literal(turns),), Scope.THREAD)
                self.held[value] = Load(buffer, (Name("j"),))
            else:
                spare = next(
                    (each for each in free if each.dtype == value.dtype and each.dtype == compute_type(each.dtype)),
                    None,
                )
                if spare is not None and self.stage[spare] == self.stages - 1 and self.stage[value] < self.stages - 1:
                    free.remove(spare)
                    self.held[value] = Load(self.buffers[spare], self.places[spare])

    def _needed(self, reader: Node) -> int:
        """The stage in which a node reads its operands."""
        return self.stage[reader.output] - (reader.operator.name in REDUCTIONS)

    def _is_dear(self, node: Node) -> bool:
        operands: list[Expression | None] = [
            None if v is None else Name("v", compute_type(v.dtype)) for v in node.inputs
        ]
        made = lower_scalar(node, operands)
        own = made is not None and any(isinstance(part, Apply) and part.function in _DEAR for part in parts(made))
        before = any(
            value.producer in self.group.nodes and not self._per_row(value)
            for value in node.inputs
            if value is not None
        )
        return own or (before and node.operator.name in ("add", "sub", "mul"))

    def _per_row(self, value: Value) -> bool:
        shape = (*[1] * (self.rank - value.rank), *value.shape)
        return bool(self.group.inner) and all(dim == 1 for dim in shape[self.rank - self.group.inner :]) and any(
            dim != 1 for dim in self.group.shape[self.rank - self.group.inner :]
        )  # fmt: skip

    def local(self, name: str, dtype: torch.dtype, shape: tuple[Expression, ...], scope: Scope) -> Buffer:
        buffer = Buffer(name, dtype, shape, scope)
        self.locals.append(buffer)
        return buffer

    def run_stage(self, stage: int) -> list[Statement]:
        """The rows' numbers that are known by now, one pass over the row, and the reductions that it feeds."""
        statements = self.row_numbers(stage)
        reductions = [
            node
            for node in self.group.nodes
            if node.operator.name in REDUCTIONS and self.stage[node.output] == stage + 1
        ]
        parts_ = [
            self.local(f"part{stage}_{k}", self._wide(node), (), Scope.THREAD) for k, node in enumerate(reductions)
        ]
        stored = [value for value in self.group.outputs if self.stage[value] == stage and not self._per_row(value)]
        lane = _Lane(self, stage)
        for buffer, node in zip(parts_, reductions, strict=True):
            operand = node.inputs[0]
            assert operand is not None
            part = cast(lane.value(operand), buffer.dtype)
            lane.statements.append(Update(buffer, (), _COMBINING[node.operator.name], part))
        for value in self.held:
            if self.stage[value] == stage:
                lane.value(value)
        for value in stored:
            made = lane.value(value)
            lane.statements.append(Store(self.buffers[value], self.places[value], cast(made, value.dtype)))
        if lane.statements:
            start = [
                Store(buffer, (), _neutral(node, buffer.dtype)) for buffer, node in zip(parts_, reductions, strict=True)
            ]
            statements.append(Threads(Name("t"), self.lanes, (*start, *self.over_row(lane.statements))))
        for buffer, node in zip(parts_, reductions, strict=True):
            target = self.local(f"row{len(self.uniform)}", buffer.dtype, (), Scope.UNIFORM)
            statements.append(Reduce(target, _COMBINING[node.operator.name], buffer, self.lanes))
            if node.operator.name == "mean":
                count = (
                    cast(self.row_size, buffer.dtype)
                    if not isinstance(self.row_size, Literal)
                    else Literal(float(self.row_size.value), buffer.dtype)
                )
                statements.append(Store(target, (), apply("/", Load(target, ()), count)))
            self.uniform[node.output] = target
        return statements

    def _wide(self, node: Node) -> torch.dtype:
        return compute_type(node.output.dtype)

    def row_numbers(self, stage: int) -> list[Statement]:
        """What follows from rows' numbers alone is computed once a row; the rows' own results are stored by one lane."""
        statements: list[Statement] = []
        for node in self.group.nodes:
            value = node.output
            if self.stage[value] != stage or not self._per_row(value) or node.operator.name in REDUCTIONS:
                continue
            operands = [None if each is None else self._row_operand(each) for each in node.inputs]
            made = lower_scalar(node, operands)
            assert made is not None
            target = self.local(f"row{len(self.uniform)}", made.dtype, (), Scope.UNIFORM)
            statements.append(Store(target, (), made))
            self.uniform[value] = target
        for value in self.group.outputs:
            if self.stage[value] == stage and self._per_row(value):
                store = Store(self.buffers[value], self.places[value], cast(Load(self.uniform[value], ()), value.dtype))
                first = Branch(apply("<", Name("t"), Literal(1)), (store,))
                statements.append(Threads(Name("t"), self.lanes, (first,)))
        return statements

    def _row_operand(self, value: Value) -> Expression:
        if value in self.uniform:
            return Load(self.uniform[value], ())
        return cast(Load(self.buffers[value], self.places[value]), compute_type(value.dtype))

    def over_row(self, body: Sequence[Statement]) -> list[Statement]:
        """The loop of one lane over its elements of the row."""
        lane, turn = Name("t"), Name("j")
        start: Expression = Name("tile") * TILE if self.tiled else Literal(0)
        if not self.tiled and isinstance(self.row_size, Literal) and int(self.row_size.value) % self.lanes == 0:
            turns: Expression = Literal(int(self.row_size.value) // self.lanes)
        else:
            left = self.row_size - start if self.tiled else self.row_size
            turns = (left - lane + (self.lanes - 1)) // self.lanes
            if self.tiled:
                turns = apply("min", turns, Literal(TILE // self.lanes))
        place = start + turn * self.lanes + lane if self.tiled else turn * self.lanes + lane
        return [Loop(turn, Literal(0), turns, (Let(self.position, place), *body))]


@dataclass
class _Lane:
    """What one lane does with one element in one stage."""

    builder: _Builder
    stage: int
    statements: list[Statement] = field(default_factory=list)
    known: dict[Value, Expression] = field(default_factory=dict)

    def value(self, value: Value) -> Expression:
        """The element of a value, computed at most once."""
        if value not in self.known:
            self.known[value] = self._make(value)
        return self.known[value]

    def _make(self, value: Value) -> Expression:
        builder = self.builder
        if value in builder.uniform:
            return Load(builder.uniform[value], ())
        kept = builder.held.get(value)
        if kept is not None and builder.stage[value] < self.stage:
            return self._named(value, kept)
        node = value.producer
        if node is None or node not in builder.group.nodes:
            load = Load(builder.buffers[value], builder.places[value])
            return self._named(value, cast(load, compute_type(value.dtype)))
        made = lower_scalar(node, [None if each is None else self.value(each) for each in node.inputs])
        assert made is not None
        result = self._named(value, made)
        if kept is not None:
            self.statements.append(Store(kept.buffer, kept.index, cast(result, kept.dtype)))
        return result

    def _named(self, value: Value, made: Expression) -> Expression:
        if isinstance(made, Name | Literal):
            return made
        name = Name(f"v{len(self.known)}_{len(self.statements)}", made.dtype)
        self.statements.append(Let(name, made))
        return name


_COMBINING = {"sum": "+", "mean": "+", "amax": "max", "amin": "min"}


def _neutral(node: Node, dtype: torch.dtype) -> Literal:
    return Literal({"sum": 0.0, "mean": 0.0, "amax": -float("inf"), "amin": float("inf")}[node.operator.name], dtype)
