"""Choosing schedules on a GPU by measuring: each group as a graph of its own, timed on the device under a time limit.

Products, convolutions and attention come first: the library, or generated code with the epilogue in it. Then what is left is put into groups as it
will be, and its lanes and tiles are tried. Candidates are timed in turn, the smallest time counts, and another than the default must be clearly
faster. Choices are kept in the user's cache folder, as those for processors are.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from suture.backends.compiled_cuda import CompiledCudaGraph, compile_cuda, compile_graph_for_cuda
from suture.backends.compiled_pointers import pointer_inputs
from suture.codegen.access import is_view
from suture.codegen.choices import Choice, read_choice, write_choice
from suture.codegen.cuda.candidates import LIBRARY, candidates, generated
from suture.codegen.cuda.launch import Device, find_device
from suture.codegen.groups import Group
from suture.codegen.program import lower, plan
from suture.codegen.schedule import Schedule
from suture.ir.errors import Code, SutureError
from suture.ir.extracting import extract
from suture.ir.graph import Graph, Node, Value
from suture.ir.regions import Region
from suture.ir.sizes import evaluate_size

_CLEARLY = 0.97  # of the default's time: less than this is a difference
_ENOUGH = 2e-3  # seconds that one timing should take
_ROUNDS = 10
_CALLS = 50
_FEW = 2  # integers that nothing looks anything up by


@dataclass
class _Candidate:
    schedule: Schedule
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)


def search_on_gpu(
    graph: Graph, symbols: Mapping[str, int], budget: float, device: Device, *, cached: bool = True
) -> list[Choice]:
    """The schedules that are fastest on a GPU, for the groups that have candidates.

    :param symbols: a number for each symbolic size, to measure at
    :param budget: seconds, compilation included; groups whose turn does not come keep the default
    :raises SutureError: SIZE, if a symbol has no number; COMPILER or DEVICE
    """
    lacking = [name for name in graph.symbols() if name not in symbols]
    if lacking:
        raise SutureError(
            Code.SIZE, f"the size {lacking[0]} has no number", where=graph.name, remedy="give a number for every symbol, to measure at"
        )  # fmt: skip
    search = _Search(device, symbols, time.perf_counter() + budget, cached)
    owners = search.choose(graph, generated(plan(graph, "cuda")[0].graph), of_library=True)
    rest = search.choose(graph, {each.key: each.schedule for each in owners}, of_library=False)
    return [*owners, *rest]


def compile_searched(graph: Graph, seconds: float, sizes: Mapping[str, int]) -> CompiledCudaGraph:
    """Compile a graph for the current GPU with the schedules that are fastest on it.

    :param seconds: to spend on measuring; what was found before costs nothing
    :param sizes: a number for each symbolic size, to measure at
    :raises SutureError: as `compile_graph_for_cuda`; SIZE, if a symbol has no number
    """
    device = find_device()
    return compile_graph_for_cuda(graph, device, choices=search_on_gpu(graph, sizes, seconds, device))


@dataclass
class _Search:
    """What is the same for all groups."""

    device: Device
    symbols: Mapping[str, int]
    deadline: float
    cached: bool

    def choose(self, graph: Graph, schedules: Mapping[str, Schedule], *, of_library: bool) -> list[Choice]:
        """Choices for the groups of what the library has, or of the rest.

        :param schedules: what is settled, and decides which groups there are
        """
        context, groups, _ = plan(graph, "cuda", schedules)
        found: list[Choice] = []
        waiting: dict[str, tuple[list[Group], Graph, list[Schedule]]] = {}
        for group in groups:
            if (group.anchor is not None and group.anchor.operator.name in LIBRARY) is not of_library:
                continue
            tried = candidates(group, context)
            if len(tried) < 2:
                continue
            piece = _alone(group, context.graph)
            mark = self._mark(piece)
            known = read_choice(mark) if self.cached else None
            if known is not None:
                found.append(Choice(group.key, known))
            else:
                waiting.setdefault(mark, ([], piece, tried))[0].append(group)
        for turn, (mark, (alike, piece, tried)) in enumerate(waiting.items()):
            left = self.deadline - time.perf_counter()
            if left <= 0:
                break
            key = alike[0].key
            made = self._made(piece, key, tried, stop=time.perf_counter() + left / (len(waiting) - turn) / 2)
            if len(made) < 2:
                continue
            best = self._fastest(made, time.perf_counter() + left / (len(waiting) - turn) / 2)
            if self.cached:
                write_choice(mark, best.schedule)
            seconds = tuple(min(each.seconds) for each in made)
            found += [Choice(group.key, best.schedule, seconds) for group in alike]
        return found

    def _mark(self, piece: Graph) -> str:
        """What tells a group, at its sizes and on its GPU, apart from others; its values' names do not."""
        names = {
            value: f"v{k}"
            for k, value in enumerate(
                [*piece.inputs, *piece.parameters.values(), *(v for n in piece.nodes for v in n.outputs)]
            )
        }
        lines = [
            [node.operator.name, [None if each is None else names[each] for each in node.inputs], repr(sorted(node.attributes.items())),
             [names[each] for each in node.outputs]]
            for node in piece.nodes
        ]  # fmt: skip
        shapes = [[name, str(value.dtype), self._shape(value)] for value, name in names.items()]
        facts = json.dumps(
            [lines, shapes, [names[v] for v in piece.outputs], self.device.name, self.device.architecture]
        )
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _shape(self, value: Value) -> list[int]:
        return [evaluate_size(dim, self.symbols) for dim in value.shape]

    def _made(self, piece: Graph, key: str, tried: Sequence[Schedule], stop: float) -> list[_Candidate]:
        """The candidates that can be made in time, each run once; the default is made whatever it takes."""
        inputs = self._inputs(piece)
        found: list[_Candidate] = []
        for schedule in tried:
            if found and time.perf_counter() > stop:
                break
            try:
                compiled = compile_cuda(lower(piece, "cuda", {key: schedule}), self.device)
                run = _runner(compiled, inputs)
                run()
            except SutureError:
                if not found:  # the default cannot run alone: nothing to compare with
                    break
                continue
            found.append(_Candidate(schedule, run))
        return found

    def _fastest(self, made: Sequence[_Candidate], stop: float) -> _Candidate:
        timed = self.device.seconds
        first = min(timed(each.run, 2) for each in made)
        calls = min(max(1, int(_ENOUGH / max(first, 1e-7))), _CALLS)
        for _ in range(_ROUNDS):
            for each in made:
                each.seconds.append(timed(each.run, calls))
            if time.perf_counter() > stop:
                break
        best = min(made, key=lambda each: min(each.seconds))
        return best if min(best.seconds) < _CLEARLY * min(made[0].seconds) else made[0]

    def _inputs(self, piece: Graph) -> list[torch.Tensor]:
        """Numbers like those that will be there: small ones, indices inside of what they look up, segments of equal length."""
        pointers, bound = dict(pointer_inputs(piece)), self._least_table(piece)
        place = self.device.place
        found = []
        for k, value in enumerate(piece.inputs):
            shape = self._shape(value)
            if k in pointers:
                rows = evaluate_size(pointers[k], self.symbols)
                found.append((torch.arange(shape[0], device=place) * rows // max(shape[0] - 1, 1)).to(value.dtype))
            elif value.dtype.is_floating_point:
                found.append(torch.rand(shape, device=place).to(value.dtype))
            elif value.dtype == torch.bool:
                found.append(torch.rand(shape, device=place) < 0.5)
            else:
                found.append(torch.randint(0, bound, shape, device=place, dtype=value.dtype))
        return found

    def _least_table(self, piece: Graph) -> int:
        """The rows of the shortest table that something is looked up in, at least one."""
        rows: list[int] = []
        for node in piece.nodes:
            names = [operand.name for operand in node.operator.signature.operands]
            tables = [node.inputs[names.index(where)] for where, _ in node.operator.signature.lookups if where in names]
            rows += [
                evaluate_size(table.shape[0], self.symbols) for table in tables if table is not None and table.rank
            ]
        return max(min(rows, default=_FEW), 1)


def _runner(compiled: CompiledCudaGraph, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    return lambda: compiled.run_trusted(inputs)


def _alone(group: Group, graph: Graph) -> Graph:
    """A group as a graph of its own, with the views that it reads through."""
    nodes: set[Node] = set()
    waiting = list(group.nodes)
    while waiting:
        node = waiting.pop()
        nodes.add(node)
        makers = [value.producer for value in node.inputs if value is not None and value.producer is not None]
        waiting += [maker for maker in makers if maker not in nodes and (maker in group.nodes or is_view(maker))]
    behind = {value.producer for value in group.outputs if value.producer is not None and is_view(value.producer)}
    return extract(Region(graph, [node for node in graph.nodes if node in nodes | behind], "group"))
