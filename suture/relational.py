"""Message passing on graphs with types: programs, their tracing, and what they are compiled to.

    from suture import relational

    class RGCN(nn.Module):
        def forward(self, g, x):
            e = g.edges
            return g.mean(x[e.src] @ self.weight[e.type], per_relation=True) + x @ self.root

    g = relational.MessageGraph(src, dst, type, num_nodes=n, num_types=r)
    out = RGCN(...)(g, x)                                   # eagerly, with torch's own derivatives
    graph = relational.trace(RGCN(...), g, x)               # -> Graph

A program is any module whose `forward` takes a `MessageGraph` first. No loop over types is written: a weight is looked up by the type of each edge.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from suture.frontends.messages.graph import Edges, MessageGraph, Nodes
from suture.frontends.messages.groups import Groups, Relations
from suture.frontends.messages.lookups import Index, OneHot, Product, Typed
from suture.frontends.messages.operators import (
    lookup,
    segment_max,
    segment_softmax,
    segment_sum,
    typed_linear,
    unique_rows,
)  # fmt: skip

if TYPE_CHECKING:
    from suture.drivers.relational.function import RelationalFunction as RelationalFunction
    from suture.drivers.relational.function import compile as compile
    from suture.frontends.messages.conversions import Stack as Stack
    from suture.frontends.messages.conversions import from_edge_index as from_edge_index
    from suture.frontends.messages.conversions import from_hetero as from_hetero
    from suture.frontends.messages.conversions import from_neighbor_batch as from_neighbor_batch
    from suture.frontends.messages.conversions import from_sparse as from_sparse
    from suture.frontends.messages.datasets import RelationalData as RelationalData
    from suture.frontends.messages.datasets import load as load
    from suture.frontends.messages.synthetic import synthetic as synthetic
    from suture.frontends.messages.tracing import bind as bind
    from suture.frontends.messages.tracing import trace as trace

__all__ = [
    "Edges", "Groups", "Index", "MessageGraph", "Nodes", "OneHot", "Product", "RelationalFunction", "Relations", "Stack", "Typed", "bind", "compile",
    "from_edge_index", "from_hetero", "from_neighbor_batch", "from_sparse", "load", "lookup", "segment_max", "segment_softmax", "segment_sum",
    "synthetic", "trace", "typed_linear", "unique_rows",
]  # fmt: skip

_LATE = {
    "RelationalData": "frontends.messages.datasets",
    "RelationalFunction": "drivers.relational.function",
    "Stack": "frontends.messages.conversions",
    "bind": "frontends.messages.tracing",
    "compile": "drivers.relational.function",
    "from_edge_index": "frontends.messages.conversions",
    "from_hetero": "frontends.messages.conversions",
    "from_neighbor_batch": "frontends.messages.conversions",
    "from_sparse": "frontends.messages.conversions",
    "load": "frontends.messages.datasets",
    "synthetic": "frontends.messages.synthetic",
    "trace": "frontends.messages.tracing",
}
"""What is imported when it is first asked for -> the module of `suture` that has it."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(f"suture.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
