"""What a layer makes of an operand that is the same everywhere but along one axis: the bias that a shift of its input amounts to."""

from __future__ import annotations

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, size_of
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.semantics import run_node
from suture.passes.exactness import BIAS
from suture.passes.linear_maps import fixed_size
from suture.passes.symmetry.parameters import beside, like, set_operand


def laid_out(axis: Axis, atom: Atom, numbers: torch.Tensor) -> torch.Tensor:
    """Numbers along an atom, repeated along a whole dimension: zero where a part of it does not hold the atom."""
    match axis:
        case Atom():
            return numbers if axis is atom else numbers.new_ones(fixed_size(axis.size))
        case Times(factors):
            found = numbers.new_ones(1)
            for factor in factors:
                found = (found[:, None] * laid_out(factor, atom, numbers)[None, :]).reshape(-1)
            return found
        case Chain(parts):
            held = [_holds(part, atom) for part in parts]
            return torch.cat([
                laid_out(part, atom, numbers) if holds else numbers.new_zeros(fixed_size(size_of(part)))
                for part, holds in zip(parts, held, strict=True)
            ])  # fmt: skip


def _holds(axis: Axis, atom: Atom) -> bool:
    return axis is atom if isinstance(axis, Atom) else any(_holds(part, atom) for part in _inner(axis))


def _inner(axis: Times | Chain) -> tuple[Axis, ...]:
    return axis.factors if isinstance(axis, Times) else axis.parts


def refuse_shift(node: Node) -> str:
    """Why a layer cannot turn a shift of its input into a bias, if it cannot."""
    name = node.operator.name
    if name not in ("linear", "matmul", "addmm", "conv"):
        return f"the shift that {name} would make is not one number a channel"
    padding = node.attributes.get("padding", ())
    if any(pad != 0 for pad in (padding if isinstance(padding, tuple) else (padding,))):
        return "it pads with zeros that the shift would have to reach"
    return ""


def response(node: Node, operand: int, dim: int, numbers: torch.Tensor) -> torch.Tensor:
    """What a layer without its bias makes of an operand that holds `numbers` along one dimension, and is the same along the others."""
    value = node.inputs[operand]
    assert value is not None
    shape = [1] * value.rank
    if node.operator.name == "conv":
        weight, dilation = node.inputs[1], node.attributes["dilation"]
        assert weight is not None
        steps = dilation if isinstance(dilation, tuple) else (dilation,)
        for k, size in enumerate(weight.shape[2:]):
            step = steps[k if len(steps) > 1 else 0]
            assert isinstance(step, int)
            shape[2 + k] = (fixed_size(size) - 1) * step + 1
    shape[dim] = len(numbers)
    field = numbers.reshape([-1 if k == dim else 1 for k in range(value.rank)]).expand(shape)
    operands: list[torch.Tensor | None] = []
    bias = BIAS.get(node.operator.name)
    for k, each in enumerate(node.inputs):
        if k == bias:
            operands.append(torch.zeros((), dtype=torch.float64) if node.operator.name == "addmm" else None)
        else:
            operands.append(field if k == operand else None if each is None else constant(each))
    return run_node(node, operands, {})[0]


def constant(value: Value) -> torch.Tensor:
    """The numbers of a value that is computed from parameters alone, in float64."""
    if isinstance(value, Parameter):
        data = value.data.detach()
        return data.to(torch.float64) if data.is_floating_point() else data
    node = value.producer
    assert node is not None
    return run_node(node, [None if v is None else constant(v) for v in node.inputs], {})[value.index]


def change_bias(graph: Graph, node: Node, change: torch.Tensor) -> None:
    """Add numbers to what a layer computes: to its bias where it has one or may have one, else behind it."""
    slot = BIAS.get(node.operator.name)
    old = node.inputs[slot] if slot is not None and slot < len(node.inputs) else None
    if slot is None or (old is not None and not isinstance(old, Parameter)):
        _add_behind(graph, node, change)
        return
    if isinstance(old, Parameter):
        old.assign(like(old.data.detach().to(torch.float64) + change.reshape(old.data.shape), old))
        return
    weight = node.inputs[1]
    trains = not isinstance(weight, Parameter) or weight.requires_grad
    numbers = change.reshape(-1).to(node.output.dtype).contiguous()
    set_operand(node, slot, graph.add_parameter(beside(graph, weight, node, "bias"), numbers, requires_grad=trains))


def _add_behind(graph: Graph, node: Node, change: torch.Tensor) -> None:
    name = node.output.name
    graph.rename_result(node.output, f"{name}_without_bias")
    order = graph.nodes
    place = order.index(node) + 1
    parameter = graph.add_parameter(
        beside(graph, None, node, "bias"), change.to(node.output.dtype).contiguous(), requires_grad=True
    )
    added = graph.add(
        "add", [node.output, parameter], path=node.path, name=name, before=order[place] if place < len(order) else None
    )
    graph.replace_uses(node.output, added.output, keep=[added])
