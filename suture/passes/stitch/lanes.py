"""The supernet's graph: every anchor is a lane, and the input `stitch` says which parts of which lanes run.

A lane holds its anchor's stem, blocks and head once, each inside a branch that runs where a constant table says so: row `stitch`, one column a site.
Elsewhere a block hands on the stream, and a stem gives zeros. Where a stitch may enter a lane stands a branch that computes the stitching layer from
the other lane's stream, or takes the lane's own. So every route runs at the cost of its own parts, and changing the route is changing one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from suture.ir.control import choose
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.interface import add_interface_input
from suture.ir.regions import Region
from suture.ir.splice import extract, graft
from suture.ir.types import TensorType
from suture.passes.stitch.anchor import Anchor
from suture.passes.stitch.positions import Position
from suture.passes.stitch.sites import (
    STITCH,
    TABLE,
    Site,
    block_site,
    head_site,
    lane_name,
    layer_name,
    sites_of,
    stem_site,
    stitch_site,
)
from suture.passes.stitch.space import Pair, StitchSpace


def build_lanes(
    anchors: Sequence[Anchor],
    space: StitchSpace,
    layers: Mapping[tuple[Pair, int], Graph],
    face: Graph | None = None,
) -> Graph:
    """The supernet's graph; parameters are the anchors' tensors, below `anchors.0`, `anchors.1`, ..., and the stitching layers', below `stitches`.

    :param layers: the stitching layer of each pair of anchors and number
    :param face: the anchor whose names of inputs and outputs, and whose way of being called, the supernet keeps; the first if absent
    :raises SutureError: STITCH, if routes run in circles, or an anchor has an input called `stitch`; CUT, if a part has several ways out
    """
    builder = _Builder(anchors, space, layers, face or anchors[0].graph)
    builder.run()
    return builder.graph


class _Builder:
    def __init__(
        self,
        anchors: Sequence[Anchor],
        space: StitchSpace,
        layers: Mapping[tuple[Pair, int], Graph],
        face: Graph,
    ) -> None:
        self.anchors = anchors
        self.space = space
        self.layers = layers
        self.face = first = face
        self.graph = Graph("supernet")
        self.graph.structure = first.structure
        for anchor in anchors:
            self.graph.hints |= anchor.graph.hints
        for value in first.inputs:
            self.graph.add_input(value.name, value.type)
        if any(value.name == STITCH for value in self.graph.inputs):
            raise SutureError(
                Code.STITCH, f"an anchor has an input called {STITCH!r} already", where=first.name,
                remedy="rename it before stitching",
            )  # fmt: skip
        stitch = add_interface_input(self.graph, STITCH, TensorType(torch.int64, ()))
        sites = sites_of(space)
        self.column = {site.name: k for k, site in enumerate(sites)}
        table = torch.tensor([[site.runs(route) for site in sites] for route in space.routes], dtype=torch.bool)
        held = self.graph.add_parameter(TABLE, table, role="constant")
        self.row = self.graph.add("index", [held, stitch], {"dims": (0,)}, name="stitch_row").output
        self.known: list[dict[Value, Value]] = []  # what stands for the values of each anchor
        self.left: dict[tuple[int, int], Value] = {}  # (anchor, point): what the block before the point gave
        self.entered: dict[tuple[int, int], Value] = {}  # (anchor, point): what the block behind it takes
        self.result: list[Value] | None = None

    def run(self) -> None:
        """Build every lane, each as far as what it waits for allows, in turn."""
        for number, anchor in enumerate(self.anchors):
            self._ambient(number, anchor)
            self.left[number, 0] = self._stem(number, anchor)
        reached = [0] * len(self.anchors)  # the next point to enter
        while any(point <= anchor.depth for point, anchor in zip(reached, self.anchors, strict=True)):
            before = list(reached)
            for number, anchor in enumerate(self.anchors):
                while reached[number] <= anchor.depth and self._may_enter(number, reached[number]):
                    self._enter(number, anchor, reached[number])
                    reached[number] += 1
            if before == reached:
                raise SutureError(
                    Code.STITCH, "routes of this space run in circles", where=self.graph.name,
                    remedy="stitch in one direction, or at positions that go forwards",
                )  # fmt: skip
        for number, anchor in enumerate(self.anchors):
            self._head(number, anchor)
        assert self.result is not None
        self.graph.set_outputs(self.result, self.face.output_names)

    def _entries(self, number: int, point: int) -> list[tuple[Pair, Position]]:
        return [
            (pair, place)
            for pair, places in self.space.stitches.items()
            for place in places
            if pair[1] == number and place.entry == point
        ]

    def _may_enter(self, number: int, point: int) -> bool:
        return all((pair[0], place.exit + 1) in self.left for pair, place in self._entries(number, point))

    def _enter(self, number: int, anchor: Anchor, point: int) -> None:
        """Let the stitches that lead to a point in, then run the block behind it."""
        stream = self.left[number, point]
        for pair, place in self._entries(number, point):
            stream = self._stitch(pair, place, stream)
        self.entered[number, point] = stream
        if point < anchor.depth:
            self.left[number, point + 1] = self._block(number, anchor, point, stream)

    def _stitch(self, pair: Pair, place: Position, own: Value) -> Value:
        layer = self.layers[pair, place.layer]
        prefix = layer_name(pair, place.layer)
        then = layer.copy()
        _prefix_paths(then, prefix)
        then.add_input("own", own.type)
        otherwise = Graph("own")
        otherwise.add_input("stream", layer.inputs[0].type)
        otherwise.set_outputs([otherwise.add_input("own", own.type)])
        operands = [self.left[pair[0], place.exit + 1], own]
        return self._choose(stitch_site(pair, place), then, otherwise, operands, prefix)[0]

    def _block(self, number: int, anchor: Anchor, block: int, stream: Value) -> Value:
        entry, exit = anchor.points[block], anchor.points[block + 1]
        piece, operands = self._piece(number, anchor, block + 1, entry, [exit])
        given = [stream if value is entry else self.known[number][value] for value in operands]
        otherwise = _stand_in(piece, entry.type == exit.type)
        return self._choose(block_site(number, block), piece, otherwise, given, lane_name(number))[0]

    def _stem(self, number: int, anchor: Anchor) -> Value:
        first = anchor.points[0]
        if first in self.known[number]:
            return self.known[number][first]
        piece, operands = self._piece(number, anchor, 0, None, [first])
        given = [self.known[number][value] for value in operands]
        return self._choose(stem_site(number), piece, _stand_in(piece, False), given, lane_name(number))[0]

    def _head(self, number: int, anchor: Anchor) -> None:
        """The head, on the routes that end in this lane; on others, what the lanes before gave."""
        entry, outputs = anchor.points[-1], anchor.graph.outputs
        piece, operands = self._piece(number, anchor, anchor.depth + 1, entry, outputs)
        stream = self.entered[number, anchor.depth]
        given = [stream if value is entry else self.known[number][value] for value in operands]
        if self.result is None:
            otherwise = _stand_in(piece, False)
        else:
            given += self.result
            for value in outputs:
                piece.add_input(piece.fresh_name("former"), value.type)
            otherwise = _stand_in(piece, False)
            otherwise.set_outputs(otherwise.inputs[-len(outputs) :])
            otherwise.remove_dead()
        self.result = list(self._choose(head_site(number), piece, otherwise, given, lane_name(number)))

    def _piece(
        self, number: int, anchor: Anchor, part: int, entry: Value | None, results: Sequence[Value]
    ) -> tuple[Graph, tuple[Value, ...]]:
        """A part of an anchor as a graph, and the anchor's values that it reads."""
        region = Region(anchor.graph, anchor.parts[part], f"part{part}", entry)
        if set(region.outputs) != set(results):
            crossing = [value for value in region.outputs if value not in results] or list(results)
            raise SutureError(
                Code.CUT, f"{', '.join(map(str, crossing[:4]))} cross what should be a cut", where=anchor.graph.name,
                remedy="name other blocks",
            )  # fmt: skip
        piece = extract(region)
        stands_for = dict(zip(region.outputs, piece.outputs, strict=True))
        piece.set_outputs([stands_for[value] for value in results])
        _prefix_paths(piece, lane_name(number))
        return piece, region.inputs

    def _ambient(self, number: int, anchor: Anchor) -> None:
        known = dict(zip(anchor.graph.inputs, self.graph.inputs[:-1], strict=True))
        if anchor.ambient:
            region = Region(anchor.graph, anchor.ambient, "ambient")
            rename = _prefixing(lane_name(number))
            made = graft(self.graph, extract(region), [known[value] for value in region.inputs], rename=rename)
            known |= dict(zip(region.outputs, made, strict=True))
        self.known.append(known)

    def _choose(
        self, site: Site, then: Graph, otherwise: Graph, operands: Sequence[Value], prefix: str
    ) -> tuple[Value, ...]:
        column = {"dim": 0, "index": self.column[site.name]}
        predicate = self.graph.add("select", [self.row], column, name="runs").output
        count = len(then.outputs)
        name = site.name if count == 1 else [f"{site.name}.{k}" for k in range(count)]
        return choose(
            self.graph, predicate, then, otherwise, operands, rename=_prefixing(prefix), path=site.name, name=name
        )


def _prefixing(prefix: str) -> Callable[[str], str]:
    return lambda name: f"{prefix}.{name}" if name else prefix


def _prefix_paths(graph: Graph, prefix: str) -> None:
    rename = _prefixing(prefix)
    pending: list[Node] = list(graph.nodes)
    for node in pending:
        node.path = rename(node.path)


def _stand_in(piece: Graph, hands_on: bool) -> Graph:
    """What runs instead of a piece: it hands on its first input, or gives zeros."""
    graph = Graph("stand_in")
    inputs = [graph.add_input(value.name, value.type) for value in piece.inputs]
    if hands_on:
        graph.set_outputs(inputs[:1])
        return graph
    zeros = []
    for value in piece.outputs:
        attributes = {"value": False if value.dtype == torch.bool else 0, "dtype": value.dtype}
        zeros.append(graph.add("full", [], attributes, shapes=[value.shape], name="zeros").output)
    graph.set_outputs(zeros)
    return graph
