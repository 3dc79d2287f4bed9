"""The verifier of kernels: many small checks, each with what it protects from.

A kernel that passes has every index inside its dimension, no two lanes that write one element, no lane that reads what another wrote in the same
region, no branch between regions that lanes could take differently, and meets in an element only through scatters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from suture.ir.errors import SutureError
from suture.ir.kernel import (
    COLLECTIVES,
    COMBINATIONS,
    FUNCTIONS,
    INDEX,
    Apply,
    Branch,
    Buffer,
    CopyTile,
    Expression,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    bodies_of,
    expressions_of,
    loads_in,
    parts,
    walk,
)
from suture.ir.kernel_collectives import expand
from suture.ir.kernel_names import check_names, refusal, said
from suture.ir.kernel_own import own_elements
from suture.ir.kernel_races import separates
from suture.ir.kernel_ranges import Ranges
from suture.ir.kernel_text import print_expression

Write = Store | Update | Scatter
_STORED = (torch.float16, torch.bfloat16)


def verify_kernel(kernel: Kernel) -> None:
    """Check a kernel.

    :raises SutureError: KERNEL, with the first thing that is wrong, and where
    """
    for check in (check_names, check_types, check_structure, check_scopes, check_order, check_regions, check_indices):
        check(kernel)


def check_types(kernel: Kernel) -> None:
    """Functions have the operands they take, of one type; indices are integers; what is stored has the buffer's type."""
    for statement in walk(kernel.body):
        for expression in expressions_of(statement):
            for part in parts(expression):
                _check_expression(kernel, part, statement)
        if isinstance(statement, Store | Update | Scatter) and statement.value.dtype != statement.buffer.dtype:
            raise refusal(
                kernel,
                f"{said(statement)} puts {statement.value.dtype} into {statement.buffer.dtype}",
                "cast the value",
            )
        met = _met(statement)
        if met is not None and (met.dtype in _STORED or met.dtype == torch.bool):
            raise refusal(
                kernel, f"{said(statement)} combines numbers of {met.dtype}", "combine wider numbers: these are for storage"
            )  # fmt: skip
        if isinstance(statement, Reduce | Scan) and statement.target.dtype != statement.source.dtype:
            raise refusal(
                kernel, f"{said(statement)} puts {statement.source.dtype} into {statement.target.dtype}", "give both the same type"
            )  # fmt: skip
        operation = getattr(statement, "operation", "+")
        if operation not in COMBINATIONS:
            raise refusal(kernel, f"{operation} combines nothing", f"one of {', '.join(COMBINATIONS)} would be right")
        if isinstance(statement, Branch) and statement.condition.dtype != torch.bool:
            raise refusal(kernel, f"the condition of {said(statement)} is {statement.condition.dtype}", "compare it")


def _met(statement: Statement) -> Buffer | None:
    """The buffer whose numbers a statement combines."""
    match statement:
        case Update(buffer=buffer) | Scatter(buffer=buffer):
            return buffer
        case Reduce(source=source) | Scan(source=source):
            return source
        case MultiplyAccumulate(target=target):
            return target
    return None


def _check_expression(kernel: Kernel, part: Expression, statement: Statement) -> None:
    def refused(what: str, remedy: str) -> SutureError:
        return refusal(kernel, f"{print_expression(part)} in {said(statement)}{what}", remedy)

    if isinstance(part, Load):
        if len(part.index) != len(part.buffer.shape):
            raise refused(f" has {len(part.index)} indices", f"{part.buffer.name} has {len(part.buffer.shape)}")
        if any(index.dtype.is_floating_point or index.dtype == torch.bool for index in part.index):
            raise refused(" has an index that is no integer", "cast it")
    if not isinstance(part, Apply) or part.function == "cast":
        return
    wanted = 3 if part.function == "select" else FUNCTIONS.get(part.function)
    if wanted != len(part.operands):
        raise refused(f": {part.function} of {len(part.operands)} operands", f"it takes {wanted}")
    kinds = part.operands[1:] if part.function == "select" else part.operands
    if any(operand.dtype in _STORED for operand in kinds) and part.function != "select":
        raise refused(f" computes in {kinds[0].dtype}", "cast to f32: short floats are for storage")
    if len({operand.dtype for operand in kinds}) > 1:
        raise refused(f" mixes {' and '.join(str(operand.dtype) for operand in kinds)}", "cast one")


