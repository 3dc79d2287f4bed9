"""What the kernels of attention share: operands, the element of a query, key or value, masks, and what is done with a result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from suture.codegen.builder import KernelBuilder, broadcast
from suture.codegen.cpp.strides import replaced
from suture.codegen.groups import Group
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import AttentionSchedule
from suture.codegen.step import Context
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Buffer,
    Expression,
    Let,
    Literal,
    Loop,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)

ROW, COLUMN, INNER = Name("row"), Name("column"), Name("inner")


class AttentionParts:
    """The parts of one attention in one kernel; `query`, `key`, `d` and `e` stand for where an element is, and are bound where it is used."""

    def __init__(self, group: Group, node: Node, context: Context, schedule: AttentionSchedule) -> None:
        self.group, self.node, self.context, self.schedule = group, node, context, schedule
        self.q, self.k, self.v = (operand(node, position) for position in range(3))
        self.mask = node.inputs[3] if len(node.inputs) > 3 else None
        self.output, self.causal = node.output, bool(node.attributes["causal"])
        self.wide = compute_type(self.q.dtype)
        self.depth, self.width = (int(str(each.shape[-1])) for each in (self.q, self.v))
        self.queries, self.keys, self.lanes = schedule.queries, schedule.keys, schedule.lanes
        self.padded = -(-self.width // schedule.across) * schedule.across
        build = self.builder = KernelBuilder(context, group.nodes, "attention")
        self.length, self.reach = build.size(self.q.shape[-2]), build.size(self.k.shape[-2])
        self.batch = [build.grid(f"b{k}", build.size(size)) for k, size in enumerate(self.output.shape[:-2])]
        self.tile = build.grid("tile", build.indices.short((self.length + (self.queries - 1)) // self.queries))
        self.start = self.tile * self.queries
        self.t = build.variable("t", Literal(0), Literal(self.lanes))
        self.query = build.variable("query", Literal(0), self.length)
        self.key = build.variable("key", Literal(0), self.reach)
        self.d = build.variable("d", Literal(0), Literal(self.depth))
        self.e = build.variable("e", Literal(0), Literal(self.width))
        self.stop = apply("min", self.reach, self.start + self.queries) if self.causal else self.reach
        self.once = isinstance(self.reach, Literal) and int(self.reach.value) <= self.keys
        self.staged: Buffer | None = None

    def over_keys(self, body: Callable[[Expression], list[Statement]]) -> list[Statement]:
        """A body for every tile of keys; where there is but one, it is number 0."""
        if self.once:
            return body(Literal(0))
        parts = self.builder.indices.short((self.stop + (self.keys - 1)) // self.keys)
        part = self.builder.variable("part", Literal(0), parts)
        return [Loop(part, Literal(0), parts, tuple(body(part)))]

    def scaled(self) -> tuple[Expression, list[Statement]]:
        """A number of a query times the scale, and the statements that compute it."""
        lane, scale = self.builder.lane(), self.node.attributes["scale"]
        assert isinstance(scale, int | float)
        asked = cast(lane.value(self.q, self.place(self.q, self.query, self.d)), self.wide)
        return apply("*", asked, self.number(float(scale))), lane.statements

    def mask_element(self) -> tuple[Expression, list[Statement]]:
        """What the mask says of a query and a key, as a number, and the statements that compute it."""
        assert self.mask is not None
        lane = self.builder.lane()
        mask = lane.value(self.mask, broadcast(self.mask, self.output, (*self.batch, self.query, self.key)))
        return cast(mask, self.wide), lane.statements

    def masked(self, score: Expression, mask: Expression | None) -> Expression:
        """A score, minus infinity where the query may not see the key.

        :param mask: what the mask says of them
        """
        nothing = self.number(-math.inf)
        if mask is not None and self.mask is not None:
            hides = self.mask.dtype == torch.bool
            hidden = apply("==", mask, self.number(0.0))
            score = apply("select", hidden, nothing, score) if hides else apply("+", score, mask)
        return apply("select", self.key <= self.query, score, nothing) if self.causal else score

    def inverse(self, total: Expression) -> Expression:
        """What the sums are multiplied by in the end; a query without a key gives zeros."""
        zero = self.number(0.0)
        nothing: list[Expression] = [apply("==", total, zero)]
        if self.node in self.context.undefined:
            nothing.append(self.reach < 1)  # 0 / 0 where there are keys, but a sum over none is zero
        return apply("select", together(nothing), zero, apply("/", self.number(1.0), total))

    def results(self, value: Expression) -> list[Statement]:
        """Compute what stands behind the attention from an element of its result, and store what is read outside."""
        lane, found = self.builder.lane(), Name("found", self.wide)
        index = (*self.batch, self.query, self.e)
        lane.know(self.output, index, cast(cast(found, self.output.dtype), self.wide))
        for each in self.group.outputs:
            lane.store(each, index, lane.value(each, index))
        return [Let(found, value), *lane.statements]

    def tile_of_keys(self, found: list[Statement], first: Expression, here: Expression) -> Expression:
        """The keys of a tile, by row and channel."""
        place = self.builder.locate(self.k, self.place(self.k, self.key, self.d))
        if place is not None and place.dtype == self.wide and not self.schedule.staged:
            return replaced(place, {self.key.name: first + ROW, self.d.name: INNER})
        found.append(self._stage(self.k, self.d, self.depth, first, here))
        assert self.staged is not None
        return self.staged[ROW, INNER]

    def tile_of_values(self, found: list[Statement], first: Expression, here: Expression) -> tuple[Expression, int]:
        """The values of a tile, by key and channel, and how many channels there are at least."""
        place = self.builder.locate(self.v, self.place(self.v, self.key, self.e))
        if place is not None and self.width == self.padded and not self.schedule.staged:
            element = replaced(place, {self.key.name: first + INNER, self.e.name: COLUMN})
            return cast(element, self.wide), self.width
        found.append(self._stage(self.v, self.e, self.width, first, here))
        assert self.staged is not None
        return self.staged[INNER, COLUMN], self.padded

    def _stage(self, value: Value, channel: Name, width: int, first: Expression, here: Expression) -> Statement:
        """Keys or values come into the block's own memory, in the type that they are computed in."""
        if self.staged is None:
            shape = (self.keys, max(self.depth, self.padded))
            self.staged = self.builder.local("staged", self.wide, shape, Scope.SHARED)
        # as many keys at a time as there are lanes for, next to each other in what lies abreast
        beside = self.lanes
        while beside // 2 >= width:
            beside //= 2
        abreast, turns = self.lanes // beside, -(-width // beside)
        r, c = Name("r"), Literal(0) if turns == 1 else Name("c")
        row = r if abreast == 1 else r * abreast + self.t // beside
        column = c * beside + (self.t if beside == self.lanes else self.t % beside)
        lane = self.builder.lane()
        element = cast(lane.value(value, self.place(value, self.key, channel)), self.wide)
        inside = (
            Let(self.key, first + row),
            Let(channel, column),
            *lane.statements,
            Store(self.staged, (row, column), element),
        )
        conditions = ([row < here] if abreast > 1 else []) + ([column < width] if width % beside else [])
        body: tuple[Statement, ...] = (Branch(together(conditions), inside),) if conditions else inside
        if turns > 1:
            body = (Loop(Name("c"), Literal(0), Literal(turns), body),)
        stop = here if abreast == 1 else (here + (abreast - 1)) // abreast
        return Threads(self.t, self.lanes, (Loop(Name("r"), Literal(0), stop, body),))

    # parts

    def place(self, value: Value, row: Expression, column: Expression) -> tuple[Expression, ...]:
        """The index of a number of a query, key or value; queries in groups share keys and values."""
        batch: list[Expression] = list(self.batch[len(self.batch) - (value.rank - 2) :])
        if self.node.attributes["grouped"] and value is not self.q:
            whole, own = self.output.shape[-3], value.shape[-3]
            assert isinstance(whole, int) and isinstance(own, int)
            batch[-1] = batch[-1] // (whole // own)
        index = [Literal(0) if size == 1 else at for size, at in zip(value.shape[:-2], batch, strict=True)]
        return (*index, row, column)

    def number(self, value: float) -> Literal:
        """A number in the type that is computed in."""
        return Literal(value, self.wide)


def operand(node: Node, position: int) -> Value:
    """An operand that is there."""
    found = node.inputs[position]
    assert found is not None
    return found


def together(conditions: Sequence[Expression]) -> Expression:
    """All of them."""
    return functools.reduce(lambda a, b: apply("and", a, b), conditions)
