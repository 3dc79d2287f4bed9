"""Compiled graphs: what was fused runs as generated code, the rest as torch runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from suture.codegen.calling import CompiledKernel
from suture.codegen.program import KernelStep, Program, compile_kernels, lower
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import arrange_inputs, bind_symbols, run_node
from suture.ir.sizes import evaluate_size


class CompiledGraph:
    """A function of tensors that computes what a graph does. It runs without gradients.

    :param program: the steps
    :param kernels: the compiled kernels, by name
    """

    def __init__(self, program: Program, kernels: Mapping[str, CompiledKernel]) -> None:
        self.program = program
        self.graph = program.graph
        self._kernels = kernels
        self._frees = _last_uses(program)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it.

        :param inputs: the graph's inputs, in order or by name
        :returns: the graph's output, or a tuple of them
        :raises SutureError: INPUT, if the inputs do not fit
        """
        names = [value.name for value in self.graph.inputs]
        given: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] = (
            {**dict(zip(names, inputs, strict=False)), **named} if named else inputs
        )
        with torch.no_grad():
            results = self._run(arrange_inputs(self.graph, given))
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        symbols = bind_symbols(self.graph, inputs)
        known: dict[Value, torch.Tensor] = dict(zip(self.graph.inputs, inputs, strict=True))
        known.update((parameter, parameter.data) for parameter in self.graph.parameters.values())
        for step, frees in zip(self.program.steps, self._frees, strict=True):
            if isinstance(step, KernelStep):
                self._call(step, known, symbols)
            else:
                operands = [None if value is None else known[value] for value in step.inputs]
                known.update(zip(step.outputs, run_node(step, operands, symbols), strict=True))
            for value in frees:
                known.pop(value, None)
        return [known[value] for value in self.graph.outputs]

    def _call(self, step: KernelStep, known: dict[Value, torch.Tensor], symbols: Mapping[str, int]) -> None:
        traversal = step.traversal
        tensors = [known[value].contiguous() for value in traversal.reads]
        for value in traversal.writes:
            shape = [evaluate_size(dim, symbols) for dim in value.shape]
            known[value] = torch.empty(shape, dtype=value.dtype)
            tensors.append(known[value])
        views = [
            tensor.view([evaluate_size(dim, symbols) for dim in view])
            for tensor, view in zip(tensors, traversal.views, strict=True)
        ]
        self._kernels[traversal.kernel.name](*views)


def compile_graph(graph: Graph, *, target: Literal["cpp"] = "cpp") -> CompiledGraph:
    """Compile a graph.

    :param target: `cpp`: C++ for this processor
    :raises SutureError: COMPILER, if there is none; INPUT, if parameters are elsewhere than on the CPU; WRITE, if the cache cannot be written
    """
    for parameter in graph.parameters.values():
        if parameter.data.device.type != "cpu":
            raise SutureError(
                Code.INPUT, f"{parameter} is on {parameter.data.device}", where=graph.name, remedy="move the model to the CPU"
            )  # fmt: skip
    program = lower(graph)
    return CompiledGraph(program, compile_kernels(program.kernels))


def _last_uses(program: Program) -> list[list[Value]]:
    """The values that nothing needs after each step."""
    last: dict[Value, int] = {}
    for position, step in enumerate(program.steps):
        reads = step.traversal.reads if isinstance(step, KernelStep) else step.inputs
        last.update((value, position) for value in reads if value is not None and value.producer is not None)
    kept = set(program.graph.outputs)
    frees: list[list[Value]] = [[] for _ in program.steps]
    for value, position in last.items():
        if value not in kept:
            frees[position].append(value)
    return frees
