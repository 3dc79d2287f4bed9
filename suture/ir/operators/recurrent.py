"""Recurrent layers, each one operator: LSTM, GRU and the plain recurrence, stacked and bidirectional as torch has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, Join, Product, Role, Term
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare
from suture.ir.operators.layout import make_instance
from suture.ir.sizes import Dim, exact_quotient


def _instance(gates: int, states: int) -> Callable[[Call], Instance]:
    """Operands: input, the states (h, or h and c), then per layer and direction w_ih, w_hh[, b_ih, b_hh]. One letter `h` serves all layers,
    because torch keeps their states in one tensor; a bidirectional layer's result is `h|h`."""

    def build(call: Call) -> Instance:
        layers, both, biased = (
            call.ints("layers")[0],
            bool(call.attributes["bidirectional"]),
            bool(call.attributes["biased"]),
        )
        directions = 2 if both else 1
        expected = 1 + states + layers * directions * (4 if biased else 2)
        if len(call.types) != expected:
            raise SutureError(
                Code.SHAPE,
                f"{len(call.types)} operands for {layers} layers",
                where=call.where,
                remedy=f"{expected} would be right",
            )
        source, hidden = call.shape(0), call.shape(1)[-1]
        sizes: dict[str, Dim] = {
            "t": source[0],
            "b": source[1],
            "i": source[2],
            "h": hidden,
            "k": layers * directions,
            "q": gates,
        }
        if call.attributes["batch_first"]:
            sizes |= {"b": source[0], "t": source[1]}
        for k in range(1 + states, expected):
            if exact_quotient(call.shape(k)[0], hidden) != gates:
                raise SutureError(
                    Code.SHAPE,
                    f"weight {call.type(k)} with a state of {hidden}",
                    where=call.where,
                    remedy=f"its first size is {gates} times the state's",
                )
        time: list[Term] = ["b", "t"] if call.attributes["batch_first"] else ["t", "b"]
        stream: Term = Join(("h", "h")) if both else "h"
        state: list[Term] = ["k", "b", "h"]
        inputs: list[list[Term]] = [[*time, "i"], *([state] * states)]
        packed: Term = Product(("q", "h")) if gates > 1 else "h"
        for layer in range(layers):
            for _ in range(directions):
                inputs += [[packed, "i" if layer == 0 else stream], [packed, "h"]]
                inputs += [[packed], [packed]] if biased else []
        outputs: list[list[Term]] = [[*time, stream], *([state] * states)]
        # The gates stand at fixed places and the time steps follow each other.
        instance = make_instance(inputs, outputs, sizes, {"q": Role.ORDERED, "t": Role.ORDERED, "k": Role.ORDERED})
        for k, (type_, dims) in enumerate(zip(call.types, inputs, strict=True)):
            expected_shape = tuple(instance.size(term) for term in dims)
            if type_ is not None and type_.shape != expected_shape:
                raise SutureError(
                    Code.SHAPE,
                    f"operand {k} is {type_}",
                    where=call.where,
                    remedy=f"[{', '.join(map(str, expected_shape))}] would be right",
                )
        return instance

    return build


def _cost(instance: Instance) -> Dim:
    """Every weight matrix meets every time step of every sample."""
    steps = instance.sizes["t"] * instance.sizes["b"]
    total: Dim = 0
    for dims in instance.inputs[1:]:
        if dims is not None and len(dims) == 2:
            total = total + steps * instance.size(dims[0]) * instance.size(dims[1])
    return total


def _lstm(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *weights: torch.Tensor, layers: int, bidirectional: bool, biased: bool, batch_first: bool,
    dropout: float, training: bool = False,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    result: tuple[torch.Tensor, ...] = torch.lstm(
        x, (h, c), list(weights), biased, layers, dropout, training, bidirectional, batch_first
    )
    return result


def _single_state(function: Any) -> Any:
    def run(
        x: torch.Tensor, h: torch.Tensor, *weights: torch.Tensor, layers: int, bidirectional: bool, biased: bool, batch_first: bool, dropout: float,
        training: bool = False,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        result: tuple[torch.Tensor, ...] = function(
            x, h, list(weights), biased, layers, dropout, training, bidirectional, batch_first
        )
        return result

    return run


_ATTRIBUTES: dict[str, Any] = {
    "layers": REQUIRED,
    "bidirectional": False,
    "biased": True,
    "batch_first": False,
    "dropout": 0.0,
}

declare(
    "lstm", "x[!t, b, i], h0[k, b, h], c0[k, b, h], w_ih[q*h, i], w_hh[q*h, h], b_ih[q*h]?, b_hh[q*h]? -> y[!t, b, h], hn[k, b, h], cn[k, b, h]",
    _lstm, attributes=_ATTRIBUTES, function=FunctionClass.ZERO_PRESERVING, build=_instance(4, 2), training=True, cost=_cost,
    doc="Long short-term memory (Hochreiter and Schmidhuber 1997); gates i, f, g, o stacked as `q*h`.",
)  # fmt: skip
declare(
    "gru", "x[!t, b, i], h0[k, b, h], w_ih[q*h, i], w_hh[q*h, h], b_ih[q*h]?, b_hh[q*h]? -> y[!t, b, h], hn[k, b, h]",
    _single_state(torch.gru), attributes=_ATTRIBUTES, function=FunctionClass.ZERO_PRESERVING, build=_instance(3, 1), training=True, cost=_cost,
    doc="Gated recurrent unit (Cho et al. 2014); gates r, z, n stacked as `q*h`.",
)  # fmt: skip
for _name, _function in (("rnn_tanh", torch.rnn_tanh), ("rnn_relu", torch.rnn_relu)):
    declare(
        _name, "x[!t, b, i], h0[k, b, h], w_ih[h, i], w_hh[h, h], b_ih[h]?, b_hh[h]? -> y[!t, b, h], hn[k, b, h]",
        _single_state(_function), attributes=_ATTRIBUTES, function=FunctionClass.ZERO_PRESERVING, build=_instance(1, 1), training=True, cost=_cost,
        doc="The plain recurrence.",
    )  # fmt: skip
