"""Which feed-forward layers are cut into experts, and which value a router ahead of them reads."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.regions import cuts, stacks
from suture.ir.regions.cuts import value_of
from suture.ir.sizes import product
from suture.passes.experts.feed_forward import FeedForward, feed_forwards, one_per_module
from suture.passes.registry import Notes


def chosen_feeds(graph: Graph, at: Sequence[str] | None, notes: Notes) -> list[FeedForward]:
    """The feed-forward layers whose modules match.

    :raises SutureError: SITE, if a pattern matches none
    """
    feeds = one_per_module(feed_forwards(graph), notes)
    paths = [feed.path for feed in feeds]
    for pattern in at or ():
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE,
                f"the pattern {pattern!r} matches no feed-forward layer",
                remedy=nearest(pattern, paths, what="layer"),
            )
    return [f for f in feeds if at is None or any(fnmatch.fnmatchcase(f.path, pattern) for pattern in at)]


def router_entry(graph: Graph, entry: str | None, feeds: Sequence[FeedForward]) -> Value:
    """The value that a router ahead of the layers reads: the one named, else what enters the first stack, else the first cut value that fits.

    :raises SutureError: SITE, if there is no such value; SEAM, if it has not the positions of the layers
    """
    if entry is not None:
        found = value_of(graph, entry)
    else:
        candidates = [stack.entry for stack in stacks(graph)] + list(cuts(graph))
        fitting = [value for value in candidates if value.dtype.is_floating_point and _fits(value, feeds)]
        found = fitting[0] if fitting else feeds[0].region.entry
    if not _fits(found, feeds):
        raise SutureError(
            Code.SEAM,
            f"{found} is {found.type}",
            where=graph.name,
            remedy="a router reads a value with the positions that the layers have",
        )
    return found


def _fits(value: Value, feeds: Sequence[FeedForward]) -> bool:
    if value.rank < 2 or not isinstance(value.shape[-1], int) or isinstance(value, Parameter):
        return False
    positions = product(value.shape[:-1])
    return all(product(feed.region.entry.shape[:-1]) == positions for feed in feeds)
