"""The C functions that call kernels one after the other: sizes from symbols, memory from a table of pointers.

void run_0(const k_i64* k_n, void* const* k_p) {
  linear_0(k_n[0] * 197, (const float*)k_p[0], (const float*)k_p[4], (float*)k_p[7]);
  ...
}
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from suture.codegen.cpp.printer import CppPrinter
from suture.codegen.cpp.products import split_products
from suture.codegen.expressions import C_TYPES, ExpressionPrinter
from suture.codegen.indices import Indices
from suture.codegen.prelude import PRELUDE
from suture.codegen.program import Program, pointers
from suture.codegen.step import KernelStep
from suture.codegen.toolchain import build
from suture.ir.graph import Value
from suture.ir.kernel import Kernel
from suture.ir.sizes import Dim

EXPORT = 'extern "C" __attribute__((visibility("default"))) '


_PAYS = 20_000  # letters of kernels that make a file worth a compiler of its own


def print_kernels(kernels: Sequence[Kernel]) -> str:
    """Kernels as one C++ file."""
    return _file([_printed(kernel) for kernel in kernels])


def print_runs(program: Program, *, export: str = EXPORT, prefix: str = "run") -> str:
    """`run_0`, `run_1`, ... (`run` is the prefix): one function for each run of kernels, which `program.runs` counts (nodes have none)."""
    return PRELUDE + _runs(program, export, prefix)


def print_program(program: Program, most: int, *, prefix: str = "run") -> list[str]:
    """Kernels and the functions that call them, as files for so many compilers side by side at most; a small program is one file.

    What kernels share, such as the products of one size, is compiled once per file, and each compiler takes its time to start.
    """
    printed = [_printed(kernel) for kernel in program.kernels]
    letters = sum(len(text) for _, text in printed)
    shares: list[list[tuple[list[str], str]]] = [[] for _ in range(max(1, min(most, len(printed), letters // _PAYS)))]
    for each in sorted(printed, key=lambda each: -len(each[1])):
        min(shares, key=lambda share: sum(len(text) for _, text in share)).append(each)
    files = [_file(share) for share in shares]
    return [*files[:-1], files[-1] + _runs(program, EXPORT, prefix)]


def build_files(*texts: str) -> ctypes.CDLL:
    """Compile printed files into one library; functions that other libraries have as well are compiled once.

    :raises SutureError: COMPILER, if there is none or it refuses a text; WRITE, if the cache cannot be written
    """
    sources, shared = split_products(texts)
    return build(*sources, shared=shared)


def _printed(kernel: Kernel) -> tuple[list[str], str]:
    """What a kernel needs besides the prelude, and its function."""
    printer = CppPrinter(kernel)
    printer.function()
    return printer.headers(), "\n".join(printer.lines)


def _file(printed: Sequence[tuple[list[str], str]]) -> str:
    headers = dict.fromkeys(header for found, _ in printed for header in found)
    return PRELUDE + "\n".join(headers) + "\n" + "\n\n".join(text for _, text in printed) + "\n"


def _runs(program: Program, export: str, prefix: str) -> str:
    slots = {value: k for k, value in enumerate(pointers(program))}
    lines = [*(_declared(kernel) for kernel in program.kernels), ""]
    for number, run in enumerate(program.runs):
        steps = [step for step in run if isinstance(step, KernelStep)]
        if steps:
            lines.append(f"{export}void {prefix}_{number}(const k_i64* k_n, void* const* k_p) {{")
            lines += [f"  {_call(step, slots, symbol_slots(program))};" for step in steps]
            lines.append("}")
    return "\n".join(lines) + "\n"


def symbol_slots(program: Program) -> Mapping[str, int]:
    """Where the value of each symbol stands in the table of sizes."""
    return {name: k for k, name in enumerate(program.graph.symbols())}


def show_size(dim: Dim, slots: Mapping[str, int]) -> str:
    """A size as C, over the table `k_n` of symbols."""
    if isinstance(dim, int):
        return str(dim)
    printer = ExpressionPrinter()
    printer.spelling = {name: f"k_n[{slot}]" for name, slot in slots.items()}
    return printer.show(Indices().expression(dim))


def _declared(kernel: Kernel) -> str:
    return f'extern "C" void {kernel.name}({", ".join(CppPrinter(kernel).parameters("__restrict__"))});'


def _call(step: KernelStep, slots: Mapping[Value, int], symbols: Mapping[str, int]) -> str:
    arguments = [show_size(size, symbols) for size in step.sizes]
    arguments += [
        f"({C_TYPES[buffer.dtype]}*)k_p[{slots[value]}]"
        for buffer, value in zip(step.kernel.arguments, step.arguments, strict=True)
    ]
    return f"{step.kernel.name}({', '.join(arguments)})"
