"""Values that are joined of parts and then read part by part, again and again, get memory of their own.

A concatenation is a view: who reads it chooses the part element by element. That is free for pointwise readers, but a window's taps, a product's
rows, and a chain of concatenations, would make the choice again and again. In front of such readers the parts are copied side by side, each by a
loop of its own.
"""

from __future__ import annotations

from collections.abc import Collection

from suture.codegen.access import is_view
from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.sources import guarded, lanes_for
from suture.codegen.convolution.windows import index_of
from suture.codegen.groups import Group
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Graph, Node, Value
from suture.ir.kernel import Expression, Let, Literal, Loop, Name, Statement, Threads
from suture.ir.sizes import Dim

_READERS = frozenset(
    {
        "conv",
        "conv_transpose",
        "max_pool",
        "avg_pool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "interpolate",
        "concat",
    }
)


_PRODUCTS = frozenset({"grouped_linear", "grouped_outer"})
"""What reads a row of features as often as it has panels, each time along the sum."""


def settle_joins(graph: Graph) -> None:
    """Put a `clone` behind every concatenation of channels that windows, products by type, or other concatenations read."""
    for node in graph.nodes:
        if node.operator.name != "concat" or node.output.rank < 2 or _dim(node) != 1:
            continue
        readers = _READERS if node.output.rank > 2 else _PRODUCTS
        if not any(_reads(use.node, readers) for use in node.output.uses):
            continue
        following = graph.nodes[graph.nodes.index(node) + 1]
        made = graph.add("clone", (node.output,), path=node.path, name=f"{node.output.name}_joined", before=following)
        for use in node.output.uses:
            if use.node is not made:
                use.node.replace_input(use.index, made.output)


def _reads(node: Node, readers: Collection[str]) -> bool:
    """Whether a node, or who looks through it, chooses among parts more than once."""
    if node.operator.name in readers:
        return True
    return is_view(node) and any(_reads(use.node, readers) for value in node.outputs for use in value.uses)


def refuses(node: Node, context: Context) -> str | None:
    """A copy is this template's where it is of parts that are joined."""
    source = node.inputs[0]
    joined = source is not None and source.producer is not None and source.producer.operator.name == "concat"
    return None if joined else "it copies a value that is in memory"


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel that writes the parts side by side, and what is pointwise behind that."""
    node = group.anchor
    assert node is not None and node.inputs[0] is not None and node.inputs[0].producer is not None
    joined = node.inputs[0].producer
    dim, made = _dim(joined), node.output
    builder = KernelBuilder(context, group.nodes, "join")
    order = context.order(made)
    inner, along = order[-1], order[-2]
    places: dict[int, Expression] = {}
    for each in order[:-2] if made.rank > 2 else order[:-1]:  # of a matrix a block takes a row
        if each != dim:
            places[each] = builder.grid(f"at_{each}", builder.size(made.shape[each]))
    regions: list[Statement] = []
    lanes = max(lanes_for(part.shape[inner]) for part in joined.inputs if part is not None)
    offset: Dim = 0
    for number, part in enumerate(joined.inputs):
        assert part is not None
        regions.append(_part(builder, group, part, number, places, (dim, inner, along), offset, lanes))
        offset = offset + part.shape[dim]
    return [builder.finish(regions, f"{group}; {len(regions)} parts side by side")]


def _part(
    builder: KernelBuilder, group: Group, part: Value, number: int, places: dict[int, Expression], dims: tuple[int, int, int], offset: Dim, lanes: int
) -> Statement:  # fmt: skip
    """One part comes to its place."""
    node = group.anchor
    assert node is not None
    dim, inner, along = dims
    size = builder.size(part.shape[inner])
    turns = (size + (lanes - 1)) // lanes
    turn = builder.variable(f"turn_{number}", Literal(0), turns)
    lane = builder.variable(f"lane_{number}", Literal(0), Literal(lanes))
    loops: list[tuple[Name, Expression]] = []
    at = dict(places)
    for each in {dim, along} - {inner, *places}:
        variable = builder.variable(f"along_{each}_{number}", Literal(0), builder.size(part.shape[each]))
        at[each] = variable
        loops.append((variable, builder.size(part.shape[each])))
    loops.append((turn, turns))
    at[inner] = builder.indices.short(turn * lanes + lane)
    index = [at[each] for each in range(part.rank)]
    moving = builder.lane()
    found = moving.value(part, index_of(part, index))
    known = Name(builder.fresh(), found.dtype)
    moving.statements.append(Let(known, found))
    index[dim] = builder.indices.short(index[dim] + builder.size(offset))
    target = index_of(node.output, index)
    moving.know(node.output, target, known)
    for value in group.outputs:
        moving.store(value, target, moving.value(value, target))
    full = isinstance(part.shape[inner], int) and part.shape[inner] % lanes == 0
    body = guarded(None if full else at[inner] < size, moving.statements)
    for variable, end in reversed(loops):
        body = (Loop(variable, Literal(0), end, body),)
    return Threads(lane, lanes, body)


def _dim(node: Node) -> int:
    dim = node.attributes["dim"]
    assert isinstance(dim, int)
    return dim % node.output.rank


TEMPLATES = {"clone": Template(lower, refuses)}
"""Operator -> template."""

__all__ = ["TEMPLATES", "lower", "refuses", "settle_joins"]
