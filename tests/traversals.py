"""Runs the kernels of a graph's traversals: what the fast print and the checking print compute, in any storage order, from any sizes."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

import torch

from suture.codegen.checking import print_checking
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.decompose.rules import decompose
from suture.codegen.groups import Group, find_groups, schedule
from suture.codegen.runner import build_files
from suture.codegen.step import Context, KernelStep
from suture.codegen.toolchain import CHECKED, build
from suture.codegen.traversal.template import copy_group, lower_group
from suture.ir.graph import Graph, Value
from suture.ir.kernel_text import parse_kernel
from suture.ir.kernel_verify import verify_kernel
from suture.ir.sizes import evaluate_size

Orders = Mapping[str, tuple[int, ...]]


def lowered(graph: Graph, orders: Orders | None = None) -> tuple[Graph, Context, list[KernelStep]]:
    """The graph with norms written out, and the verified kernels of all that is computed; views that are returned are copied."""
    written = decompose(graph)
    context = Context(written)
    for value in written.values():
        if orders and value.name in orders:
            context.storage[value] = orders[value.name]
    steps: list[KernelStep] = []
    for item in schedule(written, find_groups(written, least=1)):
        if isinstance(item, Group):
            steps += lower_group(item, context)
    written_values = {value for step in steps for value in step.writes}
    for value in written.outputs:
        if value not in written_values and value.producer is not None:
            steps += lower_group(copy_group(value), context)
    for step in steps:
        verify_kernel(step.kernel)
        assert parse_kernel(str(step.kernel)) == step.kernel
    return written, context, steps


def run(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    symbols: Mapping[str, int],
    orders: Orders | None = None,
    mode: str = "fast",
) -> list[torch.Tensor]:
    """The graph's outputs.

    :param mode: `fast`, or the checking print with lanes and blocks `forwards` or `backwards`
    """
    written, context, steps = lowered(graph, orders)
    memory: dict[Value, torch.Tensor] = {}
    for value, tensor in [
        *zip(written.inputs, inputs, strict=True),
        *((p, p.data) for p in written.parameters.values()),
    ]:
        memory[value] = tensor.permute(context.order(value)).contiguous()
    for step in steps:
        for value in step.writes:
            shape = [evaluate_size(value.shape[dim], symbols) for dim in context.order(value)]
            memory[value] = torch.full(shape, 77, dtype=value.dtype)
        _call(step, memory, symbols, mode)
    found = []
    for value in written.outputs:
        order = context.order(value)
        found.append(memory[value].permute([order.index(dim) for dim in range(len(order))]))
    return found


def _call(step: KernelStep, memory: Mapping[Value, torch.Tensor], symbols: Mapping[str, int], mode: str) -> None:
    sizes = [evaluate_size(dim, symbols) for dim in step.sizes]
    for buffer, value in zip(step.kernel.arguments, step.arguments, strict=True):
        known = dict(zip((name.name for name in step.kernel.sizes), sizes, strict=True))
        elements = math.prod(int(eval(_text(dim), {}, known)) for dim in buffer.shape)
        assert elements == memory[value].numel()
    fast = mode == "fast"
    library = build_files(print_cpp(step.kernel)) if fast else build(print_checking(step.kernel), flags=CHECKED)
    function = getattr(library, step.kernel.name)
    leading = [] if fast else [ctypes.c_int(mode == "backwards")]
    pointers = [ctypes.c_void_p(memory[value].data_ptr()) for value in step.arguments]
    stopped = function(*leading, *(ctypes.c_int64(size) for size in sizes), *pointers)
    if not fast and stopped:
        library.k_message.restype = ctypes.c_char_p
        raise AssertionError(library.k_message().decode())


def _text(dim: object) -> str:
    from suture.ir.kernel_text import print_expression

    return print_expression(dim)  # type: ignore[arg-type]
