"""Recurrent layers: one ONNX node per layer, both directions in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.graph import Parameter, Value

if TYPE_CHECKING:
    import onnx_ir

# Where each of ONNX's gates stands among torch's: torch stacks i f g o and r z n, ONNX i o f c and z r h.
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


@rule(*_GATES)
def _recurrent(at: Lowering) -> tuple[onnx_ir.Value, ...]:
    name, layers, biased, first = at.node.operator.name, at.integer("layers"), at.flag("biased"), at.flag("batch_first")
    directions = 2 if at.flag("bidirectional") else 1
    states = 2 if name == "lstm" else 1
    hidden = at.type(1).shape[-1]
    if not isinstance(hidden, int):
        at.fail(f"a state of {hidden}", "a fixed size would be right")
    stream = at.transpose(at.x(0), [1, 0, 2]) if first else at.x(0)
    kinds = 4 if biased else 2
    finals: list[list[onnx_ir.Value]] = [[] for _ in range(states)]
    for layer in range(layers):
        start = 1 + states + layer * directions * kinds
        weights = [[at.value(start + d * kinds + k) for d in range(directions)] for k in range(kinds)]
        w, r = (_stacked(at, weights[k]) for k in (0, 1))
        bias = _bias(at, weights[2], weights[3]) if biased else None
        initial = [_initial(at, 1 + s, layer, layers, directions) for s in range(states)]
        results = at.ops(
            _OPERATORS[name], 1 + states, stream, w, r, bias, None, *initial,
            hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward", **_options(name, directions),
        )  # fmt: skip
        for s in range(states):
            finals[s].append(results[1 + s])
        last = layer == layers - 1
        stream = _merge(at, results[0], directions, swap=first and last)
    return stream, *(at.concat(parts, 0) for parts in finals)


def _options(name: str, directions: int) -> dict[str, object]:
    match name:
        case "gru":
            return {"linear_before_reset": 1}
        case "rnn_relu":
            return {"activations": ["Relu"] * directions}
    return {}


def _merge(at: Lowering, y: onnx_ir.Value, directions: int, *, swap: bool) -> onnx_ir.Value:
    """[time, direction, batch, hidden] to [time, batch, direction * hidden], or batch first."""
    if directions == 1:
        y = at.squeeze(y, 1)
        return at.transpose(y, [1, 0, 2]) if swap else y
    ordered = at.transpose(y, [2, 0, 1, 3] if swap else [0, 2, 1, 3])
    return at.op("Reshape", ordered, at.ints(0, 0, -1))


def _initial(at: Lowering, index: int, layer: int, layers: int, directions: int) -> onnx_ir.Value | None:
    """The layer's part of an initial state; None where it is zero, which is what ONNX takes it for."""
    value = at.value(index)
    producer = value.producer
    if producer is not None and producer.operator.name == "full" and producer.attributes["value"] == 0:
        return None
    if isinstance(value, Parameter) and not bool(value.data.any()):
        return None
    if layers == 1:
        return at.x(index)
    return at.slice(at.x(index), 0, layer * directions, (layer + 1) * directions)


def _reorder(weight: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    parts = weight.detach().chunk(len(order))
    return torch.cat([parts[k] for k in order])


def _parameters(values: Sequence[Value]) -> list[Parameter] | None:
    found = [value for value in values if isinstance(value, Parameter)]
    return found if len(found) == len(values) else None


def _stacked(at: Lowering, weights: Sequence[Value]) -> onnx_ir.Value:
    """[direction, gates * hidden, ...] in ONNX's order of gates."""
    order = _GATES[at.node.operator.name]
    parameters = _parameters(weights)
    if parameters is None:
        return at.concat([at.unsqueeze(_reordered(at, value), 0) for value in weights], 0)
    tensors = [parameter.data for parameter in parameters]
    shape = (len(tensors), *tensors[0].shape)
    return at.weight(
        f"{parameters[0].name}.stacked",
        shape,
        lambda: torch.stack([_reorder(tensor, order) for tensor in tensors]),
        parameters,
    )


def _bias(at: Lowering, inner: Sequence[Value], outer: Sequence[Value]) -> onnx_ir.Value:
    """[direction, 2 * gates * hidden]: the input's bias, then the state's."""
    order = _GATES[at.node.operator.name]
    parameters = _parameters([*inner, *outer])
    if parameters is None:
        pairs = [at.concat([_reordered(at, a), _reordered(at, b)], 0) for a, b in zip(inner, outer, strict=True)]
        return at.concat([at.unsqueeze(pair, 0) for pair in pairs], 0)
    tensors = [parameter.data for parameter in parameters]
    half = len(inner)

    def make() -> torch.Tensor:
        return torch.stack(
            [torch.cat([_reorder(tensors[d], order), _reorder(tensors[half + d], order)]) for d in range(half)]
        )

    return at.weight(f"{parameters[0].name}.stacked", (half, 2 * tensors[0].shape[0]), make, parameters)


def _reordered(at: Lowering, value: Value) -> onnx_ir.Value:
    """The gates of a weight that the graph computes."""
    order, x = _GATES[at.node.operator.name], at.emitter.read(value)
    if len(order) == 1:
        return x
    size = value.shape[0]
    if not isinstance(size, int):
        at.fail(f"a weight of {size} rows", "a fixed size would be right")
    parts = at.ops("Split", len(order), x, at.ints(*[size // len(order)] * len(order)), axis=0)
    return at.concat([parts[k] for k in order], 0)
