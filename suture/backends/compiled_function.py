"""A compiled graph as a function of tensors, wherever it runs: what is the same for every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from suture.backends.compiled_inputs import check_call, in_order
from suture.backends.compiled_operator import Operator, is_traced
from suture.backends.compiled_pointers import check_orders, check_pointers, order_inputs, pointer_inputs
from suture.codegen.lookups import Lookup
from suture.codegen.program import Program
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Value

_KINDS = 64  # kinds of inputs that are remembered


def _kind(inputs: Sequence[Any]) -> tuple[Any, ...] | None:
    """All that decides whether tensors fit, but for what is in them; None for anything else, and where gradients are wanted."""
    try:
        if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
            return None
        return tuple([(type(each), each.shape, each.dtype, each.device, each.layout) for each in inputs])
    except AttributeError:
        return None


class CompiledFunction:
    """A function of tensors that computes what a graph does. It runs without gradients.

    :param program: the steps
    :param place: where it runs
    :param lookups: what the program's last outputs say of indices that data hold
    """

    def __init__(self, program: Program, place: torch.device, lookups: Sequence[Lookup] = ()) -> None:
        self.program = program
        self.graph = program.graph
        self.place = place
        self.operator: Operator | None = None  # what torch.compile and torch.export see, if it was registered
        self._names = tuple(value.name for value in program.graph.inputs)
        self._lookups = tuple(lookups)
        self._pointers = pointer_inputs(program.graph)
        self._orders = order_inputs(program.graph)
        self._fitting: set[tuple[Any, ...]] = set()  # kinds of inputs that were checked

    @property
    def results(self) -> tuple[Value, ...]:
        """The values that a call returns."""
        return tuple(self.graph.outputs[: len(self.graph.outputs) - len(self._lookups)])

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it.

        :param inputs: the graph's inputs, in order or by name
        :returns: the graph's output, or a tuple of them
        :raises SutureError: INPUT, if the inputs do not fit, or an index in them lies outside of what it looks up; DEVICE, if one is elsewhere, or
            the device refuses; GRADIENT, if one requires a gradient and gradients are being recorded
        """
        if self.operator is not None and is_traced((*inputs, *named.values())):
            results = self.operator(in_order(self._names, inputs, named))
        else:
            results = self._computed(self._checked_inputs(inputs, named))
        return results[0] if len(results) == 1 else tuple(results)

    def run_list(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of a list of inputs, which are checked as those of a call."""
        return self._computed(self._checked_inputs(inputs, {}))

    def run_trusted(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of a list of inputs that the caller knows to fit: nothing is checked but indices that nobody has vouched for."""
        return self._computed(inputs)

    def _checked_inputs(self, inputs: Sequence[Any], named: dict[str, Any]) -> list[torch.Tensor]:
        kind = None if named or self._pointers or self._orders else _kind(inputs)
        if kind in self._fitting:
            return list(inputs)
        given = check_call(self.graph, inputs, named, self.place)
        check_pointers(self.graph, self._pointers, given)
        check_orders(self.graph, self._orders, given)
        if kind is not None:
            if len(self._fitting) >= _KINDS:
                self._fitting.clear()
            self._fitting.add(kind)
        return given

    def _computed(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not torch.is_grad_enabled():
            return self._checked(self._run(inputs))
        with torch.no_grad():
            return self._checked(self._run(inputs))

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All outputs of the program's graph, of inputs that fit."""
        raise NotImplementedError

    def _checked(self, results: list[torch.Tensor]) -> list[torch.Tensor]:
        """The graph's own results, if no index was wrong. While a CUDA graph is recorded, nothing can be known: indices are moved inside."""
        if not self._lookups:
            return results
        count = len(results) - len(self._lookups)
        if self.place.type == "cuda" and self._lookups and torch.cuda.is_current_stream_capturing():
            return results[:count]
        for lookup, outside in zip(self._lookups, results[count:], strict=True):
            if outside.item():
                raise SutureError(
                    Code.INPUT, str(lookup), where=self.graph.name, remedy="an index must lie inside its dimension"
                )
        return results[:count]
