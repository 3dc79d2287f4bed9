"""Derivatives as graph rules: from the cotangents of a node's results those of its operands, in nodes again.

Importing this package fills the tables: `RULES` has a rule for every operator that has a derivative, `CONSTANT` names those through which nothing
goes, `REFUSED` those that are not differentiated here. Fused and recurrent operators have neither: `prepare` writes them out.
"""

from suture.ir.derivatives import (
    attention,
    contractions,
    control,
    convolution,
    elementwise,
    integers,
    layout,
    lookup,
    normalise,
    reductions,
    relational,
    sampling,
    spatial,
)
from suture.ir.derivatives.prepare import prepare
from suture.ir.derivatives.recurrent import LAYERS as UNROLLED
from suture.ir.derivatives.reverse import differentiate, moved_by
from suture.ir.derivatives.rule import CONSTANT, REFUSED, RULES, rule

REFUSED |= {"opaque": "it has no notation"}

__all__ = [
    "CONSTANT",
    "REFUSED",
    "RULES",
    "UNROLLED",
    "attention",
    "contractions",
    "control",
    "convolution",
    "differentiate",
    "elementwise",
    "integers",
    "layout",
    "lookup",
    "moved_by",
    "normalise",
    "prepare",
    "reductions",
    "relational",
    "rule",
    "sampling",
    "spatial",
]
