"""Layer skipping: the blocks that do least are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import Stack, stack_at
from suture.ir.splice import arrange, remove
from suture.passes.assembly.influence import Influence, Measure, influences
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def skip_layers(
    graph: Graph,
    notes: Notes,
    *,
    drop: int | None = None,
    keep: float | None = None,
    at: str | None = None,
    by: Measure = "cosine",
    data: Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """Leave out the blocks of a stack that have least influence on calibration data.

    The blocks that stay are numbered anew, so that the model's own class holds them with a smaller depth. The function is kept only where the blocks
    left out are the identity: the notes say so, or which did how much.

    :param drop: how many blocks go
    :param keep: instead, which share of them stays
    :param at: the stack ("model.layers"); the one of most parameters if absent
    :param by: cosine (1 - cosine of the stream before and after), residual (norm of what is added over that of the stream), or loss (how far the
        outputs move without the block)
    :param data: calibration inputs by name
    :raises SutureError: KEEP, if neither or both of `drop` and `keep` are given, or nothing would be left; CALIBRATION, without data
    """
    stack = stack_at(graph, at)
    count = _count(stack, drop, keep)
    if count == 0:
        notes.not_applicable(f"{stack.name} keeps all of its {len(stack)} blocks")
        return graph
    found = _measured(graph, stack, notes, at, by, data)
    order = sorted(range(len(stack)), key=lambda k: (found[k].value, k))
    gone = set(order[:count])
    for k, item in enumerate(found):
        notes.note(f"{item}, {'left out' if k in gone else 'stays'}")
    result = graph.copy()
    _leave_out(stack_at(result, at), gone)
    if all(found[k].identical for k in gone):
        notes.note("exact on the data: what is left out changed nothing")
    else:
        worst = max((found[k] for k in gone), key=lambda item: item.value)
        notes.note(f"approximate: the block of most influence left out is {worst.block}")
    return result


def _measured(
    graph: Graph, stack: Stack, notes: Notes, at: str | None, by: Measure, data: Mapping[str, torch.Tensor] | None
) -> Sequence[Influence]:
    """The influences; without weights, those of the last blocks count as least, so that the plan has the sizes of the run."""
    if any(parameter.data.is_meta for parameter in graph.parameters.values()):
        notes.note("estimated: the weights decide which blocks go; here the last ones do")
        return [Influence(block.name, float(len(stack) - k)) for k, block in enumerate(stack.blocks)]
    if not data:
        raise SutureError(
            Code.CALIBRATION, "influence is measured on data, and there are none", where=graph.name, remedy="give data"
        )
    return influences(graph, data, at=at, by=by)


def _count(stack: Stack, drop: int | None, keep: float | None) -> int:
    if (drop is None) == (keep is None):
        raise SutureError(
            Code.KEEP, "how many blocks go is said twice, or not at all", where=stack.name, remedy="give drop or keep"
        )
    count = drop if drop is not None else len(stack) - round(len(stack) * (keep or 0))
    if not 0 <= count < len(stack):
        raise SutureError(
            Code.KEEP, f"{len(stack) - count} of {len(stack)} blocks would stay", where=stack.name,
            remedy=f"leave 1 to {len(stack)}",
        )  # fmt: skip
    return count


def _leave_out(stack: Stack, gone: set[int]) -> None:
    """Take blocks out; where they are numbered, those that stay close up."""
    if stack.numbering is not None:
        arrange(stack, [k for k in range(len(stack)) if k not in gone])
        return
    for k in sorted(gone, reverse=True):
        remove(stack.blocks[k])
