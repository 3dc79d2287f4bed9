"""The fast C++ print: blocks over OpenMP threads, lanes as the innermost SIMD loop.

Lanes of a region do not see each other, so their order is free: a loop that is the same for all lanes goes outside, its body inside one loop
over lanes. Where a loop's bounds fall or rise with the lane (the strided loop over a row), the turns that all lanes take run without a condition.
What a lane keeps from region to region is an array over lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.expressions import C_TYPES, combined, neutral
from suture.codegen.prelude import PRELUDE
from suture.codegen.printer import KernelPrinter
from suture.ir.kernel import (
    Branch,
    Buffer,
    Expression,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Lowering,
    Name,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Threads,
    expressions_of,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_ranges import monotone

_UNROLL = 32  # register tiles up to this many rows are unrolled


def print_cpp(kernel: Kernel) -> str:
    """A C++ file with one function of C linkage: sizes, scalars and pointers in the kernel's order."""
    printer = CppPrinter(kernel)
    printer.function()
    headers = "#include <omp.h>\n#include <stdlib.h>\n" if _private(kernel) else ""
    return PRELUDE + headers + "\n" + "\n".join(printer.lines) + "\n"


class CppPrinter(KernelPrinter):
    """Prints for speed."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.lane: Name | None = None
        self.count = 1
        self.varying: set[str] = set()  # names that differ from lane to lane

    def function(self) -> None:
        """The whole function."""
        private = _private(self.kernel)
        self.block(
            f'extern "C" void {self.kernel.name}({", ".join(self.parameters("__restrict__"))})',
            lambda: self._function_body(private),
        )

    def _function_body(self, private: Sequence[tuple[Buffer, str]]) -> None:
        self.line(f"const k_i64 k_blocks = {self.blocks()};")
        loop = "for (k_i64 k_block = 0; k_block < k_blocks; ++k_block)"
        if private:
            self._with_copies(private, loop)
            return
        self.line("#pragma omp parallel for schedule(static)")
        self.block(loop, self._block_body)

    def _with_copies(self, private: Sequence[tuple[Buffer, str]], loop: str) -> None:
        """Every thread scatters into a copy; the copies are met in the threads' order, so that the result is the same every time."""
        self.line("const int k_threads = omp_get_max_threads();")
        for buffer, operation in private:
            size = " * ".join(f"({self.show(dim)})" for dim in buffer.shape) or "1"
            kind = C_TYPES[buffer.dtype]
            self.line(f"const k_i64 k_size_{buffer.name} = {size};")
            self.line(
                f"{kind}* k_copies_{buffer.name} = ({kind}*)malloc(sizeof({kind}) * k_size_{buffer.name} * k_threads);"
            )
            start = neutral(operation, buffer.dtype)
            self.line(
                f"for (k_i64 i = 0; i < k_size_{buffer.name} * k_threads; ++i) k_copies_{buffer.name}[i] = {start};"
            )

        def parallel() -> None:
            for buffer, _ in private:
                name = buffer.name
                self.line(
                    f"{C_TYPES[buffer.dtype]}* k_own_{name} = k_copies_{name} + k_size_{name} * omp_get_thread_num();"
                )
            self.line("#pragma omp for schedule(static)")
            self.block(loop, self._block_body)

        self.line("#pragma omp parallel num_threads(k_threads)")
        self.block("", parallel)
        for buffer, operation in private:
            name = buffer.name
            self.line("#pragma omp parallel for schedule(static)")

            def meet(name: str = name, operation: str = operation, buffer: Buffer = buffer) -> None:
                value = combined(operation, f"{name}[i]", f"k_copies_{name}[k_size_{name} * k + i]", buffer.dtype)
                self.line(f"for (int k = 0; k < k_threads; ++k) {name}[i] = {value};")

            self.block(f"for (k_i64 i = 0; i < k_size_{name}; ++i)", meet)
            self.line(f"free(k_copies_{name});")

    def _block_body(self) -> None:
        self.decode_grid()
        for buffer in self.locals(Scope.SHARED, Scope.THREAD, Scope.UNIFORM):
            lanes = [Literal(self.kernel.threads)] if buffer.scope is Scope.THREAD else []
            size = " * ".join(self.show(dim) for dim in (*buffer.shape, *lanes)) or "1"
            self.line(f"alignas(64) {C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
        self.between(self.kernel.body)

    def reduce(self, reduce: Reduce) -> None:
        """Eight parts side by side, then those."""
        kind, source = C_TYPES[reduce.source.dtype], reduce.source.name
        whole = {"+": "+", "max": "max", "min": "min"}[reduce.operation]

        def inside() -> None:
            # eight sums side by side, so that the order is fixed and yet fills a vector register
            self.line(f"{kind} k_part[8];")
            start = neutral(reduce.operation, reduce.source.dtype)
            self.line(f"for (int k = 0; k < 8; ++k) k_part[k] = {start};")
            value = combined(whole, "k_part[k]", f"{source}[t + k]", reduce.source.dtype)
            full = reduce.count // 8 * 8
            self.line(f"for (int t = 0; t < {full}; t += 8) for (int k = 0; k < 8; ++k) k_part[k] = {value};")
            if full < reduce.count:
                rest = combined(whole, "k_part[t & 7]", f"{source}[t]", reduce.source.dtype)
                self.line(f"for (int t = {full}; t < {reduce.count}; ++t) k_part[t & 7] = {rest};")
            for step in (4, 2, 1):
                value = combined(whole, "k_part[k]", f"k_part[k + {step}]", reduce.source.dtype)
                self.line(f"for (int k = 0; k < {step}; ++k) k_part[k] = {value};")
            self.line(f"{reduce.target.name}[0] = k_part[0];")

        self.block("", inside)

    def scan(self, scan: Scan) -> None:
        """One lane after the other."""
        value = combined(scan.operation, "k_so_far", f"{scan.source.name}[t]", scan.source.dtype)

        def inside() -> None:
            self.line(f"{C_TYPES[scan.source.dtype]} k_so_far = {neutral(scan.operation, scan.source.dtype)};")
            self.line(
                f"for (int t = 0; t < {scan.count}; ++t) {{ k_so_far = {value}; {scan.target.name}[t] = k_so_far; }}"
            )

        self.block("", inside)

    # regions

    def region(self, region: Threads) -> None:
        """Loops that all lanes share outside, lanes inside."""
        self.lane, self.count, self.varying = region.variable, region.count, {region.variable.name}
        kept = dict(self.spelling)
        self.block("", lambda: self._spread(region.body))
        self.spelling, self.lane = kept, None

    def _spread(self, body: Sequence[Statement]) -> None:
        """Statements of all lanes: runs of plain ones share a loop over lanes, loops common to all lanes go outside."""
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

    def _let(self, let: Let, run: list[Statement], later: Sequence[Statement]) -> None:
        """A name that is the same for all lanes is one number; one that a later loop needs is kept for every lane."""
        name = let.name.name
        if not self._varies(let.value) and not run:
            self.statement(let)
            return
        self.varying.add(name)
        outside = [each for each in later if self._goes_outside(each)]
        if any(name in _mentioned(each) for each in outside):
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
        assert isinstance(statement, Loop)
        variable, start = statement.variable, self.show(statement.start)
        if not self._varies(statement.stop):
            fixed = statement.stop.value if isinstance(statement.stop, Literal) else 0
            if 1 < int(fixed) <= _UNROLL:
                self.line(f"#pragma GCC unroll {int(fixed)}")
            self.block(self.loop_head(variable, start, self.show(statement.stop)), lambda: self._spread(statement.body))
            return
        turns = self._turn(statement.stop)
        assert turns is not None
        fewest, most = turns
        name, kind = variable.name, "k_i64"

        def both() -> None:
            self.line(f"const {kind} k_all = {fewest}, k_some = {most};")
            self.line(f"{kind} {name} = {start};")
            self.block(f"for (; {name} < k_all; ++{name})", lambda: self._spread(statement.body))
            guarded = (Branch(_below(variable, statement.stop), statement.body),)
            self.block(f"for (; {name} < k_some; ++{name})", lambda: self._spread(guarded))

        self.block("", both)

    def _lanes(self, run: Sequence[Statement]) -> None:
        """One loop over the lanes around plain statements."""
        if not run:
            return
        lane = self._lane_name()
        plain = not any(isinstance(each, Loop | Scatter) for each in walk(tuple(_plain(each) for each in run)))
        if plain:
            self.line("#pragma omp simd")
        self.block(f"for (k_i64 {lane} = 0; {lane} < {self.count}; ++{lane})", lambda: self.body(run))

    def statement(self, statement: Statement) -> None:
        """One statement of one lane; a kept name goes into its array."""
        if isinstance(statement, _Kept):
            name = statement.let.name.name
            self.line(f"k_{name}[{self._lane_name()}] = {self.show(statement.let.value)};")
            return
        super().statement(statement)

    def element(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """An element; of a lane's own buffer, that of the lane."""
        if buffer.scope is Scope.THREAD:
            inner = self.offset(buffer, index)
            place = self._lane_name() if inner == "0" else f"{inner} * {self.kernel.threads} + {self._lane_name()}"
            return f"{buffer.name}[{place}]"
        return super().element(buffer, index)

    def scatter(self, scatter: Scatter) -> None:
        """Into the thread's own copy, or by an atomic operation."""
        value = self.show(scatter.value)
        if scatter.lowering is Lowering.PRIVATE:
            place = f"k_own_{scatter.buffer.name}[{self.offset(scatter.buffer, scatter.index)}]"
            self.update(place, scatter.operation, value, scatter.buffer)
            return
        place = self.element(scatter.buffer, scatter.index)
        if scatter.operation == "+":
            self.line("#pragma omp atomic")
            self.line(f"{place} += {value};")
        else:
            self.line("#pragma omp critical")
            self.block("", lambda: self.update(place, scatter.operation, value, scatter.buffer))


class _Kept:
    """A `let` whose value is kept for every lane."""

    def __init__(self, let: Let) -> None:
        self.let = let


def _plain(statement: Statement | _Kept) -> Statement:
    return statement.let if isinstance(statement, _Kept) else statement


def _below(variable: Name, stop: Expression) -> Expression:
    return variable < stop


def _mentioned(statement: Statement) -> set[str]:
    return {name for each in walk((statement,)) for expression in expressions_of(each) for name in names_in(expression)}


def _private(kernel: Kernel) -> list[tuple[Buffer, str]]:
    """The buffers that are scattered into copies, and the operation."""
    found = {
        each.buffer.name: (each.buffer, each.operation)
        for each in walk(kernel.body)
        if isinstance(each, Scatter) and each.lowering is Lowering.PRIVATE
    }
    return list(found.values())
