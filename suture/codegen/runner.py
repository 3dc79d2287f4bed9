"""The C functions that call kernels one after the other: sizes from symbols, memory from a table of pointers.

void run_0(const k_i64* k_n, void* const* k_p) {
  linear_0(k_n[0] * 197, (const float*)k_p[0], (const float*)k_p[4], (float*)k_p[7]);
  ...
}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from suture.codegen.cpp.printer import CppPrinter
from suture.codegen.expressions import C_TYPES, ExpressionPrinter
from suture.codegen.indices import Indices
from suture.codegen.prelude import PRELUDE
from suture.codegen.program import Program, pointers
from suture.codegen.step import KernelStep
from suture.ir.graph import Value
from suture.ir.kernel import Kernel
from suture.ir.sizes import Dim

EXPORT = 'extern "C" __attribute__((visibility("default"))) '


def print_kernels(kernels: Sequence[Kernel]) -> str:
    """Kernels as one C++ file."""
    texts = []
    headers: dict[str, None] = {}
    for kernel in kernels:
        printer = CppPrinter(kernel)
        printer.function()
        headers.update(dict.fromkeys(printer.headers()))
        texts.append("\n".join(printer.lines))
    return PRELUDE + "\n".join(headers) + "\n" + "\n\n".join(texts) + "\n"


def print_runs(program: Program, *, export: str = EXPORT, prefix: str = "run") -> str:
    """`run_0`, `run_1`, ... (`run` is the prefix): one function for each run of kernels, which `program.runs` counts (nodes have none)."""
    slots = {value: k for k, value in enumerate(pointers(program))}
    lines = [PRELUDE, *(_declared(kernel) for kernel in program.kernels), ""]
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
