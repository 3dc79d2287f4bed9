"""Multi-level training: a coarse model for the cheap steps, and the way back to the fine one (Zou et al. 2024).

`coalesce` makes a model coarser in width and depth, `decoalesce` brings a coarse model's weights back into the fine model's shape, and
`interpolate` moves the fine model a part of the way towards them. The driver of a whole V-cycle is `suture.v_cycle`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.growth.coarsening import Coarsening
from suture.passes.registry import Notes, register
from suture.passes.sites import Kind, matching, select


@register(contract=Contract.STRUCTURAL)
def coalesce(
    graph: Graph,
    notes: Notes,
    *,
    width: int = 2,
    depth: int = 2,
    at: tuple[str, ...] | None = None,
    kind: tuple[Kind, ...] | None = None,
    exclude: tuple[str, ...] = (),
) -> Graph:
    """Make a model coarser: groups of indices and of blocks become one each.

    :param width: how many indices of an axis become one; 1 leaves widths as they are
    :param depth: how many blocks of a stack become one; 1 leaves stacks as they are
    :param at: module paths whose outputs become narrower, as patterns; all if absent
    :param kind: kinds of axes that do: feature, head, head_width, group; all if absent
    :param exclude: module paths whose axes stay as they are, as patterns
    """
    plan = _plan(graph, notes, width, depth, at, kind, exclude)
    coarse = plan.coarsen()
    for atom in plan.groups:
        info = plan.table.infos[atom]
        notes.note(f"{info.name} ({info.kind}): {info.size} -> {int(plan.groups[atom].max()) + 1}, averaged")
    for text in (*coarse.merged, *coarse.left):
        notes.note(text)
    if not plan.groups and not coarse.merged:
        notes.not_applicable("no axis and no stack is left to coalesce")
        return graph
    return coarse.graph


@register(contract=Contract.STRUCTURAL)
def decoalesce(
    graph: Graph,
    notes: Notes,
    *,
    like: Graph,
    width: int = 2,
    depth: int = 2,
    at: tuple[str, ...] | None = None,
    kind: tuple[Kind, ...] | None = None,
    exclude: tuple[str, ...] = (),
) -> Graph:
    """Bring a coarse model's weights back into the shape of the fine model that was coalesced.

    :param like: the fine model
    :param width: as it was coalesced
    :param depth: as it was coalesced
    :param at: as it was coalesced
    :param kind: as it was coalesced
    :param exclude: as it was coalesced
    """
    plan = _plan(like, Notes(), width, depth, at, kind, exclude)
    if depth == 1 and plan.exact:
        notes.claim(Contract.EXACT)
    result = plan.refine(graph)
    notes.note(f"{len(plan.groups)} axes copied, their readers shared among the copies")
    return result


@register(contract=Contract.APPROXIMATE)
def interpolate(graph: Graph, notes: Notes, *, other: Graph, alpha: float = 0.25) -> Graph:
    """Move every parameter a part of the way to another model's: (1 - alpha) w + alpha w'.

    :param other: the other model, with parameters of the same names and shapes
    :param alpha: the part, between 0 and 1
    """
    if not 0 <= alpha <= 1:
        raise SutureError(Code.GROWTH, f"alpha={alpha:g} is no part of the way", remedy="0 to 1 would be right")
    result = graph.copy()
    moved = 0
    for name, parameter in result.parameters.items():
        if parameter.role == "constant" or not parameter.dtype.is_floating_point:
            continue
        towards = other.parameters.get(name)
        if towards is None or towards.data.shape != parameter.data.shape:
            what = "none" if towards is None else f"one of shape {list(towards.data.shape)}"
            raise SutureError(
                Code.GROWTH, f"{name} has shape {list(parameter.data.shape)}, and the other model has {what}",
                remedy="interpolate models of the same architecture",
            )  # fmt: skip
        with torch.no_grad():
            data = torch.lerp(parameter.data.detach(), towards.data.detach().to(parameter.data), alpha)
        parameter.assign(data.requires_grad_(parameter.data.requires_grad))
        moved += 1
    notes.note(f"{moved} parameters moved by {alpha:g} of the way")
    return result


def _plan(
    graph: Graph,
    notes: Notes,
    width: int,
    depth: int,
    at: Sequence[str] | None,
    kind: Sequence[str] | None,
    exclude: Sequence[str],
) -> Coarsening:
    for name, count in (("width", width), ("depth", depth)):
        if count < 1:
            raise SutureError(Code.GROWTH, f"{name}={count} is no size of a group", remedy="1 or more would be right")
    table = graph.axes()
    sites = []
    if width > 1:
        for info in select(table, matching(table, at, None, kind), exclude, False, notes):
            size = info.size
            assert isinstance(size, int)
            if size % width:
                notes.note(f"{info.name} left alone: {size} is no multiple of {width}")
            else:
                sites.append(info)
    return Coarsening.of(table, sites, width, depth)


__all__ = ["coalesce", "decoalesce", "interpolate"]