def check_structure(kernel: Kernel) -> None:
    """Regions and collectives stand between blocks' loops, never inside a region; stores stand in regions, or go to uniform buffers."""
    for statement in walk(kernel.body):
        if isinstance(statement, Threads):
            for inner in walk(statement.body):
                if isinstance(inner, (Threads, *COLLECTIVES)):
                    raise refusal(kernel, f"{said(inner)} stands inside a region", "end the region first")
    for statement in _between(kernel.body):
        if isinstance(statement, Store | Update) and statement.buffer.scope is not Scope.UNIFORM:
            raise refusal(kernel, f"{said(statement)} stands between regions", "put it into a region")
        if isinstance(statement, Scatter):
            raise refusal(kernel, f"{said(statement)} stands between regions", "put it into a region")
        for load in loads_in(statement):
            if load.buffer.scope is Scope.THREAD:
                raise refusal(
                    kernel, f"{said(statement)} reads {load.buffer.name}, which every lane has its own of", "reduce it first"
                )  # fmt: skip


def _between(body: Sequence[Statement]) -> Iterator[Statement]:
    """The statements between regions."""
    for statement in body:
        yield statement
        if not isinstance(statement, Threads):
            for inner in bodies_of(statement):
                yield from _between(inner)


def check_scopes(kernel: Kernel) -> None:
    """Arguments are global, local buffers are not and have fixed sizes; collectives find their operands where they must be."""
    for buffer in kernel.arguments:
        if buffer.scope is not Scope.GLOBAL:
            raise refusal(kernel, f"the argument {buffer.name} is {buffer.scope.value}", "arguments are global")
    for buffer in kernel.locals:
        if buffer.scope is Scope.GLOBAL or not all(isinstance(size, Literal) for size in buffer.shape):
            raise refusal(
                kernel, f"{buffer.name} is {buffer.scope.value} of a shape that is not fixed", "a block's buffers have fixed sizes"
            )  # fmt: skip
        if buffer.scope is Scope.UNIFORM and buffer.shape:
            raise refusal(kernel, f"the uniform {buffer.name} has dimensions", "uniform buffers are single numbers")
    for statement in walk(kernel.body):
        if isinstance(statement, Reduce) and statement.width:
            _check_groups(kernel, statement)
        if isinstance(statement, MultiplyAccumulate) and (statement.across < 1 or statement.count % statement.across):
            raise refusal(
                kernel, f"{statement.across} lanes side by side do not divide {statement.count} in {said(statement)}", "take a divisor"
            )  # fmt: skip
        for buffer, scopes, rank in _operands(statement):
            if buffer.scope not in scopes or (rank is not None and len(buffer.shape) != rank):
                wanted = " or ".join(scope.value for scope in scopes) + ("" if rank is None else f" of rank {rank}")
                raise refusal(
                    kernel, f"{buffer.name} in {said(statement)} is {buffer.scope.value}", f"{wanted} would be right"
                )
    _check_lanes(kernel)


def _operands(statement: Statement) -> Iterator[tuple[Buffer, tuple[Scope, ...], int | None]]:
    """The buffers of a collective or scatter, and the scopes and rank they must have."""
    match statement:
        case Reduce(target=target, source=source, width=width):
            yield target, (Scope.THREAD if width else Scope.UNIFORM,), 0
            yield source, (Scope.THREAD,), 0
        case Scan(target=target, source=source):
            yield target, (Scope.THREAD,), 0
            yield source, (Scope.THREAD,), 0
        case CopyTile(target=target, source=source):
            yield target, (Scope.SHARED,), len(source.shape)
            yield source, (Scope.GLOBAL,), None
        case MultiplyAccumulate(target=target):
            yield target, (Scope.THREAD,), 2
        case Scatter(buffer=buffer):
            yield buffer, (Scope.GLOBAL,), None


