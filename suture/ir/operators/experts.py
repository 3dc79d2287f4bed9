"""Operators of experts by random partition: a random order of positions, and a linear map whose weight is another for every share of that order.

In training the first positions of the order have the first expert, as many the second, and so on: all experts have as many, drawn uniformly (Huang
et al., "Experts Weights Averaging", arXiv 2308.06093). In evaluation nothing is drawn: the weight is the mean of the experts' weights, which is what
the layer will be when they are averaged for good. So what is evaluated during training is the model that training will yield.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Instance, instantiate, parse_signature
from suture.ir.operator import Call, FunctionClass, declare
from suture.ir.sizes import product
from suture.ir.types import DTYPE_NAMES


def _random_order(x: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    positions = x.shape[:-1]
    if not training:
        return torch.zeros(positions, dtype=torch.int64, device=x.device)
    return torch.randperm(positions.numel(), device=x.device).reshape(positions)


def _int64(call: Call) -> torch.dtype:
    return torch.int64


declare(
    "random_order", "x[*b, d] -> p[*b]", _random_order, dtype=_int64, training=True,
    doc="The place of each position in a random order of all, in training; 0 in evaluation.",
)  # fmt: skip


def _expert_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
    *,
    transposed: bool = False,
    training: bool = False,
) -> torch.Tensor:
    """Rows are brought into the order and cut into as many equal parts as there are experts, the last filled up with zeros."""
    assert order is not None
    rows = x.reshape(-1, x.shape[-1])
    count, experts = rows.shape[0], weight.shape[0]
    size = -(-count // experts)
    place = order.reshape(-1) if training else torch.arange(count, device=x.device)
    taken = rows.index_select(0, torch.argsort(place, stable=True))
    parts = F.pad(taken, (0, 0, 0, experts * size - count)).reshape(experts, size, rows.shape[1])
    maps = weight if training else weight.mean(0, keepdim=True).expand_as(weight)
    results = torch.matmul(parts, maps if transposed else maps.transpose(1, 2))
    if bias is not None:
        results = results + (bias if training else bias.mean(0, keepdim=True)).unsqueeze(1)
    return results.reshape(experts * size, results.shape[2]).index_select(0, place).reshape(*x.shape[:-1], -1)


def _expert_instance(call: Call) -> Instance:
    weight = "w[e, i, o]" if call.attributes["transposed"] else "w[e, o, i]"
    notation = parse_signature(f"x[*b, i], {weight}, c[e, o]?, p[*b] -> y[*b, o] (w at p) (c at p)")
    shapes = [None if type_ is None else type_.shape for type_ in call.types]
    return instantiate(notation, shapes, where=call.where)


def _expert_dtype(call: Call) -> torch.dtype:
    dtype = call.type(0).dtype
    for type_ in call.types[1:3]:
        if type_ is not None and type_.dtype != dtype:
            raise SutureError(
                Code.DTYPE, f"operands of {DTYPE_NAMES[dtype]} and {DTYPE_NAMES[type_.dtype]}", where=call.where,
                remedy="cast one of them",
            )  # fmt: skip
    return dtype


declare(
    "expert_linear", "x[*b, i], w[e, o, i], c[e, o]?, p[*b] -> y[*b, o] (w at p) (c at p)", _expert_linear, attributes={"transposed": False},
    function=FunctionClass.LINEAR, build=_expert_instance, dtype=_expert_dtype, training=True,
    cost=lambda instance: product([instance.size(term) for term in instance.outputs[0]]) * instance.sizes["i"],
    doc="x w^T + c with the weight of each position's expert in training, by its place in p; with the mean of all weights in evaluation.",
)  # fmt: skip
