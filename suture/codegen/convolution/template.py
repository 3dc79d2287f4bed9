"""The template of convolutions: which kernel computes one, and which are left to the library."""

from __future__ import annotations

import math

import torch

from suture.codegen.convolution import correlation as convolution_correlation
from suture.codegen.convolution import dense as convolution_dense
from suture.codegen.convolution import depthwise as convolution_depthwise
from suture.codegen.convolution import transposed as convolution_transposed
from suture.codegen.convolution.correlation import is_correlation, lower_correlation
from suture.codegen.convolution.dense import lower_dense, takes_rows
from suture.codegen.convolution.depthwise import lower_depthwise
from suture.codegen.convolution.planes import fits_planes, lower_planes
from suture.codegen.convolution.sources import readable
from suture.codegen.convolution.transposed import lower_transposed, moves_by_one, refuses_transposed
from suture.codegen.convolution.weights import is_depthwise
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep, Template
from suture.ir.graph import Node, Parameter, Value

_WINDOW = 64  # taps up to which weights that are computed are packed at every call


def lower(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a convolution and what is pointwise behind it."""
    assert group.anchor is not None
    if group.anchor.operator.name == "conv_transpose":
        turns = moves_by_one(group.anchor)
        return lower_dense(group, context) if turns else lower_transposed(group, context)
    if is_correlation(group.anchor) and not isinstance(group.anchor.inputs[1], Parameter):
        return lower_correlation(group, context)
    if not is_depthwise(group.anchor):
        return lower_dense(group, context)
    return lower_planes(group, context) if fits_planes(group, context) else lower_depthwise(group, context)


def refuses(node: Node, context: Context) -> str | None:
    """Why a convolution is left to the library; None if it is not."""
    if node.output.dtype not in (torch.float32, torch.float64):
        return f"its element type is {node.output.dtype}"
    weight = node.inputs[1]
    assert weight is not None
    if any(not isinstance(size, int) or size == 0 for size in weight.shape):
        return "its weights have no elements, or their sizes are not known"
    if any(not isinstance(value, int) for value in _paddings(node)):
        return "its padding has a name instead of numbers"
    if node.operator.name == "conv_transpose" and (reason := refuses_transposed(node)) is not None:
        return reason
    return None if isinstance(weight, Parameter) else _refuses_computed(node, weight)


def _refuses_computed(node: Node, weight: Value) -> str | None:
    """Why a convolution whose weights are computed is left to the library; None if it is not."""
    if node.operator.name == "conv_transpose" and not moves_by_one(node):
        return "its weights are computed, so that they cannot be packed ahead"
    if weight.dtype != node.output.dtype:
        return "its weights are of another type"
    if is_correlation(node):
        return None
    if math.prod(size for size in weight.shape[2:] if isinstance(size, int)) > _WINDOW:
        return "its weights are computed, and its window is large"
    return None


def fronts(group: Group, operand: int, context: Context) -> bool:
    """Whether pointwise nodes may be a convolution's prologue: where their result is copied anyway."""
    node = group.anchor
    assert node is not None
    value = node.inputs[0]
    if context.target != "cpp" or operand or value is None or node.operator.name != "conv" or is_depthwise(node):
        return False
    if is_correlation(node) and not isinstance(node.inputs[1], Parameter):
        return False
    return takes_rows(node) or not readable(value, context, ())


def candidates(group: Group, context: Context) -> tuple[ConvolutionSchedule, ...]:
    """Schedules worth measuring, the default first."""
    node = group.anchor
    assert node is not None
    if node.operator.name == "conv_transpose" and not moves_by_one(node):
        return (convolution_transposed.default_schedule(node),)
    if is_correlation(node) and not isinstance(node.inputs[1], Parameter):
        return convolution_correlation.candidates(node)
    return (
        convolution_depthwise.candidates(node)
        if node.operator.name == "conv" and is_depthwise(node)
        else convolution_dense.candidates(node)
    )


def _paddings(node: Node) -> tuple[object, ...]:
    value = node.attributes["padding"]
    return value if isinstance(value, tuple) else (value,)


TEMPLATES = dict.fromkeys(("conv", "conv_transpose"), Template(lower, refuses, candidates=candidates, fronts=fronts))
"""Operator -> template."""

__all__ = ["TEMPLATES", "candidates", "lower", "refuses"]
