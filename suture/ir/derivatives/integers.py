"""Derivatives of quantisers: integers have none, and numbers made of integers are linear in their scale."""

from __future__ import annotations

from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.rule import CONSTANT, Gradients, Site, rule

CONSTANT |= dict.fromkeys(("quantise", "log2_quantise"), "its result is an integer")
CONSTANT |= {"random_order": "its result is an order"}


@rule("dequantise", "log2_dequantise")
def _dequantise(at: Site) -> Gradients:
    """What the integers stand for by a scale of 1."""
    if not at.wants(1):
        return
    scale = at.operand(1)
    ones = at.writer.full(1.0, scale.value.type)
    rest = [at.operand(2)] if at.has(2) else []
    steps = at.operand(0).op(at.node.operator.name, ones, *rest, **at.node.attributes)
    yield 1, relabel(at.g * steps, at.instance.outputs[0], at.terms(1), at.instance)
