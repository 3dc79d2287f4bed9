"""Quantisers as QuantizeLinear and DequantizeLinear; parameters are stored as integers, those of four bits two to a byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.weights import Weight
from suture.ir.graph import Node, Parameter, Value
from suture.ir.operators.quantise import integer_range, integer_type
from suture.ir.operators.quantise import quantise as to_integers

if TYPE_CHECKING:
    import onnx
    import onnx_ir

_PER_AXIS = 13  # the operator set in which quantisers got an axis
_HALF = 19  # ... and half precision
_BLOCKS = 21  # ... and blocks, and integers of four bits
_INT4, _UINT4 = 22, 21  # TensorProto.INT4, TensorProto.UINT4


@rule("quantise")
def _quantise(at: Lowering) -> onnx_ir.Value:
    """QuantizeLinear, and Clip where the range is narrower than the type. What depends on parameters alone is stored as integers."""
    bits, signed = at.integer("bits"), at.flag("signed")
    stored = stored_integers(at.node)
    if stored is not None:
        return _initialiser(at, stored)
    if bits == 32:
        at.fail("QuantizeLinear makes no int32", "quantise a parameter, which is stored as integers, or use 8 bits")
    made = at.op("QuantizeLinear", _real(at, 0), _real(at, 1), _zero(at, packed=False), **_axis(at))
    if bits == 8:
        return made
    low, high = integer_range(bits, signed)
    return at.op("Clip", made, at.constant(low, at.out.dtype), at.constant(high, at.out.dtype))


@rule("dequantise")
def _dequantise(at: Lowering) -> onnx_ir.Value:
    """DequantizeLinear, of an initialiser of four bits where the integers are stored as such."""
    operand = at.value(0)
    packed = at.integer("bits") == 4 and _is_stored(operand)
    integers = at.x(0)
    if packed and isinstance(operand, Parameter):
        integers = _packed(at, operand.name, tuple(operand.data.shape), lambda: operand.data, ("packed", operand))
    made = at.op("DequantizeLinear", integers, _real(at, 1), _zero(at, packed=packed), **_axis(at))
    return at.cast(made, torch.float32, at.out.dtype) if at.out.dtype == torch.float64 else made


def stored_integers(node: Node) -> Callable[[], torch.Tensor] | None:
    """How to make the integers of a quantiser that depends on parameters alone; None for another."""
    x, scale, *rest = node.inputs
    zero = rest[0] if rest else None
    if not isinstance(x, Parameter) or not isinstance(scale, Parameter) or not isinstance(zero, Parameter | None):
        return None
    attributes: dict[str, Any] = dict(node.attributes)
    return lambda: to_integers(x.data, scale.data, None if zero is None else zero.data, **attributes)


def _is_stored(value: Value) -> bool:
    if isinstance(value, Parameter):
        return True
    producer = value.producer
    return producer is not None and producer.operator.name == "quantise" and stored_integers(producer) is not None


def _initialiser(at: Lowering, make: Callable[[], torch.Tensor]) -> onnx_ir.Value:
    """The integers of a parameter, under its name."""
    source = at.value(0)
    shape = tuple(size for size in source.shape if isinstance(size, int))
    name = f"{source.name}.integers"
    if at.integer("bits") == 4 and all(use.node.operator.name == "dequantise" for use in at.node.output.uses):
        return _packed(at, name, shape, make, ("packed", at.node.output))
    return at.emitter.initialiser(name, at.out.dtype, shape, make)


def _real(at: Lowering, index: int) -> onnx_ir.Value:
    """The operand or the scale; ONNX's quantisers take no float64."""
    dtype = at.type(index).dtype
    if dtype in (torch.float16, torch.bfloat16):
        at.need(_HALF, "quantisers of half precision")
    return at.x(index, torch.float32 if dtype == torch.float64 else dtype)


def _zero(at: Lowering, *, packed: bool) -> onnx_ir.Value | None:
    """The zero point. It says what the integers' type is, so one that is absent is written as zeros; int32 has none."""
    bits, scale = at.integer("bits"), at.value(1)
    if bits == 32:
        return None
    zero = at.value(2) if at.has(2) else None
    if not packed:
        if zero is not None:
            return at.emitter.read(zero)
        shape = [size for size in scale.shape if isinstance(size, int)]
        return at.emitter.constant(torch.zeros(shape, dtype=integer_type(bits, at.flag("signed"))))
    sizes = tuple(size for size in scale.shape if isinstance(size, int))
    if zero is None:
        return _packed(at, f"{scale.name}.zero", sizes, lambda: torch.zeros(sizes, dtype=torch.int8), ("zeros", scale))
    if not isinstance(zero, Parameter):
        at.fail("a zero point of four bits that is computed", "a constant zero point, or 8 bits, would be right")
    return _packed(at, zero.name, sizes, lambda: zero.data, ("packed", zero))


def _axis(at: Lowering) -> dict[str, object]:
    """The attributes of a quantiser that is not one for the whole tensor."""
    if at.type(1).rank == 0:
        return {}
    chosen: dict[str, object] = {"axis": at.dim("axis")}
    if at.node.attributes["block"] is not None:
        at.need(_BLOCKS, "quantisers of blocks")
        chosen["block_size"] = at.integer("block")
    return chosen


@dataclass(frozen=True)
class PackedWeight(Weight):
    """An initialiser of integers of four bits, two to a byte, the first in the lower half."""

    signed: bool = True

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return (super().bytes + 1) // 2

    def raw(self) -> memoryview:
        """The packed bytes."""
        flat = self.make().detach().cpu().reshape(-1).to(torch.int16) & 15
        even, odd = flat[0::2], flat[1::2]
        bytes_ = even.clone()
        bytes_[: len(odd)] |= odd << 4
        return memoryview(bytes_.to(torch.uint8).numpy())  # type: ignore[arg-type]

    def proto(self) -> onnx.TensorProto:
        """Its head: everything but the numbers."""
        import onnx

        return onnx.TensorProto(name=self.name, data_type=_INT4 if self.signed else _UINT4, dims=self.shape)


def _packed(
    at: Lowering, name: str, shape: tuple[int, ...], make: Callable[[], torch.Tensor], key: tuple[object, ...]
) -> onnx_ir.Value:
    import onnx_ir as ir

    at.need(_BLOCKS, "integers of four bits")
    if key not in at.emitter.stored:
        signed = at.flag("signed")
        weight = PackedWeight(
            ir.Value(name=at.emitter.fresh(name)), torch.int8 if signed else torch.uint8, shape, make, signed
        )
        at.emitter.weights[weight.name] = weight
        at.emitter.stored[key] = weight.value
    return at.emitter.stored[key]
