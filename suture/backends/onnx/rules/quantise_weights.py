"""Products with weights that are stored as integers: MatMulNBits where the profile has it, else a dequantised weight that stands as MatMul reads it.

MatMulNBits (ONNX Runtime's contributed operators) takes the weight as [N, K / block, block * bits / 8] bytes, the first of two 4-bit integers in
the lower half; integers are unsigned, with a zero point in the middle unless zero points are given, packed the same way along the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.rules.quantise import PackedWeight, stored_integers
from suture.ir.graph import Node, Parameter, Value

if TYPE_CHECKING:
    import onnx_ir

_BITS = (4, 8)
_BLOCKS = (16, 32, 64, 128, 256)
_PACKED_SINCE = 21  # the operator set with integers of four bits, and with blocks


@dataclass(frozen=True)
class StoredMatrix:
    """A dequantised matrix whose integers are in the file.

    :param integers: how to make them
    """

    node: Node
    integers: Callable[[], torch.Tensor]
    scale: Parameter
    zero: Parameter | None

    @property
    def bits(self) -> int:
        """The width of an integer."""
        bits = self.node.attributes["bits"]
        assert isinstance(bits, int)
        return bits

    @property
    def signed(self) -> bool:
        """Whether the integers are signed."""
        return bool(self.node.attributes["signed"])

    @property
    def block(self) -> int | None:
        """How many neighbours share a scale, where that is not a whole row."""
        block = self.node.attributes["block"]
        return block if isinstance(block, int) else None

    @property
    def axis(self) -> int | None:
        """The dimension of scales, or of blocks; None for one scale."""
        axis = self.node.attributes["axis"]
        return axis % 2 if isinstance(axis, int) and self.scale.rank else None


def stored_matrix(value: Value) -> StoredMatrix | None:
    """The integers behind a matrix, if it is a dequantised parameter."""
    node = value.producer
    if node is None or node.operator.name != "dequantise" or value.rank != 2:
        return None
    integers, scale, *rest = node.inputs
    zero = rest[0] if rest else None
    if not isinstance(scale, Parameter) or not isinstance(zero, Parameter | None) or integers is None:
        return None
    if isinstance(integers, Parameter):
        data = integers.data
        return StoredMatrix(node, lambda: data, scale, zero)
    producer = integers.producer
    quantised = producer is not None and producer.operator.name == "quantise"
    made = stored_integers(producer) if quantised and producer is not None else None
    return StoredMatrix(node, made, scale, zero) if made is not None else None


def packed_product(at: Lowering, x: int, weight: int, *, inputs_first: bool = False) -> onnx_ir.Value | None:
    """x times a weight as MatMulNBits, without a bias; None where the profile, the types or the blocks do not allow it.

    :param inputs_first: whether the weight is [inputs, outputs] rather than [outputs, inputs]
    """
    found = stored_matrix(at.value(weight)) if at.emitter.profile.contrib else None
    if found is None or found.block not in _BLOCKS or found.bits not in _BITS or at.type(x).rank < 2:
        return None
    if found.axis != (0 if inputs_first else 1) or not at.type(x).dtype == found.scale.dtype == torch.float32:
        return None
    block, bits, zero = found.block, found.bits, found.zero
    rows, blocks = found.scale.data.shape[::-1] if inputs_first else found.scale.data.shape
    shape = (rows, blocks, block * bits // 8)

    def oriented(data: torch.Tensor) -> torch.Tensor:
        return data.t() if inputs_first else data

    def raised(data: torch.Tensor) -> torch.Tensor:
        return oriented(data).to(torch.int16) + ((1 << (bits - 1)) if found.signed else 0)

    packed = _stored(at, found, "packed", torch.uint8, shape, lambda: _bytes(raised(found.integers()), bits))
    scales = _stored(at, found, "scales", torch.float32, (rows, blocks), lambda: oriented(found.scale.data))
    zeros = None
    if zero is not None:
        size = (rows, -(-blocks * bits // 8))
        zeros = _stored(at, found, "zeros", torch.uint8, size, lambda: _bytes(raised(zero.data), bits))
    attributes: dict[str, Any] = {"K": blocks * block, "N": rows, "bits": bits, "block_size": block}
    return at.contrib("MatMulNBits", at.x(x), packed, scales, zeros, **attributes)[0]


def transposed_weight(at: Lowering, weight: Value) -> onnx_ir.Value | None:
    """The transpose of a dequantised matrix, as the dequantised transpose of its integers; None if it is no such matrix."""
    found = stored_matrix(weight)
    if found is None or found.scale.dtype not in (torch.float32, torch.float64):
        return None
    if (found.bits == 4 or found.block is not None) and at.opset < _PACKED_SINCE:
        return None  # the dequantiser's own rule says so
    key = ("transposed", weight)
    if key in at.emitter.cache:
        return at.emitter.cache[key]
    shape = tuple(found.integers().shape)[::-1]
    kind = torch.int8 if found.signed else torch.uint8
    integers = _stored(at, found, "transposed", kind, shape, lambda: found.integers().t(), packs=found.bits == 4)
    blocked, zero = found.block is not None, found.zero
    steps = tuple(found.scale.data.shape)[::-1]
    scale = _stored(at, found, "scale", torch.float32, steps, lambda: _turned(found.scale.data, blocked).float())
    zeros = None
    if zero is not None or found.bits <= 8:  # it says the type, and ONNX Runtime's QGemm is made only where it stands
        made = torch.zeros(steps, dtype=kind) if zero is None else _turned(zero.data, blocked)
        zeros = _stored(at, found, "zero", kind, steps, lambda: made, packs=found.bits == 4)
    attributes: dict[str, Any] = {} if found.axis is None else {"axis": 1 - found.axis}
    if blocked:
        attributes["block_size"] = found.block
    made_value = at.cast(at.op("DequantizeLinear", integers, scale, zeros, **attributes), torch.float32, weight.dtype)
    at.emitter.cache[key] = made_value
    return made_value


def _turned(data: torch.Tensor, blocked: bool) -> torch.Tensor:
    return data.t() if blocked else data


def _stored(
    at: Lowering,
    found: StoredMatrix,
    kind: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    make: Callable[[], torch.Tensor],
    *,
    packs: bool = False,
) -> onnx_ir.Value:
    """An initialiser made from a matrix; one for all that read it."""
    import onnx_ir as ir

    key = ("matrix", kind, found.node.outputs[0])
    if key not in at.emitter.stored:
        name = f"{found.node.outputs[0].name}.{kind}"
        if not packs:
            at.emitter.stored[key] = at.emitter.initialiser(name, dtype, shape, make)
            return at.emitter.stored[key]
        weight = PackedWeight(ir.Value(name=at.emitter.fresh(name)), dtype, shape, make, dtype == torch.int8)
        at.emitter.weights[weight.name] = weight
        at.emitter.stored[key] = weight.value
    return at.emitter.stored[key]


def _bytes(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers [rows, n] as bytes [rows, ceil(n bits / 8)]: two of four bits to a byte, the first in the lower half."""
    whole = numbers.to(torch.uint8)
    if bits == 8:
        return whole
    if whole.shape[1] % 2:
        whole = torch.nn.functional.pad(whole, (0, 1))
    return whole[:, 0::2] | (whole[:, 1::2] << 4)
