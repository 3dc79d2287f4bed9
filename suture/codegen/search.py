"""Choosing schedules by measuring: every candidate of every kernel, on this machine, under a time limit.

Candidates are timed in turn, round by round, so that what slows the machine down slows all; the smallest time of each counts, and another than the
default must be clearly faster. A choice is kept in the user's cache folder, under a hash of what the kernel computes, at which sizes, and where: the
next time nothing is measured, and the same code comes out.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from suture.codegen.choices import Choice, read_choice, write_choice
from suture.codegen.groups import Group
from suture.codegen.program import Program, lower_one, plan, pointers
from suture.codegen.runner import build_files, print_program, symbol_slots
from suture.codegen.schedule import Schedule
from suture.codegen.step import Context, KernelStep
from suture.codegen.templates import templates
from suture.codegen.toolchain import describe_target
from suture.codegen.traversal.candidates import candidates
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.sizes import evaluate_size, product, symbols_of

_CLEARLY = 0.97  # of the default's time: less than this is a difference
_ENOUGH = 2e-3  # seconds that one timing should take
_ROUNDS = 10
_WORTH = 1 << 15  # elements from which on a traversal takes long enough to be measured


@dataclass
class _Variant:
    schedule: Schedule
    steps: list[KernelStep]
    seconds: list[float] = field(default_factory=list)


def search(graph: Graph, symbols: Mapping[str, int], budget: float, *, cached: bool = True) -> list[Choice]:
    """The schedules that are fastest here, for the groups that have candidates.

    :param symbols: a number for each symbolic size, to measure at
    :param budget: seconds, compilation included; groups whose turn does not come keep the default: products and the like come first, then large
        traversals
    :raises SutureError: COMPILER, if there is none; SIZE, if a symbol has no number
    """
    deadline = time.perf_counter() + budget
    context, groups, _ = plan(graph)
    found: list[Choice] = []
    waiting: dict[str, list[tuple[Group, list[_Variant]]]] = {}
    for group in sorted(groups, key=lambda each: (each.anchor is None, -_elements(each, symbols))):
        variants = _variants(group, context, symbols)
        if len(variants) < 2:
            continue
        mark = _mark(variants[0].steps, symbols)
        known = read_choice(mark) if cached else None
        if known is not None:
            found.append(Choice(group.key, known))
        else:
            waiting.setdefault(mark, []).append((group, variants))
    for turn, (mark, alike) in enumerate(waiting.items()):
        left = deadline - time.perf_counter()
        if left <= 0:
            break
        variants = alike[0][1]
        best = _fastest(context, variants, symbols, left / (len(waiting) - turn))
        if cached:
            write_choice(mark, best.schedule)
        seconds = tuple(min(variant.seconds) for variant in variants)
        found += [Choice(group.key, best.schedule, seconds) for group, _ in alike]
    return found


def _variants(group: Group, context: Context, symbols: Mapping[str, int]) -> list[_Variant]:
    schedules: Sequence[Schedule]
    if group.anchor is not None:
        schedules = templates()[group.anchor.operator.name].candidates(group, context)
    elif _elements(group, symbols) >= _WORTH:
        schedules = candidates(group, context)
    else:
        return []
    return [
        _Variant(each, lower_one(group, replace(context, schedules={group.key: each})))
        for each in dict.fromkeys(schedules)
    ]


def _elements(group: Group, symbols: Mapping[str, int]) -> int:
    """How many elements its domain has; where a number lacks it is worth measuring, which then says so."""
    size = product(group.shape)
    return evaluate_size(size, symbols) if set(symbols_of(size)) <= symbols.keys() else _WORTH


def _mark(steps: Sequence[KernelStep], symbols: Mapping[str, int]) -> str:
    """What tells a kernel, at its sizes and on its machine, apart from others."""
    text = "\n".join(str(replace(step.kernel, name="kernel")) for step in steps)
    sizes = [evaluate_size(dim, symbols) for step in steps for dim in step.sizes]
    facts = json.dumps([text, sizes, describe_target(), torch.get_num_threads()])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _fastest(context: Context, variants: Sequence[_Variant], symbols: Mapping[str, int], seconds: float) -> _Variant:
    """Compile all side by side, and run them in turn until the time is up."""
    stop = time.perf_counter() + seconds
    programs = [
        Program(
            context.graph,
            tuple(
                replace(step, kernel=replace(step.kernel, name=f"kernel{k}_{n}"))
                for n, step in enumerate(variant.steps)
            ),
            context.storage,
            tuple(context.constants),
        )
        for k, variant in enumerate(variants)
    ]
    library = build_files(
        *(text for k, program in enumerate(programs) for text in print_program(program, 1, prefix=f"variant{k}"))
    )
    runs = [_timer(program, getattr(library, f"variant{k}_0"), symbols) for k, program in enumerate(programs)]
    calls = max(1, int(_ENOUGH / max(min(run(2) for run in runs), 1e-7)))
    for _ in range(_ROUNDS):
        for variant, run in zip(variants, runs, strict=True):
            variant.seconds.append(run(calls))
        if time.perf_counter() > stop:
            break
    best = min(variants, key=lambda variant: min(variant.seconds))
    return best if min(best.seconds) < _CLEARLY * min(variants[0].seconds) else variants[0]


def _timer(program: Program, function: Callable[..., None], symbols: Mapping[str, int]) -> Callable[[int], float]:
    """Runs a program so many times on numbers of its own, and gives the seconds of one."""
    tensors = [_filled(value, symbols, program) for value in pointers(program)]
    table = (ctypes.c_void_p * max(1, len(tensors)))(*(tensor.data_ptr() for tensor in tensors))
    slots = symbol_slots(program)
    sizes = (ctypes.c_int64 * max(1, len(slots)))(*(symbols[name] for name in slots))

    def run(calls: int) -> float:
        assert len(tensors) >= 0  # they live as long as the function does
        start = time.perf_counter()
        for _ in range(calls):
            function(sizes, table)
        return (time.perf_counter() - start) / calls

    return run


def _filled(value: Value, symbols: Mapping[str, int], program: Program) -> torch.Tensor:
    """Numbers like those that will be there: a parameter's own, small ones elsewhere."""
    if isinstance(value, Parameter):
        return value.data.detach().contiguous()
    prepared = next((each for each in program.constants if each.value is value), None)
    if prepared is not None:
        return prepared.make()
    shape = [evaluate_size(dim, symbols) for dim in value.shape]
    if value.dtype.is_floating_point:
        return torch.rand(shape, dtype=torch.float32).to(value.dtype)
    return torch.zeros(shape, dtype=value.dtype)
