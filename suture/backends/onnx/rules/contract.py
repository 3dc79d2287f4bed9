"""Sums of products: linear, matmul, einsum, convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.held import Held, rows_of
from suture.backends.onnx.lowering import Lowering
from suture.backends.onnx.rules.quantise_weights import packed_product, transposed_weight
from suture.ir.graph import Parameter, Value

if TYPE_CHECKING:
    import onnx_ir


@rule("linear")
def _linear(at: Lowering) -> onnx_ir.Value | Held:
    """Gemm on matrices, and on matrices of rows where that is the choice. Otherwise MatMul and Add, with the weight stored transposed."""
    packed = packed_product(at, 0, 1)
    if packed is not None:
        return at.op("Add", packed, at.x(2)) if at.has(2) else packed
    if at.type(0).rank == 2:
        return at.op("Gemm", at.x(0), at.x(1), at.maybe(2), transB=1)
    if at.node in at.emitter.gemm_layers:
        made = at.op("Gemm", at.emitter.rows(at.value(0)), at.x(1), at.x(2), transB=1)
        return Held(made, rows_of(at.node.outputs[0]))
    product = at.op("MatMul", at.x(0), transposed(at, at.value(1)))
    return at.op("Add", product, at.x(2)) if at.has(2) else product


def transposed(at: Lowering, weight: Value) -> onnx_ir.Value:
    """The transposed weight: as a tensor of the file if nothing needs the other way round, else by one node."""
    if (source := turned(weight)) is not None:
        return at.emitter.read(source)
    if isinstance(weight, Parameter) and all(
        _reads_transposed(use.node.operator.name, use.index, use.node.inputs) for use in weight.uses
    ):
        tensor = weight.data
        return at.weight(f"{weight.name}.transposed", (tensor.shape[1], tensor.shape[0]), lambda: tensor.t(), [weight])
    quantised = transposed_weight(at, weight)
    if quantised is not None:
        return quantised
    key = ("transposed", weight)
    if key not in at.emitter.cache:
        at.emitter.cache[key] = at.op("Transpose", at.emitter.read(weight), perm=[1, 0])
    return at.emitter.cache[key]


def turned(weight: Value) -> Value | None:
    """What a weight is the transposed of, if that is how it was made."""
    made = weight.producer
    if (
        made is None
        or made.operator.name != "permute"
        or weight.rank != 2
        or made.attributes["dims"] not in ((1, 0), (-1, 0))
    ):
        return None
    return made.inputs[0]


def _reads_transposed(operator: str, index: int, inputs: tuple[Value | None, ...]) -> bool:
    if operator == "packed_attention" and index == 1:
        return True
    return operator == "linear" and index == 1 and inputs[0] is not None and inputs[0].rank != 2


@rule("matmul")
def _matmul(at: Lowering) -> onnx_ir.Value:
    packed = packed_product(at, 0, 1, inputs_first=True)
    return at.op("MatMul", at.x(0, at.out.dtype), at.x(1, at.out.dtype)) if packed is None else packed


@rule("addmm")
def _addmm(at: Lowering) -> onnx_ir.Value:
    packed = packed_product(at, 1, 2, inputs_first=True)
    return at.op("Gemm", at.x(1), at.x(2), at.x(0)) if packed is None else at.op("Add", packed, at.x(0))


@rule("einsum")
def _einsum(at: Lowering) -> onnx_ir.Value:
    dtype = at.out.dtype
    return at.op(
        "Einsum", *(at.x(k, dtype) for k in range(len(at.node.inputs))), equation=at.text("equation").replace(" ", "")
    )


@rule("bilinear")
def _bilinear(at: Lowering) -> onnx_ir.Value:
    free = "abcdefgh"[: at.type(0).rank - 1]
    made = at.op("Einsum", at.x(0), at.x(2), at.x(1), equation=f"{free}x,yxz,{free}z->{free}y")
    return at.op("Add", made, at.x(3)) if at.has(3) else made


def spatial(at: Lowering, name: str, rank: int) -> list[int]:
    """One number a spatial dimension; a single one counts for all."""
    values = at.integers(name)
    return list(values * rank if len(values) == 1 else values)


@rule("conv")
def _conv(at: Lowering) -> onnx_ir.Value:
    kernel = at.type(1).shape[2:]
    rank = len(kernel)
    return at.op(
        "Conv", at.x(0), at.x(1), at.maybe(2), kernel_shape=list(kernel), strides=spatial(at, "stride", rank),
        pads=spatial(at, "padding", rank) * 2, dilations=spatial(at, "dilation", rank), group=at.integer("groups"),
    )  # fmt: skip


@rule("conv_transpose")
def _conv_transpose(at: Lowering) -> onnx_ir.Value:
    kernel = at.type(1).shape[2:]
    rank = len(kernel)
    return at.op(
        "ConvTranspose", at.x(0), at.x(1), at.maybe(2), kernel_shape=list(kernel), strides=spatial(at, "stride", rank),
        pads=spatial(at, "padding", rank) * 2, output_padding=spatial(at, "output_padding", rank),
        dilations=spatial(at, "dilation", rank), group=at.integer("groups"),
    )  # fmt: skip
