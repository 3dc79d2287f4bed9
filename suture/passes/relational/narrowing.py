"""Indices in half the bytes: what kernels look up by is kept in 32 bits where every number that it may be fits."""

from __future__ import annotations

import torch

from suture.ir.graph import Graph, Use, Value
from suture.ir.sizes import Dim, evaluate_size, symbols_of
from suture.ir.types import TensorType

MOST = 1 << 28  # rows of every kind up to which sizes are taken to fit: a few times as many still do
_PLACES = {
    "embedding": (1,), "csr_sum": (1,), "csr_max": (1,), "csr_spread": (1,), "grouped_linear": (2, 3, 4), "grouped_outer": (2,)
}  # fmt: skip


def narrow_indices(inspector: Graph, executor: Graph) -> int:
    """Let an inspector hand its indices to the executor in 32 bits, in place.

    It is for edges of which no size is over `MOST`; numbers below a product of two sizes stay in 64 bits.

    :param executor: what takes the inspector's results, by their names
    :returns: how many results are narrow now
    """
    given = {value.name: value for value in executor.inputs}
    outputs, names = list(inspector.outputs), inspector.output_names
    narrowed = 0
    for place, (value, name) in enumerate(zip(outputs, names, strict=True)):
        taken = given[name]
        if value.producer is None or taken.dtype != torch.int64 or taken.is_graph_output():
            continue
        if all(_fits(use) for use in taken.uses):
            outputs[place] = inspector.add("cast", [value], {"dtype": torch.int32}).output
            taken.type = TensorType(torch.int32, taken.shape)
            narrowed += 1
    inspector.set_outputs(outputs, names)
    return narrowed


def _fits(use: Use) -> bool:
    """Whether an index is read by a kernel alone, and what it points into has rows of which the number fits."""
    if use.index not in _PLACES.get(use.node.operator.name, ()):
        return False
    rows = _rows(use)
    return evaluate_size(rows, dict.fromkeys(symbols_of(rows), MOST)) < 1 << 31


def _rows(use: Use) -> Dim:
    """How many rows an index is below, or that many and one."""
    name = use.node.operator.name
    if name == "csr_spread":
        return use.node.output.shape[0]
    if name == "grouped_linear" and use.index == 3:
        return _operand(use, 1).shape[0]
    return _operand(use, 0).shape[0]


def _operand(use: Use, index: int) -> Value:
    found = use.node.inputs[index]
    assert found is not None
    return found
