"""Derivatives of lookups: what was read at an index is added up there. That is a segment sum, whose own derivative is a lookup."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.sizes import Dim, product


def scattered(g: Formula, index: Formula, dim: int, shape: Sequence[Dim]) -> Formula:
    """What a gather along `dim` gives back to a value of that shape; beyond the index's other dimensions nothing was read."""
    order = [*(k for k in range(g.rank) if k != dim), dim]
    back = [order.index(k) for k in range(g.rank)]
    held = [*(g.shape[k] for k in order[:-1]), shape[dim]]
    made = g.permute(order).op("segment_sum", index.permute(order), shapes=[held]).permute(back)
    for k, size in enumerate(shape):
        made = made.placed(k, 0, size)
    return made


@rule("gather")
def _gather(at: Site) -> Gradients:
    yield 0, scattered(at.g, at.operand(1), at.dim(), at.operand(0).shape)


@rule("embedding")
def _embedding(at: Site) -> Gradients:
    """The row that stands for padding learns nothing."""
    table, index, g = at.operand(0), at.operand(1), at.g
    count = product(index.shape)
    index, g = index.reshape([count]), g.reshape([count, *table.shape[1:]])
    if at["padding"] is not None:
        padding = index.equals(at["padding"] % table.shape[0]).reshape([count, *[1] * (table.rank - 1)])
        g = padding.where(0.0, g)
    yield 0, g.op("segment_sum", index, shapes=[table.shape])


@rule("index")
def _index(at: Site) -> Gradients:
    """Several indices are one, row-major, over the dimensions they index together."""
    x, instance, dims = at.operand(0), at.instance, at.dims()
    looked = [letter for letter in instance.outputs[0] if str(letter).startswith("i")]
    kept = [letter for letter in instance.outputs[0] if letter not in looked]
    flat: Formula | None = None
    for k, dim in enumerate(dims, start=1):
        index, size = at.operand(k), x.shape[dim]
        index = (index < 0).where(index + size, index)
        index = relabel(index, at.terms(k), looked, instance)
        flat = index if flat is None else flat * size + index
    assert flat is not None
    count = product(flat.shape)
    rest = [instance.size(letter) for letter in kept]
    g = relabel(at.g, instance.outputs[0], [*looked, *kept], instance).reshape([count, *rest])
    found = g.op("segment_sum", flat.reshape([count]), shapes=[[product([x.shape[dim] for dim in dims]), *rest]])
    found = found.reshape([*(x.shape[dim] for dim in dims), *rest])
    order = [*dims, *(k for k in range(x.rank) if k not in dims)]
    yield 0, found.permute([order.index(k) for k in range(x.rank)])


@rule("segment_sum")
def _segment_sum(at: Site) -> Gradients:
    """A lookup at the index."""
    index, shape = at.operand(1), at.operand(0).shape
    if index.rank == 1:
        yield 0, at.g.op("embedding", index)
        return
    index = index.reshape([*index.shape, *[1] * (len(shape) - index.rank)]).expand(shape)
    yield 0, at.g.op("gather", index, dim=at.operand(1).rank - 1)
