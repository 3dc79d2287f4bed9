"""What a supernet's graph says of itself: which routes it can be set to, and what each costs.

All is read from the graph: the table of what runs, the names of the branches, and the bodies' own costs. So it holds for a graph that was saved and
loaded, and for one that was pruned or fused after stitching.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter
from suture.passes.stitch.anchor import count_macs
from suture.passes.stitch.positions import Position
from suture.passes.stitch.sites import STITCH, TABLE
from suture.passes.stitch.space import Hop, Pair, Route

_LANE = re.compile(r"anchors\.(\d+)\.(?:stem|head|block\.(\d+))(?:\.\d+)?")
_STITCH = re.compile(r"stitches\.(\d+)_(\d+)\.(\d+)\.from\.(\d+)\.to\.(\d+)")


@dataclass(frozen=True)
class Configuration:
    """One setting of the input `stitch`.

    :param macs: multiply-accumulates for one example
    :param parameters: the trained elements that it reads
    """

    number: int
    route: Route
    macs: int
    parameters: int

    @property
    def is_anchor(self) -> bool:
        """Whether it is one of the anchors."""
        return self.route.is_anchor

    def __str__(self) -> str:
        names = {hop.anchor: f"anchors.{hop.anchor}" for hop in self.route.hops}
        route = self.route.describe([names.get(k, "") for k in range(max(names) + 1)])
        return f"{self.number}: {route}, {self.macs:,} MACs, {self.parameters:,} parameters"


@dataclass(frozen=True)
class _Branch:
    """A branch of the supernet: its column in the table, and what its bodies cost and read."""

    name: str
    column: int
    macs: tuple[int, int]  # of then, of otherwise
    reads: tuple[frozenset[Parameter], frozenset[Parameter]]


def configurations(graph: Graph) -> tuple[Configuration, ...]:
    """The routes of a supernet's graph, by number.

    :raises SutureError: STITCH, if the graph is no supernet
    """
    table, branches, always = _read(graph)
    blocks = _block_sites(branches)
    stitches = {found: branch.column for branch in branches if (found := _stitch_of(branch.name)) is not None}
    costs = [branch.macs for branch in branches]
    fixed_macs = count_macs(graph, always)
    fixed_reads = frozenset(v for node in always for v in node.inputs if isinstance(v, Parameter))
    result = []
    for number, row in enumerate(table.tolist()):
        side = [0 if row[branch.column] else 1 for branch in branches]
        macs = fixed_macs + sum(cost[k] for cost, k in zip(costs, side, strict=True))
        reads = fixed_reads.union(*(branch.reads[k] for branch, k in zip(branches, side, strict=True)))
        count = sum(p.data.numel() for p in reads if p.role == "parameter")
        result.append(Configuration(number, _route(graph, row, branches, blocks, stitches), macs, count))
    return tuple(result)


def check_route(graph: Graph, number: int) -> int:
    """The number of a route of the supernet.

    :raises SutureError: STITCH, if there is none of that number, or the graph is no supernet
    """
    return require_route(number, len(_table(graph).data), graph.name)


def require_route(number: int, routes: int, where: str) -> int:
    """The number of one of so many routes.

    :raises SutureError: STITCH, if there is none of that number
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < routes:
        raise SutureError(
            Code.STITCH, f"there is no stitch {number}", where=where, remedy=f"0 to {routes - 1} would be right"
        )
    return number


def _table(graph: Graph) -> Parameter:
    table = graph.parameters.get(TABLE)
    if table is None or not any(value.name == STITCH for value in graph.inputs):
        raise SutureError(
            Code.STITCH, f"the graph has no input {STITCH!r} that chooses a route", where=graph.name,
            remedy="give what the pass stitch made",
        )  # fmt: skip
    return table


def _read(graph: Graph) -> tuple[torch.Tensor, list[_Branch], list[Node]]:
    """The table, the branches it decides, and the nodes that always run."""
    table = _table(graph)
    branches: list[_Branch] = []
    always: list[Node] = []
    for node in graph.nodes:
        column = _column(node, table)
        if column is None:
            always.append(node)
            continue
        then, otherwise = node.bodies["then"], node.bodies["otherwise"]
        macs = count_macs(_hinted(then, graph), then.nodes), count_macs(_hinted(otherwise, graph), otherwise.nodes)
        name = node.outputs[0].name
        branches.append(_Branch(name, column, macs, (_reads(node, then), _reads(node, otherwise))))
    return table.data, branches, always


def _hinted(body: Graph, graph: Graph) -> Graph:
    """A graph that says how large symbols are: bodies do not."""
    named = Graph(body.name)
    named.hints = graph.hints
    return named


def _column(node: Node, table: Parameter) -> int | None:
    """The column of the table that decides a branch: its predicate is selected from the row that the table has at the input."""
    if not node.bodies or node.inputs[0] is None:
        return None
    select = node.inputs[0].producer
    if select is None or select.operator.name != "select" or select.inputs[0] is None:
        return None
    row = select.inputs[0].producer
    if row is None or row.inputs[0] is not table:
        return None
    index = select.attributes["index"]
    assert isinstance(index, int)
    return index


def _reads(node: Node, body: Graph) -> frozenset[Parameter]:
    pairs = zip(node.inputs[1:], body.inputs, strict=True)
    return frozenset(given for given, inner in pairs if isinstance(given, Parameter) and inner.uses)


def _stitch_of(name: str) -> tuple[Pair, Position] | None:
    match = _STITCH.fullmatch(name)
    if match is None:
        return None
    front, back, layer, exit, entry = map(int, match.groups())
    return (front, back), Position(exit, entry, layer)


def _block_sites(branches: Sequence[_Branch]) -> Mapping[int, int]:
    """The number of blocks of every anchor."""
    depth: dict[int, int] = {}
    for branch in branches:
        match = _LANE.fullmatch(branch.name)
        if match is not None and match[2] is not None:
            depth[int(match[1])] = max(depth.get(int(match[1]), 0), int(match[2]) + 1)
    return depth


def _route(
    graph: Graph,
    row: Sequence[bool],
    branches: Sequence[_Branch],
    depths: Mapping[int, int],
    stitches: Mapping[tuple[Pair, Position], int],
) -> Route:
    """The route that a row of the table says: from the lane whose head runs, back through the stitches that run."""
    running = {branch.name.removesuffix(".0") for branch in branches if row[branch.column]}
    heads = [anchor for anchor in depths if f"anchors.{anchor}.head" in running]
    if len(heads) != 1:
        raise SutureError(
            Code.STITCH, f"{len(heads)} heads run on one route", where=graph.name, remedy="stitch the anchors again"
        )
    taken = [found for found, column in stitches.items() if row[column]]
    anchor, end = heads[0], depths[heads[0]]
    hops: list[Hop] = []
    layers: list[int] = []
    while True:
        entering = [(pair, place) for pair, place in taken if pair[1] == anchor and place.entry <= end]
        if not entering:
            hops.append(Hop(anchor, 0, end))
            return Route(tuple(reversed(hops)), tuple(reversed(layers)))
        pair, place = max(entering, key=lambda item: item[1].entry)
        taken.remove((pair, place))
        hops.append(Hop(anchor, place.entry, end))
        layers.append(place.layer)
        anchor, end = pair[0], place.exit + 1
