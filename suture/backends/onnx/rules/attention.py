"""Scaled dot-product attention, written out: softmax(scale q k^T + mask) v."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.held import Held
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.rules.packed import packed_operands
from suture.ir.graph import Parameter, Value
from suture.ir.sizes import Dim, exact_quotient

if TYPE_CHECKING:
    import onnx_ir


@rule("attention")
def _attention(at: Lowering) -> onnx_ir.Value | Held:
    dtype, scale, grouped = at.out.dtype, at.number("scale"), at.flag("grouped")
    packed = packed_operands(at) if at.choices.heads == "together" and not grouped else None
    query = at.x(0) if packed is None else packed[0]
    if scale != 1:  # on the query, which is the smallest of what it could be put on
        query = at.op("Mul", query, at.constant(scale, dtype))
    keys, value = (_transposed_keys(at), at.x(2)) if packed is None else packed[1:]
    heads = at.type(0).shape[-3] if at.type(0).rank > 2 else 1
    group = exact_quotient(heads, at.type(1).shape[-3]) if grouped else 1
    apart = _apart(at.type(0).shape, at.type(1).shape[-3], group) if group != 1 and group is not None else None
    if apart is not None:  # each key head meets its query heads by broadcasting, without a copy of the keys
        query = at.reshape(query, at.type(0).shape, apart)
        keys, value = at.unsqueeze(keys, len(apart) - 3), at.unsqueeze(value, len(apart) - 3)
    scores = at.op("MatMul", query, keys)
    if at.flag("causal"):
        scores = at.op("Add", scores, _causal_bias(at, at.type(0).shape[-2], at.type(1).shape[-2]))
    alive = None
    if at.has(3):
        scores = at.op("Add", scores, _grouped(at, mask_bias(at, at.value(3)), "bias", apart))
        rows = rows_alive(at, at.value(3))
        alive = None if rows is None else _grouped(at, rows, "alive", apart)
    result = at.op("MatMul", at.op("Softmax", scores, axis=-1), value)
    if alive is not None:
        result = at.op("Where", alive, result, at.constant(0, dtype))
    if packed is not None:
        return Held(result, (1, *at.out.shape))
    return result if apart is None else at.reshape(result, (*apart[:-1], at.out.shape[-1]), at.out.shape)


def _apart(shape: Sequence[Dim], key_heads: Dim, group: Dim) -> tuple[Dim, ...]:
    return (*shape[:-3], key_heads, group, *shape[-2:])


def _transposed_keys(at: Lowering) -> onnx_ir.Value:
    """The keys with their last two dimensions swapped, in one node with the permutation that made them."""
    keys = at.value(1)
    swap = [*range(keys.rank - 2), keys.rank - 1, keys.rank - 2]
    if keys.producer is not None and keys.producer.operator.name == "permute" and not isinstance(keys, Parameter):
        source = keys.producer.inputs[0]
        order = keys.producer.attributes["dims"]
        if source is not None and isinstance(order, tuple):
            composed = [int(order[k]) % keys.rank for k in swap if isinstance(order[k], int)]
            return at.transpose(at.emitter.read(source), composed)
    return at.transpose(at.x(1), swap)


def _causal_bias(at: Lowering, rows: Dim, columns: Dim) -> onnx_ir.Value:
    """-inf above the diagonal, 0 elsewhere; one for all layers."""
    import onnx_ir as ir

    key = ("causal", rows, columns, at.out.dtype)
    if key not in at.emitter.cache:
        filling = ir.tensor_adapters.TorchTensor(torch.full((1,), -math.inf, dtype=at.out.dtype))
        everywhere = at.op("ConstantOfShape", at.shape([rows, columns]), value=filling)
        at.emitter.cache[key] = at.op("Trilu", everywhere, at.constant(1, torch.int64), upper=1)
    return at.emitter.cache[key]


def mask_bias(at: Lowering, mask: Value) -> onnx_ir.Value:
    """What the mask adds to the scores; made once, however many layers read the mask."""
    dtype = at.out.dtype
    if mask.dtype != torch.bool:
        return at.cast(at.emitter.read(mask), mask.dtype, dtype)
    key = ("mask bias", mask, dtype)
    if key not in at.emitter.cache:
        lowest = torch.finfo(dtype).min
        at.emitter.cache[key] = at.op("Where", at.emitter.read(mask), at.constant(0, dtype), at.constant(lowest, dtype))
    return at.emitter.cache[key]


def rows_may_die(mask: Value) -> bool:
    """Whether a mask may keep a query from every key."""
    if isinstance(mask, Parameter):
        open_ = mask.data if mask.dtype == torch.bool else mask.data != -math.inf
        return not bool(open_.any(-1).all())
    return mask.dtype == torch.bool or _may_be_infinite(mask, {})


def rows_alive(at: Lowering, mask: Value) -> onnx_ir.Value | None:
    """Which queries may see any key at all: torch gives zeros for the others. None if that cannot happen, or the mask says otherwise."""
    if not rows_may_die(mask):
        return None
    dtype, key = at.out.dtype, ("rows alive", mask)
    if key not in at.emitter.cache:
        x = at.emitter.read(mask)
        if mask.dtype == torch.bool:
            numbers = at.cast(x, torch.bool, torch.int32)
            made = at.cast(at.reduce("ReduceMax", numbers, [mask.rank - 1], keep=True), torch.int32, torch.bool)
        else:
            highest = at.reduce("ReduceMax", at.cast(x, mask.dtype, dtype), [mask.rank - 1], keep=True)
            made = at.op("Greater", highest, at.constant(-math.inf, dtype))
        at.emitter.cache[key] = made
    return at.emitter.cache[key]


def _may_be_infinite(value: Value, seen: dict[Value, bool]) -> bool:
    """Whether -inf can be in a value: it is an input, or something on the way to it says so."""
    if value in seen:
        return seen[value]
    seen[value] = False
    if not value.dtype.is_floating_point:
        return False
    if isinstance(value, Parameter):
        found = bool((value.data == -math.inf).any())
    elif value.producer is None:
        found = True
    else:
        named = any(item == -math.inf for item in value.producer.attributes.values() if isinstance(item, float))
        logs = value.producer.operator.name in ("log", "log2", "log1p", "log_softmax", "div", "reciprocal", "opaque")
        found = (
            named
            or logs
            or any(_may_be_infinite(operand, seen) for operand in value.producer.inputs if operand is not None)
        )
    seen[value] = found
    return found


def _grouped(at: Lowering, mask: onnx_ir.Value, what: str, apart: tuple[Dim, ...] | None) -> onnx_ir.Value:
    """A mask for scores [..., key head, group, row, column]."""
    shape = at.value(3).shape
    if apart is None or len(shape) < 3:
        return mask
    key = ("grouped", what, mask, apart[-4], apart[-3])
    if key not in at.emitter.cache:
        if shape[-3] == 1:
            made = at.unsqueeze(mask, len(shape) - 3)
        else:
            columns = shape[-1] if what == "bias" else 1
            old = (*shape[:-1], columns)
            made = at.reshape(mask, old, (*shape[:-3], apart[-4], apart[-3], shape[-2], columns))
        at.emitter.cache[key] = made
    return at.emitter.cache[key]
