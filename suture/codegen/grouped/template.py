"""The templates of products by type: `grouped_linear` with the pointwise nodes behind it, and `grouped_outer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from suture.codegen.grouped import cuda_linear, cuda_outer, linear, outer
from suture.codegen.grouped.operands import refuses
from suture.codegen.groups import Group
from suture.codegen.step import Context, KernelStep, Template

Lower = Callable[[Group, Context], "list[KernelStep]"]


def _by_target(cpp: Lower, cuda: Lower) -> Lower:
    return lambda group, context: (cuda if context.target == "cuda" else cpp)(group, context)


TEMPLATES: Mapping[str, Template] = {
    "grouped_linear": Template(_by_target(linear.lower, cuda_linear.lower), refuses),
    "grouped_outer": Template(_by_target(outer.lower, cuda_outer.lower), refuses, fuses=lambda anchor, node: False),
}
"""Operator -> template."""
