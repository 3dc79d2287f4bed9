"""What a compiler for CUDA says of the kernels: none spills, and registers and shared memory stay within a budget, on every GPU that is built for."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import zoo
from cuda_kernels import PRODUCTS, REGISTERS, TENSOR_BF16
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import COPIES, EXAMPLES, NEIGHBOURS, SOFTMAX
from strategies import graphs
from test_cuda_launch import Recorder

import suture
from suture.codegen.cuda.compile import find_cuda_compiler
from suture.codegen.cuda.printer import STATIC_SHARED, launch_threads
from suture.codegen.cuda.report import MULTIPROCESSORS, Resources, report, report_all, resident_blocks
from suture.codegen.program import lower
from suture.codegen.schedule import CudaGemmSchedule
from suture.ir.errors import SutureError
from suture.ir.graph import Graph
from suture.ir.kernel import Kernel, Scope
from suture.ir.kernel_collectives import number
from suture.ir.kernel_text import parse_kernel

_REGISTERS = 128  # of a thread: 512 threads then fit a multiprocessor
_WITH_64_SUMS = 168  # of a thread that holds a large tile's sums: 384 threads fit


@functools.cache
def _there_is_a_compiler() -> bool:
    find_cuda_compiler.cache_clear()
    try:
        find_cuda_compiler()
    except SutureError:
        return False
    return True


needs_cuda_compiler = pytest.mark.skipif(not _there_is_a_compiler(), reason="neither NVRTC nor nvcc on this machine")


def within_budget(found: Resources, registers: int = _REGISTERS) -> None:
    assert found.registers, str(found)
    assert found.spilled == 0, str(found)
    assert found.local == 0, str(found)
    assert found.registers <= registers, str(found)
    assert found.blocks >= 1, str(found)


@functools.cache
def written_kernels() -> tuple[Kernel, ...]:
    """Kernels by hand, and those of whole models with products chosen for the GPU's own tiles; each under a name of its own."""
    kernels = [parse_kernel(each.text) for each in EXAMPLES if each is not COPIES]
    kernels += [parse_kernel(each.text) for each in PRODUCTS]
    for name in ("hf_vit", "gpt2", "unet"):
        entry = zoo.ENTRIES[name]
        args, kwargs = entry.args()
        graph = suture.trace(entry.module(), args, kwargs, dynamic=entry.dynamic)
        chosen = {
            node.outputs[0].name: CudaGemmSchedule(64, 64, 16, 128)
            for node in graph.nodes
            if node.operator.name in ("linear", "matmul")
        }
        kernels += lower(graph, "cuda", chosen).kernels
    different = dict.fromkeys(dataclasses.replace(kernel, name="kernel") for kernel in kernels)
    return tuple(dataclasses.replace(kernel, name=f"kernel_{k}") for k, kernel in enumerate(different))


@needs_cuda_compiler
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_kernels_stay_within_budget(architecture: int) -> None:
    kernels = written_kernels()
    assert len(kernels) > 30
    for kernel, found in zip(kernels, report_all(kernels, architecture), strict=True):
        assert (found.kernel, found.architecture) == (kernel.name, architecture)
        if kernel.name == _deep(kernels):
            assert (found.spilled, found.local, found.shared) == (0, 0, 1 << 16)
            continue
        many = any(
            math.prod(number(size) for size in each.shape) >= 64 for each in kernel.locals if each.scope is Scope.THREAD
        )
        within_budget(found, _WITH_64_SUMS if many else _REGISTERS)
        assert found.shared <= STATIC_SHARED


def _deep(kernels: tuple[Kernel, ...]) -> str:
    """The one kernel that takes more on purpose."""
    (found,) = [each.name for each in kernels if each.threads == 256 and "f32[128, 64]" in str(each)]
    return found


@needs_cuda_compiler
@settings(max_examples=4, deadline=None)
@given(st.lists(graphs(), min_size=1, max_size=6))
def test_kernels_of_random_graphs_stay_within_budget(drawn: list[Graph]) -> None:
    kernels = [kernel for graph in drawn for kernel in lower(graph, "cuda").kernels]
    named = [dataclasses.replace(kernel, name=f"kernel_{k}") for k, kernel in enumerate(kernels)]
    for found in report_all(named, 90) if named else ():
        within_budget(found)


@needs_cuda_compiler
def test_the_report_reads_well_and_is_the_same_for_one_kernel() -> None:
    kernel = parse_kernel(TENSOR_BF16.text)
    found = report(kernel)
    assert found == report_all([parse_kernel(SOFTMAX.text), kernel])[1]
    assert found.threads == launch_threads(kernel) == 128
    assert str(found).startswith(
        f"product_bf16 on sm_90: 128 threads, {found.registers} registers, {found.shared} bytes shared, no spills, "
    )
    # a processor that the compiler does not know is reported as the newest before it
    newest = max(find_cuda_compiler().architectures())
    assert report(kernel, newest + 1).architecture == newest
    # without tensor cores there is no corner of shared memory through which sums come
    assert report(kernel, 75).shared == 2 * 64 * 32 * 2 if 75 in find_cuda_compiler().architectures() else True


_LOG = """\
ptxas info    : Compiling entry function 'neighbours' for 'sm_90'
ptxas info    : Function properties for neighbours
    24 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem
"""


def test_spills_and_local_memory_are_reported() -> None:
    class Reporter(Recorder):
        def compile(self, source: str, target: str, folder: object) -> tuple[bytes | None, str]:
            return b"image", _LOG

    found = report(parse_kernel(NEIGHBOURS.text), 90, Reporter(version="reporter 1"))
    assert found == Resources("neighbours", 90, 64, 40, 256, 24, 20, 24, 0.75)
    assert "24 bytes of local memory, 20 bytes spilled, 24 blocks a multiprocessor, occupancy 75%" in str(found)
    with pytest.raises(AssertionError):
        within_budget(found)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        (90, 1024, 64, 0, 1),  # registers: 64 * 1024 are all there are
        (90, 256, 32, 0, 8),  # warps: 64
        (90, 32, 16, 0, 32),  # blocks
        (90, 128, 40, 100 << 10, 2),  # shared memory, and a KB of each block's for the system
        (80, 128, 40, 82 << 10, 1),
        (86, 64, 32, 0, 16),
        (120, 256, 33, 0, 6),
        (999, 256, 128, 0, 2),
    ],
)
def test_how_many_blocks_fit(architecture: int, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert resident_blocks(architecture, threads, registers, shared) == blocks


def test_every_processor_that_is_built_for_is_in_the_table() -> None:
    assert {80, 90, 100, 120} <= set(MULTIPROCESSORS)


@pytest.mark.gpu
def test_the_driver_says_the_same() -> None:
    from cuda_stand_in import devices

    from suture.codegen.cuda.driver import FunctionAttribute

    (gpu,) = devices()
    for example in (TENSOR_BF16, REGISTERS, SOFTMAX):
        kernel = parse_kernel(example.text)
        found, loaded = report(kernel, gpu.architecture), gpu.load([kernel])[kernel.name]
        driver = gpu.driver
        assert driver.function_attribute(loaded.function, FunctionAttribute.REGISTERS) == found.registers
        assert driver.function_attribute(loaded.function, FunctionAttribute.STATIC_SHARED) == found.shared
        assert driver.occupancy(loaded.function, loaded.threads, loaded.dynamic) == found.blocks
