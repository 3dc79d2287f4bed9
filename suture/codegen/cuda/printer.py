"""The CUDA C++ print: blocks are blocks, lanes are threads, and a barrier stands where lanes could notice that others are not done.

A lane's own buffers are registers; a uniform buffer is a register of every thread with the same number in it, which is what the reduction hands
out. Barriers, shuffles and thread indices are written here and nowhere else. What is known to be small (lanes, turns of fixed loops) is counted in
32 bits, because a GPU has no others for indices of registers and shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from suture.codegen.cuda import collectives as cuda_collectives
from suture.codegen.cuda import tensor as cuda_tensor
from suture.codegen.cuda.barriers import Pending, inside_of, own_of, touched
from suture.codegen.cuda.copy import copy_lines
from suture.codegen.cuda.indices import Interval, interval
from suture.codegen.expressions import C_TYPES
from suture.codegen.prelude import PRELUDE
from suture.codegen.printer import KernelPrinter
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import (
    INDEX,
    Apply,
    Branch,
    Buffer,
    CopyTile,
    Expression,
    Kernel,
    Let,
    Literal,
    Loop,
    Lowering,
    MultiplyAccumulate,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    expressions_of,
    loads_in,
    names_in,
    walk,
)
from suture.ir.kernel_collectives import expand, number

STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may declare; what needs more is given it at the launch."""
ALIGNMENT = 16
"""What the addresses of all arguments are a multiple of."""
_UNROLL = 64  # fixed loops up to this many turns are unrolled
_RESIDENT = 512  # threads of a multiprocessor, at least, where tiles are multiplied: each has 128 registers then
_MANY = 64  # sums of a lane that take more
_FLIGHT = 16  # bytes that a lane should have under way of each buffer: turns of other loops run together, so that their loads do
_BYTES = {"double": 8, "k_i64": 8, "float": 4, "k_i32": 4, "k_i16": 2, "k_u16": 2, "k_i8": 1, "k_u8": 1}


def print_cuda(*kernels: Kernel, tensor_cores: bool = True) -> str:
    """A CUDA C++ file with an `extern "C" __global__` function for each kernel: sizes, scalars and pointers in the kernel's order.

    It is launched with `launch_threads(kernel)` threads, `shared_bytes(kernel)` if they are more than `STATIC_SHARED`, and as many blocks, in one
    dimension, as the grid's counts multiply to. All pointers are aligned to `ALIGNMENT` bytes.

    :param tensor_cores: whether the device has them for short floats (compute capability 8.0 and above)
    :raises SutureError: KERNEL, for a lowering that a GPU does not have
    """
    support: dict[str, None] = {}
    bodies = []
    for kernel in kernels:
        printer = CudaPrinter(kernel, tensor_cores=tensor_cores)
        printer.function()
        support.update(dict.fromkeys(printer.support()))
        bodies.append("\n".join(printer.lines))
    return PRELUDE + "\n".join([*support, "", *bodies]) + "\n"


