"""Pointers that a caller gives by hand are looked at before kernels run: loops go where they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import bind_symbols
from suture.ir.sizes import Dim, evaluate_size

_POINTERS: Mapping[str, int] = {"csr_sum": 1, "csr_max": 1, "csr_spread": 1, "grouped_linear": 2, "grouped_outer": 2}


def pointer_inputs(graph: Graph) -> tuple[tuple[int, Dim], ...]:
    """The graph's inputs that are pointers, by their positions, and how many rows they point into."""
    found: dict[tuple[int, Dim], None] = {}
    for node in graph.nodes:
        place = _POINTERS.get(node.operator.name)
        pointers = None if place is None else node.inputs[place]
        rows = node.output if node.operator.name == "csr_spread" else node.inputs[0] if node.inputs else None
        if pointers in graph.inputs and rows is not None:
            found[graph.inputs.index(pointers), rows.shape[0]] = None
    return tuple(found)


def order_inputs(graph: Graph) -> tuple[int, ...]:
    """The graph's inputs that say where rows are put, by their positions."""
    nodes = (node for node in graph.nodes if node.operator.name == "grouped_linear" and len(node.inputs) > 4)
    return tuple(dict.fromkeys(graph.inputs.index(node.inputs[4]) for node in nodes if node.inputs[4] in graph.inputs))


def check_pointers(graph: Graph, pointers: Sequence[tuple[int, Dim]], inputs: Sequence[torch.Tensor]) -> None:
    """Refuse pointers that do not rise from 0 to the number of rows.

    :raises SutureError: INPUT, with the input's name
    """
    if not pointers:
        return
    symbols = bind_symbols(graph, inputs)
    for k, rows in pointers:
        given, count = inputs[k], evaluate_size(rows, symbols)
        rises = (
            len(given) > 0 and int(given[0]) == 0 and int(given[-1]) == count and bool((given[1:] >= given[:-1]).all())
        )
        if not rises:
            raise SutureError(
                Code.INPUT, f"the pointers {graph.inputs[k].name} do not rise from 0 to {count}", where=graph.name,
                remedy="where each segment's rows begin, and where the last end, would be right",
            )  # fmt: skip


def check_orders(graph: Graph, orders: Sequence[int], inputs: Sequence[torch.Tensor]) -> None:
    """Refuse orders in which not every row is once.

    :raises SutureError: INPUT, with the input's name
    """
    for k in orders:
        given = inputs[k]
        if not torch.equal(given.sort().values, torch.arange(len(given), dtype=given.dtype, device=given.device)):
            raise SutureError(
                Code.INPUT, f"the order {graph.inputs[k].name} does not have each row once", where=graph.name,
                remedy=f"a permutation of its {len(given)} rows would be right",
            )  # fmt: skip
