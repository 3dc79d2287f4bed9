"""The checking C++ print: one lane after the other, first to last or last to first, every index checked, a block's memory poisoned.

The fast print runs each statement for all lanes before the next, which is more synchronised than any GPU: a kernel that lacks the end of a
region between writing and reading runs well there. Here a lane runs its whole region before the next lane starts, in both orders, so such a kernel
reads poison in one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.codegen.expressions import C_TYPES, combined, neutral
from suture.codegen.prelude import PRELUDE
from suture.codegen.printer import KernelPrinter
from suture.ir.kernel import (
    Buffer,
    Expression,
    Kernel,
    Reduce,
    Scan,
    Scatter,
    Scope,
    Threads,
)

_SUPPORT = r"""
static char k_text[256];
extern "C" const char* k_message() { return k_text; }
KFN k_i64 k_at(k_i64 index, k_i64 size, const char* what) {
  if (index < 0 || index >= size) {
    __builtin_snprintf(k_text, sizeof k_text, "index %lld of %s, which has %lld", (long long)index, what, (long long)size);
    throw 1;
  }
  return index;
}
template <class T> static void k_poison(T* data, k_i64 count) { for (k_i64 i = 0; i < count; ++i) data[i] = (T)0x7f; }
template <> void k_poison(float* data, k_i64 count) { for (k_i64 i = 0; i < count; ++i) data[i] = K_NAN; }
template <> void k_poison(double* data, k_i64 count) { for (k_i64 i = 0; i < count; ++i) data[i] = (double)K_NAN; }
"""


def print_checking(kernel: Kernel) -> str:
    """A C++ file with one function: whether lanes and blocks run backwards, then sizes, scalars and pointers.

    It returns 0, or 1 with the reason in `k_message()`.
    """
    printer = CheckingPrinter(kernel)
    printer.function()
    return PRELUDE + _SUPPORT + "\n" + "\n".join(printer.lines) + "\n"


class CheckingPrinter(KernelPrinter):
    """Prints for finding mistakes."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.lane = ""

    def function(self) -> None:
        """The whole function."""
        head = f'extern "C" int {self.kernel.name}({", ".join(["int k_backwards", *self.parameters("")])})'

        def guarded() -> None:
            self.block("try", self._blocks)
            self.line("catch (int) { return 1; }")
            self.line("return 0;")

        self.block(head, guarded)

    def _blocks(self) -> None:
        self.line(f"const k_i64 k_blocks = {self.blocks()};")

        def body() -> None:
            self.line("const k_i64 k_block = k_backwards ? k_blocks - 1 - k_turn : k_turn;")
            self.decode_grid()
            for buffer in self.locals(Scope.SHARED, Scope.THREAD, Scope.UNIFORM):
                count = " * ".join(self.show(dim) for dim in buffer.shape) or "1"
                size = f"{count} * {self.kernel.threads}" if buffer.scope is Scope.THREAD else count
                self.line(f"{C_TYPES[buffer.dtype]} {buffer.name}[{size}];")
                self.line(f"k_poison({buffer.name}, {size});")
            self.between(self.kernel.body)

        self.block("for (k_i64 k_turn = 0; k_turn < k_blocks; ++k_turn)", body)

    def region(self, region: Threads) -> None:
        """One lane after the other."""
        self.lane = region.variable.name

        def body() -> None:
            last = region.count - 1
            self.line(f"const k_i64 {self.lane} = k_backwards ? {last} - k_lane : k_lane;")
            self.body(region.body)

        self.block(f"for (k_i64 k_lane = 0; k_lane < {region.count}; ++k_lane)", body)

    def reduce(self, reduce: Reduce) -> None:
        """One lane after the other."""
        if reduce.width:
            self._groups(reduce)
            return
        self._combine(reduce.operation, reduce.source, reduce.count, f"{reduce.target.name}[0]", "k_so_far", "")

    def _groups(self, reduce: Reduce) -> None:
        source, target, width = reduce.source, reduce.target, reduce.width

        def body() -> None:
            self.line(f"{C_TYPES[source.dtype]} k_so_far = {neutral(reduce.operation, source.dtype)};")
            value = combined(reduce.operation, "k_so_far", f"{source.name}[t]", source.dtype)
            self.line(f"for (int t = k_group; t < k_group + {width}; ++t) k_so_far = {value};")
            self.line(f"for (int t = k_group; t < k_group + {width}; ++t) {target.name}[t] = k_so_far;")

        self.block(f"for (int k_group = 0; k_group < {reduce.count}; k_group += {width})", body)

    def scan(self, scan: Scan) -> None:
        """One lane after the other."""
        self._combine(scan.operation, scan.source, scan.count, "", "", f"{scan.target.name}[t] = k_so_far;")

    def _combine(self, operation: str, source: Buffer, count: int, target: str, result: str, each: str) -> None:
        def body() -> None:
            self.line(f"{C_TYPES[source.dtype]} k_so_far = {neutral(operation, source.dtype)};")
            value = combined(operation, "k_so_far", f"{source.name}[t]", source.dtype)
            self.line(f"for (int t = 0; t < {count}; ++t) {{ k_so_far = {value}; {each} }}")
            if target:
                self.line(f"{target} = {result};")

        self.block("", body)

    def offset(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """Where an element stands, if each index is inside its dimension."""
        text = "0"
        for at, size in zip(index, buffer.shape, strict=True):
            checked = f'k_at({self.show(at)}, {self.show(size)}, "{buffer.name}")'
            text = checked if text == "0" else f"({text} * {self.show(size)} + {checked})"
        return text

    def element(self, buffer: Buffer, index: Sequence[Expression]) -> str:
        """An element; of a lane's own buffer, that of the lane."""
        inner = self.offset(buffer, index)
        if buffer.scope is Scope.THREAD:
            return f"{buffer.name}[{inner} * {self.kernel.threads} + {self.lane}]"
        return f"{buffer.name}[{inner}]"

    def scatter(self, scatter: Scatter) -> None:
        """In turn: nobody meets."""
        place = self.element(scatter.buffer, scatter.index)
        self.update(place, scatter.operation, self.show(scatter.value), scatter.buffer)
