"""Attention, a tile of queries of one head at a time.

Scores are computed transposed, keys by queries: every lane holds a query, so the largest score and the sum of a query need no lane but its own, and
keys are read where they lie. The softmax runs along: what was summed so far shrinks whenever a larger score is found (Milakov and Gimelshein, Online
normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022, algorithm 1).
"""

from __future__ import annotations

import math
from dataclasses import replace

from suture.codegen.attention.parts import COLUMN, INNER, ROW, AttentionParts, together
from suture.codegen.cpp.strides import replaced
from suture.codegen.groups import Group
from suture.codegen.schedule import AttentionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Branch,
    Buffer,
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
    Update,
    apply,
    names_in,
)
from suture.ir.kernel_collectives import number

_NEAR = 1 << 20  # bytes of keys and values of a head that stay in a nearby cache beside those in use
_LINE = 64  # bytes that come into a cache together
_CHUNK = 8  # scores whose maximum is taken before it meets the largest so far: one maximum after the other would wait for memory


class TiledAttention(AttentionParts):
    """Writes one kernel."""

    def __init__(self, group: Group, node: Node, context: Context, schedule: AttentionSchedule) -> None:
        super().__init__(group, node, context, schedule)
        self.direct = self.lanes == self.queries == schedule.across  # a lane computes the scores of its own query
        self.present = apply("min", Literal(self.queries), self.length - self.start) if self.direct else None
        local, across, down = self.builder.local, schedule.across, self.lanes // schedule.across
        wide, shared, thread = self.wide, Scope.SHARED, Scope.THREAD
        self.asked = local("asked", wide, (self.depth, self.queries), shared)
        self.weights = local("weights", wide, (self.keys, self.queries), shared)
        self.factor = local("factor", wide, (self.queries,), shared)
        self.scores = local("scores", wide, (self.keys // down, self.queries // across), thread)
        self.sums = local("sums", wide, (self.queries // down, self.padded // across), thread)
        self.top, self.best, self.total = (local(name, wide, (), thread) for name in ("top", "best", "total"))

    def step(self) -> KernelStep:
        """The kernel and its call."""
        why = f"{self.group}, {self.queries} queries by {self.keys} keys at a time"
        body = [*self._begin(), *self.over_keys(self._over), *self._end()]
        return self.builder.finish(body, why, self.schedule)

    def _over(self, part: Expression) -> list[Statement]:
        """One tile of keys: scores, weights, and what they add up to."""
        first = part * self.keys
        there = self.stop - first  # keys from the tile's first on
        here = Name("here")
        found: list[Statement] = [Let(here, apply("min", Literal(self.keys), there))]
        keys = self.tile_of_keys(found, first, here)
        whole = isinstance(self.length, Literal) and int(self.length.value) % self.queries == 0
        asked = Literal(self.queries) if self.present is None or whole else self.present  # lanes beyond hold anything
        found += [
            MultiplyAccumulate(
                self.scores, keys, self.asked[INNER, COLUMN], ROW, COLUMN, INNER, there, asked, Literal(self.depth),
                self.lanes, self.schedule.across, adds=False, towards=self._soon(first + ROW),
            ),
        ]  # fmt: skip
        found += self._masked(first, here)
        found += [self._largest(here), self._weighed(here)]
        if not self.once:
            found.append(self._shrunk())
        values, columns = self.tile_of_values(found, first, here)
        return [
            *found,
            MultiplyAccumulate(
                self.sums, self.weights[INNER, ROW], values, ROW, COLUMN, INNER, self.length - self.start, Literal(columns), here,
                self.lanes, self.schedule.across, adds=not self.once,
            ),
        ]  # fmt: skip

    def _soon(self, key: Expression) -> tuple[Load, ...]:
        """What the cache may fetch while the scores of a key are computed: some of the results' lines, and of the keys and values of the next head.

        Each block meets all keys, and its result has about as many lines: one for each key. The last blocks of a head take one line of a row each.
        """
        if self.context.target != "cpp":
            return ()
        line = _LINE // self.wide.itemsize
        found: list[Load | None] = []
        if self.output in self.group.outputs:
            lines = -(-self.width // line)
            index = (*self.batch, self.start + key // lines, key % lines * line)
            found.append(self.builder.place(self.output, index))
        if isinstance(self.length, Literal) and isinstance(self.reach, Literal) and self.batch:
            turn = Literal(-(-int(self.length.value) // self.queries) - 1) - self.tile
            held = int(self.reach.value) * (self.depth + self.width) * self.wide.itemsize
            found += [self._of_next_head(each, key, turn * line) for each in (self.k, self.v) if held <= _NEAR]
        return tuple(each for each in found if each is not None)

    def _of_next_head(self, value: Value, key: Expression, column: Expression) -> Load | None:
        place, head = self.builder.locate(value, self.place(value, self.key, self.d)), self.batch[-1]
        if place is None or head.name not in names_in(place):
            return None
        found = replaced(place, {self.key.name: key, self.d.name: column, head.name: head + 1})
        assert isinstance(found, Load)
        return found

    # what a tile of keys goes through

    def _begin(self) -> list[Statement]:
        """The queries, transposed and scaled; nothing is summed yet."""
        found = self._queries_in_rows() if self.direct else [self._queries_one_by_one()]
        none = (Store(self.top, (), self.number(-math.inf)), Store(self.total, (), self.number(0.0)))
        found.append(self._per_query(*none))
        if not self.once:
            _, _, r, c = self._spread(self.sums)
            found.append(self._over_tile(self.sums, self.present, Store(self.sums, (r, c), self.number(0.0))))
        return found

    def _queries_one_by_one(self) -> Statement:
        """Every lane reads its own query."""
        element, statements = self.scaled()
        inside = (Let(self.query, self.start + self.t), *statements, Store(self.asked, (self.d, self.t), element))
        outside = (Store(self.asked, (self.d, self.t), self.number(0.0)),)
        body = Branch(self.start + self.t < self.length, inside, outside)
        return self._per_query(Loop(self.d, Literal(0), Literal(self.depth), (body,)))

    def _queries_in_rows(self) -> list[Statement]:
        """Lanes read what lies side by side; then it is turned."""
        rows = self.builder.local("rows", self.wide, (self.queries, self.depth), Scope.SHARED)
        turns = -(-self.depth // self.lanes)
        r, c = Name("r"), Literal(0) if turns == 1 else Name("c")
        column = c * self.lanes + self.t
        element, statements = self.scaled()
        inside = (Let(self.d, column), *statements, Store(rows, (r, self.d), element))
        outside = (Store(rows, (r, column), self.number(0.0)),)

        def over(*body: Statement) -> tuple[Statement, ...]:
            inner = body if self.depth % self.lanes == 0 else (Branch(column < self.depth, body),)
            return (Loop(Name("c"), Literal(0), Literal(turns), inner),) if turns > 1 else inner

        there = (Let(self.query, self.start + r), *over(*inside))
        read = Branch(self.start + r < self.length, there, over(*outside))
        turn = Loop(
            Name("i"),
            Literal(0),
            Literal(self.depth),
            (Store(self.asked, (Name("i"), self.t), rows[self.t, Name("i")]),),
        )
        return [
            Threads(self.t, self.lanes, (Loop(r, Literal(0), Literal(self.queries), (read,)),)),
            Threads(self.t, self.lanes, (turn,)),
        ]

    def _masked(self, first: Expression, here: Expression) -> list[Statement]:
        """What may not be seen is minus infinity; scores go to the lanes of their queries, if others computed them."""
        row, column, r, c = self._spread(self.scores)
        score = Load(self.scores, (r, c))
        named = (Let(self.query, self.start + column), Let(self.key, first + row))
        if self.direct and self.mask is not None and 1 not in self.mask.shape[-2:] and self.mask.rank > 1:
            found, mask = self._mask_in_rows(first, here)
            masked = Store(self.scores, (r, c), self.masked(score, mask[r, self.t]))
            return [*found, self._over_tile(self.scores, here, *named, masked)]
        element, statements = (None, []) if self.mask is None else self.mask_element()
        target = Store(self.scores, (r, c), score) if self.direct else Store(self.weights, (row, column), score)
        inside = (*named, *statements, replace(target, value=self.masked(score, element)))
        there = [self.start + column < self.length] if self.mask is not None else []
        if not self.direct:
            nothing = replace(target, value=self.number(-math.inf))
            return [self._over_tile(self.scores, None, Branch(together([row < here, *there]), inside, (nothing,)))]
        region = self._over_tile(self.scores, here, *([Branch(together(there), inside)] if there else inside))
        if self.mask is not None:
            return [region]
        return [Branch(self.start < first + here, (region,))] if self.causal else []

    def _mask_in_rows(self, first: Expression, here: Expression) -> tuple[list[Statement], Buffer]:
        """Lanes read what the mask says of neighbouring keys; then it is turned."""
        read = self.builder.local("read", self.wide, (self.queries, self.keys), Scope.SHARED)
        turned = self.builder.local("turned", self.wide, (self.keys, self.queries), Scope.SHARED)
        r, c, j = Name("r"), Name("c"), Name("j")
        column = c * self.lanes + self.t
        element, statements = self.mask_element()
        inside = (
            Let(self.query, self.start + r),
            Let(self.key, first + column),
            *statements,
            Store(read, (r, column), element),
        )
        present = apply("min", Literal(self.queries), self.length - self.start)
        turns = Literal(-(-self.keys // self.lanes))
        rows = Loop(r, Literal(0), present, (Loop(c, Literal(0), turns, (Branch(column < here, inside),)),))
        turn = Loop(j, Literal(0), here, (Store(turned, (j, self.t), read[self.t, j]),))
        return [Threads(self.t, self.lanes, (rows,)), Threads(self.t, self.lanes, (turn,))], turned

    def _score(self, row: Expression) -> Load:
        """A score of a lane's query."""
        return Load(self.scores, (row, Literal(0))) if self.direct else self.weights[row, self.t]

    def _largest(self, here: Expression) -> Statement:
        """The largest score of each query so far. Nothing asks whether all are numbers: what is none comes back with the sum of the weights."""
        j, best = Name("j"), Load(self.best, ())
        several: list[Expression] = [self._score(j * _CHUNK + k) for k in range(_CHUNK)]
        named: list[Statement] = []
        while len(several) > 1:
            pairs = zip(several[::2], several[1::2], strict=True)
            made = [Let(Name(f"met{len(several)}_{k}", self.wide), larger(*pair)) for k, pair in enumerate(pairs)]
            named += made
            several = [each.name for each in made]
        last = self._score(here - 1 - j)  # some of them once more
        return self._per_query(
            Store(self.best, (), Load(self.top, ())),
            Loop(j, Literal(0), here // _CHUNK, (*named, Store(self.best, (), larger(best, several[0])))),
            Loop(j, Literal(0), Literal(_CHUNK - 1), (Branch(j < here, (Store(self.best, (), larger(best, last)),)),)),
        )

    def _weighed(self, here: Expression) -> Statement:
        """exp(score - largest), their sum, and what the sums so far are to be multiplied by."""
        best, top, total = Load(self.best, ()), Load(self.top, ()), Load(self.total, ())
        lowest, shrunk, grown = (Name(name, self.wide) for name in ("lowest", "shrunk", "grown"))
        nothing = apply("==", best, self.number(-math.inf))
        body: list[Statement] = [Let(lowest, apply("select", nothing, self.number(0.0), best))]
        if not self.once:
            body += [
                Let(shrunk, apply("exp_nonpositive", apply("-", top, lowest))),
                Store(self.factor, (self.t,), shrunk),
                Store(self.total, (), apply("*", total, shrunk)),
                Store(self.top, (), best),
            ]
        weigh: tuple[Statement, ...] = (
            Let(grown, apply("exp_nonpositive", apply("-", self._score(Name("j")), lowest))),
            Store(self.weights, (Name("j"), self.t), grown),
            Update(self.total, (), "+", grown),
        )
        return self._per_query(*body, Loop(Name("j"), Literal(0), here, weigh))

    def _shrunk(self) -> Statement:
        """The sums so far are of weights that were taken from a smaller maximum."""
        row, _, r, c = self._spread(self.sums)
        shrunk = apply("*", Load(self.sums, (r, c)), self.factor[row])
        return self._over_tile(self.sums, self.present, Store(self.sums, (r, c), shrunk))

    def _end(self) -> list[Statement]:
        """The sums, divided by the sums of the weights."""
        row, column, r, c = self._spread(self.sums)
        value = apply("*", Load(self.sums, (r, c)), self.factor[row])
        inside = (Let(self.query, self.start + row), Let(self.e, column), *self.results(value))
        conditions = [] if self.direct else [self.start + row < self.length]
        if self.padded != self.width:
            conditions.append(column < self.width)
        found = (Branch(together(conditions), inside),) if conditions else inside
        return [
            self._per_query(Store(self.factor, (self.t,), self.inverse(Load(self.total, ())))),
            self._over_tile(self.sums, self.present, *found),
        ]

    # parts

    def _per_query(self, *body: Statement) -> Threads:
        """The lanes that hold a query do something."""
        inside = body if self.lanes == self.queries else (Branch(self.t < self.queries, body),)
        return Threads(self.t, self.lanes, inside)

    def _over_tile(self, target: Buffer, rows: Expression | None, *body: Statement) -> Threads:
        """The lanes go over the elements of a product that they hold.

        :param rows: how many rows are asked for, where all lanes have the same ones; None for all
        """
        down, across = map(number, target.shape)
        stop = Literal(down) if rows is None else rows
        inner = (Loop(Name("c"), Literal(0), Literal(across), body),) if across > 1 else body
        return Threads(self.t, self.lanes, (Loop(Name("r"), Literal(0), stop, inner),))

    def _spread(self, target: Buffer) -> tuple[Expression, Expression, Expression, Expression]:
        """Row and column of the block's tile, and of the lane's own, in the loops of `_over_tile`."""
        down, wide = map(number, target.shape)
        across = self.schedule.across
        r, c = Name("r"), Literal(0) if wide == 1 else Name("c")
        if across == self.lanes:
            return r, c * across + self.t, r, c
        return self.t // across * down + r, c * across + self.t % across, r, c


def larger(left: Expression, right: Expression) -> Expression:
    """The larger of two numbers; the left one where the right one is none."""
    return apply("select", left < right, right, left)
