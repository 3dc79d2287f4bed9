"""Derivatives of the operators that put elements elsewhere: each is the operator that puts them back, and sums where one went to several places."""

from __future__ import annotations

from typing import cast

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.sizes import Dim, Size


@rule("permute", "expand", "repeat", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle", "sum")
def _relabelled(at: Site) -> Gradients:
    """The letters say it all: one that only the result has is repeated, one that only the operand has is summed over."""
    yield 0, relabel(at.g, at.instance.outputs[0], at.terms(0), at.instance)


@rule("reshape")
def _reshape(at: Site) -> Gradients:
    yield 0, at.g.reshape(at.operand().shape)


@rule("concat")
def _concat(at: Site) -> Gradients:
    dim, start = at.dim(), cast(Dim, 0)
    for k in range(len(at.node.inputs)):
        size = at.operand(k).shape[dim]
        if at.wants(k):
            yield k, at.g.cut(dim, start, size)
        start = start + size


@rule("split")
def _split(at: Site) -> Gradients:
    parts: list[Formula] = []
    for k, value in enumerate(at.node.outputs):
        found = at.cotangent(k)
        parts.append(at.writer.full(0.0, value.type) if found is None else found)
    yield 0, parts[0].op("concat", *parts[1:], dim=at.dim()) if len(parts) > 1 else parts[0]


@rule("slice")
def _slice(at: Site) -> Gradients:
    """Zeros around what was taken, and with a step between."""
    dim, whole, step = at.dim(), at.operand().shape, at["step"]
    g, length = at.g, at.g.shape[dim]
    if step > 1 and length != 0:
        g = g.reshape([*g.shape[: dim + 1], 1, *g.shape[dim + 1 :]]).placed(dim + 1, 0, step)
        g = g.reshape([*g.shape[:dim], length * step, *g.shape[dim + 2 :]]).cut(dim, 0, (length - 1) * step + 1)
    yield 0, g.placed(dim, at["start"], whole[dim])


@rule("select")
def _select(at: Site) -> Gradients:
    dim, whole, index = at.dim(), at.operand().shape, at["index"]
    size = whole[dim]
    start: Dim = index if isinstance(index, Size) or index >= 0 else size + index
    yield 0, at.g.reshape([*whole[:dim], 1, *whole[dim + 1 :]]).placed(dim, start, size)


@rule("roll")
def _roll(at: Site) -> Gradients:
    yield 0, at.g.op("roll", shifts=tuple(-shift for shift in at["shifts"]), dims=at["dims"])


@rule("flip")
def _flip(at: Site) -> Gradients:
    yield 0, at.g.op("flip", dims=at["dims"])


@rule("triangle")
def _triangle(at: Site) -> Gradients:
    yield 0, at.g.op("triangle", diagonal=at["diagonal"], upper=at["upper"])


@rule("pad")
def _pad(at: Site) -> Gradients:
    """The padding of constants is cut off; any other is added to where it was taken from, one dimension after the other."""
    g, shape, mode = at.g, at.operand().shape, at["mode"]
    half = len(at["pads"]) // 2
    if mode == "constant":
        yield 0, g.op("pad", pads=tuple(-amount for amount in at["pads"]), value=0.0) if any(at["pads"]) else g
        return
    for dim, (before, after) in enumerate(zip(at["pads"][:half], at["pads"][half:], strict=True)):
        if before or after:
            g = _folded(g, dim, before, after, shape[dim], mode)
    yield 0, g


def _folded(g: Formula, dim: int, before: int, after: int, size: Dim, mode: str) -> Formula:
    """The cotangent along one dimension without its padding, and that of the padding where it belongs; a negative amount had cut something off."""
    first, last = max(-before, 0), max(-after, 0)
    made = g.cut(dim, max(before, 0), size - first - last).placed(dim, first, size)
    if before > 0:
        part = g.cut(dim, 0, before)
        made = made + _source(part, dim, mode).placed(
            dim, {"replicate": 0, "reflect": 1}.get(mode, size - last - before), size
        )
    if after > 0:
        part = g.cut(dim, g.shape[dim] - after, after)
        place = {"replicate": size - 1, "reflect": size - 1 - after}.get(mode, first)
        made = made + _source(part, dim, mode).placed(dim, place, size)
    return made


def _source(part: Formula, dim: int, mode: str) -> Formula:
    """The padding's cotangents in the order of where they were taken from: the border itself, its mirror image, or the other end."""
    if mode == "replicate":
        return part.sum(dim)
    return part.op("flip", dims=(dim,)) if mode == "reflect" else part
