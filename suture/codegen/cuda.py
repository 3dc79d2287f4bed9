"""The CUDA C++ print: blocks are blocks, lanes are threads, the end of a region is a barrier where lanes could notice.

A lane's own buffers are registers; a uniform buffer is a register of every thread with the same number in it, which is what the reduction hands
out. Barriers, shuffles and thread indices are written here and nowhere else.
"""

from __future__ import annotations

from suture.codegen.expressions import C_TYPES, combined, neutral, suffix
from suture.codegen.prelude import PRELUDE
from suture.codegen.printer import KernelPrinter
from suture.ir.errors import Code, SutureError
from suture.ir.kernel import (
    Kernel,
    Loop,
    Lowering,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Statement,
    Store,
    Threads,
    Update,
    loads_in,
    walk,
)

_WARP = 32


def print_cuda(kernel: Kernel) -> str:
    """A CUDA C++ file with one `extern "C" __global__` function: sizes, scalars and pointers in the kernel's order.

    It is launched with `launch_threads(kernel)` threads and as many blocks, in one dimension, as the grid's counts multiply to.

    :raises SutureError: KERNEL, for a lowering that a GPU does not have
    """
    printer = CudaPrinter(kernel)
    printer.function()
    return PRELUDE + "\n".join([*printer.support(), "", *printer.lines]) + "\n"


