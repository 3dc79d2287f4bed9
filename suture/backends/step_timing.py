"""How long each kernel of a compiled graph takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.backends.compiled import CompiledGraph, compile_program
from suture.codegen.program import Program, Step
from suture.codegen.step import KernelStep
from suture.ir.graph import Node

_REPEATS = 7


@dataclass(frozen=True)
class StepTime:
    """One kernel's time.

    :param values: the names of the values that it writes
    :param paths: the paths of the nodes that make them
    :param why: what it computes
    """

    values: tuple[str, ...]
    paths: tuple[str, ...]
    why: str
    microseconds: float


class _Apart(Program):
    """A program whose steps are called one by one."""

    @property
    def runs(self) -> tuple[tuple[Step, ...], ...]:
        return tuple((step,) for step in self.steps)


def time_steps(program: Program, inputs: Sequence[torch.Tensor], *, repeats: int = _REPEATS) -> list[StepTime]:
    """Run a program for C++ on some inputs: the least time of each kernel over several runs, in the order of the program.

    :param inputs: a tensor for each of the graph's inputs, in order
    :raises SutureError: COMPILER, if there is none; INPUT, if the inputs do not fit
    """
    apart = _Apart(program.graph, program.steps, program.storage, program.constants, program.left, program.target)
    compiled = compile_program(apart)
    best: dict[int, float] = {}
    watch_calls(compiled, best)
    for _ in range(repeats):
        compiled.run_list(inputs)
    return [
        StepTime(
            tuple(value.name for value in step.writes),
            tuple(value.producer.path if value.producer is not None else "" for value in step.writes),
            step.why,
            best[k],
        )
        for k, step in enumerate(apart.steps)
        if isinstance(step, KernelStep)
    ]


def watch_calls(compiled: CompiledGraph, best: dict[int, float]) -> None:
    """Let a compiled graph enter into `best`, at every call, the least microseconds that each of its runs of kernels took so far."""

    def watched(number: int, function: Any) -> Any:
        def call(*arguments: Any) -> None:
            start = time.perf_counter_ns()
            function(*arguments)
            taken = (time.perf_counter_ns() - start) / 1000
            best[number] = min(best.get(number, taken), taken)

        return call

    for number, run in enumerate(compiled._runs):
        if not isinstance(run, Node):
            compiled._runs[number] = watched(number, run)
