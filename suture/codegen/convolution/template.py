"""The template of convolutions: which kernel computes one, and which are left to the library."""

from __future__ import annotations

import torch

from suture.codegen.convolution import dense as convolution_dense
from suture.codegen.convolution import depthwise as convolution_depthwise
from suture.codegen.convolution import transposed as convolution_transposed
from suture.codegen.convolution.dense import lower_dense
from suture.codegen.convolution.depthwise import lower_depthwise
from suture.codegen.convolution.planes import fits_planes, lower_planes
from suture.codegen.convolution.transposed import lower_transposed, refuses_transposed
from suture.codegen.convolution.weights import is_depthwise
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node, Parameter


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a convolution and what is pointwise behind it."""
    assert group.anchor is not None
    if group.anchor.operator.name == "conv_transpose":
        return lower_transposed(group, context)
    if not is_depthwise(group.anchor):
        return lower_dense(group, context)
    return lower_planes(group, context) if fits_planes(group, context) else lower_depthwise(group, context)


def refuses(node: Node, context: Context) -> str | None:
    """Why a convolution is left to the library; None if it is not."""
    if node.output.dtype not in (torch.float32, torch.float64):
        return f"its element type is {node.output.dtype}"
    if not isinstance(node.inputs[1], Parameter):
        return "its weights are computed, so that they cannot be packed ahead"
    if any(not isinstance(size, int) or size == 0 for size in node.inputs[1].shape):
        return "its weights have no elements"
    if any(not isinstance(value, int) for value in _paddings(node)):
        return "its padding has a name instead of numbers"
    return refuses_transposed(node) if node.operator.name == "conv_transpose" else None


def candidates(group: Group, context: Context) -> tuple[ConvolutionSchedule, ...]:
    """Schedules worth measuring, the default first."""
    node = group.anchor
    assert node is not None
    if node.operator.name == "conv_transpose":
        return (convolution_transposed.default_schedule(node),)
    return convolution_depthwise.candidates(node) if is_depthwise(node) else convolution_dense.candidates(node)


def _paddings(node: Node) -> tuple[object, ...]:
    value = node.attributes["padding"]
    return value if isinstance(value, tuple) else (value,)


TEMPLATES = dict.fromkeys(("conv", "conv_transpose"), Template(lower, refuses, candidates=candidates))
"""Operator -> template."""

__all__ = ["TEMPLATES", "candidates", "lower", "refuses"]
