"""Derivatives of normalisations: softmax, and what is made of deviations over their own size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.reductions import norm_cotangent
from suture.ir.derivatives.rule import Gradients, Site, rule
from suture.ir.sizes import Dim


@rule("softmax")
def _softmax(at: Site) -> Gradients:
    y, g = at.result(), at.g
    yield 0, y * (g - (g * y).sum(at.dim()))


@rule("log_softmax")
def _log_softmax(at: Site) -> Gradients:
    g = at.g
    yield 0, g - at.result().exp() * g.sum(at.dim())


@rule("l_normalise")
def _l_normalise(at: Site) -> Gradients:
    """x / max(|x|_p, eps): the quotient's, and through the norm where it is no less than eps."""
    x, g, dims, p = at.operand(), at.g, (at.dim(),), float(at["p"])
    norm = x.op("vector_norm", dims=dims, keepdim=True, p=p)
    divisor = norm.op("clamp", min=at["eps"])
    through = (g * at.result()).sum(*dims) / divisor
    through = (norm >= at["eps"]).where(through, 0.0)
    yield 0, g / divisor - norm_cotangent(x, norm, through, p)


def _statistics(x: Formula, dims: Sequence[int], eps: float) -> tuple[Formula, Formula]:
    """The standardised values over `dims`, and 1 / sqrt(variance + eps)."""
    centred = x - x.mean(*dims)
    scale = ((centred * centred).mean(*dims) + eps).op("rsqrt")
    return centred * scale, scale


def _standardised(g: Formula, unit: Formula, scale: Formula, dims: Sequence[int]) -> Formula:
    """What standardised values give back: the cotangent without its mean and without its part along them (Ioffe and Szegedy 2015, section 3)."""
    return scale * (g - g.mean(*dims) - unit * (g * unit).mean(*dims))


def _affine(at: Site, unit: Formula, gain: Sequence[int] = (1,), bias: Sequence[int] = (2,)) -> Gradients:
    """What gain and bias get."""
    dims = at.instance.outputs[0]
    for k in gain:
        if at.wants(k):
            yield k, relabel(at.g * unit, dims, at.terms(k), at.instance)
    for k in bias:
        if at.wants(k):
            yield k, relabel(at.g, dims, at.terms(k), at.instance)


def _along(at: Site, index: int) -> Formula:
    """A parameter of the channels, the second dimension, so that it broadcasts with the operand."""
    shape: list[Dim] = [1] * at.operand().rank
    shape[1] = at.operand().shape[1]
    return at.operand(index).reshape(shape)


def _scaled(at: Site) -> Formula:
    """The cotangent times the gain of its channel."""
    return at.g * _along(at, 1) if at.has(1) else at.g


@rule("layer_norm")
def _layer_norm(at: Site) -> Gradients:
    x = at.operand()
    dims = tuple(range(x.rank - at["rank"], x.rank))
    unit, scale = _statistics(x, dims, at["eps"])
    yield from _affine(at, unit)
    if at.wants(0):
        yield 0, _standardised(at.g * at.operand(1) if at.has(1) else at.g, unit, scale, dims)


@rule("rms_norm")
def _rms_norm(at: Site) -> Gradients:
    x, g = at.operand(), at.g
    dims = tuple(range(x.rank - at["rank"], x.rank))
    eps = torch.finfo(x.dtype).eps if at["eps"] is None else at["eps"]
    scale = ((x * x).mean(*dims) + eps).op("rsqrt")
    unit = x * scale
    yield from _affine(at, unit, bias=())
    if at.wants(0):
        g = g * at.operand(1) if at.has(1) else g
        yield 0, scale * (g - unit * (g * unit).mean(*dims))


@rule("group_norm")
def _group_norm(at: Site) -> Gradients:
    """Standardised over the channels of a group and space."""
    x, groups = at.operand(), at["groups"]
    apart = [x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]]
    dims = tuple(range(2, len(apart)))
    unit, scale = _statistics(x.reshape(apart), dims, at["eps"])
    yield from _affine(at, unit.reshape(x.shape))
    if at.wants(0):
        yield 0, _standardised(_scaled(at).reshape(apart), unit, scale, dims).reshape(x.shape)


@rule("batch_norm", "instance_norm")
def _channel_norm(at: Site) -> Gradients:
    """By running statistics, which are constants, an affine map; by its own, standardised over samples and space, or over space alone."""
    x = at.operand()
    batch = at.node.operator.name == "batch_norm"
    if at.has(3):
        scale = (_along(at, 4) + at["eps"]).op("rsqrt")
        yield from _affine(at, (x - _along(at, 3)) * scale if at.wants(1) else x)
        if at.wants(0):
            yield 0, _scaled(at) * scale
        return
    dims = tuple(k for k in range(x.rank) if k > 1 or (batch and k == 0))
    unit, scale = _statistics(x, dims, at["eps"])
    yield from _affine(at, unit)
    if at.wants(0):
        yield 0, _standardised(_scaled(at), unit, scale, dims)
