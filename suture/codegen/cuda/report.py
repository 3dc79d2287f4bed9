"""What kernels take of a GPU: registers, shared memory, spills, and how much of a multiprocessor they can fill.

The numbers come from the compiler's own report, so that no GPU is needed; how many blocks fit follows from what the *CUDA C++ Programming Guide*
(version 13.0, section 20.2, "Technical Specifications per Compute Capability") says of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from suture.codegen.cuda.collectives import WARP
from suture.codegen.cuda.compile import CudaCompiler, compile_cuda_text, find_cuda_compiler, target_of
from suture.codegen.cuda.printer import launch_threads, print_cuda, shared_bytes
from suture.codegen.cuda.tensor import ARCHITECTURE
from suture.ir.kernel import Kernel

DEFAULT = 90
_REGISTERS = 65536  # of a multiprocessor
_REGISTER_UNIT = 256  # a warp gets multiples of this
_PARTITIONS = 4  # a multiprocessor has so many, each with its part of the registers
_RESERVED = 1024  # bytes of shared memory that the system takes of each block


@dataclass(frozen=True)
class Multiprocessor:
    """What one has room for."""

    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 << 10), 80: Multiprocessor(64, 32, 164 << 10), 86: Multiprocessor(48, 16, 100 << 10),
    87: Multiprocessor(48, 16, 164 << 10), 89: Multiprocessor(48, 24, 100 << 10), 90: Multiprocessor(64, 32, 228 << 10),
    100: Multiprocessor(64, 32, 228 << 10), 103: Multiprocessor(64, 32, 228 << 10), 110: Multiprocessor(48, 24, 228 << 10),
    120: Multiprocessor(48, 24, 100 << 10), 121: Multiprocessor(48, 24, 100 << 10),
}  # fmt: skip
"""By compute capability times ten."""


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    :param architecture: compute capability times ten
    :param registers: of a thread
    :param shared: bytes of a block
    :param local: bytes of a thread that lie in memory instead of registers, because they are indexed by what is not known
    :param spilled: bytes of a thread that are stored away because registers ran out
    :param blocks: how many blocks a multiprocessor runs at a time
    :param occupancy: the part of its threads that these are
    """

    kernel: str
    architecture: int
    threads: int
    registers: int
    shared: int
    local: int
    spilled: int
    blocks: int
    occupancy: float

    def __str__(self) -> str:
        kept = f", {self.local} bytes of local memory" if self.local else ""
        spills = f", {self.spilled} bytes spilled" if self.spilled else ", no spills"
        return (
            f"{self.kernel} on sm_{self.architecture}: {self.threads} threads, {self.registers} registers, {self.shared} bytes shared{kept}{spills}, "
            f"{self.blocks} blocks a multiprocessor, occupancy {self.occupancy:.0%}"
        )


def report(kernel: Kernel, architecture: int = DEFAULT, compiler: CudaCompiler | None = None) -> Resources:
    """What a kernel takes of a GPU, which need not be there.

    :raises SutureError: COMPILER, if there is no compiler for CUDA, or it refuses the kernel
    """
    return report_all([kernel], architecture, compiler)[0]


def report_all(
    kernels: Sequence[Kernel], architecture: int = DEFAULT, compiler: CudaCompiler | None = None
) -> list[Resources]:
    """The same for several kernels, compiled together.

    :raises SutureError: COMPILER
    """
    compiler = compiler or find_cuda_compiler()
    architecture = int(
        target_of(architecture, compiler).partition("_")[2]
    )  # that of a newer one says as much as is known
    tensor_cores = architecture >= ARCHITECTURE
    made = compile_cuda_text(print_cuda(*kernels, tensor_cores=tensor_cores), architecture, compiler)
    found = _read(made.log)
    return [_resources(each, architecture, found.get(each.name, {}), tensor_cores=tensor_cores) for each in kernels]


def _read(log: str) -> dict[str, dict[str, int]]:
    """The numbers of each function in the assembler's report."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            found[name] = {}
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found.setdefault(name, {}).update(local=int(match[1]), spilled=int(match[2]) + int(match[3]))
        if match := re.search(r"Used (\d+) registers", line):
            found.setdefault(name, {}).update(registers=int(match[1]))
    return found


def _resources(kernel: Kernel, architecture: int, found: dict[str, int], *, tensor_cores: bool) -> Resources:
    threads, shared = launch_threads(kernel), shared_bytes(kernel, tensor_cores=tensor_cores)
    registers = found.get("registers", 0)
    blocks = resident_blocks(architecture, threads, registers, shared)
    limit = _multiprocessor(architecture)
    return Resources(
        kernel.name, architecture, threads, registers, shared, found.get("local", 0), found.get("spilled", 0), blocks,
        blocks * threads / (limit.warps * WARP),
    )  # fmt: skip


def resident_blocks(architecture: int, threads: int, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor runs at a time: as many as its warps, registers and shared memory allow."""
    limit = _multiprocessor(architecture)
    warps = -(-threads // WARP)
    fits = [limit.blocks, limit.warps // warps, limit.shared // (shared + _RESERVED)]
    if registers:
        of_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        fits.append(_REGISTERS // of_warp // _PARTITIONS * _PARTITIONS // warps)
    return min(fits)


def _multiprocessor(architecture: int) -> Multiprocessor:
    """That of a compute capability, or of the newest before it."""
    known = [each for each in MULTIPROCESSORS if each <= architecture]
    return MULTIPROCESSORS[max(known, default=min(MULTIPROCESSORS))]
