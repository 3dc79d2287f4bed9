"""Loops of unknown length in which lanes add up, with explicit vectors: what lanes have so far stays in registers from turn to turn.

Compilers keep an array of sums in registers only where the loop around it is unrolled as a whole; where data say how many turns it has, they read and
write it in every turn. What such a loop looks up by an index in memory is fetched some turns ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from suture.codegen.cpp.names import at_lane, only_inside, put, renamed, shortest, swapped
from suture.codegen.expressions import C_TYPES
from suture.codegen.indices import stride_of
from suture.ir.kernel import (
    Apply,
    Buffer,
    Expression,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scope,
    Statement,
    Threads,
    Update,
    apply,
    expressions_of,
    names_in,
    parts,
    walk,
)

if TYPE_CHECKING:
    from suture.codegen.cpp.regions import RegionPrinter

_BYTES = (64, 32, 16)
_REGISTERS = 24  # sums that stay in registers, at most
_UNROLLED = 32  # turns of an inner loop
_AHEAD = 8  # turns
_LINE = 64
_SIGNS = frozenset({"+", "-", "*", "/"})
_FLOATS = {torch.float32: "float", torch.float64: "double"}

VECTORS = "\n".join(
    [
        "#ifndef K_VECTORS",
        "#define K_VECTORS",
        *(
            f"typedef {kind} k_{kind}{lanes} __attribute__((vector_size({bytes_})));\n"
            f"typedef {kind} k_{kind}{lanes}u __attribute__((vector_size({bytes_}), aligned({size}), may_alias));"
            for kind, size in (("float", 4), ("double", 8)) for bytes_ in _BYTES for lanes in (bytes_ // size,)
        ),
        *(
            f"typedef k_u16 k_short{lanes} __attribute__((vector_size({2 * lanes}), aligned(2), may_alias));\n"
            f"typedef unsigned k_bits{lanes} __attribute__((vector_size({4 * lanes})));\n"
            f"KFN k_float{lanes} k_wide{lanes}(const k_u16* p) {{ return (k_float{lanes})(__builtin_convertvector(*(const k_short{lanes}*)p, "
            f"k_bits{lanes}) << 16); }}"
            for lanes in (16, 8, 4)
        ),
        "#endif",
    ]
)  # fmt: skip
"""Types of vectors, and bfloat16 as what it is computed in."""


class Unfit(Exception):
    """Something has no vectors."""


def has_vectors(kernel: Kernel) -> bool:
    """Whether the types are needed: some region has a loop of unknown length that adds up."""
    return any(
        _is_open(each) for region in walk(kernel.body) if isinstance(region, Threads) for each in walk(region.body)
    )


def _is_open(statement: Statement) -> bool:
    """Whether a statement is a loop of unknown length in which lanes add up."""
    if not isinstance(statement, Loop) or (
        isinstance(statement.start, Literal) and isinstance(statement.stop, Literal)
    ):
        return False
    return any(isinstance(each, Update) and each.buffer.scope is Scope.THREAD for each in walk(statement.body))


@dataclass(frozen=True)
class Chunk:
    """Lanes side by side: a vector of them, or one."""

    first: int
    lanes: int


def print_vectors(printer: RegionPrinter, loop: Loop, lane: Name, count: int, otherwise: Callable[[], None]) -> bool:
    """Print a loop that all lanes share with vectors of lanes; False, and nothing, where it does not lend itself to that.

    What depends on sizes alone (whether there is anything to look up in) is asked once, outside.

    :param otherwise: prints the loop without vectors, for where it does not hold
    """
    if not _is_open(loop):
        return False
    holding = conditions(printer.kernel, loop.body)
    try:
        writer = Vectors(printer, loop.variable, held(loop.body, holding), lane, count)
    except Unfit:
        return False
    either(printer, holding, lambda: writer.write(loop), otherwise)
    return True


def either(
    printer: RegionPrinter,
    holding: Collection[Expression],
    print_one: Callable[[], None],
    otherwise: Callable[[], None],
) -> None:
    """Print what conditions must hold for, and what there is where they do not."""
    if not holding:
        print_one()
        return
    printer.block(f"if ({' && '.join(map(printer.show, holding))})", print_one)
    printer.block("else", otherwise)


def conditions(kernel: Kernel, body: Sequence[Statement]) -> Collection[Expression]:
    """Conditions of choices in a body that depend on sizes alone."""
    sizes = {each.name for each in kernel.sizes}
    return dict.fromkeys(
        part.operands[0] for each in walk(tuple(body)) for expression in expressions_of(each) for part in parts(expression)
        if isinstance(part, Apply) and part.function == "select" and names_in(part.operands[0]) <= sizes
        and not any(isinstance(inner, Load) for inner in parts(part.operands[0]))
    )  # fmt: skip


def held(statements: Sequence[Statement], holding: Collection[Expression]) -> tuple[Statement, ...]:
    """Statements in which conditions hold."""
    found: list[Statement] = []
    for each in statements:
        match each:
            case Loop():
                found.append(replace(each, body=held(each.body, holding)))
            case Let() | Update():
                found.append(replace(each, value=_chosen(each.value, holding)))
            case _:
                found.append(each)
    return tuple(found)


def _chosen(expression: Expression, holding: Collection[Expression]) -> Expression:
    match expression:
        case Apply("select", (condition, then, _)) if condition in holding:
            return _chosen(then, holding)
        case Load(index=index):
            return replace(expression, index=tuple(_chosen(at, holding) for at in index))
        case Apply(operands=operands):
            return replace(expression, operands=tuple(_chosen(each, holding) for each in operands))
    return expression


class Vectors:
    """Finds out what is summed, and how each statement looks; only then anything is printed."""

    def __init__(self, printer: RegionPrinter, turn: Name, body: Sequence[Statement], lane: Name, count: int) -> None:
        self.printer, self.turn, self.lane = printer, turn, lane
        self.steps = [self._simple(each) for each in _unrolled(body)]
        updates = [each for each in self.steps if isinstance(each, Update)]
        if not updates or any(each.buffer.scope is not Scope.THREAD for each in updates):
            raise Unfit
        kinds = {each.buffer.dtype for each in updates}
        if len(kinds) > 1 or not kinds <= set(_FLOATS):
            raise Unfit
        self.dtype = kinds.pop()
        self.kind = _FLOATS[self.dtype]
        self.chunks = _chunks(count, self.dtype.itemsize)
        self.sums = list(dict.fromkeys((each.buffer, each.index) for each in updates))
        if len(self.sums) * len(self.chunks) > _REGISTERS or len(self.sums) != len(updates):
            raise Unfit
        self.varying: set[str] = {lane.name, *printer.varying}
        self.lets = self._before()
        self.lines = self._body()

    def _before(self) -> dict[str, Expression]:
        """Indices that differ from lane to lane and were named before the loop, written out."""
        found: dict[str, Expression] = {}
        for each in walk(self.printer.kernel.body):
            if (
                isinstance(each, Let)
                and each.name.name in self.printer.varying
                and not each.name.dtype.is_floating_point
            ):
                found[each.name.name] = put(each.value, found)
        return found

    def _simple(self, statement: Statement) -> Let | Update:
        if isinstance(statement, Let):
            return statement
        if isinstance(statement, Update) and statement.operation in ("+", "max", "min") and all(
            isinstance(at, Literal) for at in statement.index
        ):  # fmt: skip
            return statement
        raise Unfit

    # printing

    def write(self, loop: Loop) -> None:
        """The loop."""
        printer = self.printer

        def body() -> None:
            for k, (buffer, index) in enumerate(self.sums):
                for c, chunk in enumerate(self.chunks):
                    printer.line(f"{self.type_of(chunk)} k_sum{k}_{c} = {self._own(buffer, index, chunk)};")
            start, stop = printer.show(loop.start), printer.show(loop.stop)
            printer.block(printer.loop_head(loop.variable, start, stop), lambda: list(map(printer.line, self.lines)))
            for k, (buffer, index) in enumerate(self.sums):
                for c, chunk in enumerate(self.chunks):
                    printer.line(f"{self._own(buffer, index, chunk)} = k_sum{k}_{c};")

        printer.block("", body)

    def type_of(self, chunk: Chunk, *, loose: bool = False) -> str:
        """The type of a vector, or number."""
        return self.kind if chunk.lanes == 1 else f"k_{self.kind}{chunk.lanes}{'u' if loose else ''}"

    def _own(self, buffer: Buffer, index: Sequence[Expression], chunk: Chunk) -> str:
        """Where a lane's own number lies between loops."""
        inner = self.printer.offset(buffer, index)
        place = f"{buffer.name}[{inner} * {self.printer.kernel.threads} + {chunk.first}]"
        return place if chunk.lanes == 1 else f"*({self.type_of(chunk, loose=True)}*)&{place}"

    # the statements of a turn

    def _body(self) -> list[str]:
        lines: list[str] = []
        number = 0
        fetched: dict[Load, None] = {}
        names: dict[str, str] = {}
        for statement in self.steps:
            if isinstance(statement, Let):
                self._fetch(statement.value, fetched)
                name = f"{statement.name.name}_{number}"
                number += 1
                value = renamed(statement.value, names)
                names[statement.name.name] = name
                self.lets[name] = put(value, self.lets)
                if names_in(value) & self.varying:
                    self.varying.add(name)
                    if statement.name.dtype != self.dtype:
                        if statement.name.dtype.is_floating_point:
                            raise Unfit
                        continue  # an index: said where it is needed
                    for c, chunk in enumerate(self.chunks):
                        lines.append(f"const {self.type_of(chunk)} {name}_{c} = {self._vector(value, c, chunk)};")
                else:
                    lines.append(f"const {C_TYPES[statement.name.dtype]} {name} = {self._uniform(value)};")
                continue
            self._fetch(statement.value, fetched)
            value = renamed(statement.value, names)
            k = self.sums.index((statement.buffer, statement.index))
            for c, chunk in enumerate(self.chunks):
                made, met = self._vector(value, c, chunk), f"k_sum{k}_{c}"
                if statement.operation == "+":
                    lines.append(f"{met} += {made};")
                    continue
                sign = ">" if statement.operation == "max" else "<"
                lines.append(f"{{ const {self.type_of(chunk)} k_new = {self._spread(made, chunk)};")
                lines.append(
                    f"  {met} = k_new {sign} {met} ? k_new : {met}; {met} = k_new != k_new ? k_new : {met}; }}"
                )
        return [*self._prefetches(fetched), *lines]

    def _uniform(self, value: Expression) -> str:
        return self.printer.show(value)

    def _spread(self, text: str, chunk: Chunk) -> str:
        """A number as a vector of it."""
        return text if chunk.lanes == 1 else f"(({text}) + ({self.type_of(chunk)}){{}})"

    def _vector(self, value: Expression, c: int, chunk: Chunk) -> str:
        """An expression for the lanes of a chunk; one that is the same for all may be a single number."""
        if not names_in(value) & self.varying:
            if any(isinstance(part, Load) and part.buffer.scope is Scope.THREAD for part in parts(value)):
                return self._own_value(value, chunk)
            return self._uniform(value)
        match value:
            case Name(name) if name in self.lets and value.dtype == self.dtype:
                return f"{name}_{c}"
            case Load():
                return self._load(value, chunk)
            case Apply("cast", (Load() as inner,), dtype) if (
                dtype == self.dtype == torch.float32 and inner.dtype == torch.bfloat16
            ):
                return self._load(inner, chunk)
            case Apply(function, (left, right), dtype) if function in _SIGNS and dtype == self.dtype:
                return f"({self._vector(left, c, chunk)} {function} {self._vector(right, c, chunk)})"
            case Apply("neg", (inner,), dtype) if dtype == self.dtype:
                return f"(-{self._vector(inner, c, chunk)})"
            case Apply("select", (condition, then, otherwise), dtype) if dtype == self.dtype:
                if names_in(condition) & self.varying:
                    raise Unfit
                either = [self._spread(self._vector(each, c, chunk), chunk) for each in (then, otherwise)]
                return f"({self.printer.show(condition)} ? {either[0]} : {either[1]})"
        raise Unfit

    def _own_value(self, value: Expression, chunk: Chunk) -> str:
        """A lane's own number that the loop does not change."""
        if not isinstance(value, Load) or value.dtype != self.dtype or any(
            not isinstance(at, Literal) for at in value.index
        ) or (value.buffer, value.index) in self.sums:  # fmt: skip
            raise Unfit
        return self._own(value.buffer, value.index, chunk)

    def _load(self, load: Load, chunk: Chunk) -> str:
        """Elements side by side."""
        if load.buffer.scope is Scope.THREAD:
            return self._own_value(load, chunk)
        index = [put(at, self.lets) for at in load.index]
        steps = [stride_of(at, self.lane.name) for at in index]
        if (
            load.buffer.scope is not Scope.GLOBAL
            or steps[-1] != Literal(1)
            or any(each != Literal(0) for each in steps[:-1])
        ):
            raise Unfit
        first = [at_lane(shortest(at, self.lets, self.varying), self.lane, chunk.first) for at in load.index]
        place = f"&{self.printer.element(load.buffer, first)}"
        if load.dtype == torch.bfloat16 and self.dtype == torch.float32:
            return f"k_wide{chunk.lanes}({place})" if chunk.lanes > 1 else f"k_from_bf16(*({place}))"
        if load.dtype != self.dtype:
            raise Unfit
        return f"*(const {self.type_of(chunk, loose=True)}*)({place})" if chunk.lanes > 1 else f"*({place})"

    # what is looked up is fetched ahead

    def _fetch(self, value: Expression, found: dict[Load, None]) -> None:
        turn = self.turn.name
        for part in parts(put(value, _plain_lets(self.steps))):
            if (
                not isinstance(part, Load)
                or part.buffer.scope is not Scope.GLOBAL
                or self.lane.name not in names_in(part)
            ):
                continue
            inner = [each for at in part.index for each in parts(at) if isinstance(each, Load)]
            if any(turn in names_in(each) for each in inner):
                found[part] = None

    def _prefetches(self, found: Mapping[Load, None]) -> list[str]:
        lines: list[str] = []
        turn = self.turn
        for load in found:
            bounds = {
                (each.buffer.shape[0], swapped(each.index[0], turn.name, Literal(0))) for at in load.index for each in parts(at)
                if isinstance(each, Load) and len(each.index) == 1 and stride_of(each.index[0], turn.name) == Literal(1)
                and each.buffer.scope is Scope.GLOBAL
            }  # fmt: skip
            if len(bounds) != 1 or not all(only_inside(at, turn.name) for at in load.index):
                continue
            [(size, first)] = bounds
            ahead = apply("min", turn + _AHEAD, size - 1 if first == Literal(0) else size - 1 - first)
            index = [at_lane(swapped(at, turn.name, ahead), self.lane, 0) for at in load.index]
            place = self.printer.element(load.buffer, index)
            last = self.chunks[-1].first + self.chunks[-1].lanes
            width = load.dtype.itemsize
            lines += [f"__builtin_prefetch((const char*)&{place} + {at});" for at in range(0, last * width, _LINE)]
        return lines


