"""What a compiled graph is called with: checked before generated code, which believes everything, sees an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from suture.backends.compiled_operator import no_gradient
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import arrange_inputs


def in_order(names: Sequence[str], inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Inputs by position and by name in one list; `torch.compile` traces through this."""
    return [*inputs, *[named[name] for name in names[len(inputs) :] if name in named]] if named else list(inputs)


def check_call(
    graph: Graph, inputs: Sequence[Any], named: Mapping[str, Any], place: torch.device, *, differentiable: bool = False
) -> list[torch.Tensor]:
    """The inputs of a call in the graph's order.

    :param place: where the graph runs
    :param differentiable: whether gradients flow through it
    :raises SutureError: INPUT, if one is missing or of another type or shape; DEVICE, if one is elsewhere; GRADIENT, if one requires a gradient and
        gradients are being recorded
    """
    names = [value.name for value in graph.inputs]
    given: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] = inputs
    if named:
        twice = [name for name in names[: len(inputs)] if name in named]
        if twice or len(inputs) > len(names):
            what = f"{twice[0]} is given twice" if twice else f"{len(inputs)} inputs for a graph of {len(names)}"
            raise SutureError(Code.INPUT, what, where=graph.name, remedy=f"it takes {', '.join(names)}")
        given = {**dict(zip(names, inputs, strict=False)), **named}
    arranged = arrange_inputs(graph, given)
    for value, tensor in zip(graph.inputs, arranged, strict=True):
        check_tensor(value, tensor, place, graph.name)
        if tensor.requires_grad and torch.is_grad_enabled() and not differentiable:
            raise no_gradient(graph.name)
    return arranged


def check_tensor(value: Value, tensor: torch.Tensor, place: torch.device, where: str) -> None:
    """Refuse a tensor that generated code must not be given; its shape fits.

    :param value: what it is given for
    :param place: where the code runs
    :param where: whose value it is
    :raises SutureError: INPUT, if it is of another type or not dense; DEVICE, if it is elsewhere
    """
    if tensor.dtype != value.dtype:  # the evaluator computes in any float; generated code is for one
        raise SutureError(
            Code.INPUT, f"input {value.name} is {tensor.dtype}", where=where, remedy=f"{value.type} would be right"
        )
    if tensor.device != place:
        raise SutureError(
            Code.DEVICE, f"the input {value.name} is on {tensor.device}", where=where,
            remedy=f"it runs on {place}: move it there with .to('{place}')",
        )  # fmt: skip
    if tensor.layout != torch.strided:
        raise SutureError(
            Code.INPUT, f"input {value.name} is {tensor.layout}", where=where, remedy="a dense tensor would be right"
        )
