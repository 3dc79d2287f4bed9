"""Operators that make values: constants and ranges."""

from __future__ import annotations

from suture.frontends.aten.rule import AtenCall, Result, Untranslatable, translates
from suture.ir.graph import Value

_ZEROS = (
    "zeros",
    "zeros_like",
    "new_zeros",
    "empty",
    "empty_like",
    "new_empty",
    "empty_permuted",
    "empty_strided",
    "new_empty_strided",
)


@translates(*_ZEROS)
def _zeros(call: AtenCall) -> Result:
    return call.emit("full", shapes=[call.type.shape], value=0, dtype=call.type.dtype)


@translates("ones", "ones_like", "new_ones")
def _ones(call: AtenCall) -> Result:
    return call.emit("full", shapes=[call.type.shape], value=1, dtype=call.type.dtype)


@translates("full", "full_like", "new_full", "scalar_tensor")
def _full(call: AtenCall) -> Result:
    value = call.get("fill_value", call.get("s"))
    if isinstance(value, Value):
        return call.expand(call.cast(value, call.type.dtype), call.type.shape)
    return call.emit("full", shapes=[call.type.shape], value=value, dtype=call.type.dtype)


@translates("arange")
def _arange(call: AtenCall) -> Result:
    start, step = call.get("start", 0), call.get("step", 1)
    if step is None:
        step = 1
    if not isinstance(step, int | float):
        raise Untranslatable("a symbolic step")
    return call.emit("arange", shapes=[call.type.shape], start=start, step=step, dtype=call.type.dtype)
