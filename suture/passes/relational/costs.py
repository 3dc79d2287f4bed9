"""A cost model: how long a graph takes on given edges, predicted from the arithmetic and the bytes of each node.

What stays in registers costs its arithmetic only: pointwise nodes, views and lookups are part of the kernel that reads them. Products, sums over
segments and whatever else meets the rows of several edges is a kernel that writes its result and reads what it is computed from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, evaluate_size, substitute, symbols_of
from suture.passes.relational.statistics import Statistics


@dataclass(frozen=True)
class Rates:
    """What a machine does in a microsecond.

    :param operations: floating-point operations of a product of matrices
    :param elements: elements of arithmetic outside of products
    :param streamed: bytes read or written in order
    :param gathered: bytes of rows that are looked up
    :param rows: rows that a sum over segments goes through
    :param kernel: microseconds that a kernel takes besides
    """

    operations: float
    elements: float
    streamed: float
    gathered: float
    rows: float
    kernel: float


CPU = Rates(operations=100_000.0, elements=16_000.0, streamed=20_000.0, gathered=18_000.0, rows=600.0, kernel=4.0)
"""A core with 512-bit vectors. Several take less time, but for the same choices."""

GPU = Rates(operations=3e7, elements=5e6, streamed=3e6, gathered=2e6, rows=2e5, kernel=4.0)
"""A data-centre GPU."""

RATES: Mapping[str, Rates] = {"cpp": CPU, "cuda": GPU}

_VIEWS = frozenset({
    "embedding", "csr_spread", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "expand", "slice", "concat", "split", "cast",
    "select", "full",
})  # fmt: skip
_SEGMENTS = frozenset({"segment_sum", "segment_max", "segment_softmax", "csr_sum", "csr_max"})
_SLOW = frozenset({"exp", "tanh", "sigmoid", "gelu", "log", "silu", "elu", "pow", "softplus"})
_NARROWEST = 16  # columns of a product that take as long as fewer
_SLOW_ELEMENTS = 8  # elements of plain arithmetic that take as long as one of these


@dataclass(frozen=True)
class Estimate:
    """Predicted microseconds: of all, and of each kernel by its first result's name."""

    total: float
    parts: Mapping[str, float]


def estimate(graph: Graph, statistics: Statistics, rates: Rates = CPU) -> Estimate:
    """Predict how long a graph takes on edges like these."""
    sizes = known_sizes(graph, statistics)
    pricing = _Pricing(sizes, rates)
    parts = {node.outputs[0].name: pricing.kernel(node) for node in graph.nodes if pricing.is_kernel(node)}
    return Estimate(sum(parts.values()), parts)


def known_sizes(graph: Graph, statistics: Statistics) -> dict[str, int]:
    """The numbers of all symbolic sizes, of those too that data decide."""
    sizes = dict(statistics.sizes)
    for node in graph.nodes:
        keys = [value for value in node.inputs if value is not None]
        if node.operator.measures and keys:
            rows, found = _number(keys[0].shape[0], sizes), statistics.measured(node)
            for name in symbols_of(node.outputs[0].shape[0]):
                sizes.setdefault(name, rows if found is None else found)
    return sizes


class _Pricing:
    """Prices the kernels of one graph."""

    def __init__(self, sizes: Mapping[str, int], rates: Rates) -> None:
        self._sizes = sizes
        self._rates = rates
        self._kernels: dict[Node, bool] = {}
        self._products: dict[Node, float] = {}

    def is_kernel(self, node: Node) -> bool:
        """Whether a node writes a value of its own, rather than being part of what reads it; integers cost nothing, they are made once."""
        found = self._kernels.get(node)
        if found is None:
            found = self._kernels[node] = self._writes(node)
        return found

    def kernel(self, node: Node) -> float:
        """The microseconds of a node that is a kernel."""
        rates, products = self._rates, self._products_of(node)
        streamed, gathered, elements = float(sum(map(self._bytes, node.outputs))), 0.0, 0.0
        if not products:
            elements = max(self._elements(value) for value in (*node.inputs, *node.outputs) if value is not None)
        for kind, value in self._read(node):
            amount = self._elements(value)
            if kind == "streamed":
                streamed += amount * value.dtype.itemsize
            elif kind == "gathered":
                gathered += amount * value.dtype.itemsize
            else:
                elements += amount * (_SLOW_ELEMENTS if kind in _SLOW else 1)
        traffic = streamed / rates.streamed + gathered / rates.gathered
        arithmetic = products / rates.operations + elements / rates.elements
        return max(traffic, arithmetic) + self._segment_rows(node) / rates.rows + rates.kernel

    def _segment_rows(self, node: Node) -> int:
        """The rows that a sum over segments goes through; a softmax does so three times."""
        rows = node.inputs[0].shape[0] if node.operator.name in _SEGMENTS and node.inputs[0] is not None else 0
        return _number(rows, self._sizes) * (3 if node.operator.name == "segment_softmax" else 1)

    def _writes(self, node: Node) -> bool:
        if not any(value.dtype.is_floating_point or value.dtype.is_complex for value in node.outputs):
            return False
        returned = any(value.is_graph_output() for value in node.outputs)
        if node.operator.name in _VIEWS:
            return returned
        if node.operator.pointwise:
            return returned or any(self._products_of(reader) for value in node.outputs for reader, _ in value.uses)
        return True

    def _products_of(self, node: Node) -> float:
        """The floating-point operations of a product."""
        found = self._products.get(node)
        if found is None:
            pointwise = node.operator.pointwise or node.operator.name in _VIEWS
            found = 0.0 if pointwise else 2.0 * _number(node.operator.macs(node), self._sizes)
            if found and node.output.rank:
                found *= max(1.0, _NARROWEST / max(1, _number(node.output.shape[-1], self._sizes)))
            self._products[node] = found
        return found

    def _read(self, node: Node) -> Iterator[tuple[str, Value]]:
        """What a kernel reads, "streamed" or "gathered", and what it computes on the way, by the operator: each with the value."""
        pending = [(value, False) for value in node.inputs if value is not None]
        seen: set[tuple[Value, bool]] = set()
        while pending:
            value, looked = pending.pop()
            if (value, looked) in seen:
                continue
            seen.add((value, looked))
            source = value.producer
            if source is None or self.is_kernel(source) or not value.dtype.is_floating_point:
                if not looked:  # rows of it that are looked up are counted by the lookup
                    yield "streamed", value
                continue
            inputs = [operand for operand in source.inputs if operand is not None]
            if source.operator.name == "embedding":
                yield "gathered", value
                table, index = inputs
                pending += [(index, False), (table, True)]
                continue
            if source.operator.name not in _VIEWS:
                yield source.operator.name, value
            pending += [(operand, looked) for operand in inputs]

    def _bytes(self, value: Value) -> float:
        return self._elements(value) * value.dtype.itemsize

    def _elements(self, value: Value) -> float:
        return float(math.prod(_number(size, self._sizes) for size in value.shape))


def _number(size: Dim, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    missing = [name for name in symbols_of(size) if name not in sizes]
    return evaluate_size(substitute(size, dict.fromkeys(missing, 1)) if missing else size, sizes)
