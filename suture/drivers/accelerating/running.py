"""Running a compiled program with a layer's weights of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from suture.drivers.accelerating.program import Program
from suture.frontends.messages.graph import MessageGraph

if TYPE_CHECKING:
    from suture.drivers.relational.function import RelationalFunction


@dataclass(frozen=True)
class Choices:
    """How programs are compiled, as `suture.accelerate` takes it."""

    compact: bool = True
    reorder: bool = True


class Compiled:
    """A program, compiled for the device that its weights and edges are on.

    :param program: the program, over tensors that stand for the layer's weights
    """

    def __init__(self, program: Program, choices: Choices) -> None:
        self._program = program
        self._choices = choices
        self._functions: dict[str, RelationalFunction] = {}
        self._standing = dict(program._parameters)
        self._lock = Lock()

    def __call__(
        self, graph: MessageGraph, tensors: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> Any:
        """What the program returns; gradients flow to tensors and weights.

        :param weights: the layer's weights by name, which may be results of other operators
        """
        function = self._function(graph.device.type)
        places: dict[str, Any] = self._program._parameters
        with self._lock:  # the function reads the weights off its module; they stand there for one call
            places.update(weights)
            try:
                return function(graph, *tensors)
            finally:
                places.update(self._standing)

    def _function(self, device: str) -> RelationalFunction:
        from suture.drivers.relational.function import RelationalFunction

        found = self._functions.get(device)
        if found is None:
            choices = self._choices
            found = self._functions[device] = RelationalFunction(
                self._program,
                compact=choices.compact,
                reorder=choices.reorder,
                target="cuda" if device == "cuda" else "cpp",
            )
        return found
