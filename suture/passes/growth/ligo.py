"""The pass that grows a model by learned maps (Wang et al. 2023, LiGO); the maps are `suture.passes.growth.learned_growth`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.contract import Contract
from suture.passes.growth.learned_growth import LearnedGrowth
from suture.passes.growth.width.widen import plan_widen
from suture.passes.registry import Notes, register
from suture.passes.sites import Kind


@register(contract=Contract.STRUCTURAL)
def ligo(
    graph: Graph,
    notes: Notes,
    *,
    loss: Callable[[Any, int], torch.Tensor],
    steps: int = 100,
    to: int | None = None,
    factor: float | None = None,
    at: tuple[str, ...] | None = None,
    kind: tuple[Kind, ...] | None = None,
    exclude: tuple[str, ...] = (),
    order: tuple[int, ...] | None = None,
    stack: str | None = None,
    learning_rate: float = 1e-3,
    noise: float = 0.01,
    seed: int = 0,
) -> Graph:
    """Grow a model by linear maps that are trained for a few steps.

    :param loss: called as loss(model, step), where the model is called like the graph; returns a single number
    :param steps: how many steps of Adam the maps take
    :param to: the new size of every selected axis; give this or factor, or neither to grow in depth alone
    :param factor: the new size over the old one
    :param at: module paths whose outputs are widened, as patterns; all if absent
    :param kind: kinds of axes: feature, head, head_width, group; all if absent
    :param exclude: module paths whose axes stay as they are, as patterns
    :param order: the blocks that the grown stack begins with, such as 0 1 0 1; the depth stays if absent
    :param stack: the stack's path; the one with most parameters if absent
    :param learning_rate: Adam's
    :param noise: how far the maps are from copies at first: what is copied exactly alike learns alike
    :param seed: the key of the noise
    """
    if to is None and factor is None and order is None:
        raise SutureError(
            Code.GROWTH, "neither a width nor an order of blocks to grow to", remedy="give to=, factor= or order="
        )
    plan = None
    if to is not None or factor is not None:
        plan = plan_widen(graph, to=to, factor=factor, at=at, kind=kind, exclude=exclude)
        for item in plan.widenings:
            notes.note(str(item))
    growth = LearnedGrowth(graph, plan, order, at=stack, noise=noise, seed=seed)
    losses = growth.fit(loss, steps, learning_rate=learning_rate)
    count = sum(parameter.numel() for parameter in growth.parameters())
    if losses:
        notes.note(f"{count:,} entries of maps trained for {steps} steps: loss {losses[0]:.4g} -> {losses[-1]:.4g}")
    return growth.bake()


__all__ = ["ligo"]
