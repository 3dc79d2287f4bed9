"""Operators as plain torch calls: what each node of a graph becomes in a `torch.fx` graph.

Tables say, per operator, which torch function computes it and with what arguments; generated code then reads like hand-written torch and
needs nothing of this package. An operator that is in no table is called through the function that its declaration runs.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from suture.backends.torch_arithmetic import ARITHMETIC
from suture.backends.torch_experts import EXPERTS
from suture.backends.torch_layers import LAYERS
from suture.backends.torch_layout import LAYOUT
from suture.backends.torch_quantise import QUANTISERS
from suture.backends.torch_quantise_log import LOG_QUANTISERS
from suture.backends.torch_site import Site, Writer
from suture.ir.operator import find
from suture.ir.semantics import takes_all_shapes

WRITERS: dict[str, Writer] = {**ARITHMETIC, **EXPERTS, **LAYERS, **LAYOUT, **QUANTISERS, **LOG_QUANTISERS}
"""Operator -> what writes it."""


def write_call(site: Site) -> fx.Node:
    """Write a node as a torch call; several results come as one tuple."""
    writer = WRITERS.get(site.node.operator.name)
    return _run_itself(site) if writer is None else writer(site)


def _run_itself(site: Site) -> fx.Node:
    """Call the function that the operator's declaration runs, by its own name if it has one that can be imported."""
    node = site.node
    keywords = dict(site.attributes)
    if node.operator.declared and not node.operator.measures:
        keywords |= {"shapes": site.shapes} if takes_all_shapes(node.operator.name) else {"shape": site.shapes[0]}
    if node.operator.training:
        keywords["training"] = site.training()
    run = node.operator.run
    module, name = getattr(run, "__module__", None), getattr(run, "__name__", "")
    if (module is not None and getattr(sys.modules.get(module), name, None) is run) or isinstance(
        run, type(torch.relu)
    ):
        return site.call(run, *site.operands, **keywords)
    return site.call(run_operator, node.operator.name, *site.operands, **keywords)


def run_operator(name: str, *operands: torch.Tensor | None, **keywords: Any) -> Any:
    """Compute an operator by name: for those that are no single torch function."""
    return find(name).run(*operands, **keywords)