def launch_threads(kernel: Kernel) -> int:
    """The threads of a block: whole warps, because shuffles take all of them."""
    return -(-kernel.threads // _WARP) * _WARP


class CudaPrinter(KernelPrinter):
    """Prints for a GPU."""

    def function(self) -> None:
        """The whole function."""
        parameters = ", ".join(self.parameters("__restrict__"))
        head = f'extern "C" __global__ void __launch_bounds__({launch_threads(self.kernel)}) {self.kernel.name}({parameters})'
        self.block(head, self._body)

    def _body(self) -> None:
        self.line("const k_i64 k_block = blockIdx.x;")
        self.decode_grid()
        for buffer in self.locals(Scope.SHARED):
            size = " * ".join(self.show(dim) for dim in buffer.shape) or "1"
            self.line(f"__shared__ {C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
        for buffer in self.locals(Scope.THREAD, Scope.UNIFORM):
            size = " * ".join(self.show(dim) for dim in buffer.shape) or "1"
            self.line(f"{C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
        for kind, count in self._scratch().items():
            self.line(f"__shared__ {kind} k_scratch_{kind}[{count}];")
        self.between(self.kernel.body)

    def _scratch(self) -> dict[str, int]:
        """What reductions and scans need of shared memory, by element type."""
        found: dict[str, int] = {}
        for each in walk(self.kernel.body):
            if isinstance(each, Reduce | Scan):
                kind = C_TYPES[each.source.dtype]
                found[kind] = max(found.get(kind, 0), -(-each.count // _WARP) + 1)
        return found

    def support(self) -> list[str]:
        """The collectives that this kernel uses, as device functions."""
        lines: dict[str, None] = {}
        for each in walk(self.kernel.body):
            if isinstance(each, Reduce):
                lines.update(dict.fromkeys(_reduction(each)))
            elif isinstance(each, Scan):
                lines.update(dict.fromkeys(_prefix(each)))
            elif isinstance(each, Scatter) and each.operation != "+":
                lines.update(dict.fromkeys(_atomic(each)))
        return list(lines)

    def reduce(self, reduce: Reduce) -> None:
        """By shuffles."""
        self._collective("reduce", reduce)

    def scan(self, scan: Scan) -> None:
        """By shuffles."""
        self._collective("scan", scan)

    def _collective(self, word: str, collective: Reduce | Scan) -> None:
        kind = C_TYPES[collective.source.dtype]
        name = f"k_{word}_{_named(collective.operation)}_{kind}<{collective.count}>"
        self.line(f"{collective.target.name}[0] = {name}({collective.source.name}[0], k_scratch_{kind});")

    def region(self, region: Threads) -> None:
        """Each thread its lane, and a barrier where lanes could notice."""

        def body() -> None:
            self.line(f"const k_i64 {region.variable.name} = threadIdx.x;")
            if region.count < launch_threads(self.kernel):
                self.block(f"if ({region.variable.name} < {region.count})", lambda: self.body(region.body))
            else:
                self.body(region.body)

        self.block("", body)
        if _shares(region):
            self.line("__syncthreads();")

    def statement(self, statement: Statement) -> None:
        """One statement of one lane; short loops are unrolled, so that what they index stays in registers."""
        if isinstance(statement, Loop) and any(
            isinstance(each, Store | Update) and each.buffer.scope is Scope.THREAD for each in walk(statement.body)
        ):
            self.line("#pragma unroll")
        super().statement(statement)

    def scatter(self, scatter: Scatter) -> None:
        """By the hardware's atomic operation."""
        if scatter.lowering is not Lowering.ATOMIC:
            raise SutureError(
                Code.KERNEL, f"a GPU keeps no private copies of {scatter.buffer.name}", where=f"kernel {self.kernel.name}",
                remedy="scatter by atomic, or loop over sorted segments",
            )  # fmt: skip
        place, value = self.element(scatter.buffer, scatter.index), self.show(scatter.value)
        if scatter.operation == "+":
            self.line(f"atomicAdd(&{place}, {value});")
        else:
            self.line(f"k_atomic_{scatter.operation}_{C_TYPES[scatter.buffer.dtype]}(&{place}, {value});")


def _shares(region: Threads) -> bool:
    """Whether lanes could notice that others are not done: the region touches shared memory, or stores what may be read back."""
    for each in walk(region.body):
        if any(load.buffer.scope is Scope.SHARED for load in loads_in(each)):
            return True
        if isinstance(each, Store | Update) and each.buffer.scope is Scope.SHARED:
            return True
    return False


def _named(operation: str) -> str:
    return {"+": "sum"}.get(operation, operation)


def _reduction(reduce: Reduce) -> list[str]:
    """Within each warp by shuffles, then over the warps by the first; everyone gets the result, the order is fixed."""
    dtype = reduce.source.dtype
    kind, name, operation = C_TYPES[dtype], _named(reduce.operation), reduce.operation
    start = neutral(operation, dtype)
    return [
        f"template <int COUNT> __device__ __forceinline__ {kind} k_reduce_{name}_{kind}({kind} k_own, {kind}* scratch) {{\n"
        f"  {kind} value = (int)threadIdx.x < COUNT ? k_own : {start};\n"
        f"  for (int step = 16; step > 0; step >>= 1) {{ {kind} other = __shfl_xor_sync(0xffffffffu, value, step);"
        f" value = {combined(operation, 'value', 'other', dtype)}; }}\n"
        "  constexpr int WARPS = (COUNT + 31) / 32;\n"
        "  if (WARPS == 1 && blockDim.x <= 32) return value;\n"
        "  __syncthreads();\n"
        "  if ((threadIdx.x & 31) == 0 && (threadIdx.x >> 5) < WARPS) scratch[threadIdx.x >> 5] = value;\n"
        "  __syncthreads();\n"
        f"  {kind} total = scratch[0];\n"
        f"  for (int warp = 1; warp < WARPS; ++warp) total = {combined(operation, 'total', 'scratch[warp]', dtype)};\n"
        "  return total;\n}"
    ]


def _prefix(scan: Scan) -> list[str]:
    """Within each warp by shuffles, then every warp adds what the warps before it come to."""
    dtype = scan.source.dtype
    kind, name, operation = C_TYPES[dtype], _named(scan.operation), scan.operation
    return [
        f"template <int COUNT> __device__ __forceinline__ {kind} k_scan_{name}_{kind}({kind} k_own, {kind}* scratch) {{\n"
        f"  {kind} value = (int)threadIdx.x < COUNT ? k_own : {neutral(operation, dtype)};\n"
        f"  for (int step = 1; step < 32; step <<= 1) {{ {kind} other = __shfl_up_sync(0xffffffffu, value, step);"
        f" if ((threadIdx.x & 31) >= step) value = {combined(operation, 'value', 'other', dtype)}; }}\n"
        "  __syncthreads();\n"
        "  if ((threadIdx.x & 31) == 31) scratch[threadIdx.x >> 5] = value;\n"
        "  __syncthreads();\n"
        f"  for (int warp = 0; warp < (int)(threadIdx.x >> 5); ++warp) value = {combined(operation, 'value', 'scratch[warp]', dtype)};\n"
        "  return value;\n}"
    ]


def _atomic(scatter: Scatter) -> list[str]:
    """The largest or smallest of floats, by comparing and swapping their bits."""
    dtype = scatter.buffer.dtype
    kind, operation = C_TYPES[dtype], scatter.operation
    if not dtype.is_floating_point:
        function = "atomicMax" if operation == "max" else "atomicMin"
        return [
            f"__device__ __forceinline__ void k_atomic_{operation}_{kind}({kind}* place, {kind} value) {{ {function}(place, value); }}"
        ]
    bits, to, back = ("int", "__float_as_int", "__int_as_float") if suffix(dtype) == "f" else (
        "unsigned long long", "__double_as_longlong", "__longlong_as_double",
    )  # fmt: skip
    met = combined(operation, f"{back}(seen)", "value", dtype)
    return [
        f"__device__ __forceinline__ void k_atomic_{operation}_{kind}({kind}* place, {kind} value) {{\n"
        f"  {bits}* raw = ({bits}*)place; {bits} seen = *raw, before;\n"
        f"  do {{ before = seen; seen = atomicCAS(raw, before, ({bits}){to}({met})); }} while (seen != before);\n}}"
    ]