def _check_groups(kernel: Kernel, reduce: Reduce) -> None:
    """Groups of lanes lie within the 32 that a GPU runs together, and fill the block."""
    if reduce.width not in (1, 2, 4, 8, 16, 32) or reduce.count % reduce.width:
        raise refusal(
            kernel, f"{said(reduce)} has groups of {reduce.width}", "a power of two up to 32 that divides the lanes would be right"
        )  # fmt: skip


def _check_lanes(kernel: Kernel) -> None:
    """All regions and collectives that share lanes' own buffers have as many lanes as the block."""
    counts = {count for statement in walk(kernel.body) if (count := getattr(statement, "count", 0))}
    own = any(buffer.scope is Scope.THREAD for buffer in kernel.locals)
    if own and len(counts) > 1:
        raise refusal(
            kernel, f"regions of {' and '.join(map(str, sorted(counts)))} lanes share the lanes' own buffers", "give all the same"
        )  # fmt: skip


def check_order(kernel: Kernel) -> None:
    """A block's buffers are read only after something wrote them."""
    written: set[str] = {buffer.name for buffer in kernel.arguments}
    for statement in walk(kernel.body):
        read = [load.buffer for load in loads_in(statement)]
        match statement:
            case Reduce(source=source) | Scan(source=source):
                read.append(source)
            case MultiplyAccumulate(target=target, adds=True):
                read.append(target)
            case Update(buffer=buffer):
                read.append(buffer)
        for buffer in read:
            if buffer.name not in written:
                raise refusal(
                    kernel, f"{said(statement)} reads {buffer.name} before anything wrote it", "store it first"
                )
        made = statement.buffer if isinstance(statement, Write) else getattr(statement, "target", None)
        if isinstance(made, Buffer):
            written.add(made.name)


def check_regions(kernel: Kernel) -> None:
    """A lane reads of written buffers only what it wrote itself, of shared ones in the same region; uniform buffers are not written there."""
    written = {statement.buffer.name for statement in walk(kernel.body) if isinstance(statement, Write)}
    earlier = iter(own_elements(kernel))
    for statement in walk(kernel.body):
        region = expand(statement) if isinstance(statement, CopyTile | MultiplyAccumulate) else statement
        if not isinstance(region, Threads):
            continue
        before = next(earlier) if region is statement else set()
        inside = list(walk(region.body))
        writes = [each for each in inside if isinstance(each, Write)]
        for write in writes:
            if write.buffer.scope is Scope.UNIFORM:
                raise refusal(
                    kernel,
                    f"{said(write)} writes a uniform buffer in a region",
                    "reduce, or store between regions",
                )
        own = {(write.buffer.name, write.index) for write in writes if not isinstance(write, Scatter)}
        here = {write.buffer.name for write in writes}
        for statement in inside:
            for load in loads_in(statement):
                scope = load.buffer.scope
                shared = scope is Scope.SHARED and load.buffer.name in here
                foreign = scope is Scope.GLOBAL and load.buffer.name in written
                element = (load.buffer.name, load.index)
                if (shared or foreign) and element not in own and (shared or element not in before):
                    raise refusal(
                        kernel, f"{said(statement)} reads {print_expression(load)}, which another lane may be writing",
                        "end the region between writing and reading" if shared else "write into another buffer",
                    )  # fmt: skip