def launch_threads(kernel: Kernel) -> int:
    """The threads of a block: whole warps, because shuffles take all of them."""
    return -(-kernel.threads // cuda_collectives.WARP) * cuda_collectives.WARP


def shared_bytes(kernel: Kernel, *, tensor_cores: bool = True) -> int:
    """The shared memory of a block."""
    return sum(size for _, _, size in CudaPrinter(kernel, tensor_cores=tensor_cores).shared())


class CudaPrinter(KernelPrinter):
    """Prints for a GPU."""

    def __init__(self, kernel: Kernel, *, tensor_cores: bool = True) -> None:
        super().__init__(kernel)
        self.small: dict[str, Interval] = {}
        self.pending = Pending()
        self.accumulators = cuda_tensor.accumulators(kernel) if tensor_cores else {}
        self.padded = cuda_tensor.operands(kernel, self.accumulators)
        self.pitch = {
            buffer.name: number(buffer.shape[-1]) + (cuda_tensor.PITCH if buffer.name in self.padded else 0)
            for buffer in kernel.locals
            if buffer.shape
        }

    # the function

    def function(self) -> None:
        """The whole function."""
        parameters = ", ".join(self.parameters("__restrict__"))
        dense = any(isinstance(each, MultiplyAccumulate) for each in walk(self.kernel.body))
        # without a number of blocks compilers may take so few registers that some spill
        blocks = 1 if self._sums() >= _MANY else max(1, _RESIDENT // self.threads)
        some = dense or any(isinstance(each, Branch) and _has_regions(each) for each in walk(self.kernel.body))
        bounds = f"{self.threads}, {blocks}" if some else f"{self.threads}"
        self.block(
            f'extern "C" __global__ void __launch_bounds__({bounds}) {self.kernel.name}({parameters})', self._body
        )

    def _sums(self) -> int:
        """How many sums of products a lane holds."""
        targets = {each.target for each in walk(self.kernel.body) if isinstance(each, MultiplyAccumulate)}
        return sum(math.prod(number(size) for size in each.shape) for each in targets)

    def support(self) -> list[str]:
        """The device functions that this kernel calls."""
        products = [each for each in walk(self.kernel.body) if isinstance(each, MultiplyAccumulate)]
        short = {cuda_tensor.operand_type(each) for each in products if each.target.name in self.accumulators}
        return cuda_collectives.support(walk(self.kernel.body)) + cuda_tensor.support(short)

    def shared(self) -> list[tuple[str, str, int]]:
        """What lies in shared memory: name, C type and bytes."""
        found = []
        for buffer in self.locals(Scope.SHARED):
            count = self.pitch.get(buffer.name, 1)
            for size in buffer.shape[:-1]:
                count *= number(size)
            kind = C_TYPES[buffer.dtype]
            found.append((buffer.name, kind, count * _BYTES[kind]))
        for kind, count in cuda_collectives.scratch(walk(self.kernel.body)).items():
            found.append((f"k_scratch_{kind}", kind, count * _BYTES[kind]))
        if self.accumulators:
            warps = launch_threads(self.kernel) // cuda_collectives.WARP
            found.append(("k_exchange", "float", warps * 16 * cuda_tensor.EXCHANGE * 4))
        return [(name, kind, -(-size // ALIGNMENT) * ALIGNMENT) for name, kind, size in found]

    def _body(self) -> None:
        for buffer in self.kernel.arguments:
            self.line(f"{buffer.name} = (decltype({buffer.name}))__builtin_assume_aligned({buffer.name}, {ALIGNMENT});")
        self.decode_grid()
        self._declare_shared()
        for buffer in self.locals(Scope.THREAD, Scope.UNIFORM):
            size = " * ".join(self.show(dim) for dim in buffer.shape) or "1"
            self.line(f"{C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
        for each in self.accumulators.values():
            self.line(f"float {each.name}[{each.high}][{each.wide}][4];")
        self.between(self.kernel.body)

    def _declare_shared(self) -> None:
        found = self.shared()
        if sum(size for _, _, size in found) <= STATIC_SHARED:
            for name, kind, size in found:
                self.line(f"__shared__ __align__({ALIGNMENT}) {kind} {name}[{size // _BYTES[kind]}];")
            return
        self.line(f"extern __shared__ __align__({ALIGNMENT}) unsigned char k_dynamic[];")
        place = 0
        for name, kind, size in found:
            self.line(f"{kind}* {name} = ({kind}*)(k_dynamic + {place});")
            place += size

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return launch_threads(self.kernel)

    def decode_grid(self) -> None:
        """The block's coordinates from its number; no launch has more than 2^31 blocks, so 32 bits divide them."""
        self.line("const unsigned k_block = blockIdx.x;")
        rest = "k_block"
        for position, each in reversed(list(enumerate(self.kernel.grid))):
            count = f"(unsigned)({self.show(each.count)})"
            self.line(f"const k_i64 {each.variable.name} = {rest if position == 0 else f'{rest} % {count}'};")
            rest = f"({rest} / {count})"

    # the statements of a block

    def between(self, body: Sequence[Statement]) -> None:
        """The statements between regions, with a barrier before one that touches what lanes may still be busy with."""
        for statement in body:
            match statement:
                case Threads():
                    self._wait_for(touched(statement))
                    self._leave_pieces(statement)
                    self.region(statement)
                    self._enter_pieces(statement)
                case CopyTile():
                    self._wait_for(touched(statement))
                    self._copy(statement)
                case MultiplyAccumulate():
                    self._wait_for(touched(expand(statement)))
                    self._multiply(statement)
                case Reduce() | Scan():
                    self._collective(statement)
                case Loop():
                    self._uniform_loop(statement)
                case Branch():
                    self._uniform_branch(statement)
                case _:
                    self._wait_for(touched(statement))
                    self.statement(statement)

    def _wait_for(self, next_: Pending) -> None:
        if self.pending.meets(next_):
            self._barrier()
        self.pending.join(next_)

    def _barrier(self) -> None:
        self.line("__syncthreads();")
        self.pending = Pending()

    def _uniform_loop(self, loop: Loop) -> None:
        self._wait_for(own_of(loop))
        before = self.pending.copy()

        def inside() -> None:
            self.between(loop.body)
            if self.pending.meets(inside_of(loop.body)):
                self._barrier()  # before the next turn

        self.loop(loop, inside)
        self.pending.join(before)  # there may have been no turn

    def _uniform_branch(self, branch: Branch) -> None:
        self._wait_for(own_of(branch))
        before = self.pending.copy()
        self.block(f"if ({self.show(branch.condition)})", lambda: self.between(branch.body))
        after, self.pending = self.pending, before.copy()
        if branch.otherwise:
            self.block("else", lambda: self.between(branch.otherwise))
        self.pending.join(after)
        self.pending.join(before)

    def _collective(self, collective: Reduce | Scan) -> None:
        groups = isinstance(collective, Reduce) and collective.width > 0
        source, target = collective.source.name, collective.target.name
        operand = f"{source}[0]" if groups else f"{source}[0], k_scratch_{C_TYPES[collective.source.dtype]}"
        self.line(f"{target}[0] = {cuda_collectives.called(collective)}({operand});")
        alone = launch_threads(self.kernel) == cuda_collectives.WARP and isinstance(collective, Reduce)
        if not groups and not alone:
            self.pending = Pending()  # the threads met inside

    def region(self, region: Threads) -> None:
        """Each thread its lane."""
        name = region.variable.name

        used = any(name in names_in(part) for each in walk(region.body) for part in expressions_of(each))

        def body() -> None:
            if used or region.count < self.threads:
                self.line(f"const int {name} = threadIdx.x;")
            if region.count < self.threads:
                self.block(f"if ({name} < {region.count})", lambda: self.body(region.body))
            else:
                self.body(region.body)

        self.small[name] = (0, region.count - 1)
        self.block("", body)

    def _copy(self, tile: CopyTile) -> None:
        lines = copy_lines(self, tile)
        if lines is None:
            self.region(expand(tile))
        else:
            for line in lines:
                self.line(line)

    def _multiply(self, product: MultiplyAccumulate) -> None:
        chosen = self.accumulators.get(product.target.name)
        if chosen is None:
            self.region(expand(product))
            return

        def body() -> None:
            for line in cuda_tensor.product_lines(product, chosen, self.pitch):
                self.line(line)

        self.block("", body)

    def _leave_pieces(self, region: Threads) -> None:
        """What a region reads of an accumulator comes from the pieces."""
        for each in self.accumulators.values():
            if cuda_tensor.reads(region, each.buffer):
                for line in cuda_tensor.exchange_lines(each):
                    self.line(line)

    def _enter_pieces(self, region: Threads) -> None:
        """What a region clears is cleared in the pieces too."""
        for each in self.accumulators.values():
            if cuda_tensor.zeroes(region, each.buffer):
                for line in cuda_tensor.zero_lines(each):
                    self.line(line)

    # the statements of a lane

    def statement(self, statement: Statement) -> None:
        """One statement of one lane."""
        match statement:
            case Loop():
                self.loop(statement, lambda: self.body(statement.body))
            case Let(name, value) if name.dtype == INDEX and (found := interval(value, self.small)) is not None:
                self.line(f"const int {name.name} = {self.show(value)};")
                self.small[name.name] = found
            case _:
                if isinstance(statement, Let):
                    self.small.pop(statement.name.name, None)
                super().statement(statement)

    def loop(self, loop: Loop, inside: object) -> None:
        """A loop: fixed ones are unrolled, so that what they index stays in registers; several turns' loads are under way together."""
        name, first, last = loop.variable.name, self.show(loop.start), self.show(loop.stop)
        start, stop = interval(loop.start, self.small), interval(loop.stop, self.small)
        known = start is not None and stop is not None
        turns = stop[1] - start[0] if start is not None and stop is not None else None
        fixed = known and isinstance(loop.start, Literal) and isinstance(loop.stop, Literal)
        registers = turns is not None and turns <= _UNROLL and _counts_registers(loop)
        if registers:
            self.line("#pragma unroll")
        elif _is_hot(loop, fixed=fixed):
            self.line(f"#pragma unroll {_flight(loop)}")
        kept = dict(self.small)
        self.small.pop(name, None)
        if start is not None and stop is not None:
            self.small[name] = (start[0], max(start[0], stop[1] - 1))
        kind = "int" if known else "k_i64"
        if registers and start is not None and stop is not None and start[0] == start[1] and not fixed:
            # lanes differ in their last turn: all count as far, so that what they count are registers
            self.block(f"for (int {name} = {start[0]}; {name} < {stop[1]}; ++{name}) if ({name} < {last})", inside)
        else:
            self.block(f"for ({kind} {name} = {first}; {name} < {last}; ++{name})", inside)
        self.small = kept

    def scatter(self, scatter: Scatter) -> None:
        """By the hardware's atomic operation."""
        where = f"kernel {self.kernel.name}"
        if scatter.lowering is not Lowering.ATOMIC:
            raise SutureError(
                Code.KERNEL, f"a GPU keeps no private copies of {scatter.buffer.name}", where=where,
                remedy="scatter by atomic, or loop over sorted segments",
            )  # fmt: skip
        kind = C_TYPES[scatter.buffer.dtype]
        if _BYTES[kind] < 4:
            raise SutureError(
                Code.KERNEL, f"a GPU has no atomic operation for the elements of {scatter.buffer.name}", where=where,
                remedy="scatter into 32 or 64 bits",
            )  # fmt: skip
        place, value = self.element(scatter.buffer, scatter.index), self.show(scatter.value)
        self.line(f"k_atomic_{cuda_collectives.operation_name(scatter.operation)}_{kind}(&{place}, {value});")

    # expressions

    def show(self, expression: Expression) -> str:
        """The C text; sums and products of small numbers that may leave 32 bits are computed in 64."""
        if isinstance(expression, Apply) and expression.dtype == INDEX and len(expression.operands) == 2:
            left, right = expression.operands
            own, first = interval(expression, self.small), interval(left, self.small)
            if own is None and expression.function in ("+", "-", "*") and first is not None:
                return f"((k_i64){self.show(left)} {expression.function} {self.show(right)})"
            if expression.function in ("//", "%") and own is not None and first is not None and first[0] >= 0:
                return f"({self.show(left)} {expression.function[0]} {self.show(right)})"
        return super().show(expression)

    def offset(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """Where an element stands; rows of a tile may be further apart than they are wide."""
        if buffer.name not in self.padded:
            return super().offset(buffer, index)
        wide = Buffer(buffer.name, buffer.dtype, (*buffer.shape[:-1], Literal(self.pitch[buffer.name])), buffer.scope)
        return super().offset(wide, index)


def _has_regions(branch: Branch) -> bool:
    """Whether a branch is the block's."""
    return any(isinstance(each, Threads) for each in walk((branch,)))


def _counts_registers(loop: Loop) -> bool:
    """Whether a loop's variable says which of a lane's own elements is meant: these are registers only if it is a number in the end."""
    names = {loop.variable.name}
    for each in walk(loop.body):
        if isinstance(each, Let) and names_in(each.value) & names:
            names.add(each.name.name)
        places = [(load.buffer, load.index) for load in loads_in(each)]
        if isinstance(each, Store | Update):
            places.append((each.buffer, each.index))
        for buffer, index in places:
            if buffer.scope is Scope.THREAD and any(names_in(at) & names for at in index):
                return True
    return False


def _flight(loop: Loop) -> int:
    """How many turns of a loop run together: four, or eight where numbers are short."""
    loads = [load for each in walk(loop.body) for load in loads_in(each) if load.buffer.scope is Scope.GLOBAL]
    return max(4, min(8, _FLIGHT // max((load.dtype.itemsize for load in loads), default=4)))


def _is_hot(loop: Loop, *, fixed: bool) -> bool:
    """Whether several turns at once are worth their registers: loops of one lane that are innermost and read memory, or around unrolled ones."""
    inner = [each for each in walk(loop.body) if not isinstance(each, Let | Store | Update | Scatter | Branch)]
    if any(not isinstance(each, Loop) for each in inner):
        return False
    reads = any(load.buffer.scope is Scope.GLOBAL for each in walk(loop.body) for load in loads_in(each))
    return reads if not inner else fixed and all(isinstance(each, Loop) and _counts_registers(each) for each in inner)
