"""A layer that runs a compiled program in place of its own forward: still an instance of its class, with its parameters, hooks and state dict.

The instance is given a subclass made for its class. Whatever the program does not cover (an option, a kind of input, a hook inside of message
passing) runs the layer's own forward, and a warning says once what it was.
"""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn

from suture.drivers.accelerating.program import Program, Weights
from suture.drivers.accelerating.running import Choices, Compiled
from suture.drivers.accelerating.structures import TensorCache
from suture.frontends.messages.graph import MessageGraph

_STATE = "_suture_programs"


class Uncovered(Exception):
    """What a program does not cover; the layer's own forward runs instead.

    :param reason: what it is, as a clause; empty, where the layer itself refuses it and shall say so
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Unaccelerated(UserWarning):
    """A layer runs its own forward."""


class Family(Protocol):
    """The layers of one kind."""

    LIBRARY: str
    """The library that has the classes."""

    NAMES: tuple[str, ...]
    """Their names."""

    @staticmethod
    def refuse(layer: Any) -> str:
        """Why a layer's options are not covered; empty, if they are."""

    @staticmethod
    def forward(layer: Any, programs: Programs, *args: Any, **kwargs: Any) -> Any:
        """What the layer's forward returns.

        :raises Uncovered: if the layer's own forward must say it
        """


class Programs:
    """A layer's compiled programs: one for each form in which it is called.

    A copy of a layer compiles its own.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self._compiled: dict[Hashable, Compiled] = {}
        self._said: set[str] = set()
        self.settled: TensorCache[Any] = TensorCache()
        """What a layer found out about the index tensors that it was called with."""
        self.ready = False
        """Whether the layer's parameters are known to be there: those of a lazy layer are not, before its first call."""

    def run(
        self,
        form: Hashable,
        build: Callable[[Weights], Program],
        weights: Weights,
        graph: MessageGraph,
        *tensors: torch.Tensor,
    ) -> Any:
        """Run the program of a form; it is compiled when it is first asked for.

        :param build: the program over the weights
        :param weights: the layer's weights of now, to which gradients flow
        """
        present = {name: each for name, each in weights.items() if each is not None}
        key = (form, *((name, each.shape, each.dtype, each.device) for name, each in present.items()))
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = Compiled(build(weights), self.choices)
        return compiled(graph, tensors, present)

    def say(self, layer: nn.Module, reason: str) -> None:
        """Warn that a layer runs its own forward; not, where there is no reason to name."""
        if reason:
            self.warn(f"{type(layer).__name__} runs its own forward: {reason}")

    def warn(self, text: str) -> None:
        """Warn, once."""
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, Unaccelerated, stacklevel=5)

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        return Programs(self.choices)

    def __reduce__(self) -> tuple[Any, ...]:
        return Programs, (self.choices,)


def swap(layer: nn.Module, family: type[Family], choices: Choices) -> None:
    """Make a layer run compiled programs."""
    object.__setattr__(layer, "__class__", swapped_class(type(layer), family))
    layer.__dict__[_STATE] = Programs(choices)


def restore(layer: nn.Module) -> None:
    """Give a layer its own forward back."""
    if is_swapped(layer):
        object.__setattr__(layer, "__class__", type(layer).__mro__[1])
        del layer.__dict__[_STATE]


def is_swapped(layer: nn.Module) -> bool:
    """Whether a layer runs compiled programs."""
    return _STATE in layer.__dict__


def is_kind(layer: nn.Module, name: str) -> bool:
    """Whether a layer is of the class of a name, swapped or not."""
    return type(layer).__name__ == name


def swapped_class(base: type[nn.Module], family: type[Family]) -> type[nn.Module]:
    """The subclass of a layer's class that runs compiled programs. It is called like its base: it prints, and is found, under that name."""
    bare: Any = base
    made: type[nn.Module] = _swapped(bare, family)
    return made


@cache
def _swapped(base: Any, family: Any) -> Any:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        programs: Programs = self.__dict__[_STATE]
        reason = _outside(self, programs, args)
        if reason is None:
            try:
                return family.forward(self, programs, *args, **kwargs)
            except Uncovered as uncovered:
                reason = uncovered.reason
        programs.say(self, reason)
        return base.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != _STATE}
        return _revive, (base, family, self.__dict__[_STATE].choices), state

    forward.__doc__ = base.forward.__doc__
    body = {"forward": forward, "__reduce_ex__": reduce, "__doc__": base.__doc__, "__module__": base.__module__}
    return type(base.__name__, (base,), body)


def _revive(base: type[nn.Module], family: type[Family], choices: Choices) -> nn.Module:
    """An instance without its attributes, for copying and unpickling."""
    made: nn.Module = copyreg.__newobj__(swapped_class(base, family))  # type: ignore[attr-defined]
    made.__dict__[_STATE] = Programs(choices)
    return made


_HOOKS = (
    "_propagate_forward_pre_hooks", "_propagate_forward_hooks", "_message_forward_pre_hooks", "_message_forward_hooks",
    "_aggregate_forward_pre_hooks", "_aggregate_forward_hooks", "_message_and_aggregate_forward_pre_hooks",
    "_message_and_aggregate_forward_hooks", "_edge_update_forward_pre_hooks", "_edge_update_forward_hooks",
)  # fmt: skip


def _outside(layer: Any, programs: Programs, args: tuple[Any, ...]) -> str | None:
    """Why no program may run at all now; None, if it may, and empty, where that is usual and nobody need be told."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return ""
    if not programs.ready:
        if any(isinstance(each, nn.UninitializedParameter) for each in layer.parameters()):
            return ""
        programs.ready = True
    attributes = layer.__dict__
    if any(attributes.get(name) for name in _HOOKS):
        return "it has hooks inside of message passing"
    if attributes.get("_explain"):
        return "it explains its messages"
    if attributes.get("_decomposed_layers", 1) != 1:
        return "decomposed_layers is set"
    device = next((each.device for each in args if isinstance(each, torch.Tensor)), torch.device("cpu"))
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    return None
