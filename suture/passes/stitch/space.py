"""The stitch space: every route through a family of anchors, its number, and its cost in closed form.

A route is a sequence of hops; a hop is a run of consecutive blocks of one anchor. Route numbers are what the supernet takes as its input `stitch`:
the anchors come first, then the routes of one stitch, then those of several.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Literal

from suture.ir.errors import Code, SutureError
from suture.passes.stitch.positions import Position, Windows, lockstep, positions

Direction = Literal["fast_to_slow", "slow_to_fast", "both"]
Pair = tuple[int, int]


@dataclass(frozen=True, order=True)
class Hop:
    """Blocks `first` to `end` (not included) of an anchor; none if they are equal."""

    anchor: int
    first: int
    end: int


@dataclass(frozen=True)
class Route:
    """A way through the anchors, and the stitching layers on it: one between each two hops."""

    hops: tuple[Hop, ...]
    layers: tuple[int, ...] = ()

    @property
    def stitches(self) -> tuple[tuple[Pair, Position], ...]:
        """Each change of anchors: the pair (front, back), and the position."""
        return tuple(
            ((a.anchor, b.anchor), Position(a.end - 1, b.first, layer))
            for (a, b), layer in zip(pairwise(self.hops), self.layers, strict=True)
        )

    @property
    def is_anchor(self) -> bool:
        """Whether it is one of the anchors itself."""
        return len(self.hops) == 1

    def describe(self, names: Sequence[str]) -> str:
        """In words: `tiny[0:4] > small[3:12]`."""
        return " > ".join(f"{names[hop.anchor]}[{hop.first}:{hop.end}]" for hop in self.hops)


@dataclass(frozen=True)
class StitchSpace:
    """All routes, by number, and what stitches they are made of.

    :param depths: of each anchor, the number of blocks of each stage; anchors from the cheapest to the dearest
    """

    depths: tuple[tuple[int, ...], ...]
    routes: tuple[Route, ...]

    @property
    def stitches(self) -> Mapping[Pair, tuple[Position, ...]]:
        """The positions that some route uses, by pair of anchors."""
        found: dict[Pair, dict[Position, None]] = {}
        for route in self.routes:
            for pair, position in route.stitches:
                found.setdefault(pair, {})[position] = None
        return {pair: tuple(sorted(places)) for pair, places in sorted(found.items())}

    @property
    def layers(self) -> Mapping[Pair, Mapping[int, tuple[Position, ...]]]:
        """The positions of every stitching layer, by pair of anchors and number of the layer."""
        return {
            pair: {n: tuple(p for p in places if p.layer == n) for n in sorted({p.layer for p in places})}
            for pair, places in self.stitches.items()
        }

    def separate(self, kind: Callable[[Pair, Position], Hashable]) -> StitchSpace:
        """The same routes, with layers divided so that all positions of one are of the same kind: positions whose types differ share no weights."""
        numbers: dict[Pair, dict[Position, int]] = {}
        for pair, places in self.stitches.items():
            kinds: dict[Hashable, int] = {}
            numbers[pair] = {p: kinds.setdefault((p.layer, kind(pair, p)), len(kinds)) for p in places}
        routes = tuple(
            Route(route.hops, tuple(numbers[pair][place] for pair, place in route.stitches)) for route in self.routes
        )
        return StitchSpace(self.depths, routes)

    def __len__(self) -> int:
        return len(self.routes)


def stitch_space(
    depths: Sequence[Sequence[int]],
    windows: Windows | None = None,
    *,
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    stitches: int | None = None,
    two_way: bool = False,
) -> StitchSpace:
    """Enumerate the routes through anchors of these depths, given from the cheapest to the dearest.

    SN-Net (Pan et al. 2023): nearest stitching keeps to neighbours in cost and one stitch a route, 71 routes for three anchors of 12 blocks; without
    it, every pair and every chain of anchors, 732. SN-Netv2 (Pan et al. 2024): `two_way`, 135 routes for two anchors of 12 blocks, or of 12 and 24.

    :param windows: how positions are chosen; kernel 2, stride 1 if absent
    :param direction: whether routes lead to dearer anchors, to cheaper ones, or may do either
    :param nearest: whether only neighbours in cost are stitched
    :param stitches: how many stitches a route may have; 1 with nearest stitching, any number without it, if absent
    :param two_way: SN-Netv2's space of two anchors: there, back, and there and back again
    :raises SutureError: STITCH, if there are fewer than two anchors, an anchor without blocks, or a space that cannot be
    """
    shapes = tuple(tuple(stages) for stages in depths)
    _check(shapes, direction, two_way, stitches)
    anchors = [Route((Hop(a, 0, sum(stages)),)) for a, stages in enumerate(shapes)]
    if two_way:
        return StitchSpace(shapes, (*anchors, *_two_way(sum(shapes[0]), sum(shapes[1]))))
    longest = (1 if nearest else len(shapes) - 1) if stitches is None else stitches
    rule = windows or Windows()
    places: dict[Pair, tuple[Position, ...]] = {}
    for front, back in permutations(range(len(shapes)), 2):
        wanted = direction == "both" or (front < back) == (direction == "fast_to_slow")
        if wanted and (not nearest or abs(front - back) == 1):
            found = positions(shapes[front], shapes[back], rule)
            # Routes in both directions would run in circles at positions that go back: those are left out.
            places[front, back] = tuple(p for p in found if p.entry > p.exit) if direction == "both" else found
    routes: list[Route] = []
    level = anchors
    for _ in range(longest):
        level = [longer for route in level for longer in _continued(route, places, shapes)]
        routes += level
    ordered = sorted(routes, key=lambda route: (len(route.hops), [hop.anchor for hop in route.hops]))
    return StitchSpace(shapes, (*anchors, *ordered))


def _check(shapes: Sequence[tuple[int, ...]], direction: str, two_way: bool, stitches: int | None) -> None:
    if len(shapes) < 2:
        raise SutureError(Code.STITCH, f"{len(shapes)} anchor gives no stitch", remedy="give two or more")
    for anchor, stages in enumerate(shapes):
        if not stages or min(stages) < 1:
            raise SutureError(
                Code.STITCH, f"anchor {anchor} has a stage without blocks: {stages}", remedy="one at least"
            )
    if stitches is not None and stitches < 1:
        raise SutureError(Code.STITCH, f"stitches={stitches} allows no route", remedy="1 or more would be right")
    if two_way and (len(shapes) != 2 or any(len(stages) != 1 for stages in shapes)):
        raise SutureError(
            Code.STITCH,
            f"two-way stitching of {len(shapes)} anchors of {', '.join(map(str, shapes))} blocks",
            remedy="it takes two anchors of one stage each",
        )
    if two_way and direction != "fast_to_slow":
        raise SutureError(
            Code.STITCH, f"direction={direction} beside two_way", remedy="two-way routes have both directions already"
        )


def _continued(
    route: Route, places: Mapping[Pair, Sequence[Position]], shapes: Sequence[tuple[int, ...]]
) -> Iterator[Route]:
    """The route with one more stitch: at least one block of the anchor that it had reached still runs."""
    last = route.hops[-1]
    visited = {hop.anchor for hop in route.hops}
    for (front, back), found in places.items():
        if front != last.anchor or back in visited:
            continue
        for place in found:
            if place.exit >= last.first:
                hops = (
                    *route.hops[:-1],
                    Hop(front, last.first, place.exit + 1),
                    Hop(back, place.entry, sum(shapes[back])),
                )
                yield Route(hops, (*route.layers, place.layer))


def _two_way(small: int, large: int) -> list[Route]:
    """There, back, back and there, there and back; routes of two stitches do not enter the large anchor at its head."""
    there, back = lockstep(small, large, to_head=True), lockstep(large, small)
    routes = [Route((Hop(0, 0, p.exit + 1), Hop(1, p.entry, large)), (p.layer,)) for p in there]
    routes += [Route((Hop(1, 0, p.exit + 1), Hop(0, p.entry, small)), (p.layer,)) for p in back]
    routes += [
        Route((Hop(1, 0, b.exit + 1), Hop(0, b.entry, t.exit + 1), Hop(1, t.entry, large)), (b.layer, t.layer))
        for b in back
        for t in there
        if t.exit >= b.entry and t.entry < large
    ]
    routes += [
        Route((Hop(0, 0, t.exit + 1), Hop(1, t.entry, b.exit + 1), Hop(0, b.entry, small)), (t.layer, b.layer))
        for t in there
        for b in back
        if b.exit >= t.entry
    ]
    return routes


@dataclass(frozen=True)
class Costs:
    """What the parts of an anchor cost: MACs, or anything else that adds up, such as parameters."""

    stem: int
    blocks: tuple[int, ...]
    head: int


def route_cost(route: Route, anchors: Sequence[Costs], layer: Mapping[tuple[Pair, int], int]) -> int:
    """What a route costs, in closed form: the first anchor's stem, its hops' blocks, its stitching layers, the last anchor's head.

    :param layer: the cost of each stitching layer, by pair of anchors and number of the layer
    """
    blocks = sum(sum(anchors[hop.anchor].blocks[hop.first : hop.end]) for hop in route.hops)
    between = sum(layer[pair, position.layer] for pair, position in route.stitches)
    return anchors[route.hops[0].anchor].stem + blocks + between + anchors[route.hops[-1].anchor].head
