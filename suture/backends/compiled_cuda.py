"""Compiled graphs on a GPU: what was lowered runs as generated kernels on torch's current stream, the rest as torch runs it.

What kernels hand on lies in one piece of memory for each call, planned ahead and taken from torch's allocator, so that calls on several streams do
not meet and `torch.cuda.graph` may record a call.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from suture.backends.compiled_function import CompiledFunction
from suture.codegen.choices import Choice
from suture.codegen.cuda.launch import CudaKernel, Device, find_device
from suture.codegen.cuda.printer import ALIGNMENT
from suture.codegen.extremes import refuse_empty
from suture.codegen.lookups import Lookup, check_lookups
from suture.codegen.plan import place
from suture.codegen.program import Program, lower, pointers
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph, Node, Value
from suture.ir.semantics import bind_symbols, run_node
from suture.ir.sizes import evaluate_size


@dataclass(frozen=True)
class _Launch:
    """One call of a kernel at given sizes: its arguments are slots of the table of addresses."""

    kernel: CudaKernel
    sizes: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class _Frame:
    """What is settled by the sizes of a call: where values lie, and how kernels are launched."""

    symbols: Mapping[str, int]
    total: int
    offsets: Mapping[Value, int]
    shapes: Mapping[Value, list[int]]
    steps: tuple[_Launch | Node, ...]


class CompiledCudaGraph(CompiledFunction):
    """A function of tensors on a GPU that computes what a graph does. It runs without gradients.

    :param program: the steps
    :param device: where it runs; parameters are moved there
    :param lookups: what the program's last outputs say of indices that data hold
    :param choices: the schedules that a search chose
    """

    def __init__(
        self, program: Program, device: Device, lookups: Sequence[Lookup] = (), choices: Sequence[Choice] = ()
    ) -> None:
        super().__init__(program, device.place, lookups)
        self.device, self.choices = device, tuple(choices)
        self._kernels = device.load(program.kernels)
        self.table = pointers(program)
        self.slots = {value: slot for slot, value in enumerate(self.table)}
        self.constants: dict[Value, torch.Tensor] = {
            parameter: parameter.data.detach().to(device.place).contiguous()
            for parameter in program.graph.parameters.values()
        }
        self.constants.update((each.value, each.make().to(device.place)) for each in program.constants)
        for value, tensor in self.constants.items():
            if value in self.slots and tensor.data_ptr() % ALIGNMENT:
                self.constants[value] = tensor.clone()
        written = [value for step in program.steps if isinstance(step, KernelStep) for value in step.writes]
        self.returned = tuple(value for value in dict.fromkeys(written) if value.is_graph_output())
        self._lifetimes = program.lifetimes()
        self._frames: dict[tuple[torch.Size, ...], _Frame] = {}

    def order(self, value: Value) -> tuple[int, ...]:
        """How the dimensions of a value lie in memory, outermost first."""
        return self.program.storage.get(value, tuple(range(value.rank)))

    def _computed(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with _current(self.place):
            self.device.enter()
            return super()._computed(inputs)

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        key = tuple([each.shape for each in inputs])
        frame = self._frames.get(key)
        if frame is None:
            symbols = bind_symbols(self.graph, inputs)
            refuse_empty(self.program.extremes, symbols, self.graph.name)
            frame = self._frames.setdefault(key, self._frame(symbols))
        return _Call(self, frame, inputs).run()

    def _frame(self, symbols: Mapping[str, int]) -> _Frame:
        sizes = [evaluate_size(each.size, symbols) for each in self._lifetimes]
        offsets, total = place(self._lifetimes, sizes)
        values = dict.fromkeys((*self.table, *self.graph.outputs))
        return _Frame(
            symbols, total,
            {each.value: offset for each, offset in zip(self._lifetimes, offsets, strict=True)},
            {value: [evaluate_size(dim, symbols) for dim in value.shape] for value in values},
            tuple(self._settled(step, symbols) for step in self.program.steps),
        )  # fmt: skip

    def _settled(self, step: KernelStep | Node, symbols: Mapping[str, int]) -> _Launch | Node:
        if isinstance(step, Node):
            return step
        sizes = tuple(evaluate_size(dim, symbols) for dim in step.sizes)
        return _Launch(self._kernels[step.kernel.name], sizes, tuple(self.slots[value] for value in step.arguments))


class _Call:
    """One call: the tensors that are alive, and the addresses that kernels are given."""

    def __init__(self, owner: CompiledCudaGraph, frame: _Frame, inputs: Sequence[torch.Tensor]) -> None:
        self.owner, self.frame = owner, frame
        self.place = owner.device.place
        self.arena = torch.empty(frame.total, dtype=torch.uint8, device=self.place)
        self.known = dict(owner.constants)
        self.addresses = [0] * len(owner.table)
        start = self.arena.data_ptr()
        for value, offset in frame.offsets.items():
            self.addresses[owner.slots[value]] = start + offset
        for value, tensor in owner.constants.items():
            if value in owner.slots:
                self.addresses[owner.slots[value]] = tensor.data_ptr()
        for value, tensor in zip(owner.graph.inputs, inputs, strict=True):
            self.enter(value, tensor)
        for value in owner.returned:
            shape, order = frame.shapes[value], owner.order(value)
            stored = torch.empty([shape[dim] for dim in order], dtype=value.dtype, device=self.place)
            self.addresses[owner.slots[value]] = stored.data_ptr()
            self.known[value] = _counted(stored, order)

    def enter(self, value: Value, tensor: torch.Tensor) -> None:
        """What torch holds; where kernels read it, it lies as they expect."""
        slot = self.owner.slots.get(value)
        if slot is not None:
            order = self.owner.order(value)
            stored = tensor.permute(order).contiguous()
            if stored.data_ptr() % ALIGNMENT:  # a piece of another tensor, which starts anywhere
                stored = stored.clone()
            self.addresses[slot] = stored.data_ptr()
            tensor = _counted(stored, order)
        self.known[value] = tensor

    def run(self) -> list[torch.Tensor]:
        """All steps in order."""
        with _makes_tensors_at(self.place):
            for step in self.frame.steps:
                if isinstance(step, Node):
                    self.node(step)
                else:
                    step.kernel.launch(step.sizes, [self.addresses[slot] for slot in step.slots])
        return [self.own(value) for value in self.owner.graph.outputs]

    def node(self, node: Node) -> None:
        operands = [None if value is None else self.tensor(value) for value in node.inputs]
        for value, tensor in zip(node.outputs, run_node(node, operands, self.frame.symbols), strict=True):
            self.enter(value, tensor)

    def tensor(self, value: Value) -> torch.Tensor:
        """A value, wherever it is: what a kernel wrote into the arena is seen as a tensor."""
        if value not in self.known:
            shape, order = self.frame.shapes[value], self.owner.order(value)
            start = self.frame.offsets[value]
            flat = self.arena[start : start + math.prod(shape) * value.dtype.itemsize].view(value.dtype)
            self.known[value] = _counted(flat.view([shape[dim] for dim in order]), order)
        return self.known[value]

    def own(self, value: Value) -> torch.Tensor:
        """A result; what torch made of the arena without a copy gets memory of its own."""
        tensor = self.tensor(value)
        shared = tensor.untyped_storage().data_ptr() == self.arena.untyped_storage().data_ptr()
        return tensor.clone() if shared and self.arena.numel() else tensor


def compile_cuda(
    program: Program, device: Device | None = None, lookups: Sequence[Lookup] = (), choices: Sequence[Choice] = ()
) -> CompiledCudaGraph:
    """Compile a program that was lowered for `cuda`.

    :param device: where it runs; the current GPU if it is not said
    :param lookups: what the program's last outputs say of indices that data hold
    :param choices: the schedules in it that a search chose
    :raises SutureError: DEVICE, if there is no GPU; COMPILER, if there is no compiler; WRITE, if the cache cannot be written
    """
    return CompiledCudaGraph(program, device or find_device(), lookups, choices)


def compile_graph_for_cuda(
    graph: Graph,
    device: Device | None = None,
    trusted: Collection[str] = (),
    choices: Sequence[Choice] = (),
    split: int = 0,
) -> CompiledCudaGraph:
    """Compile a graph; indices that data hold are checked.

    :param device: where it runs; the current GPU if it is not said
    :param trusted: inputs that are indices which the caller has checked
    :param choices: the schedules that a search chose
    :param split: segments of more rows come in pieces of so many; 0 for none
    :raises SutureError: as `compile_cuda`
    """
    checked, lookups = check_lookups(graph, trusted)
    program = lower(checked, "cuda", {choice.key: choice.schedule for choice in choices}, split=split)
    return compile_cuda(program, device, lookups, choices)


def current_place() -> torch.device:
    """The GPU that graphs are compiled for if none is said.

    :raises SutureError: DEVICE, if there is none
    """
    return find_device().place


def _counted(stored: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """A tensor as its dimensions are counted, from one as they lie in memory."""
    return stored.permute([order.index(dim) for dim in range(len(order))])


def _current(place: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()


def _makes_tensors_at(place: torch.device) -> AbstractContextManager[Any]:
    """What nodes make from nothing (`full`, `arange`) stands where the kernels run."""
    return place if place.type != "cpu" else nullcontext()
