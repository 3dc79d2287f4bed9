"""The sites of a supernet: what runs on a route and what does not, and how the table, the branches and the tensors are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suture.passes.stitch.positions import Position
from suture.passes.stitch.space import Pair, Route, StitchSpace

STITCH = "stitch"
"""The input that chooses the route."""

TABLE = "stitch.runs"
"""The constant bool[routes, sites] that says what runs."""


@dataclass(frozen=True)
class Site:
    """A part of a lane that runs or does not. Its name is that of the branch's result."""

    name: str
    runs: Callable[[Route], bool]


def lane_name(anchor: int) -> str:
    """What stands before the names of an anchor's parameters and modules."""
    return f"anchors.{anchor}"


def layer_name(pair: Pair, number: int) -> str:
    """What stands before the names of a stitching layer's parameters."""
    return f"stitches.{pair[0]}_{pair[1]}.{number}"


def stem_site(anchor: int) -> Site:
    """An anchor's stem runs on the routes that start there."""
    return Site(f"{lane_name(anchor)}.stem", lambda route: route.hops[0].anchor == anchor)


def block_site(anchor: int, block: int) -> Site:
    """A block runs on the routes of which a hop holds it."""
    return Site(
        f"{lane_name(anchor)}.block.{block}",
        lambda route: any(hop.anchor == anchor and hop.first <= block < hop.end for hop in route.hops),
    )


def head_site(anchor: int) -> Site:
    """A head runs on the routes that end there."""
    return Site(f"{lane_name(anchor)}.head", lambda route: route.hops[-1].anchor == anchor)


def stitch_site(pair: Pair, position: Position) -> Site:
    """A stitching layer runs, at this position, on the routes that are stitched there."""
    name = f"{layer_name(pair, position.layer)}.from.{position.exit}.to.{position.entry}"
    return Site(name, lambda route: (pair, position) in route.stitches)


def sites_of(space: StitchSpace) -> tuple[Site, ...]:
    """The columns of the table."""
    depths = [sum(stages) for stages in space.depths]
    lanes = [
        site
        for anchor, depth in enumerate(depths)
        for site in (stem_site(anchor), *(block_site(anchor, block) for block in range(depth)), head_site(anchor))
    ]
    return (*lanes, *(stitch_site(pair, place) for pair, places in space.stitches.items() for place in places))
