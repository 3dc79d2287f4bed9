"""Derivatives of convolutions. In the image it is the transposed convolution, in the kernel a convolution of the image by the cotangent.

A convolution pairs an image `x`, a kernel `k` and an image `g` of windows: `sum g[n, o, h'] k[o, i, r] x[n, i, stride h' + dilation r - padding]`.
`conv`, `conv_transpose` and the derivative in the kernel are the three ways to leave one of them out. In the last one the window moves by the
dilation and looks at every `stride`-th position: with samples and channels exchanged it is a convolution again, whose kernel is the cotangent. Where
windows do not overlap (a kernel of one position, patches) it is a sum of products.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import contract, relabel
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.notation import Instance
from suture.ir.sizes import Dim, product

_LARGEST_KERNEL = 64
"""How many positions of a kernel are taken one by one where the size of the image is not known."""


def _spatial(at: Site, name: str) -> tuple[int, ...]:
    values, rank = at.node.operator.call(at.node).ints(name), at.operand(1).rank - 2
    return values * rank if len(values) == 1 else values


@rule("conv")
def _conv(at: Site) -> Gradients:
    x, kernel, g = at.operand(0), at.operand(1), at.g
    stride, padding, dilation = (_spatial(at, name) for name in ("stride", "padding", "dilation"))
    if at.wants(0):
        reached = [
            (g.shape[2 + k] - 1) * stride[k] + dilation[k] * (_number(kernel.shape[2 + k]) - 1) + 1 - 2 * padding[k]
            for k in range(len(stride))
        ]
        extra = tuple(x.shape[2 + k] - reached[k] for k in range(len(stride)))
        yield 0, g.op(
            "conv_transpose", kernel, stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=at["groups"]
        )  # fmt: skip
    if at.wants(1):
        yield 1, _in_the_kernel(at, x, g, stride, padding, dilation)
    if at.wants(2):
        yield 2, relabel(g, at.instance.outputs[0], at.terms(2), at.instance)


@rule("conv_transpose")
def _conv_transpose(at: Site) -> Gradients:
    x, kernel, g = at.operand(0), at.operand(1), at.g
    stride, padding, dilation = (_spatial(at, name) for name in ("stride", "padding", "dilation"))
    if at.wants(0):
        made = g.op("conv", kernel, stride=stride, padding=padding, dilation=dilation, groups=at["groups"])
        for k in range(2, x.rank):
            made = made.cut(k, 0, x.shape[k])  # output padding as large as the stride has room for further windows
        yield 0, made
    if at.wants(1):
        yield 1, _in_the_kernel(at, g, x, stride, padding, dilation)
    if at.wants(2):
        yield 2, relabel(g, at.instance.outputs[0], at.terms(2), at.instance)


def _number(size: Dim) -> int:
    assert isinstance(size, int)  # a convolution refuses a kernel of symbolic size
    return size


def _in_the_kernel(
    at: Site, image: Formula, windows: Formula, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Formula:
    """The kernel [g*o, i, r] that image [n, g*i, h] and windows [n, g*o, h'] ask for.

    :raises SutureError: GRADIENT, for a large kernel over an image whose size is not known
    """
    groups, kernel = at["groups"], at.operand(1).shape
    n, inputs, outputs = image.shape[0], image.shape[1] // groups, windows.shape[1]
    spatial = image.shape[2:]
    if not any(padding) and all(
        size == 1 or (size, d) == (s, 1) for size, s, d in zip(kernel[2:], stride, dilation, strict=True)
    ):
        return _apart(image, windows, [0] * len(stride), kernel[2:], stride, groups).reshape(kernel)
    if all(isinstance(size, int) for size in windows.shape[2:]):
        moved = image.reshape([n, groups, inputs, *spatial]).permute([2, 1, 0, *range(3, 3 + len(spatial))])
        moved = moved.reshape([inputs, n * groups, *spatial])
        by = windows.permute([1, 0, *range(2, windows.rank)])
        found = moved.op(
            "conv", by, stride=tuple(dilation), padding=tuple(padding), dilation=tuple(stride), groups=groups
        )
        for k in range(2, found.rank):
            found = found.cut(k, 0, kernel[k])
        return found.permute([1, 0, *range(2, found.rank)])
    taps = product(kernel[2:])
    if not isinstance(taps, int) or taps > _LARGEST_KERNEL:
        raise at.refuse(
            f"a kernel of {taps} positions over an image of symbolic size", "specialise the graph to one size of image"
        )
    pads = [0, 0, *padding] * 2
    padded = image.op("pad", pads=tuple(pads), value=0.0) if any(padding) else image
    each = [
        _apart(
            padded, windows, [r * d for r, d in zip(place, dilation, strict=True)], [1] * len(stride), stride, groups
        )
        for place in itertools.product(*(range(_number(size)) for size in kernel[2:]))
    ]
    joined = each[0].reshape([outputs, inputs, 1])
    if len(each) > 1:
        joined = joined.op("concat", *(tap.reshape([outputs, inputs, 1]) for tap in each[1:]), dim=2)
    return joined.reshape(kernel)


def _apart(
    image: Formula, windows: Formula, start: Sequence[int], kernel: Sequence[Dim], stride: Sequence[int], groups: int
) -> Formula:
    """[g, o, i, r] of windows that do not overlap, as wide as the stride or one position: a sum over samples and windows."""
    count = len(stride)
    places, taps = [f"h{k}" for k in range(count)], [f"r{k}" for k in range(count)]
    for k, (offset, step) in enumerate(zip(start, stride, strict=True)):
        length, width = windows.shape[2 + k], kernel[k]
        image = image.cut(2 + k, offset, length, step) if width == 1 else image.cut(2 + k, offset, length * width)
    sizes: dict[str, Dim] = {
        "n": image.shape[0], "g": groups, "i": image.shape[1] // groups, "o": windows.shape[1] // groups,
        **dict(zip(places, windows.shape[2:], strict=True)), **dict(zip(taps, kernel, strict=True)),
    }  # fmt: skip
    seen = ["n", "g", "i", *(letter for pair in zip(places, taps, strict=True) for letter in pair)]
    asked = ["n", "g", "o", *places]
    factors = [
        (windows.reshape([sizes[x] for x in asked]), asked),
        (image.reshape([sizes[x] for x in seen]), seen),
    ]
    return contract(factors, ["g", "o", "i", *taps], Instance((), (), sizes, {}))
