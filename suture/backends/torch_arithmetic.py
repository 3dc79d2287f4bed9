"""Arithmetic, comparisons and reductions as plain torch calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from suture.backends.torch_site import Argument, Site, Writer, call_of


def _binary(function: Callable[..., Any]) -> Writer:
    def write(site: Site) -> fx.Node:
        scalar = site.attributes["scalar"]
        left, right = (scalar if x is None else x for x in (site.operand(0), site.operand(1)))
        return site.call(function, left, right)

    return write


def _divide(site: Site) -> fx.Node:
    scalar, rounding = site.attributes["scalar"], site.attributes["rounding"]
    left, right = (scalar if x is None else x for x in (site.operand(0), site.operand(1)))
    return site.call(torch.div, left, right, **({"rounding_mode": rounding} if rounding else {}))


def _of_tensors(function: Callable[..., Any]) -> Writer:
    """For functions that take tensors only: a scalar becomes a tensor of the type that torch's promotion gives it."""

    def write(site: Site) -> fx.Node:
        operands: list[Argument] = [site.operand(0), site.operand(1)]
        if None in operands:
            value = next(value for value in site.node.inputs if value is not None)
            scalar = site.node.attributes["scalar"]
            like = torch.empty((1,) * value.rank, dtype=value.dtype, device="meta")
            dtype = torch.result_type(like, scalar if isinstance(scalar, bool | int | float | complex) else 1)
            made = site.call(torch.full, (), site.attributes["scalar"], dtype=dtype, device=site.device())
            operands = [made if operand is None else operand for operand in operands]
        return site.call(function, *operands)

    return write


def _comparison(function: Callable[..., Any], mirrored: Callable[..., Any]) -> Writer:
    """A scalar on the left goes to the right: torch has no such comparison."""

    def write(site: Site) -> fx.Node:
        left, right = site.operand(0), site.operand(1)
        if left is None:
            return site.call(mirrored, right, site.attributes["scalar"])
        return site.call(function, left, site.attributes["scalar"] if right is None else right)

    return write


def _where(site: Site) -> fx.Node:
    condition, x, z = (site.operand(k) for k in range(3))
    a = site.attributes
    return site.call(torch.where, condition, a["on_true"] if x is None else x, a["on_false"] if z is None else z)


def _dropout(site: Site) -> fx.Node:
    return site.call(F.dropout, site.operand(0), site.attributes["p"], site.training())


def _reduce(function: Callable[..., Any]) -> Writer:
    def write(site: Site) -> fx.Node:
        return site.call(function, site.operand(0), site.attributes["dims"], keepdim=site.attributes["keepdim"])

    return write


def _reduce_one(function: Callable[..., Any]) -> Writer:
    def write(site: Site) -> fx.Node:
        return site.call(function, site.operand(0), site.attributes["dims"][0], keepdim=site.attributes["keepdim"])

    return write


def _variance(site: Site) -> fx.Node:
    a = site.attributes
    return site.call(torch.var, site.operand(0), a["dims"], correction=a["correction"], keepdim=a["keepdim"])


def _vector_norm(site: Site) -> fx.Node:
    a = site.attributes
    return site.call(torch.linalg.vector_norm, site.operand(0), a["p"], a["dims"], keepdim=a["keepdim"])


ARITHMETIC: dict[str, Writer] = {
    "clamp": call_of(torch.clamp, "min", "max"),
    "cast": lambda site: site.method("to", site.operand(0), site.attributes["dtype"]),
    "dropout": _dropout,
    "div": _divide,
    "where": _where,
    "sum": _reduce(torch.sum),
    "mean": _reduce(torch.mean),
    "amax": _reduce(torch.amax),
    "amin": _reduce(torch.amin),
    "any": _reduce(torch.any),
    "all": _reduce(torch.all),
    "prod": _reduce_one(torch.prod),
    "argmax": _reduce_one(torch.argmax),
    "argmin": _reduce_one(torch.argmin),
    "var": _variance,
    "vector_norm": _vector_norm,
    "cumsum": call_of(torch.cumsum, "dim"),
    "topk": call_of(torch.topk, "k", "dim", "largest", "sorted"),
}
"""Operator -> what writes it."""
ARITHMETIC |= {name: _binary(getattr(torch, name)) for name in ("add", "sub", "mul", "pow", "remainder")}
ARITHMETIC |= {name: _binary(getattr(torch, name)) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")}
ARITHMETIC |= {name: _of_tensors(getattr(torch, name)) for name in ("maximum", "minimum", "atan2")}
ARITHMETIC |= {name: _of_tensors(getattr(torch, name)) for name in ("logical_and", "logical_or", "logical_xor")}
for _name, _mirrored in (("eq", "eq"), ("ne", "ne"), ("lt", "gt"), ("le", "ge"), ("gt", "lt"), ("ge", "le")):
    ARITHMETIC[_name] = _comparison(getattr(torch, _name), getattr(torch, _mirrored))
