"""Regions as C++: loops that all lanes share outside, one innermost loop over lanes around everything else.

Lanes of a region do not see each other, so their order is free. Where a loop's bounds fall or rise with the lane (the strided loop over a row), the
turns that all lanes take run without a condition. What a lane keeps from region to region is an array over lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.cpp.lanes import TOGETHER, adds_up, first_lanes, is_place, strided
from suture.codegen.cpp.row_sums import print_row_sums
from suture.codegen.cpp.transposing import print_transposition
from suture.codegen.cpp.vectors import print_vectors
from suture.codegen.expressions import C_TYPES, combined
from suture.codegen.printer import KernelPrinter
from suture.ir.kernel import (
    Apply,
    Branch,
    Buffer,
    Expression,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    expressions_of,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_ranges import monotone

_WHOLE = 16  # lanes of a vector: where not all take part, whole vectors of them run
_UNROLL = 32  # register tiles up to this many rows are unrolled


class RegionPrinter(KernelPrinter):
    """Prints regions for speed."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.lane: Name | None = None
        self.count = 1
        self.varying: set[str] = set()  # names that differ from lane to lane
        self.reach = ""  # beyond which lanes nobody takes part; empty for all of them
        self.masked = False  # whether lanes that take no part compute all the same
        self.guards: list[str] = []  # conditions under which lanes take part, where that differs from lane to lane

    def between(self, body: Sequence[Statement]) -> None:
        """The statements between regions; rows that lanes sum up have a print of their own."""
        for statement in body:
            if not (isinstance(statement, Loop) and print_row_sums(self, statement)):
                super().between((statement,))

    def region(self, region: Threads) -> None:
        """Loops that all lanes share outside, lanes inside."""
        self.lane, self.count, self.varying = region.variable, region.count, {region.variable.name}
        kept = dict(self.spelling)
        self.block("", lambda: self._spread(region.body))
        self.spelling, self.lane = kept, None

    def _spread(self, body: Sequence[Statement]) -> None:
        """Statements of all lanes: runs of plain ones share a loop over lanes, loops common to all lanes go outside."""
        kept = dict(self.spelling)
        run: list[Statement] = []
        for position, statement in enumerate(body):
            later = body[position + 1 :]
            if isinstance(statement, Let):
                self._let(statement, run, later)
            elif self._goes_outside(statement):
                self._lanes(run)
                run = []
                self._outside(statement)
            else:
                run.append(statement)
        self._lanes(run)
        self.spelling = kept

    def _let(self, let: Let, run: list[Statement], later: Sequence[Statement]) -> None:
        """A name that is the same for all lanes is one number; one that a later loop needs is kept for every lane."""
        name = let.name.name
        if not self._varies(let.value) and not run:
            self.statement(let)
            return
        self.varying.add(name)
        first = next((k for k, each in enumerate(later) if self._goes_outside(each)), len(later))
        outside = later[first:]  # the loops over lanes that follow are others than this one
        if any(name in _mentioned(each) for each in outside):
            if is_place(let.value):
                self.spelling[name] = self.show(
                    let.value
                )  # said again where it is needed: an array of indices would be gathered by
                return
            self.line(f"{C_TYPES[let.name.dtype]} k_{name}[{self.count}];")
            self.spelling[name] = f"k_{name}[{self._lane_name()}]"
            run.append(_Kept(let))  # type: ignore[arg-type]
        else:
            run.append(let)

    def _lane_name(self) -> str:
        assert self.lane is not None
        return self.lane.name

    def _goes_outside(self, statement: Statement) -> bool:
        match statement:
            case Loop(_, start, stop, _):
                ends = (start, stop)
                return all(not self._varies(end) or self._turn(end) is not None for end in ends) and not self._varies(
                    start
                )
            case Branch(condition, _, _):
                return not self._varies(condition) and any(isinstance(each, Loop) for each in walk((statement,)))
        return False

    def _varies(self, expression: Expression) -> bool:
        """Whether an expression may differ from lane to lane."""
        own = any(isinstance(part, Load) and part.buffer.scope is Scope.THREAD for part in parts(expression))
        return own or bool(names_in(expression) & self.varying)

    def _turn(self, stop: Expression) -> tuple[str, str] | None:
        """The fewest and the most turns that lanes take, where the bound rises or falls with the lane."""
        assert self.lane is not None
        if names_in(stop) & (self.varying - {self.lane.name}) or any(isinstance(part, Load) for part in parts(stop)):
            return None
        sense = monotone(stop, self.lane.name)
        if sense == 0:
            return None
        kept = dict(self.spelling)
        ends = []
        for lane in (0, self.count - 1):
            self.spelling[self.lane.name] = str(lane)
            ends.append(self.show(stop))
        self.spelling = kept
        return (ends[0], ends[1]) if sense > 0 else (ends[1], ends[0])

    def _outside(self, statement: Statement) -> None:
        if isinstance(statement, Branch):
            self.block(f"if ({self.show(statement.condition)})", lambda: self._spread(statement.body))
            if statement.otherwise:
                self.block("else", lambda: self._spread(statement.otherwise))
            return
        assert isinstance(statement, Loop) and self.lane is not None
        if not self.guards and print_transposition(self, statement, self.lane, self.count):
            return
        variable, start = statement.variable, self.show(statement.start)
        if not self._varies(statement.stop):
            stop = self.show(statement.stop)
            plain = not self.guards and not self.reach
            if plain and print_vectors(
                self, statement, self.lane, self.count, lambda: self._turns(statement, start, stop)
            ):
                return
            fixed = statement.stop.value if isinstance(statement.stop, Literal) else 0
            if 1 < int(fixed) <= _UNROLL and _fills_registers(statement):
                self.line(f"#pragma GCC unroll {int(fixed)}")
            if fixed and int(fixed) <= _UNROLL and _fills_registers(statement):
                self.block(
                    self.loop_head(variable, start, self.show(statement.stop)), lambda: self._spread(statement.body)
                )
            else:
                self.block("", lambda: self._turns(statement, start, self.show(statement.stop)))
            return
        turns = self._turn(statement.stop)
        assert turns is not None
        fewest, most = turns
        name, kind = variable.name, "k_i64"

        def both() -> None:
            elements = strided(statement.stop, self._lane_name(), self.count)
            if (
                isinstance(elements, Literal)
                and start == "0"
                and isinstance(statement.stop, Apply)
                and statement.stop.function == "//"
            ):
                whole, rest = divmod(int(elements.value), self.count)
                if whole:
                    self.block("", lambda: self._turns(statement, "0", str(whole)))
                if rest:
                    self.line(f"const {kind} {name} = {whole};")
                    self._guarded(statement, rest)
                return
            self.line(f"const {kind} k_all = {fewest}, k_some = {most};")
            self._turns(statement, start, "k_all")
            self.block(f"for (; {name} < k_some; ++{name})", lambda: self._guarded(statement))

        self.block("", both)

    def _turns(self, loop: Loop, start: str, stop: str) -> None:
        """The turns of a loop, several at once where lanes add up: what they have so far is then read and written less often."""
        name = loop.variable.name
        self.line(f"k_i64 {name} = {start};")
        if adds_up(loop.body):

            def several() -> None:
                kept = dict(self.spelling)
                self._lanes(loop.body, (name, TOGETHER))
                self.spelling = kept

            self.block(f"for (; {name} + {TOGETHER} <= {stop}; {name} += {TOGETHER})", several)
        self.block(f"for (; {name} < {stop}; ++{name})", lambda: self._spread(loop.body))

    def _guarded(self, loop: Loop, rest: int = 0) -> None:
        """A turn that not all lanes take; where lanes stride over a row, the first ones do.

        :param rest: how many, if that is known
        """
        left = strided(loop.stop, self._lane_name(), self.count)
        reach = self.reach
        if rest:
            self.reach = str(-(-rest // _WHOLE) * _WHOLE if rest < self.count // _WHOLE * _WHOLE else self.count)
            if rest == int(self.reach):
                self._spread(loop.body)
                self.reach = reach
                return
            self.guards.append(f"(int){self._lane_name()} < {rest}")
        elif left is not None and not self._varies(left):
            live, self.reach = f"k_live_{loop.variable.name}", f"k_reach_{loop.variable.name}"
            self.line(f"const k_i64 {live} = {self.show(left)} - {loop.variable.name} * {self.count};")
            self.line(
                f"const k_i64 {self.reach} = k_min_i({self.count}, ({live} + {_WHOLE - 1}) / {_WHOLE} * {_WHOLE});"
            )
            self.guards.append(f"(int){self._lane_name()} < (int){live}")
        else:
            self.guards.append(f"{loop.variable.name} < {self.show(loop.stop)}")
        self._spread(loop.body)
        self.guards.pop()
        self.reach = reach

    def _lanes(self, run: Sequence[Statement], turns: tuple[str, int] | None = None) -> None:
        """One loop over the lanes around plain statements.

        :param turns: a variable, and how many values of it the statements are run for
        """
        if not run:
            return
        lane = self._lane_name()
        first = first_lanes(run, lane)
        if first is not None and not self.guards:
            self.block(f"for (k_i64 {lane} = 0; {lane} < {first[0]}; ++{lane})", lambda: self.body(first[1]))
            return
        plain = not any(isinstance(each, Loop | Scatter) for each in walk(tuple(_plain(each) for each in run)))
        if plain:
            self.line("#pragma omp simd")

        def inside() -> None:
            condition = " && ".join(self.guards)
            if turns is not None:
                for turn in range(turns[1]):
                    self.spelling[turns[0]] = f"({turns[0]} + {turn})"
                    self.block("", lambda: self._idle(run, condition))
            else:
                self._idle(run, condition)

        self.block(f"for (k_i64 {lane} = 0; {lane} < {self.reach or self.count}; ++{lane})", inside)

    def _idle(self, run: Sequence[Statement], condition: str) -> None:
        """The statements of a lane, which may have to take no part."""
        if not condition:
            self.body(run)
        elif _may_idle(run):
            self.line(f"const int k_on = {condition};")
            self.masked = True
            self.body(run)
            self.masked = False
        else:
            self.block(f"if ({condition})", lambda: self.body(run))

    def statement(self, statement: Statement) -> None:
        """One statement of one lane; a kept name goes into its array."""
        if isinstance(statement, _Kept):
            name = statement.let.name.name
            self.line(f"k_{name}[{self._lane_name()}] = {self.show(statement.let.value)};")
            return
        if self.masked and isinstance(statement, Store | Update):
            self._masked(statement)
            return
        super().statement(statement)

    def _masked(self, statement: Store | Update) -> None:
        """What lanes that take no part write: nothing where others could read it, anything into what is their own."""
        place, value = self.element(statement.buffer, statement.index), self.show(statement.value)
        own = statement.buffer.scope is Scope.THREAD
        if isinstance(statement, Store):
            self.line(f"{place} = {value};" if own else f"if (k_on) {place} = {value};")
            return
        met = combined(statement.operation, place, value, statement.buffer.dtype)
        self.line(f"{place} = k_on ? {met} : {place};" if own else f"if (k_on) {place} = {met};")

    def show(self, expression: Expression) -> str:
        """The C text of an expression; lanes that take no part read zeros."""
        text = super().show(expression)
        if self.masked and isinstance(expression, Load) and expression.buffer.scope in (Scope.GLOBAL, Scope.SHARED):
            return f"(k_on ? {text} : 0)" if any(map(self._varies, expression.index)) else text
        return text

    def element(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """An element; of a lane's own buffer, that of the lane."""
        if buffer.scope is Scope.THREAD:
            inner = self.offset(buffer, index)
            place = self._lane_name() if inner == "0" else f"{inner} * {self.kernel.threads} + {self._lane_name()}"
            return f"{buffer.name}[{place}]"
        return super().element(buffer, index)


def _fills_registers(loop: Loop) -> bool:
    """Whether the turns of a loop write different ones of a lane's own numbers, which are registers where it is unrolled."""
    return any(
        isinstance(each, Store | Update) and each.buffer.scope is Scope.THREAD
        and any(loop.variable.name in names_in(at) for at in each.index)
        for each in walk(loop.body)
    )  # fmt: skip


class _Kept:
    """A `let` whose value is kept for every lane."""

    def __init__(self, let: Let) -> None:
        self.let = let


def _may_idle(run: Sequence[Statement]) -> bool:
    """Whether lanes may compute what nobody reads: nothing of it can go wrong."""
    statements = [_plain(each) for each in run]
    return all(isinstance(each, Let | Store | Update) for each in statements) and not any(
        isinstance(part, Apply) and not part.dtype.is_floating_point
        and part.function in ("//", "%", "/", "pow") and not isinstance(part.operands[1], Literal)
        for each in statements for expression in expressions_of(each) for part in parts(expression)
    )  # fmt: skip


def _plain(statement: Statement | _Kept) -> Statement:
    return statement.let if isinstance(statement, _Kept) else statement


def _mentioned(statement: Statement) -> set[str]:
    return {name for each in walk((statement,)) for expression in expressions_of(each) for name in names_in(expression)}
