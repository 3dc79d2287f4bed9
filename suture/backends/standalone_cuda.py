"""A standalone network for NVIDIA GPUs: kernels and their launches through the CUDA runtime, behind the same C interface."""

from __future__ import annotations

from collections.abc import Sequence

from suture.backends.standalone import filled, finished, shares, with_prelude
from suture.backends.standalone_program import Standalone
from suture.backends.standalone_tables import Tables
from suture.codegen.cuda.printer import STATIC_SHARED, CudaPrinter, launch_threads, print_cuda, shared_bytes
from suture.codegen.expressions import C_TYPES, ExpressionPrinter
from suture.codegen.prelude import PRELUDE
from suture.codegen.program import pointers
from suture.codegen.runner import show_size, symbol_slots
from suture.codegen.step import KernelStep
from suture.ir.kernel import Kernel

ARCHITECTURES = "80;90"
"""Compute capabilities, times ten, that CMake compiles for where nothing else is said; newer GPUs translate the newest."""

_MOST_BLOCKS = 2**31 - 1

_DEVICE_RUN = """
/* The same for buffers in the device's memory, each at a multiple of 16 bytes, on a stream (a cudaStream_t): returns before it is done. An index that
   lies outside of what it looks up is moved inside. */
@_API int @_run_device(@_net *net, const int64_t *sizes, const @_buffer *inputs, const @_buffer *outputs, void *stream);
"""


def cuda_sources(standalone: Standalone) -> dict[str, str]:
    """The texts of a build, by file.

    :raises SutureError: KERNEL, for a kernel that a GPU cannot run
    """
    name, table = standalone.name, Tables(standalone).fill()
    kernels = {
        f"{name}_kernels_{k}.cu": _with_launches(share) for k, share in enumerate(shares(standalone.program.kernels))
    }
    network = filled("network.cpp", table | {"BODY": filled("device.cpp", table)})
    sources = {
        f"{name}.cpp": network.replace("#include <math.h>\n", "#include <cuda_runtime_api.h>\n#include <math.h>\n"),
        f"{name}_runs.cpp": with_prelude(_print_run(standalone)),
        **kernels,
    }
    words = {
        "LANGUAGES": "C CXX CUDA",
        "OPTIONS": f'if(NOT DEFINED CACHE{{CMAKE_CUDA_ARCHITECTURES}})\n  set(CMAKE_CUDA_ARCHITECTURES "{ARCHITECTURES}")\nendif()\n'
        "find_package(CUDAToolkit REQUIRED)",
        "PROPERTIES": " CXX_STANDARD 17 CUDA_STANDARD 17",
        "COMPILE": f"target_link_libraries({name} PRIVATE CUDA::cudart)",
        "EXAMPLE_LINK": "",
        "NEEDS": "a C++17 compiler, nvcc and the CUDA runtime are enough",
        "BY_HAND": f"Without CMake:\n\n    nvcc -std=c++17 -O3 -arch=sm_90 *.cu *.cpp example.c -o {name}_example\n",
        "THREADS": f"`{name}_run` takes buffers in the host's memory, `{name}_run_device` in the device's, on a stream of yours.",
        "DEVICE_RUN": _DEVICE_RUN.replace("@", name),
    }
    return finished(standalone, sources, table | words)


def _with_launches(kernels: Sequence[Kernel]) -> str:
    """A file of kernels, and a function of the host for each that launches it."""
    return with_prelude(print_cuda(*kernels)) + "\n" + "\n".join(_launch(kernel) for kernel in kernels)


def _launch(kernel: Kernel) -> str:
    shared = shared_bytes(kernel)
    dynamic = shared if shared > STATIC_SHARED else 0
    allow = (
        f"  const cudaError_t allowed = cudaFuncSetAttribute({kernel.name}, cudaFuncAttributeMaxDynamicSharedMemorySize, {dynamic});\n"
        "  if (allowed != cudaSuccess) return allowed;\n"
        if dynamic
        else ""
    )
    return (
        f'extern "C" int {kernel.name}_launch({", ".join(_launch_parameters(kernel))}) {{\n'
        f"{allow}"
        f"  {kernel.name}<<<k_blocks, {launch_threads(kernel)}, {dynamic}, (cudaStream_t)k_stream>>>({', '.join(_names(kernel))});\n"
        "  return cudaGetLastError();\n}\n"
    )


def _launch_parameters(kernel: Kernel) -> list[str]:
    return ["unsigned k_blocks", "void* k_stream", *CudaPrinter(kernel).parameters("")]


def _names(kernel: Kernel) -> list[str]:
    return [*(each.name for each in (*kernel.sizes, *kernel.scalars)), *(each.name for each in kernel.arguments)]


def _print_run(standalone: Standalone) -> str:
    """One function of the host that launches every kernel in order."""
    program, name = standalone.program, standalone.name
    slots = {value: k for k, value in enumerate(pointers(program))}
    symbols = symbol_slots(program)
    lines = [PRELUDE]
    lines += [
        f'extern "C" int {kernel.name}_launch({", ".join(_launch_parameters(kernel))});' for kernel in program.kernels
    ]
    lines += [
        "\n/* launches have at most 2^31 - 1 blocks; 9 is what CUDA calls an invalid configuration */",
        f"static bool k_fits(k_i64 blocks) {{ return blocks <= {_MOST_BLOCKS}; }}\n",
        f'extern "C" int {name}_run_0(const k_i64* k_n, void* const* k_p, void* k_stream) {{',
        "  int k_code;",
        "  k_i64 k_blocks;",
    ]
    for step in program.steps:
        assert isinstance(step, KernelStep)
        printer = ExpressionPrinter()
        sizes = [show_size(size, symbols) for size in step.sizes]
        printer.spelling = {each.name: text for each, text in zip(step.kernel.sizes, sizes, strict=True)}
        counts = [f"k_max_i({printer.show(each.count)}, 0)" for each in step.kernel.grid]
        pointers_ = [
            f"({C_TYPES[buffer.dtype]}*)k_p[{slots[value]}]"
            for buffer, value in zip(step.kernel.arguments, step.arguments, strict=True)
        ]
        call = ", ".join(["(unsigned)k_blocks", "k_stream", *sizes, *pointers_])
        lines += [
            f"  k_blocks = {' * '.join(counts) or '1'};",
            "  if (!k_fits(k_blocks)) return 9;",
            f"  if (k_blocks && (k_code = {step.kernel.name}_launch({call}))) return k_code;",
        ]
    return "\n".join([*lines, "  return 0;", "}"]) + "\n"
