"""Operators that reduce dimensions, or run along one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from suture.frontends.aten.rule import AtenCall, Result, Untranslatable, translates
from suture.ir.graph import Value


def _dims(call: AtenCall, x: Value) -> tuple[int, ...]:
    given: Any = call.get("dim")
    if given is None or (isinstance(given, Sequence) and not given):
        return tuple(range(x.rank))
    return tuple(call.position(dim, x.rank) for dim in (given if isinstance(given, Sequence) else [given]))


def _reduce(call: AtenCall, operator: str, **attributes: Any) -> Value:
    x = call.cast(call.value(), call.get("dtype"))
    dims = _dims(call, x)
    if not dims:  # a number: nothing to reduce
        raise Untranslatable("a reduction of a number")
    return call.emit(operator, x, dims=dims, keepdim=bool(call.get("keepdim", False)), **attributes)


@translates("sum", "mean", "amax", "amin", "any", "all")
def _plain(call: AtenCall) -> Result:
    return _reduce(call, call.name)


@translates("prod.dim_int")
def _product(call: AtenCall) -> Result:
    return _reduce(call, "prod")


@translates("max.default", "min.default")
def _extreme(call: AtenCall) -> Result:
    return _reduce(call, f"a{call.name}")


@translates("max.dim", "min.dim")
def _extreme_with_place(call: AtenCall) -> Result:
    return [_reduce(call, f"a{call.name}"), _reduce(call, f"arg{call.name}")]


@translates("argmax", "argmin")
def _place(call: AtenCall) -> Result:
    x = call.value()
    if call.get("dim") is not None:
        return _reduce(call, call.name)
    if call["keepdim"]:
        raise Untranslatable("the flat place of an extreme, with dimensions kept")
    return call.emit(call.name, call.reshape(x, [x.type.elements]), dims=(0,), keepdim=False)


def _correction(call: AtenCall) -> float:
    if "unbiased" in call.arguments:
        return float(call["unbiased"])
    return 1.0 if call.get("correction") is None else float(call["correction"])


@translates("var", "std")
def _variance(call: AtenCall) -> Result:
    variance = _reduce(call, "var", correction=_correction(call))
    return variance if call.name == "var" else call.emit("sqrt", variance)


@translates("var_mean", "std_mean")
def _variance_and_mean(call: AtenCall) -> Result:
    variance = _reduce(call, "var", correction=_correction(call))
    return [variance if call.name == "var_mean" else call.emit("sqrt", variance), _reduce(call, "mean")]


@translates("linalg_vector_norm", "norm")
def _norm(call: AtenCall) -> Result:
    p = call.get("ord", call.get("p"))
    return _reduce(call, "vector_norm", p=2.0 if p is None else float(p))


@translates("cumsum")
def _cumsum(call: AtenCall) -> Result:
    x = call.value()
    if not x.rank:
        raise Untranslatable("a running sum of a number")
    return call.emit("cumsum", call.cast(x, call.get("dtype")), dim=call.dim())


@translates("topk")
def _topk(call: AtenCall) -> Result:
    if not isinstance(call["k"], int):
        raise Untranslatable("a symbolic number of results")
    return call.emit_all(
        "topk", [call.value()], k=call["k"], dim=call.dim(), largest=call["largest"], sorted=call["sorted"]
    )


@translates("diff")
def _diff(call: AtenCall) -> Result:
    if call["n"] != 1 or call.type.dtype == torch.bool:
        raise Untranslatable("a repeated or boolean difference")
    dim = call.dim()
    parts = [part for part in (call.get("prepend"), call.value(), call.get("append")) if part is not None]
    x = call.emit("concat", *parts, dim=dim) if len(parts) > 1 else parts[0]
    length = x.shape[dim] - 1
    return call.emit("sub", call.slice(x, dim, 1, length), call.slice(x, dim, 0, length))


@translates("logsumexp")
def _logsumexp(call: AtenCall) -> Result:
    if not call["keepdim"] or len(_dims(call, call.value())) != 1:
        raise Untranslatable("a sum of exponentials over several dimensions")
    x = call.value()
    top = _reduce(call, "amax")
    finite = call.emit("where", call.emit("eq", call.emit("abs", top), None, scalar=math.inf), None, top, on_true=0.0)
    total = call.emit("sum", call.emit("exp", call.emit("sub", x, finite)), dims=_dims(call, x), keepdim=True)
    return call.emit("add", call.emit("log", total), finite)
