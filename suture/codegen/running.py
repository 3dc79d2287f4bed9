"""Running sums and products: a lane goes along the dimension, one element after the other; lanes stand side by side over another.

Where the dimension lies innermost in memory, nothing lies beside it: a block is one lane that reads a row as it lies. Sums of floats are kept in
float64 on a processor, as torch does: an error would stay to the end of the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.codegen.builder import KernelBuilder
from suture.codegen.convolution.sources import guarded, lanes_for
from suture.codegen.convolution.windows import index_of
from suture.codegen.groups import Group
from suture.codegen.scalars import compute_type
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node, Value
from suture.ir.kernel import (
    Expression,
    Let,
    Literal,
    Load,
    Loop,
    Name,
    Scope,
    Statement,
    Store,
    Threads,
    apply,
    cast,
)


def refuses(node: Node, context: Context) -> str | None:
    """Why it is left to torch, or None."""
    source = _source(node)
    if source.rank == 0 or node.output.dtype.is_complex:
        return f"{node.operator.name} of {source.type}"
    return None


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernel of a running sum or a product, and of what is pointwise behind it."""
    assert group.anchor is not None
    return [_Running(group, group.anchor, context).step()]


class _Running:
    """Writes one kernel."""

    def __init__(self, group: Group, node: Node, context: Context) -> None:
        self.group, self.node, self.source = group, node, _source(node)
        self.adds = node.operator.name == "cumsum"
        self.dim = _dim(node)
        dtype = compute_type(node.output.dtype)
        exact = self.adds and dtype == torch.float32 and context.target == "cpp"
        self.dtype = torch.float64 if exact else dtype
        self.builder = KernelBuilder(context, group.nodes, node.operator.name)
        self.order = (
            context.order(self.source) if self.builder.is_stored(self.source) else tuple(range(self.source.rank))
        )

    def step(self) -> KernelStep:
        """The kernel and its call."""
        build, source = self.builder, self.source
        beside = self.order[-1] if self.order[-1] != self.dim else None
        lanes = 1 if beside is None else lanes_for(source.shape[beside])
        places: dict[int, Expression] = {}
        for dim in self.order:
            if dim not in (self.dim, beside):
                places[dim] = build.grid(f"at_{dim}", build.size(source.shape[dim]))
        lane = build.variable("lane", Literal(0), Literal(lanes))
        condition = None
        if beside is not None:
            size = build.size(source.shape[beside])
            tile = build.grid("tile", build.indices.short((size + (lanes - 1)) // lanes))
            places[beside] = tile * lanes + lane
            whole = isinstance(size, Literal) and int(size.value) % lanes == 0
            condition = None if whole else places[beside] < size
        extent = build.size(source.shape[self.dim])
        places[self.dim] = build.variable("along", Literal(0), extent)
        body = self._body([places[dim] for dim in range(source.rank)], extent)
        why = f"{self.group}; {lanes} lane{'s' if lanes > 1 else ''} beside dimension {self.dim}"
        return build.finish([Threads(lane, lanes, guarded(condition, body))], why)

    def _body(self, index: Sequence[Expression], extent: Expression) -> list[Statement]:
        """One lane: what it met so far, element by element."""
        met = self.builder.local("met", self.dtype, (), Scope.THREAD)
        so_far = Load(met, ())
        lane = self.builder.lane()
        element = cast(lane.value(self.source, index_of(self.source, index)), self.dtype)
        inside = [*lane.statements, Store(met, (), apply("+" if self.adds else "*", so_far, element))]
        if self.adds:
            inside += self._behind(index, so_far)
        start = Store(met, (), cast(Literal(0 if self.adds else 1), self.dtype))
        found: list[Statement] = [start, Loop(Name("along"), Literal(0), extent, tuple(inside))]
        return found if self.adds else [*found, *self._behind(self._of_result(index), so_far)]

    def _of_result(self, index: Sequence[Expression]) -> list[Expression]:
        """The index of a product's result."""
        if self.node.attributes["keepdim"]:
            return [Literal(0) if dim == self.dim else at for dim, at in enumerate(index)]
        return [at for dim, at in enumerate(index) if dim != self.dim]

    def _behind(self, index: Sequence[Expression], so_far: Expression) -> list[Statement]:
        """What is pointwise behind the result, and what is stored."""
        made, lane = self.node.output, self.builder.lane()
        at = index_of(made, index)
        found = Name(self.builder.fresh(), compute_type(made.dtype))
        lane.statements.append(Let(found, cast(so_far, found.dtype)))
        lane.know(made, at, found)
        for value in self.group.outputs:
            lane.store(value, at, lane.value(value, at))
        return lane.statements


def _source(node: Node) -> Value:
    source = node.inputs[0]
    assert source is not None
    return source


def _dim(node: Node) -> int:
    """The dimension along which a node runs."""
    given = node.attributes["dim" if node.operator.name == "cumsum" else "dims"]
    dim = given[0] if isinstance(given, tuple) else given
    assert isinstance(dim, int)
    return dim % _source(node).rank


TEMPLATES = {name: Template(lower, refuses) for name in ("cumsum", "prod")}
