"""Weights that are integers: panels of integers, sums in floats, and the scale of each column on the sums.

`sum_k x[k] (q[k, j] - z[j]) s[j]` is `s[j] sum_k x[k] (q[k, j] - z[j])`: what memory holds stays small. Where scales change along the sum (blocks),
the panels are of the real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from suture.codegen.gemm.operands import make_panels
from suture.codegen.gemm.roles import Roles
from suture.codegen.step import Context
from suture.ir.graph import Node, Parameter, Value
from suture.ir.semantics import run_node


@dataclass(frozen=True)
class Quantised:
    """A right matrix of integers.

    :param panels: the integers less their zero points, or the real numbers
    :param scale: what each column's sum is multiplied by, or all are; None if the panels hold real numbers
    """

    panels: Value
    scale: Parameter | None


def pack_quantised(context: Context, roles: Roles, value: Value, width: int) -> Quantised | None:
    """A dequantised parameter in panels; None if the value is none."""
    node = value.producer
    if node is None or node.operator.name != "dequantise":
        return None
    operands = [each for each in node.inputs if each is not None]
    if not all(isinstance(each, Parameter) for each in operands):
        return None
    integers, scale = operands[0], operands[1]
    assert isinstance(integers, Parameter) and isinstance(scale, Parameter)
    zero = operands[2] if len(operands) > 2 else None
    assert zero is None or isinstance(zero, Parameter)
    if not _is_per_column(node, roles):
        return Quantised(
            make_panels(context, roles, integers, value.dtype, width, f"{node.output.name} as it is", _real(node)), None
        )
    shifted = _shifted(node, zero)
    least, most = torch.aminmax(shifted(integers.data.detach()))
    # 256 numbers less their zero point lie between -255 and 255, which bfloat16 holds exactly
    dtype = torch.int8 if least >= -128 and most <= 127 else torch.bfloat16
    if least < -255 or most > 255:
        return None

    def recipe(tensor: torch.Tensor) -> torch.Tensor:
        return shifted(tensor).to(dtype)

    return Quantised(
        make_panels(context, roles, integers, dtype, width, f"{node.output.name} less its zero", recipe), scale
    )


def _is_per_column(node: Node, roles: Roles) -> bool:
    """Whether one scale stands for all, or one for each column."""
    scale, integers = node.inputs[1], node.inputs[0]
    assert scale is not None and integers is not None
    if node.attributes["block"] is not None:
        return False
    if scale.rank == 0:
        return True
    axis = node.attributes["axis"]
    assert isinstance(axis, int)
    return (roles.terms(roles.right)[axis % integers.rank],) == roles.columns


def _shifted(node: Node, zero: Parameter | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The integers less their zero points, as int16."""

    def shift(tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.to(torch.int16)
        if zero is None:
            return wide
        points = zero.data.detach().to(torch.int16)
        axis = node.attributes["axis"]
        if points.ndim == 0 or not isinstance(axis, int):
            return wide - points
        return wide - points.reshape([-1 if dim == axis % tensor.ndim else 1 for dim in range(tensor.ndim)])

    return shift


def _real(node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    def recipe(tensor: torch.Tensor) -> torch.Tensor:
        others = [each.data.detach() if isinstance(each, Parameter) else None for each in node.inputs[1:]]
        (made,) = run_node(node, [tensor, *others], {})
        return made

    return recipe
