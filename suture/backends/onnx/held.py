"""Values that stand in the file under another shape than in the graph, above all as matrices of their rows: who reads them so saves a Reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from suture.ir.graph import Node, Parameter, Value
from suture.ir.sizes import Dim, product

if TYPE_CHECKING:
    import onnx_ir

# What maps each element, or each row, by itself, and is written the same for any leading dimensions.
_ELEMENTWISE = frozenset({
    "abs", "cast", "celu", "clamp", "clone", "cos", "dropout", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "log_sigmoid",
    "mish", "neg", "quick_gelu", "reciprocal", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu", "sin", "softplus", "softsign", "sqrt", "tanh",
    "add", "bias_gelu", "bias_residual", "div", "maximum", "minimum", "mul", "sub",
})  # fmt: skip
_QUANTISERS = frozenset({"quantise", "dequantise"})  # those of one scale
_NORMS = frozenset({"layer_norm", "rms_norm", "skip_layer_norm", "skip_rms_norm"})


@dataclass(frozen=True)
class Held:
    """The same elements in the same order as a value of the graph, under a shape of their own."""

    value: onnx_ir.Value
    shape: tuple[Dim, ...]


def rows_of(value: Value) -> tuple[Dim, ...]:
    """The shape of a value as a matrix of its rows."""
    return (product(value.shape[:-1]), value.shape[-1])


def works_on_rows(node: Node) -> bool:
    """Whether a node is written the same on matrices of rows: operands have the result's shape, or are one row at most."""
    shape = node.outputs[0].shape
    if len(shape) < 3 or node.operator.name not in _ELEMENTWISE | _NORMS | _QUANTISERS:
        return False
    if node.operator.name in _QUANTISERS:
        return node.inputs[0] is not None and not isinstance(node.inputs[0], Parameter) and node.inputs[1].rank == 0  # type: ignore[union-attr]
    if node.operator.name in _NORMS and node.attributes.get("rank", 1) != 1:
        return False
    return all(value is None or value.shape == shape or value.rank <= 1 for value in (*node.inputs, *node.outputs))