def _plain_lets(steps: Sequence[Let | Update]) -> dict[str, Expression]:
    found: dict[str, Expression] = {}
    for each in steps:
        if isinstance(each, Let):
            found[each.name.name] = put(each.value, found)
    return found


def _chunks(count: int, size: int) -> list[Chunk]:
    """Lanes as whole vectors, the widest first, then one by one."""
    found: list[Chunk] = []
    first = 0
    for lanes in (*(bytes_ // size for bytes_ in _BYTES), 1):
        while count - first >= lanes and lanes > 0:
            found.append(Chunk(first, lanes))
            first += lanes
    return found


def _unrolled(body: Sequence[Statement], names: Mapping[str, Expression] | None = None) -> list[Statement]:
    """The statements of a turn, short inner loops written out."""
    found: list[Statement] = []
    known = dict(names or {})
    for statement in body:
        match statement:
            case Loop(variable, Literal(start), Literal(stop), inner) if stop - start <= _UNROLLED:
                for at in range(int(start), int(stop)):
                    found += _unrolled(inner, {**known, variable.name: Literal(at)})
            case Let(name, value):
                known.pop(name.name, None)
                found.append(Let(name, put(value, known)))
            case Update(index=index, value=value):
                found.append(replace(statement, index=tuple(put(at, known) for at in index), value=put(value, known)))
            case _:
                raise Unfit
    return found