@dataclass
class _Walk:
    """The walk that knows the ranges of all variables: for bounds and races."""

    kernel: Kernel
    lanes: list[str] = field(default_factory=list)

    def body(self, body: Sequence[Statement], ranges: Ranges) -> None:
        for statement in body:
            self.statement(statement, ranges)

    def statement(self, statement: Statement, ranges: Ranges) -> None:
        if isinstance(statement, CopyTile | MultiplyAccumulate):
            self.body((expand(statement),), ranges.inner())
            return
        for expression in expressions_of(statement):
            self.expression(expression, ranges, statement)
        if isinstance(statement, Write):
            self.write(statement, ranges)
        inner = ranges.inner()
        match statement:
            case Let(name, value):
                if name.dtype == INDEX:
                    ranges.lets[name.name] = ranges.dim(value)
                if not name.dtype.is_floating_point:
                    self.exists(value, ranges)
            case Loop(variable, start, stop, body):
                inner.bind(variable.name, start, stop)
                self.body(body, inner)
            case Branch(condition, body, otherwise):
                inner.assume(condition)
                self.body(body, inner)
                inner = ranges.inner()
                inner.refute(condition)
                self.body(otherwise, inner)
            case Threads(variable, count, body):
                inner.bind(variable.name, Literal(0), Literal(count))
                self.lanes.append(variable.name)
                self.body(body, inner)
                self.lanes.pop()

    def exists(self, value: Expression, ranges: Ranges) -> None:
        """Where an index has been read from memory, what it was read from is not empty: nor are others of that size."""
        if isinstance(value, Load):
            inside = zip(value.index, value.buffer.shape, strict=True)
            ranges.learn(*(ranges.dim(size) - 1 - ranges.dim(at) for at, size in inside))

    def expression(self, expression: Expression, ranges: Ranges, statement: Statement) -> None:
        """Every element read lies inside its buffer; what a condition guards may rely on it."""
        match expression:
            case Apply("select", (condition, then, otherwise)):
                self.expression(condition, ranges, statement)
                inner = ranges.inner()
                inner.assume(condition)
                self.expression(then, inner, statement)
                inner = ranges.inner()
                inner.refute(condition)
                self.expression(otherwise, inner, statement)
            case Apply(_, operands):
                for operand in operands:
                    self.expression(operand, ranges, statement)
            case Load(buffer, index):
                for part in index:
                    self.expression(part, ranges, statement)
                self.inside(buffer, index, ranges, statement)

    def inside(self, buffer: Buffer, index: Sequence[Expression], ranges: Ranges, statement: Statement) -> None:
        for at, size in zip(index, buffer.shape, strict=True):
            dim = ranges.dim(at)
            for above, reach in ((False, dim), (True, ranges.dim(size) - 1 - dim)):
                if not ranges.never_negative(reach):
                    end = f"beyond {print_expression(size)}" if above else "below 0"
                    raise refusal(
                        self.kernel, f"the index {print_expression(at)} of {buffer.name} in {said(statement)} may be {end}",
                        "guard it by a branch, or bound the loop",
                    )  # fmt: skip

    def write(self, statement: Write, ranges: Ranges) -> None:
        """What a statement writes lies inside its buffer, and no other lane or block writes it too."""
        self.inside(statement.buffer, statement.index, ranges, statement)
        scope = statement.buffer.scope
        if isinstance(statement, Scatter) or scope in (Scope.THREAD, Scope.UNIFORM):
            return
        blocks = [each.variable.name for each in self.kernel.grid] if scope is Scope.GLOBAL else []
        index = [ranges.dim(at) for at in statement.index]
        lane = separates(ranges, index, [*blocks, *self.lanes])
        if lane is not None:
            raise refusal(
                self.kernel, f"two values of {lane} may write one element in {said(statement)}",
                "mention it in the index, or scatter",
            )  # fmt: skip


def check_indices(kernel: Kernel) -> None:
    """Every index is inside its dimension, and every element has one writer."""
    ranges = Ranges(frozenset(size.name for size in kernel.sizes))
    for each in kernel.grid:
        ranges.bind(each.variable.name, Literal(0), each.count)
    _Walk(kernel).body(kernel.body, ranges)
