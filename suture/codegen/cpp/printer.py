"""The fast C++ print: blocks over OpenMP threads, lanes as the innermost SIMD loop (`regions`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from suture.codegen.cpp.micro import MICRO, is_tile, print_product
from suture.codegen.cpp.regions import RegionPrinter
from suture.codegen.cpp.row_sums import TOTALS, has_row_sums
from suture.codegen.cpp.transposing import TRANSPOSE, has_transposition
from suture.codegen.cpp.vectors import VECTORS, has_vectors
from suture.codegen.expressions import C_TYPES, combined, neutral
from suture.codegen.prelude import PRELUDE
from suture.codegen.taking_over import takeovers
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
    Lowering,
    MultiplyAccumulate,
    Name,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Threads,
    names_in,
    parts,
    walk,
)
from suture.ir.kernel_collectives import number

_WORTH = 30000  # statements of lanes from which on more threads than one are worth waking
_GUESS = 16  # turns of a loop of unknown length
_CHUNK = 64  # blocks that a thread takes at a time, at most, where they are uneven
_PIECES = 256  # into how many parts blocks then come, at least
_THREADS = 'extern "C" int omp_get_max_threads(void), omp_get_thread_num(void);'


def print_cpp(kernel: Kernel) -> str:
    """A C++ file with one function of C linkage: sizes, scalars and pointers in the kernel's order."""
    printer = CppPrinter(kernel)
    printer.function()
    return PRELUDE + "\n".join([*printer.headers(), "", *printer.lines]) + "\n"


