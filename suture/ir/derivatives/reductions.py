"""Derivatives of reductions: sums repeat the cotangent, extremes give it to where they are, products and norms scale it."""

from __future__ import annotations

import math

from suture.ir.derivatives.formula import Formula
from suture.ir.derivatives.letters import relabel
from suture.ir.derivatives.lookup import scattered
from suture.ir.derivatives.rule import CONSTANT, Gradients, Site, rule
from suture.ir.sizes import Dim, product


def _back(at: Site, value: Formula) -> Formula:
    """A reduced value with its dimensions again, of size 1."""
    gone = at.dims() if at.operand().rank else ()
    return value.reshape([1 if k in gone else size for k, size in enumerate(at.operand().shape)])


def _count(at: Site) -> Dim:
    return product([at.operand().shape[dim] for dim in at.dims()]) if at.operand().rank else 1


@rule("mean")
def _mean(at: Site) -> Gradients:
    yield 0, relabel(at.g / _count(at), at.instance.outputs[0], at.terms(0), at.instance)


@rule("amax", "amin")
def _extreme(at: Site) -> Gradients:
    """Evenly among the elements that are the extreme."""
    yield 0, _among(at, at.operand(), at.result(), at.g)


def _among(at: Site, x: Formula, y: Formula, g: Formula) -> Formula:
    hit = x.equals(_back(at, y))
    count = hit.cast(g.dtype).sum(*at.dims())
    return hit.where(_back(at, g) / count, 0.0)


@rule("prod")
def _product(at: Site) -> Gradients:
    """The product of the others: y / x, but where there is a zero; a single one gets the product of the rest."""
    x, g, y, dims = at.operand(), _back(at, at.g), _back(at, at.result()), at.dims()[: at.operand().rank]
    zero = x.equals(0)
    filled = zero.where(1.0, x)
    rest = filled.op("prod", dims=dims, keepdim=True) if dims else filled
    zeros = zero.cast(g.dtype).sum(*dims)
    yield 0, g * zero.where(zeros.equals(1).where(rest, 0.0), y / filled)


@rule("var")
def _variance(at: Site) -> Gradients:
    """2 (x - mean) / (n - correction)."""
    x, count, correction = at.operand(), _count(at), at["correction"]
    if not isinstance(count, int) and correction != int(correction):
        raise at.refuse(f"{count} less {correction} is no size", "a whole correction would be right")
    free: Dim | float = count - (int(correction) if correction == int(correction) else correction)
    deviation = x - x.mean(*at.dims()) if x.rank else x - x
    scaled = deviation * 2 / free if free != 0 else deviation * math.inf
    yield 0, _back(at, at.g) * scaled


@rule("vector_norm")
def _vector_norm(at: Site) -> Gradients:
    x, y, g, p = at.operand(), at.result(), at.g, at["p"]
    if p in (math.inf, -math.inf):
        yield 0, _among(at, x.abs(), y, g) * x.sign()
    elif p != 0:
        yield 0, norm_cotangent(x, _back(at, y), _back(at, g), p)


def norm_cotangent(x: Formula, norm: Formula, g: Formula, p: float) -> Formula:
    """What |x|_p gives back to x: sign(x) (|x| / |x|_p)^(p - 1), and zero where the norm is."""
    if p == 1:
        return g * x.sign()
    if p == 2:
        return norm.equals(0).where(0.0, g * (x / norm))
    ratio = (x.abs() / norm) ** (p - 1)
    scaled = norm.equals(0).where(0.0, g * (ratio * x.sign()))
    return x.equals(0).where(0.0, scaled) if p < 1 else scaled


@rule("cumsum")
def _cumsum(at: Site) -> Gradients:
    """Each element is in its own sum and in all later ones."""
    if not at.operand().rank:
        yield 0, at.g
        return
    dim = at.dim()
    yield 0, at.g.op("flip", dims=(dim,)).op("cumsum", dim=dim).op("flip", dims=(dim,))


@rule("topk")
def _topk(at: Site) -> Gradients:
    """The values are a gather at the indices."""
    g = at.cotangent(0)
    if g is not None:
        yield 0, scattered(g, at.result(1), at.dim(), at.operand().shape)


CONSTANT |= dict.fromkeys(("any", "all"), "its result is a truth") | dict.fromkeys(
    ("argmax", "argmin"), "its result is an index"
)
