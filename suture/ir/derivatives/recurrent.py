"""Recurrent layers written out, step by step: what goes back through time goes back through the steps (Werbos 1990)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.rule import Site

State = tuple[Formula, ...]
"""The state of a cell, [batch, hidden] each; the first is what the layer gives out."""

_Cell = Callable[[Formula, State, Formula, "Formula | None"], State]


def _gates(x: Formula, count: int) -> tuple[Formula, ...]:
    batch, width = x.shape[0], x.shape[1] // count
    return x.writer.write("split", x, shapes=[[batch, width]] * count, dim=1)


def _lstm(x: Formula, state: State, weight: Formula, bias: Formula | None) -> State:
    """Hochreiter and Schmidhuber 1997, with a forget gate."""
    i, f, g, o = _gates(x + state[0].op("linear", weight, bias), 4)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Formula, state: State, weight: Formula, bias: Formula | None) -> State:
    """Cho et al. 2014, with the reset gate behind the product, as cuDNN has it."""
    (h,) = state
    from_r, from_z, from_n = _gates(x, 3)
    to_r, to_z, to_n = _gates(h.op("linear", weight, bias), 3)
    z = (from_z + to_z).sigmoid()
    n = (from_n + (from_r + to_r).sigmoid() * to_n).tanh()
    return (n + z * (h - n),)


def _plain(activation: str) -> _Cell:
    def cell(x: Formula, state: State, weight: Formula, bias: Formula | None) -> State:
        return ((x + state[0].op("linear", weight, bias)).op(activation),)

    return cell


LAYERS: dict[str, _Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _plain("tanh"), "rnn_relu": _plain("relu")}
"""Recurrent operator -> its cell: the input's gates, the state, and the state's weight and bias give the next state."""


def unrolled(at: Site, *, training: bool) -> Sequence[Formula]:
    """The results of a recurrent layer in elementary nodes.

    :raises SutureError: GRADIENT, where the number of steps is symbolic
    """
    cell, states = LAYERS[at.node.operator.name], 2 if at.node.operator.name == "lstm" else 1
    x = at.operand(0)
    x = x.permute([1, 0, 2]) if at["batch_first"] else x
    steps = x.shape[0]
    if not isinstance(steps, int):
        raise at.refuse(f"it takes {steps} steps", "specialise the graph to one number of steps")
    weights = iter(range(1 + states, len(at.node.inputs)))
    last: list[list[Formula]] = [[] for _ in range(states)]
    for layer in range(at["layers"]):
        directions: list[Formula] = []
        for backward in range(2 if at["bidirectional"] else 1):
            taken = [at.operand(next(weights)) for _ in range(4 if at["biased"] else 2)]
            state = tuple(at.operand(1 + k).op("select", dim=0, index=len(last[0])) for k in range(states))
            y, state = _run(cell, x, state, taken, reverse=bool(backward), steps=steps)
            directions.append(y)
            for k in range(states):
                last[k].append(state[k])
        x = directions[0].op("concat", directions[1], dim=2) if len(directions) > 1 else directions[0]
        if training and at["dropout"] and layer + 1 < at["layers"]:
            x = x * x.writer.full(1.0, x.value.type).op("dropout", p=at["dropout"])
    return [x.permute([1, 0, 2]) if at["batch_first"] else x, *(_stacked(each) for each in last)]


def _run(
    cell: _Cell, x: Formula, state: State, weights: Sequence[Formula], *, reverse: bool, steps: int
) -> tuple[Formula, State]:
    """One direction of one layer: the products of all inputs at once, then step by step."""
    of_x, of_h, *biases = weights
    gates = x.op("linear", of_x, biases[0] if biases else None)
    given: dict[int, Formula] = {}
    for step in reversed(range(steps)) if reverse else range(steps):
        state = cell(gates.op("select", dim=0, index=step), state, of_h, biases[1] if biases else None)
        given[step] = state[0]
    return _stacked([given[step] for step in range(steps)]), state


def _stacked(parts: Sequence[Formula]) -> Formula:
    first, *rest = [part.reshape([1, *part.shape]) for part in parts]
    return first.op("concat", *rest, dim=0) if rest else first
