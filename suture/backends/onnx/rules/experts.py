"""Experts by random partition, as they evaluate: one map, the mean of the experts'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suture.backends.onnx.emitter import rule
from suture.backends.onnx.lowering import Lowering
from suture.ir.graph import Parameter

if TYPE_CHECKING:
    import onnx_ir


@rule("random_order")
def _random_order(at: Lowering) -> onnx_ir.Value:
    import onnx_ir as ir

    zero = ir.tensor_adapters.TorchTensor(torch.zeros(1, dtype=torch.int64))
    return at.op("ConstantOfShape", at.shape(at.out.shape), value=zero)


@rule("expert_linear")
def _expert_linear(at: Lowering) -> onnx_ir.Value:
    product = at.op("MatMul", at.x(0), _mean(at, 1, not at.node.attributes["transposed"]))
    return at.op("Add", product, _mean(at, 2, False)) if at.has(2) else product


def _mean(at: Lowering, index: int, turned: bool) -> onnx_ir.Value:
    """The mean of an operand over its experts, as a tensor of the file where it is a parameter."""
    value = at.value(index)
    sizes = tuple(dim for dim in value.shape[1:] if isinstance(dim, int))
    if isinstance(value, Parameter):
        data = value.data
        shape = tuple(reversed(sizes)) if turned else sizes
        name = f"{value.name}.mean{'.transposed' if turned else ''}"
        return at.weight(name, shape, lambda: data.mean(0).t() if turned else data.mean(0), [value])
    mean = at.op("ReduceMean", at.x(index), at.ints(0), keepdims=0) if at.opset >= 18 else at.op(
        "ReduceMean", at.x(index), axes=[0], keepdims=0
    )  # fmt: skip
    return at.transpose(mean, (1, 0)) if turned else mean
