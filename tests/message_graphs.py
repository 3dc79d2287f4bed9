"""Graphs for message passing, drawn and fixed: no edges, one node, loops at a node, edges that come twice, types that no edge has."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import strategies as st

from suture.relational import MessageGraph

EXAMPLES = Path(__file__).parents[1] / "examples" / "relational"


@st.composite
def message_graphs(draw: st.DrawFn, *, kinds: int = 0, most_types: int = 6) -> MessageGraph:
    """A graph of up to 12 nodes and 40 edges; nodes have one of so many kinds if there are any."""
    nodes, edges = draw(st.integers(1, 12)), draw(st.integers(0, 40))
    types = draw(st.integers(1, most_types))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    used = draw(st.integers(1, types))  # those above are of no edge

    def numbers(count: int, below: int) -> torch.Tensor:
        return torch.randint(below, (count,), generator=source)

    return MessageGraph(
        numbers(edges, nodes),
        numbers(edges, nodes),
        numbers(edges, used),
        num_nodes=nodes,
        num_types=types,
        node_type=numbers(nodes, kinds) if kinds else None,
        num_node_types=kinds or None,
    )


def random_graph(nodes: int = 20, edges: int = 60, types: int = 5, kinds: int = 3, seed: int = 0) -> MessageGraph:
    """A graph with edges and nodes of several types."""
    source = torch.Generator().manual_seed(seed)
    src, dst, type = (torch.randint(below, (edges,), generator=source) for below in (nodes, nodes, types))
    kind = torch.randint(kinds, (nodes,), generator=source)
    return MessageGraph(src, dst, type, num_nodes=nodes, num_types=types, node_type=kind, num_node_types=kinds)
