"""Derivatives of message passing: a lookup gives back sums over equal indices, a typed product a typed outer product, a spread a sum."""

from __future__ import annotations

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.rule import CONSTANT, REFUSED, Gradients, Site, rule

CONSTANT |= dict.fromkeys(
    ("sort_order", "inverse_order", "run_pointers", "unique_rows", "tile_runs", "fewer_ends", "meeting_rows"),
    "its results are indices",
)
REFUSED |= dict.fromkeys(
    ("grouped_linear", "grouped_outer"), "rows are put in order behind differentiation: differentiate typed_linear"
)


def _turned(w: Formula) -> Formula:
    """Weights for the way back: their last two dimensions change places."""
    rank = len(w.shape)
    return w.permute([*range(rank - 2), rank - 1, rank - 2])


@rule("typed_linear")
def _typed_linear(at: Site) -> Gradients:
    x, w, type = at.operand(0), at.operand(1), at.operand(2)
    if at.wants(0):
        yield 0, at.g.op("typed_linear", _turned(w), type)
    if at.wants(1):
        yield 1, x.op("typed_outer", at.g, type, shapes=[w.shape])


@rule("typed_outer")
def _typed_outer(at: Site) -> Gradients:
    x, g, type = at.operand(0), at.operand(1), at.operand(2)
    if at.wants(0):
        yield 0, g.op("typed_linear", _turned(at.g), type)
    if at.wants(1):
        yield 1, x.op("typed_linear", at.g, type)


@rule("segment_max")
def _segment_max(at: Site) -> Gradients:
    """Evenly among the elements that are the maximum."""
    x, index, g = at.operand(0), at.operand(1), at.g
    hit = x.equals(at.result().op("embedding", index))
    count = hit.cast(g.dtype).op("segment_sum", index, shapes=[g.shape])
    shared = g / count.equals(0).where(1.0, count)
    yield 0, hit.where(shared.op("embedding", index), 0.0)


@rule("segment_softmax")
def _segment_softmax(at: Site) -> Gradients:
    """y (g - the segment's sum of g y)."""
    y, index, g = at.result(), at.operand(1), at.g
    total = (g * y).op("segment_sum", index, shapes=[[at["segments"], *y.shape[1:]]])
    yield 0, y * (g - total.op("embedding", index))


@rule("csr_sum")
def _csr_sum(at: Site) -> Gradients:
    yield 0, at.g.op("csr_spread", at.operand(1), shapes=[at.operand(0).shape])


@rule("csr_spread")
def _csr_spread(at: Site) -> Gradients:
    yield 0, at.g.op("csr_sum", at.operand(1))


@rule("csr_max")
def _csr_max(at: Site) -> Gradients:
    """Evenly among the rows that are the maximum."""
    x, pointers, g = at.operand(0), at.operand(1), at.g
    hit = x.equals(at.result().op("csr_spread", pointers, shapes=[x.shape]))
    count = hit.cast(g.dtype).op("csr_sum", pointers)
    shared = g / count.equals(0).where(1.0, count)
    yield 0, hit.where(shared.op("csr_spread", pointers, shapes=[x.shape]), 0.0)
