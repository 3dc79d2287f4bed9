"""Results that take the place of an operand: a kernel reads an element and stores one where it stood, and nobody reads the operand again.

That is the case of what is added to a sum as it is made: the product with a root matrix, a residual. One piece of memory does for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from suture.codegen.plan import Lifetime
from suture.codegen.step import KernelStep
from suture.ir.graph import Value
from suture.ir.kernel import (
    Branch,
    Buffer,
    Kernel,
    Let,
    Load,
    Statement,
    Store,
    Threads,
    expressions_of,
    loads_in,
    parts,
    walk,
)

if TYPE_CHECKING:
    from suture.codegen.program import Program


def takeovers(kernel: Kernel) -> tuple[tuple[Buffer, Buffer], ...]:
    """The operands of a kernel and the results that may lie in their memory.

    Every lane of every block runs through the store once, reads of the operand that same element alone, and reads it before; no other lane stores
    there, as the verifier has proved.
    """
    found: list[tuple[Buffer, Buffer]] = []
    touched = _touched(kernel)
    for body, place, store in _stores(kernel.body, within=False):
        result = store.buffer
        if result not in kernel.arguments or touched.get(result) != 1:
            continue
        before = [load for each in body[: place + 1] for load in _direct(each)]
        for operand in kernel.arguments:
            own = [load for load in before if load.buffer == operand]
            alike = operand.dtype == result.dtype and operand.shape == result.shape
            if alike and own and len(own) == touched[operand] and all(load.index == store.index for load in own):
                found.append((operand, result))
                break
    return tuple(found)


def _touched(kernel: Kernel) -> dict[Buffer, int]:
    """How many places of a kernel read or write each buffer."""
    counts: dict[Buffer, int] = {}
    for statement in walk(kernel.body):
        buffers = [load.buffer for load in loads_in(statement)]
        buffers += [
            each
            for name in ("buffer", "source", "target")
            if isinstance(each := getattr(statement, name, None), Buffer)
        ]
        for each in buffers:
            counts[each] = counts.get(each, 0) + 1
    return counts


def _stores(body: Sequence[Statement], *, within: bool) -> Iterator[tuple[Sequence[Statement], int, Store]]:
    """The stores of lanes that are in no loop, each with the statements around it."""
    for place, statement in enumerate(body):
        match statement:
            case Store() if within:
                yield body, place, statement
            case Threads(body=inside):
                yield from _stores(inside, within=True)
            case Branch(body=inside, otherwise=otherwise):
                yield from _stores(inside, within=within)
                yield from _stores(otherwise, within=within)
            case _:
                pass


def _direct(statement: Statement) -> Iterator[Load]:
    """What a statement itself reads, if it is no loop or branch."""
    if isinstance(statement, Let | Store):
        for expression in expressions_of(statement):
            yield from (each for each in parts(expression) if isinstance(each, Load))


def share_memory(program: Program, lifetimes: Sequence[Lifetime]) -> tuple[tuple[Lifetime, ...], dict[Value, Value]]:
    """Lifetimes without those values whose place a result takes, which lives as long as both; and for each of these values that result."""
    first = {each.value: each.first for each in lifetimes}
    last = {each.value: each.last for each in lifetimes}
    returned = set(program.graph.outputs)
    seen = {value for step in program.steps if not isinstance(step, KernelStep) for value in step.inputs}
    taken: dict[Value, Value] = {}
    for position, step in enumerate(program.steps):
        if not isinstance(step, KernelStep):
            continue
        values = dict(zip(step.kernel.arguments, step.arguments, strict=True))
        for old, new in takeovers(step.kernel):
            operand, result = values[old], values[new]
            if last.get(operand) != position or operand in seen or operand.type != result.type:
                continue
            if (
                program.storage.get(operand) != program.storage.get(result)
                or not (result in returned or result in first)
                or step.arguments.count(operand) != 1
            ):
                continue
            taken[operand] = result
    ends = {value: _end(value, taken) for value in taken}
    for value, end in ends.items():
        if end in first:
            first[end] = min(first[end], first[value])
    kept = tuple(Lifetime(each.value, first[each.value], each.last) for each in lifetimes if each.value not in taken)
    return kept, ends


def _end(value: Value, taken: dict[Value, Value]) -> Value:
    while value in taken:
        value = taken[value]
    return value
