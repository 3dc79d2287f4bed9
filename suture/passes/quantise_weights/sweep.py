"""Running a graph on calibration data with all batches side by side, node by node: what is measured at a node may change what comes after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.semantics import bind_symbols, run_node
from suture.passes.stitch.calibration import batches


class Sweep:
    """One pass over a graph. A parameter that is assigned, or an operand that is replaced, before its node is reached counts from then on.

    Memory holds what later nodes read, for all batches.
    """

    def __init__(self, graph: Graph, data: Mapping[str, torch.Tensor]) -> None:
        """:raises SutureError: CALIBRATION, if there are no data; INPUT, if they do not fit the graph"""
        self.graph = graph
        self._feeds = [list(batch) for batch in batches(graph, data)]
        self._symbols = [bind_symbols(graph, batch) for batch in self._feeds]
        self._held: dict[Value, list[torch.Tensor]] = {
            value: [batch[k] for batch in self._feeds] for k, value in enumerate(graph.inputs)
        }
        self._position: dict[Node, int] = {node: k for k, node in enumerate(graph.nodes)}
        self._order = graph.nodes
        self._next = 0

    def run_to(self, node: Node | None) -> None:
        """Run every node in front of `node`; all, if it is None.

        :raises SutureError: CALIBRATION, if a node cannot run on the data
        """
        stop = len(self._order) if node is None else self._position[node]
        for k in range(self._next, stop):
            self._run(self._order[k], k)
        self._next = max(self._next, stop)

    def tensors(self, value: Value) -> list[torch.Tensor]:
        """A value on each batch: one that a node yet to run reads, or a parameter."""
        if value in self._held:
            return self._held[value]
        data = self.graph.parameters[value.name].data
        return [data] * len(self._feeds)

    def _run(self, node: Node, place: int) -> None:
        operands = [None if value is None else self.tensors(value) for value in node.inputs]
        made: list[tuple[torch.Tensor, ...]] = []
        try:
            with torch.no_grad():
                for k, symbols in enumerate(self._symbols):
                    made.append(run_node(node, [None if each is None else each[k] for each in operands], symbols))
        except (IndexError, RuntimeError) as error:  # a token beyond the vocabulary, say
            raise SutureError(
                Code.CALIBRATION, f"the data do not run: {str(error).splitlines()[0]}", where=node.where(),
                remedy="give inputs that the model takes",
            ) from None  # fmt: skip
        for index, value in enumerate(node.outputs):
            self._held[value] = [results[index] for results in made]
        for seen in (*node.inputs, *node.outputs):
            if seen is not None and seen.producer is not None and self._is_done(seen, place):
                self._held.pop(seen, None)

    def _is_done(self, value: Value, place: int) -> bool:
        return all(self._position[user] <= place for user, _ in value.uses)


def whole(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the batches hold, flat, in float64."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()


__all__ = ["Sweep", "whole"]
