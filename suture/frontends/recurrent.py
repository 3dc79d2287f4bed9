"""Recurrent layers while tracing.

`torch.export` specialises the number of time steps of `nn.LSTM` and its like, and takes them apart. While a module is traced, torch's functions for
them are therefore answered by one operator of our own, `suture::recurrent`, whose shape function leaves time symbolic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FUNCTIONS: dict[Any, str] = {
    torch.lstm: "lstm",
    torch.gru: "gru",
    torch.rnn_tanh: "rnn_tanh",
    torch.rnn_relu: "rnn_relu",
}


@functools.cache
def recurrent_operator() -> Callable[..., list[torch.Tensor]]:
    """Register the operator, once."""
    signature = (
        "(Tensor x, Tensor[] states, Tensor[] weights, str kind, bool biased, int layers, float dropout, bool bidirectional, bool batch_first)"
        " -> Tensor[]"
    )
    torch.library.define("suture::recurrent", signature)

    @torch.library.impl("suture::recurrent", "default")
    def run(
        x: torch.Tensor, states: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], kind: str, biased: bool, layers: int, dropout: float,
        bidirectional: bool, batch_first: bool,
    ) -> list[torch.Tensor]:  # fmt: skip
        function: Any = getattr(torch, kind)
        state = tuple(states) if kind == "lstm" else states[0]
        return list(function(x, state, list(weights), biased, layers, dropout, False, bidirectional, batch_first))

    def shapes(
        x: torch.Tensor, states: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], kind: str, biased: bool, layers: int, dropout: float,
        bidirectional: bool, batch_first: bool,
    ) -> list[torch.Tensor]:  # fmt: skip
        width = states[0].shape[-1] * (2 if bidirectional else 1)
        return [x.new_empty((*x.shape[:-1], width)), *(torch.empty_like(state) for state in states)]

    torch.library.register_fake("suture::recurrent", shapes)

    operator: Callable[..., list[torch.Tensor]] = torch.ops.suture.recurrent.default
    return operator


class RecurrentLayers(TorchFunctionMode):
    """Within this context, torch's recurrent functions are `suture::recurrent`. Packed sequences and projections stay torch's own."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kind = _FUNCTIONS.get(function)
        if kind is None or not _is_plain(args):
            return function(*args, **(kwargs or {}))
        x, state, weights, biased, layers, dropout, _, bidirectional, batch_first = args
        states = list(state) if kind == "lstm" else [state]
        return tuple(
            recurrent_operator()(
                x, states, list(weights), kind, biased, layers, float(dropout), bidirectional, batch_first
            )
        )


def _is_plain(args: Sequence[Any]) -> bool:
    if len(args) != 9 or not isinstance(args[0], torch.Tensor) or args[0].ndim != 3:
        return False
    per_layer = 4 if args[3] else 2
    weights, layers = len(args[2]), int(args[4])
    return weights == layers * (2 if args[7] else 1) * per_layer
