"""Graphs of products by type over rows that come sorted, and data for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suture.ir.graph import Graph, Value
from suture.ir.operators.incidence import _tile_runs as tile_runs
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

NODES, ROWS, TILES = (symbol(name) for name in ("nodes", "rows", "tiles"))


@dataclass(frozen=True)
class Product:
    """A product by type.

    :param counts: the rows of each type
    :param gathered: whether rows are looked up in a table of nodes: those of x, and of the gradient
    :param turned: whether the matrices are transposed
    :param behind: pointwise operators behind it
    :param put: whether rows go where an order says
    """

    counts: tuple[int, ...]
    inner: int
    columns: int
    heads: tuple[int, ...] = ()
    gathered: tuple[bool, bool] = (True, False)
    turned: bool = False
    dtype: torch.dtype = torch.float32
    tile: int = 48
    behind: tuple[str, ...] = ()
    put: bool = False

    def linear(self) -> tuple[Graph, list[torch.Tensor]]:
        """`grouped_linear` and inputs."""
        graph, inputs = Graph("linear"), list[torch.Tensor]()
        rows = self._rows(graph, inputs, "x", self.inner, self.gathered[0])
        pointers = torch.tensor([0, *self.counts]).cumsum(0)
        for name, data, size in zip(
            ("tiles", "types"), tile_runs(pointers, rows=self.tile), (TILES + 1, TILES), strict=True
        ):
            graph.add_input(name, TensorType(torch.int64, (size,)))
            inputs.append(data)
        features = (self.columns, self.inner) if self.turned else (self.inner, self.columns)
        shape = (len(self.counts), *self.heads, *features)
        matrices: Value = graph.add_input("w", TensorType(self.dtype, shape))
        inputs.append(torch.randn(shape).to(self.dtype))
        if self.turned:
            last = len(shape) - 1
            matrices = graph.add("permute", [matrices], {"dims": (*range(last - 1), last, last - 1)}).output
        operands = [rows, matrices, graph.inputs[-3], graph.inputs[-2]]
        if self.put:
            operands.append(graph.add_input("order", TensorType(torch.int64, (ROWS,))))
            inputs.append(torch.randperm(sum(self.counts)))
        value = graph.add("grouped_linear", operands).output
        for each in self.behind:
            value = graph.add(each, [value]).output
        graph.set_outputs([value], ["y"])
        return graph, inputs

    def outer(self) -> tuple[Graph, list[torch.Tensor]]:
        """`grouped_outer` and inputs."""
        graph, inputs = Graph("outer"), list[torch.Tensor]()
        rows = self._rows(graph, inputs, "x", self.inner, self.gathered[0])
        slopes = self._rows(graph, inputs, "g", self.columns, self.gathered[1])
        pointers = graph.add_input("p", TensorType(torch.int64, (len(self.counts) + 1,)))
        inputs.append(torch.tensor([0, *self.counts]).cumsum(0))
        graph.set_outputs([graph.add("grouped_outer", [rows, slopes, pointers]).output], ["w"])
        return graph, inputs

    def _rows(self, graph: Graph, inputs: list[torch.Tensor], name: str, features: int, gathered: bool) -> Value:
        count, nodes = sum(self.counts), 7
        shape = (nodes if gathered else count, *self.heads, features)
        table = graph.add_input(name, TensorType(self.dtype, (NODES if gathered else ROWS, *shape[1:])))
        inputs.append(torch.randn(shape).to(self.dtype))
        if not gathered:
            return table
        index = graph.add_input(f"{name}_rows", TensorType(torch.int64, (ROWS,)))
        inputs.append(torch.randint(0, nodes, (count,)))
        return graph.add("embedding", [table, index]).output


def exact(graph: Graph, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the graph is in double precision, rounded once."""
    from suture.ir.semantics import evaluate

    return evaluate(graph, [each.double() if each.is_floating_point() else each for each in inputs])[0]
