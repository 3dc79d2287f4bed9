"""Derivatives of sums of products: the same letters, with the cotangent in the factor's place."""

from __future__ import annotations

from suture.ir.derivatives.letters import contract, relabel
from suture.ir.derivatives.rule import Gradients, Site, rule

ADDED = {"linear": 2, "addmm": 0, "bilinear": 3}
"""Operator -> the operand that is added to the sum of products."""


@rule("linear", "matmul", "addmm", "einsum", "bilinear")
def _contraction(at: Site) -> Gradients:
    dims, added = at.instance.outputs[0], ADDED.get(at.node.operator.name)
    factors = [k for k in range(len(at.node.inputs)) if k != added and at.has(k)]
    for k in sorted(at.wanted):
        if k == added:
            yield k, relabel(at.g, dims, at.terms(k), at.instance)
            continue
        others = [(at.operand(j), at.terms(j)) for j in factors if j != k]
        yield k, contract([(at.g, dims), *others], at.terms(k), at.instance)


@rule("expert_linear")
def _expert_linear(at: Site) -> Gradients:
    """In evaluation every position has the mean of the experts' weights."""
    dims, weight = at.instance.outputs[0], at.operand(1)
    experts = weight.shape[0]
    if at.wants(0):
        yield 0, contract([(at.g, dims), (weight.mean(0, keepdim=False), at.terms(1)[1:])], at.terms(0), at.instance)
    if at.wants(1):
        each = contract([(at.g, dims), (at.operand(0), at.terms(0))], at.terms(1)[1:], at.instance) / experts
        yield 1, relabel(each, at.terms(1)[1:], at.terms(1), at.instance)
    if at.wants(2):
        each = relabel(at.g, dims, at.terms(2)[1:], at.instance) / experts
        yield 2, relabel(each, at.terms(2)[1:], at.terms(2), at.instance)