class CppPrinter(RegionPrinter):
    """Prints for speed."""

    def headers(self) -> list[str]:
        """What the function needs besides the prelude; a file has each text once."""
        found = [_THREADS] if _private(self.kernel) else []
        if any(isinstance(each, MultiplyAccumulate) and is_tile(each) for each in walk(self.kernel.body)):
            found.append(MICRO)
        if has_transposition(self.kernel):
            found.append(TRANSPOSE)
        if has_vectors(self.kernel) or has_row_sums(self.kernel):
            found.append(VECTORS)
        if has_row_sums(self.kernel):
            found.append(TOTALS)
        return found

    def function(self) -> None:
        """The whole function."""
        private = _private(self.kernel)
        parameters = ", ".join(self.parameters("__restrict__"))
        uneven = not private and _is_uneven(self.kernel)
        if uneven:
            self.block(
                f"static __attribute__((noinline)) void {self.kernel.name}_blocks(k_i64 k_from, k_i64 k_to, {parameters})",
                lambda: self.block("for (k_i64 k_block = k_from; k_block < k_to; ++k_block)", self._block_body),
            )
        self.block(
            f'extern "C" void {self.kernel.name}({parameters})',
            self._in_pieces if uneven else lambda: self._function_body(private),
        )

    def parameters(self, restrict: str) -> list[str]:
        """The function's parameters; a result may lie where an operand lay, and the compiler is not told otherwise."""
        shared = {f"* {restrict} {buffer.name}" for pair in takeovers(self.kernel) for buffer in pair}
        found = super().parameters(restrict)
        return [each.replace(f"{restrict} ", "") if any(map(each.endswith, shared)) else each for each in found]

    def _function_body(self, private: Sequence[tuple[Buffer, str]]) -> None:
        self.line(f"const k_i64 k_blocks = {self.blocks()};")
        loop = "for (k_i64 k_block = 0; k_block < k_blocks; ++k_block)"
        if private:
            self._with_copies(private, loop)
            return
        work = self._work(self.kernel.body)
        self.line(f"#pragma omp parallel for schedule(static) if (k_blocks * ({work}) > {_WORTH})")
        self.block(loop, self._block_body)

    def _in_pieces(self) -> None:
        """Blocks of which data say how much they do: whoever is done takes more. Each block's result is its own, whoever computes it."""
        self.line(f"const k_i64 k_blocks = {self.blocks()};")
        self.line(f"const k_i64 k_piece = k_max_i(1, k_min_i({_CHUNK}, k_blocks / {_PIECES}));")
        self.line(
            f"#pragma omp parallel for schedule(dynamic) if (k_blocks * ({self._work(self.kernel.body)}) > {_WORTH})"
        )
        given = [each.name for each in (*self.kernel.sizes, *self.kernel.scalars)]
        given += [buffer.name for buffer in self.kernel.arguments]
        call = f"{self.kernel.name}_blocks(k_from, k_min_i(k_from + k_piece, k_blocks), {', '.join(given)});"
        self.line(f"for (k_i64 k_from = 0; k_from < k_blocks; k_from += k_piece) {call}")

    def _work(self, body: Sequence[Statement]) -> str:
        """About how many statements lanes run in a block, over the kernel's sizes; loops whose length depends on more are guessed."""
        sizes = {each.name for each in self.kernel.sizes}
        single = 0
        found: list[str] = []
        for statement in body:
            match statement:
                case Threads(count=count, body=inner):
                    found.append(f"{count} * ({self._work(inner)})")
                case Loop(_, start, stop, inner):
                    ends = self._first(stop), self._first(start)
                    known = not _read(self.kernel, (start, stop)) and all(
                        names_in(end) <= sizes and not any(isinstance(p, Load) for p in parts(end)) for end in ends
                    )
                    turns = f"({self.show(ends[0])} - {self.show(ends[1])})" if known else str(_GUESS)
                    found.append(f"{turns} * ({self._work(inner)})")
                case Branch(_, inner, otherwise):
                    found.append(self._work((*inner, *otherwise)))
                case MultiplyAccumulate(target=target, depth=depth, count=count):
                    known = names_in(depth) <= sizes
                    found.append(
                        f"{count} * ({self.show(depth) if known else _GUESS * 4}) * {math.prod(number(d) for d in target.shape)}"
                    )
                case _:
                    single += 1
        return " + ".join([str(max(single, 1)), *found])

    def _first(self, end: Expression) -> Expression:
        """The end of a loop for the first lane, block and turn."""
        if isinstance(end, Name):
            return end if end in self.kernel.sizes else Literal(0)
        if isinstance(end, Apply):
            return Apply(end.function, tuple(map(self._first, end.operands)), end.dtype)
        return end

    def _with_copies(self, private: Sequence[tuple[Buffer, str]], loop: str) -> None:
        """Every thread scatters into a copy; the copies are met in the threads' order, so that the result is the same every time."""
        self.line("const int k_threads = omp_get_max_threads();")
        for buffer, operation in private:
            size = " * ".join(f"({self.show(dim)})" for dim in buffer.shape) or "1"
            kind = C_TYPES[buffer.dtype]
            self.line(f"const k_i64 k_size_{buffer.name} = {size};")
            self.line(
                f"{kind}* k_copies_{buffer.name} = ({kind}*)__builtin_malloc(sizeof({kind}) * k_size_{buffer.name} * k_threads);"
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
            self.line(f"__builtin_free(k_copies_{name});")

    def _block_body(self) -> None:
        self.decode_grid()
        for buffer in self.locals(Scope.SHARED, Scope.THREAD, Scope.UNIFORM):
            lanes = [Literal(self.kernel.threads)] if buffer.scope is Scope.THREAD else []
            size = " * ".join(self.show(dim) for dim in (*buffer.shape, *lanes)) or "1"
            self.line(f"alignas(64) {C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
        self.between(self.kernel.body)

    def multiply(self, product: MultiplyAccumulate) -> None:
        """In registers, where the lanes' tile is that of a register tile."""
        if is_tile(product):
            print_product(self, product)
        else:
            super().multiply(product)

    def reduce(self, reduce: Reduce) -> None:
        """By vectors, as the compiler does it for so many lanes: the same every time. Not a number is looked for beside extremes."""
        if reduce.width:
            self._groups(reduce)
            return
        dtype, source, target = reduce.source.dtype, f"{reduce.source.name}[t]", f"{reduce.target.name}[0]"
        loop = f"for (int t = 0; t < {reduce.count}; ++t)"

        def inside() -> None:
            self.line(f"{C_TYPES[dtype]} k_met = {neutral(reduce.operation, dtype)};")
            if reduce.operation == "+":
                self.line("#pragma omp simd reduction(+:k_met)")
                self.line(f"{loop} k_met += {source};")
                self.line(f"{target} = k_met;")
                return
            sign = ">" if reduce.operation == "max" else "<"
            self.line("int k_nan = 0;")
            self.line(f"#pragma omp simd reduction({reduce.operation}:k_met) reduction(|:k_nan)")
            met = f"k_met = {source} {sign} k_met ? {source} : k_met;"
            self.line(f"{loop} {{ {met} k_nan |= {source} != {source}; }}")
            self.line(
                f"{target} = k_nan ? ({C_TYPES[dtype]})K_NAN : k_met;"
                if dtype.is_floating_point
                else f"{target} = k_met;"
            )

        self.block("", inside)

    def _groups(self, reduce: Reduce) -> None:
        """Half of a group with the other half, until one is left: the order in which a GPU does it."""
        kind, width = C_TYPES[reduce.source.dtype], reduce.width

        def body() -> None:
            self.line(f"{kind} k_part[{width}];")
            self.line(f"for (int t = 0; t < {width}; ++t) k_part[t] = {reduce.source.name}[k_group + t];")
            step = width // 2
            while step:
                value = combined(reduce.operation, "k_part[t]", f"k_part[t + {step}]", reduce.source.dtype)
                self.line(f"for (int t = 0; t < {step}; ++t) k_part[t] = {value};")
                step //= 2
            self.line(f"for (int t = 0; t < {width}; ++t) {reduce.target.name}[k_group + t] = k_part[0];")

        self.block(f"for (int k_group = 0; k_group < {reduce.count}; k_group += {width})", body)

    def scan(self, scan: Scan) -> None:
        """One lane after the other."""
        value = combined(scan.operation, "k_so_far", f"{scan.source.name}[t]", scan.source.dtype)

        def inside() -> None:
            self.line(f"{C_TYPES[scan.source.dtype]} k_so_far = {neutral(scan.operation, scan.source.dtype)};")
            self.line(
                f"for (int t = 0; t < {scan.count}; ++t) {{ k_so_far = {value}; {scan.target.name}[t] = k_so_far; }}"
            )

        self.block("", inside)

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


def _is_uneven(kernel: Kernel) -> bool:
    """Whether data say how much each block does."""
    return any(isinstance(each, Loop) and _read(kernel, (each.start, each.stop)) for each in walk(kernel.body))


def _read(kernel: Kernel, ends: Sequence[Expression]) -> bool:
    """Whether the ends of a loop are read from memory."""
    lets = {each.name.name: each.value for each in walk(kernel.body) if isinstance(each, Let)}
    found = [*ends, *(lets[name] for end in ends for name in names_in(end) if name in lets)]
    return any(isinstance(part, Load) for end in found for part in parts(end))


def _private(kernel: Kernel) -> list[tuple[Buffer, str]]:
    """The buffers that are scattered into copies, and the operation."""
    found = {
        each.buffer.name: (each.buffer, each.operation)
        for each in walk(kernel.body)
        if isinstance(each, Scatter) and each.lowering is Lowering.PRIVATE
    }
    return list(found.values())
