"""Weights as the matrices that they are: which operand is the weight, and how it maps a position's inputs to its outputs.

Of a linear operator that is the weight itself, of `addmm` and `matmul` its transpose, of a convolution the kernel with its inputs and offsets as
columns.
"""

from __future__ import annotations

import torch

from suture.ir.graph import Node, Parameter, Value

WEIGHT = {"linear": 1, "conv": 1, "addmm": 2, "matmul": 1}
"""Which operand of an operator is the weight."""
DATA = {"linear": 0, "conv": 0, "addmm": 1, "matmul": 0}
"""Which one the weight is applied to."""
BIAS = {"linear": 2, "conv": 2, "conv_transpose": 2, "addmm": 0}
"""Which one is added."""
_TRANSPOSED = ("addmm", "matmul")


def why_no_matrix(parameter: Parameter) -> str | None:
    """Why a parameter cannot be given adapters; None if it can: one node reads it, and multiplies by it as a matrix."""
    if len(parameter.uses) != 1:
        return f"{len(parameter.uses)} nodes read it"
    node, index = parameter.uses[0]
    name = node.operator.name
    if WEIGHT.get(name) != index:
        return f"{name} does not multiply by it"
    if name == "conv" and node.attributes["groups"] != 1:
        return f"its convolution has {node.attributes['groups']} groups"
    return f"it has {parameter.rank} dimensions" if name != "conv" and parameter.rank != 2 else None


def as_matrix(weight: torch.Tensor, node: Node) -> torch.Tensor:
    """A weight as the matrix `[outputs, inputs]` that its node applies."""
    return weight.transpose(0, 1) if node.operator.name in _TRANSPOSED else weight.flatten(1)


def from_matrix(matrix: torch.Tensor, node: Node) -> torch.Tensor:
    """A matrix in the layout of a node's weight."""
    if node.operator.name in _TRANSPOSED:
        return matrix.transpose(0, 1)
    weight = node.inputs[WEIGHT[node.operator.name]]
    assert weight is not None
    shape = [size for size in weight.shape[1:] if isinstance(size, int)]
    return matrix.reshape(len(matrix), *shape)


def bias_of(node: Node) -> Value | None:
    """What a layer adds to its product."""
    index = BIAS.get(node.operator.name)
    return node.inputs[index] if index is not None and index < len(node.inputs) else None
