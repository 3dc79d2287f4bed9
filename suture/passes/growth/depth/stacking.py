"""Growth in depth: stack the blocks of a model, or insert blocks that change nothing at first.

Stacking copies trained blocks (G_stack, interpolation, gradual stacking, depth up-scaling): the larger model computes something else, and trains on
from there. Insertion keeps the function: a new block is the identity because its last layers are zero, or because a mask hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import Region
from suture.passes.contract import Contract
from suture.passes.growth.depth.block_edit import apply_edits
from suture.passes.growth.depth.fresh import redraw
from suture.passes.growth.depth.growing import grow_blocks, own_blocks
from suture.passes.growth.depth.identity import identity_form
from suture.passes.growth.depth.order import How, chosen_order, insertion_order
from suture.passes.growth.depth.plan import DepthPlan, unmark
from suture.passes.growth.depth.verdict import judge_order
from suture.passes.growth.growth_mask import free_mask_name, hide, require_mask, set_masks
from suture.passes.registry import Notes, register, registered


class _NoIdentity(SutureError):
    """A block that cannot be the identity."""


Initialise = Literal["random", "copy"]


@register(contract=Contract.APPROXIMATE)
def stack(
    graph: Graph,
    notes: Notes,
    *,
    at: str | None = None,
    times: float | None = None,
    to: int | None = None,
    order: tuple[int, ...] | None = None,
    how: How = "stack",
    drop: int | None = None,
) -> Graph:
    """Make a stack of blocks deeper by copies of its blocks.

    The function is kept only where every block that is copied is the identity already; else the verdict names what is added twice.

    :param at: the stack, by its module path ("model.layers"), or one numbered block ("layer2.1"); the stack of most parameters if absent
    :param times: how many times as many blocks (2 if neither this nor `to` is given)
    :param to: instead, how many blocks there are afterwards
    :param order: instead, the blocks afterwards, by their numbers now: 0 1 2 0 1 2
    :param how: stack (0 1 2 0 1 2), interpolate (0 0 1 1 2 2), gradual (copies of the top blocks on top), upscale (two copies, some blocks dropped
        where they meet)
    :param drop: for upscale, how many blocks either copy loses at the seam
    """
    grown, plan = _stack(graph, at=at, times=times, to=to, order=order, how=how, drop=drop)
    if plan.order == tuple(range(plan.before)):
        notes.not_applicable(f"{plan.stack} has {plan.before} blocks in this order already")
        return graph
    return _noted(grown, plan, notes)


@register(contract=Contract.APPROXIMATE)
def insert_identity(
    graph: Graph, notes: Notes, *, at: str | None = None, after: tuple[int, ...] | None = None, count: int | None = None
) -> Graph:
    """Insert copies of blocks that are the identity at first: what they add to the stream is zero. Exact, and they train.

    Where a block has no such form (a norm or an activation stands on the stream itself), the operator that prevents it is named and nothing is done.

    :param at: the stack, by its module path, or one numbered block; the stack of most parameters if absent
    :param after: behind which blocks, each copied from the block before it; a number may repeat
    :param count: instead, how many, evenly spread; as many as there are blocks if neither is given
    """
    try:
        grown, plan = _insert_identity(graph, at=at, after=after, count=count)
    except _NoIdentity as error:
        notes.not_applicable(error.what)
        return graph
    return _noted(grown, plan, notes)


@register(contract=Contract.APPROXIMATE)
def insert_masked(
    graph: Graph,
    notes: Notes,
    *,
    at: str | None = None,
    after: tuple[int, ...] | None = None,
    count: int | None = None,
    initialise: Initialise = "random",
    mask: float = 0.0,
    seed: int = 0,
) -> Graph:
    """Insert blocks behind a mask m: the stream x becomes m f(x) + (1 - m) x, exact at m = 0 (Masked Structural Growth, Yao et al. 2023).

    The mask is a buffer `growth_mask` of the model, one for all new blocks, which a schedule raises to 1; `unmask` then takes it away.

    :param at: the stack, by its module path, or one numbered block; the stack of most parameters if absent
    :param after: behind which blocks, each made like the block before it; a number may repeat
    :param count: instead, how many, evenly spread; as many as there are blocks if neither is given
    :param initialise: random draws new weights of the copied ones' deviation, copy takes those of the block before
    :param mask: what the mask is at first, from 0 to 1
    :param seed: the key of the random weights
    """
    grown, plan = _insert_masked(graph, at=at, after=after, count=count, initialise=initialise, mask=mask, seed=seed)
    return _noted(grown, plan, notes)


def plan_stack(
    graph: Graph, *, at: str | None = None, times: float | None = None, to: int | None = None,
    order: tuple[int, ...] | None = None, how: How = "stack", drop: int | None = None,
) -> DepthPlan:  # fmt: skip
    """What `stack` would do, as a plan. The options are those of `stack`."""
    return _stack(graph, at=at, times=times, to=to, order=order, how=how, drop=drop)[1]


def plan_insert_identity(
    graph: Graph, *, at: str | None = None, after: tuple[int, ...] | None = None, count: int | None = None
) -> DepthPlan:
    """What `insert_identity` would do, as a plan. The options are those of `insert_identity`.

    :raises SutureError: GROWTH, if a block cannot be the identity: the operator is named
    """
    return _insert_identity(graph, at=at, after=after, count=count)[1]


def growth_sources(before: Graph, after: Graph) -> dict[str, str]:
    """For every parameter of a grown graph, the parameter of the graph before that it is, or is a copy of: optimiser state follows this map.

    Parameters that start anew (random, zeroed, masks) are not in it. Growth in width keeps names, and so maps a parameter to itself.

    :raises SutureError: GROWTH, if the second graph was not made from the first
    """
    known = len(before.history)
    if after.history[:known] != before.history:
        raise SutureError(
            Code.GROWTH, "the second graph was not made from the first", remedy="give the graph before its growth"
        )
    sources = {name: name for name in before.parameters}
    graph = before.copy()
    for parameter in graph.parameters.values():
        if parameter.role == "parameter":  # shapes are enough to follow names
            parameter.assign(parameter.data.to("meta"))
    for record in after.history[known:]:
        if record.outcome == "done" and record.name in _GROW:
            graph, plan = _GROW[record.name](graph, **(_defaults(record.name) | dict(record.options)))
            sources = {name: sources[old] for name, old in plan.sources.items() if old in sources}
    return {name: old for name, old in sources.items() if name in after.parameters}


def _stack(
    graph: Graph,
    *,
    at: str | None,
    times: float | None,
    to: int | None,
    order: Sequence[int] | None,
    how: How,
    drop: int | None,
) -> tuple[Graph, DepthPlan]:
    blocks = own_blocks(graph, at)
    chosen = chosen_order(len(blocks), blocks.name, times=times, to=to, order=order, how=how, drop=drop)
    return grow_blocks(blocks, chosen, judge_order(blocks, chosen), graph.stats())


def _insert_identity(
    graph: Graph, *, at: str | None, after: Sequence[int] | None, count: int | None
) -> tuple[Graph, DepthPlan]:
    blocks = own_blocks(graph, at)
    order, new = insertion_order(len(blocks), blocks.name, after=after, new=count)
    forms = {block: identity_form(block) for block in (blocks.blocks[order[place]] for place in new)}
    for block, form in forms.items():
        if form.blame:
            raise _NoIdentity(
                Code.GROWTH, f"a copy of {block.name} cannot be the identity: {form.blame}", where=blocks.name, remedy="insert_masked hides any block"
            )  # fmt: skip

    def prepare(piece: Graph, block: Region, place: int) -> None:
        edits = forms[block].edits
        apply_edits(edits, piece)
        unmark(piece.parameters[edit.parameter.name] for edit in edits)

    exact = "exact" if all(form.bit_exact for form in forms.values()) else "exact up to rounding"
    layers = list(dict.fromkeys(layer for form in forms.values() for layer in form.layers))
    shown = ", ".join(layers[:2]) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
    verdict = f"{exact}: the copies of {shown} leave the stream as it is"
    return grow_blocks(blocks, order, verdict, graph.stats(), new=new, prepare=prepare)


def _insert_masked(
    graph: Graph,
    *,
    at: str | None,
    after: Sequence[int] | None,
    count: int | None,
    initialise: Initialise,
    mask: float,
    seed: int,
) -> tuple[Graph, DepthPlan]:
    require_mask(mask)
    blocks = own_blocks(graph, at)
    order, new = insertion_order(len(blocks), blocks.name, after=after, new=count)
    first = blocks.blocks[0].output
    device = next((p.data.device for p in graph.parameters.values()), torch.device("cpu"))
    name, tensor = free_mask_name(graph), torch.tensor(mask, dtype=first.dtype, device=device)

    def prepare(piece: Graph, block: Region, place: int) -> None:
        if initialise == "random":
            redraw(piece, seed, f"{blocks.name}/{place}")
            unmark(piece.parameters.values())
        hide(piece, name, tensor, block.output.producer.path if block.output.producer is not None else block.name)

    at_first = f"new blocks are behind a mask of {mask:g}"
    verdict = f"exact: {at_first}" if mask == 0 else f"approximate: {at_first}"
    return grow_blocks(blocks, order, verdict, graph.stats(), new=new, prepare=prepare)


_GROW: Mapping[str, Callable[..., tuple[Graph, DepthPlan]]] = {
    "stack": _stack,
    "insert_identity": _insert_identity,
    "insert_masked": _insert_masked,
}
"""What each pass that changes the order of blocks does, without notes: a record of it can be followed again."""


def _defaults(name: str) -> dict[str, Any]:
    entry = registered(name)
    assert entry is not None
    return {option.name: option.default for option in entry.options}


def _noted(grown: Graph, plan: DepthPlan, notes: Notes) -> Graph:
    for line in plan.lines():
        notes.note(line)
    if plan.exact:
        notes.claim(Contract.EXACT)
    return grown


__all__ = [
    "growth_sources", "insert_identity", "insert_masked", "plan_insert_identity", "plan_stack", "set_masks", "stack",
]  # fmt: skip
