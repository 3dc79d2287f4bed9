"""Weights of convolutions in the order in which kernels read them, made once when a graph is compiled."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from suture.codegen.step import Context, Recipe
from suture.ir.graph import Node, Parameter, Value
from suture.ir.types import TensorType


@dataclass(frozen=True)
class Groups:
    """The groups of a convolution as its kernel takes them: small ones are joined, with zeros between what does not belong together.

    :param count: how many there are
    :param inputs: the input channels of each
    :param outputs: the output channels of each
    :param joined: how many of the convolution's own groups each is
    """

    count: int
    inputs: int
    outputs: int
    joined: int = 1


def groups_of(node: Node, width: int = 32) -> Groups:
    """The groups of a convolution; as many are joined as give `width` output channels."""
    weight, count = node.inputs[1], node.attributes["groups"]
    assert weight is not None and isinstance(count, int)
    own, inputs = (int(size) for size in weight.shape[:2] if isinstance(size, int))
    if node.operator.name == "conv_transpose":
        return Groups(1, own, inputs)  # the templates refuse more than one
    own //= count
    joined = max((k for k in range(1, count + 1) if count % k == 0 and (k == 1 or k * own <= width)), default=1)
    return Groups(count // joined, inputs * joined, own * joined, joined)


def is_depthwise(node: Node) -> bool:
    """Whether each output channel reads a single input channel."""
    weight = node.inputs[1]
    return weight is not None and weight.shape[1] == 1 and node.attributes["groups"] != 1


def panels(node: Node, groups: Groups, width: int, context: Context, *, by_row: bool = False) -> Value:
    """The weights as `[groups, panels, *window, inputs, width]`: what one register tile multiplies by lies together, padded with zeros.

    :param by_row: the last dimension of the window and the inputs are one, `[groups, panels, *rows, columns * inputs, width]`
    """
    weight = _parameter(node)
    window = tuple(int(size) for size in weight.data.shape[2:])
    count = -(-groups.outputs // width)
    inner = (*window[:-1], window[-1] * groups.inputs) if by_row else (*window, groups.inputs)
    shape = (groups.count, count, *inner, width)
    what = f"{'rows' if by_row else 'panels'} of {width} in {groups.count} groups"
    recipe = functools.partial(_packed, groups=groups, window=window, width=width, shape=shape)
    if node.operator.name == "conv_transpose":
        recipe, what = functools.partial(_turned, recipe=recipe, rank=len(window)), f"turned {what}"
    return context.prepared(weight, what, recipe, TensorType(weight.dtype, shape))


def _packed(
    data: torch.Tensor, *, groups: Groups, window: tuple[int, ...], width: int, shape: tuple[int, ...]
) -> torch.Tensor:
    own = data.reshape(groups.count, groups.joined, groups.outputs // groups.joined, -1, *window)
    blocks = data.new_zeros(groups.count, groups.joined, own.shape[2], groups.joined, own.shape[3], *window)
    for k in range(groups.joined):
        blocks[:, k, :, k] = own[:, k]
    filled = data.new_zeros(groups.count, shape[1] * width, groups.inputs, *window)
    filled[:, : groups.outputs] = blocks.reshape(groups.count, groups.outputs, groups.inputs, *window)
    split = filled.reshape(groups.count, shape[1], width, groups.inputs, *window)
    return split.permute(0, 1, *range(4, 4 + len(window)), 3, 2).reshape(shape)


def _turned(data: torch.Tensor, *, recipe: Recipe, rank: int) -> torch.Tensor:
    """The weights of the convolution that a transposed one by single steps is."""
    return recipe(data.flip(tuple(range(2, 2 + rank))).transpose(0, 1))


def by_tap(node: Node, context: Context) -> Value:
    """The weights of a depthwise convolution as `[taps, channels]`."""
    weight = _parameter(node)
    taps, channels = math.prod(weight.data.shape[2:]), int(weight.data.shape[0])

    def recipe(data: torch.Tensor) -> torch.Tensor:
        return data.reshape(channels, taps).t()

    return context.prepared(weight, "taps by channel", recipe, TensorType(weight.dtype, (taps, channels)))


def _parameter(node: Node) -> Parameter:
    weight = node.inputs[1]
    assert isinstance(weight, Parameter), "templates refuse weights that are computed"
    return weight


__all__ = ["Groups", "by_tap", "groups_of", "is_depthwise", "panels"]
