"""A graph as a sequence of steps: kernels for what was fused, nodes for the rest.

Kernels of the same text are compiled once. What is compiled stands in as few files as there are processors, so that compilers run side by side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

from suture.codegen.calling import CompiledKernel
from suture.codegen.cpp import CppPrinter, print_cpp
from suture.codegen.decompose import decompose
from suture.codegen.groups import Group, find_groups, schedule
from suture.codegen.prelude import PRELUDE
from suture.codegen.toolchain import build
from suture.codegen.traversal import Traversal, lower_group
from suture.ir.graph import Graph, Node
from suture.ir.kernel import Kernel
from suture.ir.kernel_verify import verify_kernel


@dataclass(frozen=True)
class KernelStep:
    """One call of a kernel."""

    traversal: Traversal
    why: str


Step: TypeAlias = "KernelStep | Node"


@dataclass(frozen=True)
class Program:
    """The steps of a graph, in order; `graph` is the one that they compute, norms and softmaxes written out."""

    graph: Graph
    steps: tuple[Step, ...]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The different kernels, by name."""
        return tuple(
            {
                step.traversal.kernel.name: step.traversal.kernel for step in self.steps if isinstance(step, KernelStep)
            }.values()
        )

    def __str__(self) -> str:
        lines = [
            f"{step.traversal.kernel.name}: {step.why}" if isinstance(step, KernelStep) else f"torch: {step!r}"
            for step in self.steps
        ]
        return "\n".join(lines)


def lower(graph: Graph) -> Program:
    """Choose groups and write their kernels; every kernel is verified."""
    written = decompose(graph)
    steps: list[Step] = []
    names: dict[Kernel, str] = {}
    for item in schedule(written, find_groups(written)):
        if not isinstance(item, Group):
            steps.append(item)
            continue
        made = lower_group(item, "kernel")
        name = names.setdefault(made.kernel, f"traversal_{len(names)}")
        kernel = replace(made.kernel, name=name)
        if names[made.kernel] == f"traversal_{len(names) - 1}":
            verify_kernel(kernel)
        steps.append(KernelStep(replace(made, kernel=kernel), str(item)))
    return Program(written, tuple(steps))


def compile_kernels(kernels: Sequence[Kernel]) -> Mapping[str, CompiledKernel]:
    """The kernels as functions, compiled side by side."""
    if not kernels:
        return {}
    files = min(len(kernels), os.cpu_count() or 1)
    shares = [kernels[k::files] for k in range(files)]
    with ThreadPoolExecutor(files) as pool:
        libraries = list(pool.map(lambda share: build(_source(share)), shares))
    return {
        kernel.name: CompiledKernel(kernel, getattr(library, kernel.name))
        for share, library in zip(shares, libraries, strict=True)
        for kernel in share
    }


def _source(kernels: Sequence[Kernel]) -> str:
    if len(kernels) == 1:
        return print_cpp(kernels[0])
    texts = []
    for kernel in kernels:
        printer = CppPrinter(kernel)
        printer.function()
        texts.append("\n".join(printer.lines))
    return PRELUDE + "\n" + "\n\n".join(texts) + "\n"
