"""Runs what templates write, kernel by kernel: compiled for speed, or checking with the lanes in either order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.codegen.checking import print_checking
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.groups import find_groups
from suture.codegen.runner import build_files
from suture.codegen.step import Context, KernelStep, Template
from suture.codegen.toolchain import CHECKED, build
from suture.ir.graph import Graph, Value
from suture.ir.kernel import Kernel
from suture.ir.kernel_verify import verify_kernel
from suture.ir.semantics import bind_symbols
from suture.ir.sizes import evaluate_size


@dataclass(frozen=True)
class Lowered:
    """The kernels of a graph in which templates took every node."""

    graph: Graph
    context: Context
    steps: tuple[KernelStep, ...]

    def run(self, inputs: Sequence[torch.Tensor], call: Callable[..., None] | None = None) -> list[torch.Tensor]:
        """The graph's outputs; memory is full of NaN before anything is written."""
        symbols = bind_symbols(self.graph, inputs)
        memory: dict[Value, torch.Tensor] = {each.value: each.make() for each in self.context.constants}
        memory |= {value: value.data.detach().contiguous() for value in self.graph.parameters.values()}
        for value, tensor in zip(self.graph.inputs, inputs, strict=True):
            memory[value] = tensor.permute(self.context.order(value)).contiguous()
        for step in self.steps:
            for value in step.arguments:
                if value not in memory:
                    shape = [evaluate_size(value.shape[dim], symbols) for dim in self.context.order(value)]
                    memory[value] = torch.full(shape, float("nan"), dtype=value.dtype)
            sizes = [evaluate_size(size, symbols) for size in step.sizes]
            (call or fast)(step.kernel, sizes, [memory[value] for value in step.arguments])
        return [
            memory[value].permute([self.context.order(value).index(dim) for dim in range(value.rank)])
            for value in self.graph.outputs
        ]


def lower_all(
    graph: Graph, templates: Mapping[str, Template], storage: Mapping[Value, tuple[int, ...]], target: str = "cpp"
) -> Lowered:
    """Every group by its template; every kernel is verified."""
    context = Context(graph, target, storage=dict(storage))
    steps: list[KernelStep] = []
    for group in find_groups(graph, lambda node: templates.get(node.operator.name), least=1):
        assert group.anchor is not None
        template = templates[group.anchor.operator.name]
        assert template.refuses(group.anchor, context) is None
        steps += template.lower(group, context)
    for step in steps:
        verify_kernel(step.kernel)
    return Lowered(graph, context, tuple(steps))


def fast(kernel: Kernel, sizes: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
    """One call of the fast print."""
    function = getattr(build_files(print_cpp(kernel)), kernel.name)
    function.restype = None
    function.argtypes = [*[ctypes.c_int64] * len(sizes), *[ctypes.c_void_p] * len(tensors)]
    function(*sizes, *(each.data_ptr() for each in tensors))


def checking(kernel: Kernel, sizes: Sequence[int], tensors: Sequence[torch.Tensor], *, backwards: bool) -> None:
    """One call of the checking print: it must not stop."""
    library = build(print_checking(kernel), flags=CHECKED)
    library.k_message.restype = ctypes.c_char_p
    function = getattr(library, kernel.name)
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_int, *[ctypes.c_int64] * len(sizes), *[ctypes.c_void_p] * len(tensors)]
    stopped = function(int(backwards), *sizes, *(each.data_ptr() for each in tensors))
    assert not stopped, library.k_message().decode()
