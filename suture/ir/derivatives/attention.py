"""The derivative of attention: its two products and its softmax, written out again from queries and keys.

The scores are computed anew from the operands, so that they need not be kept (as in FlashAttention, Dao et al. 2022, section 3.1); the row sums that
the derivative of the softmax subtracts are those of the result times its cotangent, which is shorter than a row of scores.
"""

from __future__ import annotations

import math

import torch

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.notation import Term
from suture.ir.sizes import Dim


class Heads:
    """How attention's operands become equal batches of matrices: queries of one key head stand side by side as rows."""

    def __init__(self, at: Site) -> None:
        size = at.instance.size
        self.outer: list[Term] = list(at.instance.outputs[0][:-2])  # the batches of queries and scores
        self.inner: list[Term] = [*self.outer[:-1], "u"] if at["grouped"] else self.outer  # those of keys and values
        self.scores: list[Dim] = [*map(size, self.outer), size("l"), size("s")]
        self.rows: Dim = size("t") * size("l") if at["grouped"] else size("l")
        self._outer = list(map(size, self.outer))
        self._inner = list(map(size, self.inner))

    def queries(self, x: Formula) -> Formula:
        """[*b, u*t, l, x] as [*b, u, t*l, x]."""
        return self.matrices(x.expand([*self._outer, *x.shape[-2:]]))

    def matrices(self, x: Formula) -> Formula:
        """What has a row for every query, as one matrix for every key head."""
        return x.reshape([*self._inner, self.rows, x.shape[-1]])

    def keys(self, x: Formula) -> Formula:
        """Keys and values with all batches."""
        return x.expand([*self._inner, *x.shape[-2:]])


def probabilities(at: Site, heads: Heads) -> Formula:
    """softmax(scale q k^T + mask), [*b, heads, l, s]; zero where nothing may be looked at."""
    q, k = heads.queries(at.operand(0)), heads.keys(at.operand(1))
    scores: Formula = (q.op("matmul", k.transposed()) * at["scale"]).reshape(heads.scores)
    masked = False
    if at["causal"]:
        rows, columns = heads.scores[-2:]
        order: Formula = at.writer.counting(rows).reshape([rows, 1]) >= at.writer.counting(columns)
        scores, masked = order.where(scores, -math.inf), True
    if at.has(3):
        mask = at.operand(3)
        scores = mask.where(scores, -math.inf) if mask.dtype == torch.bool else scores + mask.cast(scores.dtype)
        masked = True
    made = scores.op("softmax", dim=-1)
    seen: Formula = scores > -math.inf
    return seen.where(made, 0.0) if masked else made


@rule("attention")
def _attention(at: Site) -> Gradients:
    heads, g, instance = Heads(at), at.g, at.instance
    p = probabilities(at, heads)
    if at.wants(2):
        made = heads.matrices(p).transposed().op("matmul", heads.queries(g))
        yield 2, relabel(made, [*heads.inner, "s", "e"], at.terms(2), instance)
    if not at.wants(0, 1, 3):
        return
    back = heads.queries(g).op("matmul", heads.keys(at.operand(2)).transposed()).reshape(heads.scores)
    scores = p * (back - (g * at.result()).sum(g.rank - 1))
    if at.wants(3):
        yield 3, relabel(scores, [*heads.outer, "l", "s"], at.terms(3), instance)
    scaled = heads.matrices(scores * at["scale"])
    if at.wants(0):
        made = scaled.op("matmul", heads.keys(at.operand(1)))
        made = made.reshape([*heads.scores[:-1], instance.size("d")])
        yield 0, relabel(made, [*heads.outer, "l", "d"], at.terms(0), instance)
    if at.wants(1):
        made = scaled.transposed().op("matmul", heads.queries(at.operand(0)))
        yield 1, relabel(made, [*heads.inner, "s", "d"], at.terms(1), instance)
