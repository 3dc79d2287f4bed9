"""The inspector of a build: a list of steps that sort edges, find pairs and cut tiles, in a file of its own beside the network.

out/net_edges.h      the interface: create, inputs, destroy
out/net_edges.cpp    the steps, and what carries them out
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, symbol, symbols_of

_STEPS = {
    "sort_order": "SORT",
    "inverse_order": "INVERSE",
    "run_pointers": "RUNS",
    "unique_rows": "UNIQUE",
    "tile_runs": "TILES",
    "embedding": "LOOKUP",
}


class EdgeTables:
    """The tables of an inspector.

    :param inspector: integer operators on indices; its results are the last inputs of the network
    :param symbols: the network's sizes, by their places
    :param inputs: how many inputs the network has
    :raises SutureError: KERNEL, for an operator or a size that there is no step for
    """

    def __init__(self, inspector: Graph, symbols: Mapping[str, int], inputs: int) -> None:
        self.inspector = inspector
        self.symbols = symbols
        self.first = inputs - len(inspector.outputs)
        self.indices = [value for value in inspector.inputs if value.rank == 1]
        for value in (*self.indices, *inspector.outputs):
            if value.dtype != torch.int64:
                raise self._refused(f"{value} is {value.dtype}", "indices of 64 bits would be right")
        self.arrays: dict[Value, int] = {value: k for k, value in enumerate(self.indices)}
        self.steps = [self._step(node) for node in inspector.nodes]
        self.measured = self._measured()

    def words(self) -> dict[str, str]:
        """What the templates ask for."""
        given = dict.fromkeys(
            name for value in self.inspector.inputs for dim in value.shape for name in symbols_of(dim)
        )
        return {
            "FIRST": str(self.first),
            "INDEX_LINES": "\n".join(
                f"     {k}: {value.name}[{value.shape[0]}]" for k, value in enumerate(self.indices)
            ),
            "INDEX_COUNT": str(len(self.indices)),
            "INDEX_NAMES": ", ".join(f'"{value.name}"' for value in self.indices),
            "INDEX_LENGTHS": ", ".join(self._length(value.shape[0]) for value in self.indices),
            "RESULT_COUNT": str(len(self.inspector.outputs)),
            "RESULTS": ", ".join(str(self.arrays[value]) for value in self.inspector.outputs),
            "ARRAY_COUNT": str(len(self.arrays)),
            "STEP_COUNT": str(len(self.steps)),
            "STEPS": ", ".join(self.steps),
            "MEASURED_COUNT": str(len(self.measured)),
            "MEASURED": ", ".join(f"{{{size}, {array}}}" for size, array in self.measured.items()) or "{0, 0}",
            "READ_SIZES": "".join(f" {name}" for name in given if name in self.symbols) or " none",
            "WRITTEN_SIZES": "".join(f" {name}" for name, k in self.symbols.items() if k in self.measured) or " none",
        }

    def _step(self, node: Node) -> str:
        name = node.operator.name
        operands = [self.arrays[value] for value in node.inputs if value in self.arrays]
        if name not in _STEPS or len(operands) != len([value for value in node.inputs if value is not None]):
            raise self._refused(
                f"{node.where()} is no step of sorting edges", "give the edges, for sources that are for them alone"
            )
        for value in node.outputs:
            self.arrays[value] = len(self.arrays)
        left, right = operands[0], operands[1] if len(operands) > 1 else -1
        made, second = self.arrays[node.outputs[0]], self.arrays[node.outputs[-1]]
        rows = node.attributes.get("rows")
        count = f"{{-1, {rows}}}" if rows is not None else "{-1, 0}"
        if name == "run_pointers":
            count = self._length(node.output.shape[0])
        return f"{{{_STEPS[name]}, {left}, {right}, {made}, {second}, {count}}}"

    def _length(self, dim: Dim) -> str:
        """A length as one of the network's sizes and a number."""
        if isinstance(dim, int):
            return f"{{-1, {dim}}}"
        (name, *more) = symbols_of(dim)
        added = dim - symbol(name)
        if more or not isinstance(added, int) or name not in self.symbols:
            raise self._refused(
                f"the length {dim} is not one of the network's sizes",
                "give the edges, for sources that are for them alone",
            )
        return f"{{{self.symbols[name]}, {added}}}"

    def _measured(self) -> dict[int, int]:
        """The places of the sizes that edges decide, and an array of each length."""
        found: dict[int, int] = {}
        for node in self.inspector.nodes:
            for value in node.outputs if node.operator.measures else ():
                name = str(value.shape[0])
                if name in self.symbols and name not in self.inspector.symbols():
                    found[self.symbols[name]] = self.arrays[value]
        return found

    def _refused(self, what: str, remedy: str) -> SutureError:
        return SutureError(Code.KERNEL, what, where=self.inspector.name, remedy=remedy)
