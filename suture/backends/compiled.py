"""Compiled graphs: what was lowered runs as generated code, the rest as torch runs it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch

from suture.backends.arenas import shared_arenas
from suture.backends.compiled_function import CompiledFunction
from suture.backends.results import Results, Room
from suture.codegen.choices import Choice
from suture.codegen.extremes import refuse_empty
from suture.codegen.lookups import Lookup, check_lookups
from suture.codegen.plan import place
from suture.codegen.program import Program, lower, pointers
from suture.codegen.runner import build_files, print_program
from suture.codegen.search import search as find_schedules
from suture.codegen.step import KernelStep
from suture.codegen.taking_over import share_memory
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.semantics import bind_symbols, run_node
from suture.ir.sizes import evaluate_size

_PLACE = torch.device("cpu")
_FRAMES = 32  # sizes for which addresses are kept


class CompiledGraph(CompiledFunction):
    """A function of tensors that computes what a graph does. It runs without gradients.

    :param program: the steps
    :param library: the compiled kernels and the functions that call them
    :param lookups: what the program's last outputs say of indices that data hold
    :param choices: the schedules that a search chose
    """

    def __init__(
        self,
        program: Program,
        library: ctypes.CDLL | None,
        lookups: Sequence[Lookup] = (),
        choices: Sequence[Choice] = (),
    ) -> None:
        super().__init__(program, _PLACE, lookups)
        self.choices = tuple(choices)
        self._table = pointers(program)
        self._slots = {value: k for k, value in enumerate(self._table)}
        self._runs = [
            _function(library, number) if isinstance(run[0], KernelStep) else run[0]
            for number, run in enumerate(program.runs)
        ]
        self._constants = _constants(program)
        self._arena, self._taken = share_memory(program, program.lifetimes())
        self._frees = _last_uses(program)
        self._arenas = shared_arenas()
        self._results = Results()
        self._frames: dict[tuple[torch.Size, ...], list[_Frame]] = {}

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        key = tuple([each.shape for each in inputs])
        waiting = self._frames.get(key)
        if waiting is None:
            if len(self._frames) >= _FRAMES:
                self._frames.pop(next(iter(self._frames)), None)
            waiting = self._frames.setdefault(key, [])
        try:
            frame = waiting.pop()  # one at a time each: calls from several threads have frames of their own
        except IndexError:
            symbols = bind_symbols(self.graph, inputs)
            refuse_empty(self.program.extremes, symbols, self.graph.name)
            frame = _Frame(self, symbols)
        results = frame.run(inputs)
        waiting.append(frame)
        return results


class _Frame:
    """What is settled for calls at given sizes: where values lie in the arena, the table of pointers, how torch sees what lies there."""

    def __init__(self, owner: CompiledGraph, symbols: Mapping[str, int]) -> None:
        self.owner = owner
        self.symbols = symbols
        program = owner.program
        sizes = [evaluate_size(each.size, symbols) for each in owner._arena]
        self.offsets, self.total = place(owner._arena, sizes)
        self.start = -1  # the address of the arena that the table is for
        self.table = (ctypes.c_void_p * max(1, len(owner._table)))()
        self.sizes = (ctypes.c_int64 * max(1, len(program.graph.symbols())))(
            *(symbols[name] for name in program.graph.symbols())
        )
        self.shapes = {
            value: [evaluate_size(dim, symbols) for dim in value.shape]
            for value in (*owner._table, *program.graph.outputs)
        }
        read = {value for step in program.steps if isinstance(step, Node) for value in step.inputs}
        self.views = [
            (each.value, *self._strides(each.value), offset // each.value.dtype.itemsize)
            for each, offset in zip(owner._arena, self.offsets, strict=True)
            if each.value in read
        ]
        for value, tensor in owner._constants.items():
            if value in owner._slots:
                self.table[owner._slots[value]] = tensor.data_ptr()
        taken: dict[Value, list[int]] = {}
        for value, result in owner._taken.items():
            taken.setdefault(result, []).append(owner._slots[value])
        self.placed = [
            (slot, offset)
            for each, offset in zip(owner._arena, self.offsets, strict=True)
            for slot in (owner._slots[each.value], *taken.get(each.value, ()))
        ]
        self.written = [
            (value, (owner._slots[value], *taken.get(value, ())), Room.of(value.dtype, self.shapes[value]))
            for step in program.steps
            if isinstance(step, KernelStep)
            for value in step.writes
            if value.is_graph_output()
        ]
        order = {value: number for number, (value, _, _) in enumerate(self.written)}
        outputs = program.graph.outputs
        self.kernels = [run for run in owner._runs if not isinstance(run, Node)]
        alone = len(self.kernels) == len(owner._runs) and all(each in order for each in outputs)
        self.returned = [order[each] for each in outputs] if alone else None  # where nothing but kernels runs
        self.read = [owner._slots.get(value) for value in program.graph.inputs]

    def _enter(self, arena: torch.Tensor) -> None:
        """Let values lie in an arena."""
        self.start = arena.data_ptr()
        for slot, offset in self.placed:
            self.table[slot] = self.start + offset

    def _strides(self, value: Value) -> tuple[list[int], list[int]]:
        """The sizes of a value that lies without gaps, and how far its neighbours are apart, in the order of its dimensions."""
        shape, order = self.shapes[value], self.owner.program.storage.get(value, tuple(range(value.rank)))
        strides, step = [1] * value.rank, 1
        for dim in reversed(order):
            strides[dim] = step
            step *= shape[dim]
        return shape, strides

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.returned is not None and not self.total:
            return self._run_kernels(inputs, self.returned)
        arena = self.owner._arenas.take(self.total)
        try:
            if arena.data_ptr() != self.start:
                self._enter(arena)
            return self._run(inputs, arena) if self.returned is None else self._run_kernels(inputs, self.returned)
        finally:
            self.owner._arenas.give(arena)

    def _run_kernels(self, inputs: Sequence[torch.Tensor], returned: Sequence[int]) -> list[torch.Tensor]:
        """As little as can be done around kernels: small graphs spend their time here."""
        table, dense = self.table, []
        for slot, tensor in zip(self.read, inputs, strict=True):
            if slot is not None:
                dense.append(tensor.contiguous())  # a copy lives until the kernels have run
                table[slot] = dense[-1].data_ptr()
        made = self._made()
        for run in self.kernels:
            run(self.sizes, table)
        return [made[number] for number in returned]

    def _made(self) -> list[torch.Tensor]:
        """Memory for the results that kernels write."""
        made = []
        for value, slots, room in self.written:
            made.append(self.owner._results.make(value, room))
            place = made[-1].data_ptr()
            for slot in slots:
                self.table[slot] = place
        return made

    def _run(self, inputs: Sequence[torch.Tensor], arena: torch.Tensor) -> list[torch.Tensor]:
        owner, table = self.owner, self.table
        known: dict[Value, torch.Tensor] = dict(owner._constants)
        for value, shape, strides, offset in self.views:
            known[value] = arena.view(value.dtype).as_strided(shape, strides, offset)
        for value, tensor in zip(owner.graph.inputs, inputs, strict=True):
            known[value] = tensor
            if value in owner._slots:
                known[value] = tensor.contiguous()
                table[owner._slots[value]] = known[value].data_ptr()
        known.update(zip((value for value, _, _ in self.written), self._made(), strict=True))
        for step, frees in zip(owner._runs, owner._frees, strict=True):
            if isinstance(step, Node):
                self._node(step, known)
            else:
                step(self.sizes, table)
            for value in frees:
                known.pop(value, None)
        return [_own(known[value], arena) for value in owner.graph.outputs]

    def _node(self, node: Node, known: dict[Value, torch.Tensor]) -> None:
        operands = [None if value is None else known[value] for value in node.inputs]
        try:
            results = run_node(node, operands, self.symbols)
        except (IndexError, RuntimeError) as error:
            if "out of bounds" not in str(error) and not isinstance(error, IndexError):
                raise
            raise SutureError(
                Code.INPUT, str(error), where=node.where(), remedy="an index must lie inside its dimension"
            ) from None
        for value, tensor in zip(node.outputs, results, strict=True):
            slot = self.owner._slots.get(value)
            known[value] = tensor
            if slot is not None:
                order = self.owner.program.storage.get(value, tuple(range(tensor.ndim)))
                lying = tensor.permute(order).contiguous()
                known[value] = lying.permute([order.index(dim) for dim in range(tensor.ndim)])
                self.table[slot] = lying.data_ptr()


def _own(tensor: torch.Tensor, arena: torch.Tensor) -> torch.Tensor:
    """A result that torch made of the arena without a copy gets memory of its own."""
    shared = tensor.untyped_storage().data_ptr() == arena.untyped_storage().data_ptr()
    return tensor.clone() if shared and arena.numel() else tensor


def compile_graph(
    graph: Graph,
    *,
    target: Literal["cpp"] = "cpp",
    search: float = 0.0,
    sizes: Mapping[str, int] | None = None,
    trusted: Collection[str] = (),
) -> CompiledGraph:
    """Compile a graph.

    :param target: `cpp`: C++ for this processor
    :param search: seconds to spend on finding the fastest schedules; those found before cost nothing
    :param sizes: numbers for symbolic sizes, at which the search measures
    :param trusted: inputs that are indices which the caller has checked
    :raises SutureError: COMPILER, if there is none; DEVICE, if parameters are elsewhere than on the CPU; WRITE, if the cache cannot be written;
        SIZE, if a search lacks the number of a symbol
    """
    for parameter in graph.parameters.values():
        if parameter.data.device.type != "cpu":
            raise SutureError(
                Code.DEVICE, f"{parameter} is on {parameter.data.device}", where=graph.name, remedy="move the model to the CPU"
            )  # fmt: skip
    checked, lookups = check_lookups(graph, trusted)
    choices = find_schedules(checked, sizes or {}, search) if search > 0 else []
    program = lower(checked, target, {choice.key: choice.schedule for choice in choices})
    return compile_program(program, lookups, choices)


def compile_program(program: Program, lookups: Sequence[Lookup] = (), choices: Sequence[Choice] = ()) -> CompiledGraph:
    """Compile the kernels of a program, by a compiler on each processor where they are long."""
    if not program.kernels:
        return CompiledGraph(program, None, lookups, choices)
    library = build_files(*print_program(program, os.cpu_count() or 1))
    return CompiledGraph(program, library, lookups, choices)


def _function(library: ctypes.CDLL | None, number: int) -> Any:
    assert library is not None
    function = getattr(library, f"run_{number}")
    function.restype = None
    return function


def _constants(program: Program) -> dict[Value, torch.Tensor]:
    """Parameters and what was made of them, each contiguous."""
    found: dict[Value, torch.Tensor] = {
        parameter: parameter.data.detach().contiguous() for parameter in program.graph.parameters.values()
    }
    found.update((each.value, each.make()) for each in program.constants)
    return found


def _last_uses(program: Program) -> list[list[Value]]:
    """What torch makes and nothing needs after each run."""
    last: dict[Value, int] = {}
    for position, run in enumerate(program.runs):
        for step in run:
            reads = step.arguments if isinstance(step, KernelStep) else step.inputs
            last.update((value, position) for value in reads if value is not None and value.producer is not None)
    kept = set(program.graph.outputs)
    frees: list[list[Value]] = [[] for _ in program.runs]
    for value, position in last.items():
        if value not in kept:
            frees[position].append(value)
    return frees
