"""A graph of message passing as `suture.compile` returns it: a function of tensors, edges among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from suture.backends.compiled_cuda import current_place
from suture.backends.compiled_inputs import in_order
from suture.backends.compiled_operator import no_gradient
from suture.drivers.relational.incidence import find_incidence
from suture.drivers.relational.program import RelationalProgram
from suture.drivers.relational.variants import Target
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

_RELATIONAL = frozenset({"typed_linear", "typed_outer", "segment_max", "segment_softmax", "unique_rows"})


def is_relational(graph: Graph) -> bool:
    """Whether a graph passes messages: products by type, or sums, maxima and softmaxes over equal indices that it is given."""
    return any(
        node.operator.name in _RELATIONAL
        or (node.operator.name == "segment_sum" and node.inputs[1] in graph.inputs and node.inputs[1].rank == 1)
        for node in graph.nodes
    )


class CompiledRelationalGraph:
    """A compiled function of tensors, edges among them. What follows from the edges alone is computed at the first call with them, and kept.

    :param graph: what it computes
    :param target: `cpp`: this machine's processor; `cuda`: torch's current GPU, to which the parameters are moved
    :param train: whether gradients flow through it, to inputs and to `parameters()`; without, the parameters are those of now
    """

    def __init__(self, graph: Graph, *, target: Target = "cpp", train: bool = False) -> None:
        moving = [name for name, each in graph.parameters.items() if each.dtype.is_floating_point]
        self.graph, self.train = graph, train
        self.program = RelationalProgram(graph, target=target, parameters=moving)
        self._names = tuple(value.name for value in graph.inputs)
        self._indices = tuple((k, self._names[k]) for k in self.program.indices)
        place = current_place() if target == "cuda" else torch.device("cpu")
        self._parameters = {name: self._leaf(name, place) for name in self.program.parameters}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it.

        :param inputs: the graph's inputs, in order or by name
        :returns: the graph's output, or a tuple of them
        :raises SutureError: INPUT, if the inputs do not fit, or an index lies outside of what it looks up; DEVICE, if one is elsewhere; GRADIENT, if
            one requires a gradient, gradients are being recorded, and it was not compiled to train
        """
        given = in_order(self._names, inputs, named)
        if len(given) != len(self._names) or any(not isinstance(each, torch.Tensor) for each in given):
            raise SutureError(
                Code.INPUT, f"{len(given)} inputs for a graph of {len(self._names)}", where=self.graph.name,
                remedy=f"it takes the tensors {', '.join(self._names)}",
            )  # fmt: skip
        recording = torch.is_grad_enabled()
        if recording and not self.train and any(each.requires_grad for each in given):
            raise no_gradient(self.graph.name)
        incidence = find_incidence({name: given[k] for k, name in self._indices})
        results = self.program.run(incidence, [*given, *self._parameters.values()], gradients=recording and self.train)
        return results[0] if len(results) == 1 else tuple(results)

    def parameters(self) -> Iterator[torch.Tensor]:
        """The trained parameters, for an optimiser. They share memory with the graph's, where those are on the device that it runs on."""
        return (each for each in self._parameters.values() if each.requires_grad)

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trained parameters with their names."""
        return ((name, each) for name, each in self._parameters.items() if each.requires_grad)

    def _leaf(self, name: str, place: torch.device) -> torch.Tensor:
        """The tensor that calls are given for a parameter."""
        parameter = self.graph.parameters[name]
        data = parameter.data
        if not self.train or not parameter.requires_grad:
            return data.detach().to(place)
        if isinstance(data, torch.nn.Parameter) and data.requires_grad and data.device == place:
            return data
        return torch.nn.Parameter(data.detach().to(place))
