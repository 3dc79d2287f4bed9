"""What a program consists of, for people: each kernel with why it is one, its schedule and traffic; memory; what is left to torch, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suture.codegen.access import is_view
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.cuda.printer import print_cuda
from suture.codegen.cuda.report import Resources, report_all
from suture.codegen.groups import REDUCTIONS
from suture.codegen.plan import aligned, place
from suture.codegen.prelude import PRELUDE
from suture.codegen.program import Program
from suture.codegen.schedule import show
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Kernel
from suture.ir.sizes import evaluate_size

_PRELUDE_LINES = len(PRELUDE.splitlines())


@dataclass(frozen=True)
class KernelReport:
    """One kernel of a program.

    :param calls: how many steps call it
    :param why: the group that the first of them computes, and why it is one
    :param reads: bytes of its arguments that it reads, all calls together
    :param writes: bytes of those that it writes
    :param lines: lines of generated code
    """

    name: str
    calls: int
    why: str
    schedule: str
    reads: int
    writes: int
    lines: int
    resources: tuple[Resources, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """For machines."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"resources": [dataclasses.asdict(each) for each in self.resources]}


@dataclass(frozen=True)
class ProgramReport:
    """A program at some sizes.

    :param sizes: what symbolic sizes were taken to be
    :param arena: bytes of the arena
    :param together: bytes of what lies in it, each value in a place of its own
    :param activations: bytes of what the graph's nodes make, one by one, its results left out
    :param left: nodes left to torch: what they are, and why
    """

    target: str
    sizes: Mapping[str, int]
    kernels: tuple[KernelReport, ...]
    arena: int
    together: int
    activations: int
    left: tuple[tuple[str, str], ...]

    def as_data(self) -> dict[str, Any]:
        """For machines."""
        return {
            "target": self.target,
            "sizes": dict(self.sizes),
            "kernels": [each.as_data() for each in self.kernels],
            "arena": self.arena,
            "together": self.together,
            "activations": self.activations,
            "left": [{"node": node, "why": why} for node, why in self.left],
        }


def report_program(
    program: Program, graph: Graph, sizes: Mapping[str, int], architectures: tuple[int, ...] = ()
) -> ProgramReport:
    """Measure a program without running it.

    :param graph: the graph that was lowered
    :param sizes: a number for each symbolic size
    :param architectures: for CUDA: compute capabilities, times ten, for which kernels are compiled to see what they take
    :raises SutureError: SIZE, if a number is missing; COMPILER, if architectures are asked for and there is no compiler for CUDA
    """
    steps: dict[str, list[KernelStep]] = {}
    for step in program.steps:
        if isinstance(step, KernelStep):
            steps.setdefault(step.kernel.name, []).append(step)
    taken: dict[str, list[Resources]] = {name: [] for name in steps}
    for architecture in architectures if program.kernels else ():
        for each in report_all(program.kernels, architecture):
            taken[each.kernel].append(each)
    lifetimes = program.lifetimes()
    lengths = [evaluate_size(each.size, sizes) for each in lifetimes]
    made = [value for node in graph.nodes if not is_view(node) for value in node.outputs if not value.is_graph_output()]
    return ProgramReport(
        program.target,
        sizes,
        tuple(_kernel(program, found, sizes, tuple(taken[name])) for name, found in steps.items()),
        place(lifetimes, lengths)[1],
        sum(map(aligned, lengths)),
        sum(evaluate_size(value.type.bytes, sizes) for value in made),
        tuple((_named(step), why_left(program, step)) for step in program.steps if isinstance(step, Node)),
    )


def why_left(program: Program, node: Node) -> str:
    """Why a node is no part of a kernel."""
    if node in program.left:
        return program.left[node]
    if node.operator.name == "opaque":
        return "nothing is known of what it computes"
    if is_view(node):
        return "it moves no data of its own, and no kernel reads through it"
    if node.operator.pointwise or node.operator.name in REDUCTIONS:
        return "alone, it is not worth a kernel, or it has no expression in its types"
    return f"there is no template for {node.operator.name}"


def code_lines(kernel: Kernel, target: str) -> int:
    """The lines of a kernel's text in a target's language, what all kernels share left out."""
    text = print_cuda(kernel) if target == "cuda" else print_cpp(kernel)
    return len([line for line in text.splitlines()[_PRELUDE_LINES:] if line.strip()])


def _kernel(
    program: Program, steps: list[KernelStep], sizes: Mapping[str, int], resources: tuple[Resources, ...]
) -> KernelReport:
    kernel, schedule = steps[0].kernel, steps[0].schedule
    reads = sum(_bytes(value, sizes) for step in steps for value in step.reads)
    writes = sum(_bytes(value, sizes) for step in steps for value in step.writes)
    chosen = show(schedule) if schedule is not None else ""
    return KernelReport(
        kernel.name, len(steps), steps[0].why, chosen, reads, writes, code_lines(kernel, program.target), resources
    )


def _bytes(value: Value, sizes: Mapping[str, int]) -> int:
    return evaluate_size(value.type.bytes, sizes)


def _named(node: Node) -> str:
    target = node.attributes.get("target")
    what = f"opaque {target}" if node.operator.name == "opaque" and target else node.operator.name
    return f"%{node.outputs[0].name} = {what}" + (f" at {node.path}" if node.path else "")
