"""Transposed convolutions whose windows do not overlap: every input pixel becomes a patch of output pixels.

For each place in the patch that is a product of pixels and weights, stored with the stride between them. Where windows overlap and move by single
steps, it is a convolution by weights that are turned round (see `dense`); where they move further, several inputs meet in an output at some places
alone, which is left to the library.
"""

from __future__ import annotations

import torch

from suture.codegen.convolution.dense import tile_of
from suture.codegen.convolution.sources import guarded
from suture.codegen.convolution.windows import fixed, index_of, windows_of
from suture.codegen.convolution.writer import ConvolutionWriter
from suture.codegen.groups import Group
from suture.codegen.schedule import ConvolutionSchedule
from suture.codegen.step import Context, KernelStep
from suture.ir.graph import Node, Parameter, Value
from suture.ir.kernel import (
    Expression,
    Literal,
    Load,
    Loop,
    MultiplyAccumulate,
    Name,
    Scope,
    Threads,
    apply,
    cast,
)
from suture.ir.types import TensorType


def refuses_transposed(node: Node) -> str | None:
    """Why a transposed convolution is left to the library; None if it is not."""
    patches = all(each.kernel == each.stride and not each.padding and each.dilation == 1 for each in windows_of(node))
    if not patches and not moves_by_one(node):
        return "its windows overlap, or leave gaps"
    if node.attributes["groups"] != 1:
        return "it has groups"
    padding = node.attributes["output_padding"]
    return "it pads its output" if any(padding if isinstance(padding, tuple) else (padding,)) else None


def moves_by_one(node: Node) -> bool:
    """Whether a transposed convolution is one whose weights are turned round: its windows move by single steps."""
    windows = windows_of(node)
    return any(each.kernel > 1 for each in windows) and all(
        each.stride == 1 and each.dilation * (each.kernel - 1) >= each.padding for each in windows
    )


def default_schedule(node: Node) -> ConvolutionSchedule:
    """Channels by 32, or by 16 if that fills more."""
    channels = fixed(node.output.shape[1])
    assert channels is not None
    wide = -(-channels // 32) * 32 == -(-channels // 16) * 16
    return ConvolutionSchedule(64, 32 if wide else 16)


def lower_transposed(group: Group, context: Context) -> list[KernelStep]:
    """The kernels of a transposed convolution."""
    assert group.anchor is not None
    return _Transposed(group, context, context.schedule(group, default_schedule(group.anchor))).lower()


class _Transposed(ConvolutionWriter):
    """Pixels times weights, for each place in the patch."""

    name = "transposed"

    def settle(self) -> None:
        self.width = self.schedule.channels or default_schedule(self.node).channels
        self.weights = _panels(self.node, self.width, self.context)

    def kernel(self) -> KernelStep:
        builder = self.builder
        shape, width = self.origin.shape, self.width
        pixels = tile_of(2, shape[-1:], self.schedule.pixels).columns
        columns = builder.size(shape[-1])
        image = builder.grid("image", builder.size(shape[0]))
        rows = [builder.grid(f"at_{k}", builder.size(size)) for k, size in enumerate(shape[2:-1])]
        column = builder.grid("column", builder.indices.short((columns + (pixels - 1)) // pixels))
        taps: list[Expression] = [
            builder.grid(f"tap_{k}", Literal(window.kernel)) for k, window in enumerate(self.windows)
        ]
        channels = fixed(self.node.output.shape[1])
        assert channels is not None
        panel = builder.grid("panel", Literal(-(-channels // width)))
        sum_ = builder.local("sum", self.weights.dtype, (pixels, 1), Scope.THREAD)
        number = fixed(shape[-1])
        many: Expression = Literal(pixels)
        if number is None or number % pixels:
            many = apply("min", Literal(pixels), columns - column * pixels)

        depth = fixed(shape[1])
        assert depth is not None
        pixel, channel = builder.variable("pixel", Literal(0), many), Name("channel")
        inner = builder.variable("inner", Literal(0), Literal(depth))
        at = index_of(self.origin, (image, inner, *rows, column * pixels + pixel))
        found = builder.locate(self.origin, at)
        assert found is not None
        right = Load(builder.buffer(self.weights), (*taps, panel, inner, channel))
        product = MultiplyAccumulate(
            sum_, cast(found, sum_.dtype), right, pixel, channel, inner, many, Literal(width), Literal(depth), width, width, adds=False
        )  # fmt: skip

        lane = builder.variable("lane", Literal(0), Literal(width))
        done = builder.variable("result", Literal(0), many)
        own = panel * width + lane
        places = [
            each * window.stride + tap
            for each, window, tap in zip((*rows, column * pixels + done), self.windows, taps, strict=True)
        ]
        index = index_of(self.node.output, (image, own, *places))
        behind = self.behind(Load(sum_, (done, Literal(0))), own, index)
        body = guarded(None if channels % width == 0 else own < channels, behind)
        region = Threads(lane, width, (Loop(done, Literal(0), many, body),))
        return builder.finish([product, region], f"{self.group}; each pixel becomes a patch", self.schedule)


def _panels(node: Node, width: int, context: Context) -> Value:
    """The weights as `[*window, panels, inputs, width]`, padded with zeros."""
    weight = node.inputs[1]
    assert isinstance(weight, Parameter), "the template refuses weights that are computed"
    inputs, outputs, *window = (int(size) for size in weight.data.shape)
    count = -(-outputs // width)

    def recipe(data: torch.Tensor) -> torch.Tensor:
        filled = data.new_zeros(inputs, count * width, *window)
        filled[:, :outputs] = data
        split = filled.reshape(inputs, count, width, *window)
        return split.permute(*range(3, 3 + len(window)), 1, 0, 2)

    type_ = TensorType(weight.dtype, (*window, count, inputs, width))
    return context.prepared(weight, f"patches of panels of {width}", recipe, type_)


__all__ = ["default_schedule", "lower_transposed", "moves_by_one", "refuses_transposed"]
