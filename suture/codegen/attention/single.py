"""Attention of one query at a time: what decoding does, where memory sets the pace.

Lanes stand along the channels of a key, so that keys are read as they lie; what the lanes have of each key's score is turned, 16 keys at a time or
so, and added up by lanes that stand along the keys.
"""

from __future__ import annotations

import functools
import math

from suture.codegen.attention.parts import COLUMN, INNER, ROW, AttentionParts
from suture.codegen.groups import Group
from suture.codegen.schedule import AttentionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node
from suture.ir.kernel import (
    Branch,
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Reduce,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    apply,
    cast,
)
from suture.ir.kernel_collectives import number


class SingleAttention(AttentionParts):
    """Writes one kernel."""

    def __init__(self, group: Group, node: Node, context: Context, schedule: AttentionSchedule) -> None:
        super().__init__(group, node, context, schedule)
        local, lanes, wide = self.builder.local, self.lanes, self.wide
        self.turns = -(-self.depth // lanes)
        self.asked = local("asked", wide, (self.turns,), Scope.THREAD)
        self.parts = local("parts", wide, (self.keys, lanes), Scope.SHARED)
        self.turned = local("turned", wide, (lanes, self.keys), Scope.SHARED)
        self.weights = local("weights", wide, (self.keys,), Scope.SHARED)
        self.scores = local("scores", wide, (self.keys // lanes,), Scope.THREAD)
        self.sums = local("sums", wide, (1, self.padded // lanes), Scope.THREAD)
        self.own = local("own", wide, (), Scope.THREAD)
        self.top, self.peak, self.total, self.added, self.shrunk = (
            local(name, wide, (), Scope.UNIFORM) for name in ("top", "peak", "total", "added", "shrunk")
        )

    def step(self) -> KernelStep:
        """The kernel and its call."""
        why = f"{self.group}, one query by {self.keys} keys at a time"
        body = [*self._begin(), *self.over_keys(self._over), *self._end()]
        return self.builder.finish(body, why, self.schedule)

    def _begin(self) -> list[Statement]:
        """The query, scaled; nothing is summed yet."""
        c, here = Name("c"), Name("c") * self.lanes + self.t
        element, statements = self.scaled()
        inside = (Let(self.query, self.start), Let(self.d, here), *statements, Store(self.asked, (c,), element))
        outside = (Store(self.asked, (c,), self.number(0.0)),)
        return [
            self._region(
                Loop(c, Literal(0), Literal(self.turns), (Branch(here < self.depth, inside, outside),)),
                self._over_sums(Store(self.sums, (Literal(0), c), self.number(0.0))),
            ),
            Store(self.top, (), self.number(-math.inf)),
            Store(self.total, (), self.number(0.0)),
        ]

    def _over(self, part: Expression) -> list[Statement]:
        """One tile of keys: scores, weights, and what they add up to."""
        first, here = part * self.keys, Name("here")
        found: list[Statement] = [Let(here, apply("min", Literal(self.keys), self.stop - first))]
        found += [self._read(first, here), self._turn(), self._score(first, here), *self._weigh()]
        values, columns = self.tile_of_values(found, first, here)
        found.append(
            MultiplyAccumulate(
                self.sums,
                self.weights[INNER],
                values,
                ROW,
                COLUMN,
                INNER,
                Literal(1),
                Literal(columns),
                here,
                self.lanes,
                self.lanes,
            )
        )
        return found

    def _read(self, first: Expression, here: Expression) -> Statement:
        """Every lane multiplies its channels of all keys."""
        j, lanes = Name("j"), self.lanes
        whole, rest = divmod(self.depth, lanes)
        lane = self.builder.lane()
        products: list[Expression] = []
        for c in range(whole):
            channel = Literal(c * lanes) + self.t
            products.append(
                apply("*", self.asked[c], cast(lane.value(self.k, self.place(self.k, self.key, channel)), self.wide))
            )
        total = functools.reduce(lambda a, b: apply("+", a, b), products) if products else self.number(0.0)
        at = (j, self.t)
        body: list[Statement] = [Let(self.key, first + j), *lane.statements, Store(self.parts, at, total)]
        if rest:
            last = self.builder.lane()
            element = cast(last.value(self.k, self.place(self.k, self.key, self.d)), self.wide)
            there = (
                Let(self.d, self.t + whole * lanes),
                *last.statements,
                Update(self.parts, at, "+", apply("*", self.asked[whole], element)),
            )
            body.append(Branch(self.t + whole * lanes < self.depth, there))
        return self._region(Loop(j, Literal(0), here, tuple(body)))

    def _turn(self) -> Statement:
        """From key by lane to lane by key."""
        j, i = Name("j") * self.lanes + self.t, Name("i")
        turn = Loop(i, Literal(0), Literal(self.lanes), (Store(self.turned, (i, j), self.parts[j, i]),))
        return self._region(Loop(Name("j"), Literal(0), Literal(self.keys // self.lanes), (turn,)))

    def _score(self, first: Expression, here: Expression) -> Statement:
        """Lanes add up the scores of their keys, and find their largest."""
        j = Name("j")
        at = j * self.lanes + self.t
        several: list[Expression] = [self.turned[i, at] for i in range(self.lanes)]
        while len(several) > 1:
            several = [apply("+", a, b) for a, b in zip(several[::2], several[1::2], strict=True)]
        mask, statements = (None, []) if self.mask is None else self.mask_element()
        score = self.masked(several[0], mask)
        there = (Let(self.query, self.start), Let(self.key, first + at), *statements, Store(self.scores, (j,), score))
        none = (Store(self.scores, (j,), self.number(-math.inf)),)
        return self._region(
            Store(self.own, (), self.number(-math.inf)),
            Loop(j, Literal(0), Literal(number(self.scores.shape[0])), (
                Branch(at < here, there, none), Update(self.own, (), "max", Load(self.scores, (j,))),
            )),
        )  # fmt: skip

    def _weigh(self) -> list[Statement]:
        """exp(score - largest), their sum, and the sums so far in the same measure."""
        j, grown = Name("j"), Name("grown", self.wide)
        top, peak, total, shrunk = (Load(each, ()) for each in (self.top, self.peak, self.total, self.shrunk))
        infinite = apply("==", peak, self.number(-math.inf))
        lowest = apply("select", infinite, self.number(0.0), peak)
        weigh = (
            Let(grown, apply("exp_nonpositive", apply("-", Load(self.scores, (j,)), lowest))),
            Store(self.weights, (j * self.lanes + self.t,), grown),
            Update(self.own, (), "+", grown),
        )
        shrink = Store(self.sums, (Literal(0), Name("c")), apply("*", Load(self.sums, (Literal(0), Name("c"))), shrunk))
        return [
            Reduce(self.peak, "max", self.own, self.lanes),
            Store(self.peak, (), apply("max", peak, top)),
            Store(self.shrunk, (), apply("exp_nonpositive", apply("-", top, lowest))),
            Store(self.top, (), peak),
            self._region(
                Store(self.own, (), self.number(0.0)),
                Loop(j, Literal(0), Literal(number(self.scores.shape[0])), weigh),
                *([] if self.once else [self._over_sums(shrink)]),
            ),
            Reduce(self.added, "+", self.own, self.lanes),
            Store(self.total, (), apply("+", apply("*", total, shrunk), Load(self.added, ()))),
        ]

    def _end(self) -> list[Statement]:
        """The sums, divided by the sum of the weights."""
        column = Name("c") * self.lanes + self.t
        value = apply("*", Load(self.sums, (Literal(0), Name("c"))), Load(self.total, ()))
        store = (Let(self.query, self.start), Let(self.e, column), *self.results(value))
        inside: tuple[Statement, ...] = store if self.padded == self.width else (Branch(column < self.width, store),)
        return [Store(self.total, (), self.inverse(Load(self.total, ()))), self._region(self._over_sums(*inside))]

    def _over_sums(self, *body: Statement) -> Loop:
        return Loop(Name("c"), Literal(0), Literal(self.padded // self.lanes), body)

    def _region(self, *body: Statement) -> Threads:
        return Threads(self.t, self.lanes, body)
