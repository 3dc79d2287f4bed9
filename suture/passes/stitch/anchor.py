"""An anchor as stitching sees it: a stem, a chain of blocks, a head, and the points between them.

Point `p` is the value before block `p`; the last point is the value before the head. Every path crosses every point, so each is a place where the
stream of another anchor can come in. Blocks are numbered modules that lead from one cut value to another; what lies between two of them (the merging
of patches before a stage) belongs to the later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise

from suture.ir.axes import AxisTable
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.regions import cuts
from suture.ir.sizes import evaluate_size, symbols_of
from suture.passes.stitch.blocks import named_blocks, repeating_blocks
from suture.passes.stitch.interface import Interface, interface_of
from suture.passes.stitch.space import Costs


@dataclass(eq=False)
class Anchor:
    """One of the models that are stitched.

    :param points: the value before each block, and the one before the head
    :param paths: the module path of each block, where it has one
    """

    graph: Graph
    points: tuple[Value, ...]
    paths: tuple[str, ...]
    _interfaces: dict[int, Interface] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.points) - 1

    @property
    def stages(self) -> tuple[int, ...]:
        """The number of blocks of each stage: neighbouring blocks whose results are of the same type."""
        types = [value.type for value in self.points[1:]]
        return tuple(len(list(run)) for _, run in groupby(types))

    def interface(self, point: int) -> Interface:
        """How the value at a point is laid out."""
        if point not in self._interfaces:
            self._interfaces[point] = interface_of(self._axes, self.points[point])
        return self._interfaces[point]

    @cached_property
    def _axes(self) -> AxisTable:
        return self.graph.axes()

    @cached_property
    def parts(self) -> tuple[tuple[Node, ...], ...]:
        """The nodes of the stem, of each block, and of the head."""
        return tuple(tuple(nodes) for nodes in self._parts[0])

    @cached_property
    def ambient(self) -> tuple[Node, ...]:
        """The nodes that several parts read and that depend on no point: masks, rotary tables."""
        return tuple(self._parts[1])

    @cached_property
    def _parts(self) -> tuple[list[list[Node]], list[Node]]:
        return _divide(self.graph, self.points)

    @cached_property
    def costs(self) -> Costs:
        """The MACs of the stem (with what is ambient), of each block, and of the head, for one example."""
        numbers = [count_macs(self.graph, nodes) for nodes in self.parts]
        return Costs(numbers[0] + count_macs(self.graph, self.ambient), tuple(numbers[1:-1]), numbers[-1])


def count_macs(graph: Graph, nodes: Iterable[Node]) -> int:
    """MACs for one example, as `Graph.stats` counts them."""
    total = sum((node.operator.macs(node) for node in nodes), start=0)
    numbers = {name: 1 if name == "batch" else graph.hints.get(name, 1) for name in symbols_of(total)}
    return evaluate_size(total, numbers)


def find_anchor(graph: Graph, at: Sequence[str] | None = None) -> Anchor:
    """Take a graph apart into stem, blocks and head.

    :param at: module paths of the blocks, as patterns (`"blocks.*"`); the outermost numbered modules that repeat, if absent
    :raises SutureError: STITCH, if no two blocks follow one another; SITE, if a pattern matches no module; CUT, if a block that a pattern names has
        more than one way in or out
    """
    chain = cuts(graph)
    blocks = named_blocks(graph, chain, at) if at is not None else repeating_blocks(graph, chain)
    order = {value: k for k, value in enumerate(chain)}
    blocks.sort(key=lambda block: order[block.exit])
    for earlier, later in pairwise(blocks):
        if order[later.entry] < order[earlier.exit]:
            raise SutureError(
                Code.STITCH, f"the blocks {earlier.path} and {later.path} overlap", where=graph.name,
                remedy="name blocks that follow one another",
            )  # fmt: skip
    points = (blocks[0].entry, *(block.exit for block in blocks))
    return Anchor(graph, points, tuple(block.path for block in blocks))


def _divide(graph: Graph, points: Sequence[Value]) -> tuple[list[list[Node]], list[Node]]:
    """The nodes of each part, in order, and those of none.

    What depends on a point belongs to the part behind the last point it depends on. What does not depend on any (the making of masks and tables)
    belongs to the part that alone reads it, and is ambient if several do.
    """
    parts: list[list[Node]] = [[] for _ in range(len(points) + 1)]
    number = {value: k + 1 for k, value in enumerate(points)}
    behind: dict[Value, int] = {value: k for value, k in number.items() if value.producer is None}
    part_of: dict[Node, int | None] = {}
    for node in graph.nodes:
        reached = max((behind[value] for value in node.inputs if value in behind), default=0)
        if reached:
            part_of[node] = reached
        for value in node.outputs:
            if value in number or reached:
                behind[value] = number.get(value, reached)
    returned = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node in part_of:
            continue
        if any(value in number for value in node.outputs):
            part_of[node] = 0
            continue
        readers = {part_of[use.node] for value in node.outputs for use in value.uses}
        if any(value in returned for value in node.outputs):
            readers.add(len(points))
        part_of[node] = readers.pop() if len(readers) == 1 else None
    for node in graph.nodes:
        part = part_of[node]
        if part is not None:
            parts[part].append(node)
    return parts, [node for node in graph.nodes if part_of[node] is None]


def same_interface(anchors: Sequence[Graph]) -> None:
    """Require that anchors take the same inputs and return the same outputs.

    :raises SutureError: STITCH, naming the first that differs
    """
    first = anchors[0]
    for other in anchors[1:]:
        for kind, ours, theirs in (("input", first.inputs, other.inputs), ("output", first.outputs, other.outputs)):
            if len(ours) != len(theirs):
                raise SutureError(
                    Code.STITCH, f"{first.name} has {len(ours)} {kind}s, {other.name} {len(theirs)}",
                    remedy=f"anchors with the same {kind}s would be right",
                )  # fmt: skip
            for a, b in zip(ours, theirs, strict=True):
                if a.type != b.type:
                    raise SutureError(
                        Code.STITCH, f"the {kind} {a} of {first.name} is {a.type}, {b} of {other.name} is {b.type}",
                        remedy="anchors of the same input types and class counts, with the same names of sizes, would be right",
                    )  # fmt: skip
