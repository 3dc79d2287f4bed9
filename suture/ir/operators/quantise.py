"""Quantisers: real numbers to integers of a few bits and back, as ONNX defines QuantizeLinear and DequantizeLinear.

    quantise      x[*d], scale[*s], zero[*s]? -> q[*d]        q = clip(round(x / scale) + zero)
    dequantise    q[*d], scale[*s], zero[*s]? -> x[*d]        x = (q - zero) * scale

The scale is one number (rank 0), one per index of the dimension `axis` (rank 1), or one per block of `block` neighbours along `axis` (the
operand's own rank). Halves are rounded to even, what lies beyond the range saturates. Fewer than eight bits live in eight: the numbers then keep
to the narrower range.
"""

from __future__ import annotations

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, instantiate, parse_signature
from suture.ir.operator import Call, declare

BITS = (*range(2, 9), 32)
"""The widths of integers that a quantiser may have; 32 bits are for biases, and always signed."""


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the largest integer of that many bits.

    :raises SutureError: QUANTISER, if there is no such integer type
    """
    if bits not in BITS or (bits == 32 and not signed):
        kind = "signed" if signed else "unsigned"
        raise SutureError(
            Code.QUANTISER, f"no quantiser has {bits} {kind} bits", remedy="2 to 8, or 32 signed, would be right"
        )
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def integer_type(bits: int, signed: bool) -> torch.dtype:
    """The element type that holds integers of that many bits.

    :raises SutureError: QUANTISER, if there is no such integer type
    """
    integer_range(bits, signed)
    return torch.int32 if bits == 32 else torch.int8 if signed else torch.uint8


def spread(parameter: torch.Tensor, like: torch.Tensor, axis: int | None, block: int | None) -> torch.Tensor:
    """A scale or zero point, shaped so that it broadcasts with the tensor that it belongs to."""
    if parameter.ndim == 0 or axis is None:
        return parameter
    if block is not None:
        return parameter.repeat_interleave(block, axis)
    return parameter.reshape([-1 if k == axis % like.ndim else 1 for k in range(like.ndim)])


def quantise(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    axis: int | None = None,
    block: int | None = None,
    bits: int = 8,
    signed: bool = False,
) -> torch.Tensor:
    """clip(round(x / scale) + zero), halves to even. What is not a number becomes the zero point."""
    low, high = integer_range(bits, signed)
    wide = torch.float64 if bits == 32 or x.dtype == torch.float64 else torch.float32
    ratio = x.detach().to(wide) / spread(scale.detach(), x, axis, block).to(wide)
    shifted = torch.nan_to_num(torch.round(ratio), nan=0.0, posinf=2.0**40, neginf=-(2.0**40))
    if zero is not None:
        shifted = shifted + spread(zero, x, axis, block).to(wide)
    return shifted.clamp(low, high).to(integer_type(bits, signed))


def dequantise(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    axis: int | None = None,
    block: int | None = None,
    bits: int = 8,
    signed: bool = False,
) -> torch.Tensor:
    """(q - zero) * scale."""
    steps = q if zero is None else q.to(torch.int32) - spread(zero, q, axis, block).to(torch.int32)
    return steps.to(scale.dtype) * spread(scale, q, axis, block)


def _instance(call: Call) -> Instance:
    """The scale's letters are the operand's: none, that of `axis`, or all with the blocks along `axis`."""
    rank, scale = call.type(0).rank, call.type(1).rank
    axis, block = call.attributes["axis"], call.attributes["block"]
    letters = [f"d{k}" for k in range(rank)]
    scales: list[str] = []
    binding = Binding()
    if scale and axis is None:
        raise SutureError(
            Code.SHAPE, f"a scale of rank {scale} without an axis", where=call.where, remedy="give axis=, or one number"
        )
    if scale:
        along = call.dim("axis")
        scales = [letters[along]]
    if block is not None:
        if not isinstance(block, int) or block < 1 or scale != rank or not scale:
            raise SutureError(
                Code.SHAPE, f"blocks of {block} with a scale of rank {scale}", where=call.where,
                remedy=f"a block of 1 or more and a scale of rank {rank} would be right",
            )  # fmt: skip
        scales = [*letters[:along], "k", *letters[along + 1 :]]
        letters[along] = "k*b"
        binding = Binding(sizes={"b": block})
    each, step = ", ".join(letters), ", ".join(scales)
    notation = f"x[{each}], scale[{step}], zero[{step}]? -> q[{each}]"
    shapes = [None if type_ is None else type_.shape for type_ in call.types]
    return instantiate(parse_signature(notation), shapes, binding, where=call.where)


def _width(call: Call) -> tuple[int, bool]:
    bits, signed = call.attributes["bits"], call.attributes["signed"]
    assert isinstance(bits, int)
    try:
        integer_range(bits, bool(signed))
    except SutureError as error:
        raise SutureError(error.code, error.what, where=call.where, remedy=error.remedy) from None
    return bits, bool(signed)


def _integers(call: Call) -> torch.dtype:
    """The integers' type, which the zero point must have too."""
    dtype = integer_type(*_width(call))
    for index, what in ((0, "operand"), (1, "scale")):
        if not call.type(index).dtype.is_floating_point:
            raise SutureError(
                Code.DTYPE, f"the {what} is {call.type(index).dtype}", where=call.where, remedy="floats would be right"
            )
    _require_type(call, 2, dtype, "zero point")
    return dtype


def _reals(call: Call) -> torch.dtype:
    dtype = integer_type(*_width(call))
    _require_type(call, 0, dtype, "operand")
    _require_type(call, 2, dtype, "zero point")
    if not call.type(1).dtype.is_floating_point:
        raise SutureError(
            Code.DTYPE, f"the scale is {call.type(1).dtype}", where=call.where, remedy="floats would be right"
        )
    return call.type(1).dtype


def _require_type(call: Call, index: int, dtype: torch.dtype, what: str) -> None:
    found = call.types[index] if index < len(call.types) else None
    if found is not None and found.dtype != dtype:
        raise SutureError(
            Code.DTYPE,
            f"the {what} of a quantiser of {call.attributes['bits']} bits is {found.dtype}",
            where=call.where,
            remedy=f"{dtype} would be right",
        )


_ATTRIBUTES = {"axis": None, "block": None, "bits": 8, "signed": False}
declare(
    "quantise", "x[*d], scale[*s], zero[*s]? -> q[*d]", quantise, attributes=_ATTRIBUTES, build=_instance,
    dtype=_integers, letters={"block": "b"},
)  # fmt: skip
declare(
    "dequantise", "q[*d], scale[*s], zero[*s]? -> x[*d]", dequantise, attributes=_ATTRIBUTES, build=_instance,
    dtype=_reals, letters={"block": "b"},
)  # fmt: skip
