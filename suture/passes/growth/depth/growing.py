"""The one edit behind all growth in depth: the blocks of a stack in a new order, some of them changed, and the plan that says so."""

from __future__ import annotations

from collections.abc import Callable, Collection

from suture.ir.graph import Graph, Stats
from suture.ir.regions import Region, Stack, stack_at
from suture.ir.splice import extract, rearrange
from suture.passes.growth.depth.order import Order
from suture.passes.growth.depth.plan import DepthPlan, mark_sources, take_sources

Prepare = Callable[[Graph, Region, int], None]


def own_blocks(graph: Graph, at: str | None) -> Stack:
    """The stack at a path in a copy of the graph, for `grow_blocks` to edit; the stack's graph is the copy.

    :raises SutureError: REGION or SITE, if there is none
    """
    copy = graph.copy()
    mark_sources(copy)
    return stack_at(copy, at)


def grow_blocks(
    stack: Stack,
    order: Order,
    verdict: str,
    before: Stats,
    *,
    new: Collection[int] = (),
    prepare: Prepare | None = None,
) -> tuple[Graph, DepthPlan]:
    """Let a stack of `own_blocks` consist of its blocks in this order; its graph, with the plan.

    :param before: the sizes of the graph as it was
    :param new: the places in the order whose block does not act like the one it is made from
    :param prepare: changes such a block: is given its graph, the block that it is made from, and its place
    """
    graph = stack.graph
    pieces: list[tuple[Graph, int]] = []
    for place, index in enumerate(order):
        piece = extract(stack.blocks[index])
        if place in new and prepare is not None:
            prepare(piece, stack.blocks[index], place)
        pieces.append((piece, index))
    rearrange(stack, pieces)
    sources = take_sources(graph)
    sizes = (before, graph.stats())
    return graph, DepthPlan(stack.name, len(stack), order, tuple(sorted(new)), sources, sizes, verdict)
