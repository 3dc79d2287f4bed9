"""Attention as one kernel: a block takes some queries of one head, and goes over the keys tile by tile.

Scores and weights never go through memory. A query that may look at no key gives zeros, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.codegen.attention.parts import operand
from suture.codegen.attention.schedule import schedules_for
from suture.codegen.attention.single import SingleAttention
from suture.codegen.attention.tiles import TiledAttention
from suture.codegen.groups import Group
from suture.codegen.scalars import compute_type
from suture.codegen.schedule import AttentionSchedule
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of an attention and the pointwise nodes behind it."""
    assert group.anchor is not None
    schedule = context.schedule(group, schedules_for(group.anchor, context.target)[0])
    kind = SingleAttention if schedule.queries == 1 else TiledAttention
    return [kind(group, group.anchor, context, schedule).step()]


def refuses(node: Node, context: Context) -> str | None:
    """Why an attention is left to torch, or None."""
    q, k, v = (operand(node, position) for position in range(3))
    if compute_type(q.dtype) not in (torch.float32, torch.float64):
        return f"attention over {q.dtype}"
    heads = (q.shape[-3], k.shape[-3], v.shape[-3]) if node.attributes["grouped"] else ()
    if not all(isinstance(size, int) and size for size in (q.shape[-1], v.shape[-1], *heads)):
        return "attention over heads of no size, or of a symbol's"
    return None


def candidates(group: Group, context: Context) -> Sequence[AttentionSchedule]:
    """Schedules worth trying, the default first."""
    assert group.anchor is not None
    return schedules_for(group.anchor, context.target)


TEMPLATES = {"attention": Template(lower, refuses, candidates=candidates)}
