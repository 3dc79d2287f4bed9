"""Norms and softmaxes as sums, maxima and arithmetic: the traversal template knows nothing else.

Each rule writes the definition into the graph in front of the node, in the operators of the IR; what reads the node reads the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, product


class _Writer:
    """Adds nodes in front of another one."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def __call__(
        self, operator: str, *operands: Value | None, shape: Sequence[Dim] | None = None, **attributes: Any
    ) -> Value:
        shapes = None if shape is None else [tuple(shape)]
        made = self.graph.add(
            operator, operands, attributes, shapes=shapes, path=self.node.path, name=f"{self.node.output.name}_part", before=self.node
        )  # fmt: skip
        return made.output

    def mean(self, x: Value, dims: tuple[int, ...]) -> Value:
        return self("mean", x, dims=dims, keepdim=True)

    def wide(self, x: Value) -> Value:
        """Statistics of short floats are taken in float32."""
        return self("cast", x, dtype=torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x

    def back(self, x: Value, like: Value) -> Value:
        return x if x.dtype == like.dtype else self("cast", x, dtype=like.dtype)

    def normalised(self, x: Value, dims: tuple[int, ...], eps: float) -> Value:
        """(x - mean) / sqrt(variance + eps).

        The mean is taken off twice: one unit in its last place would become 1 / sqrt(eps) of them where all of a row is nearly equal.
        """
        nearly = self("sub", x, self.mean(x, dims))
        centred = self("sub", nearly, self.mean(nearly, dims))
        variance = self.mean(self("mul", centred, centred), dims)
        return self("mul", centred, self("rsqrt", self("add", variance, None, scalar=eps)))


def decompose(graph: Graph) -> Graph:
    """A copy in which every node that has a rule is written out."""
    result = graph.copy()
    for node in result.nodes:
        rule = _RULES.get(node.operator.name)
        made = rule(_Writer(result, node), node) if rule is not None else None
        if made is not None:
            result.replace_uses(node.output, made)
            result.remove(node)
    return result


def _operand(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _first(node: Node) -> Value:
    found = node.inputs[0]
    assert found is not None
    return found


def _number(node: Node, name: str) -> float:
    value = node.attributes[name]
    assert isinstance(value, int | float)
    return float(value)


def _softmax(write: _Writer, node: Node) -> Value:
    x, dim = write.wide(_first(node)), (int(_number(node, "dim")),)
    shifted = write("sub", x, write("amax", x, dims=dim, keepdim=True))
    grown = write("exp", shifted)
    total = write("sum", grown, dims=dim, keepdim=True)
    if node.operator.name == "log_softmax":
        return write.back(write("sub", shifted, write("log", total)), node.output)
    return write.back(write("mul", grown, write("reciprocal", total)), node.output)


def _layer_norm(write: _Writer, node: Node) -> Value:
    rank = int(_number(node, "rank"))
    made = write.normalised(write.wide(_first(node)), tuple(range(-rank, 0)), _number(node, "eps"))
    return write.back(_affine(write, made, _operand(node, 1), _operand(node, 2)), node.output)


def _rms_norm(write: _Writer, node: Node) -> Value | None:
    x, rank, eps = write.wide(_first(node)), int(_number(node, "rank")), node.attributes["eps"]
    floor = torch.finfo(_first(node).dtype).eps if eps is None else eps
    square = write.mean(write("mul", x, x), tuple(range(-rank, 0)))
    made = write("mul", x, write("rsqrt", write("add", square, None, scalar=floor)))
    return write.back(_affine(write, made, _operand(node, 1), None), node.output)


def _group_norm(write: _Writer, node: Node) -> Value | None:
    x, groups = _first(node), int(_number(node, "groups"))
    apart = write(
        "reshape", write.wide(x), shape=(x.shape[0], groups, -(-_fixed(x.shape[1]) // groups) * product(x.shape[2:]))
    )
    made = write("reshape", write.normalised(apart, (-1,), _number(node, "eps")), shape=x.shape)
    gain, bias = (_over_channels(write, _operand(node, k), x.rank) for k in (1, 2))
    return write.back(_affine(write, made, gain, bias), node.output)


def _batch_norm(write: _Writer, node: Node) -> Value | None:
    x, mean, variance = _first(node), _operand(node, 3), _operand(node, 4)
    if mean is None or variance is None:
        return None
    scale = write("rsqrt", write("add", variance, None, scalar=_number(node, "eps")))
    gain = _operand(node, 1)
    scale = scale if gain is None else write("mul", scale, gain)
    shift = write("mul", mean, scale)
    bias = _operand(node, 2)
    shift = write("neg", shift) if bias is None else write("sub", bias, shift)
    return _affine(write, x, _over_channels(write, scale, x.rank), _over_channels(write, shift, x.rank))


def _affine(write: _Writer, x: Value, gain: Value | None, bias: Value | None) -> Value:
    x = x if gain is None else write("mul", x, gain)
    return x if bias is None else write("add", x, bias)


def _over_channels(write: _Writer, vector: Value | None, rank: int) -> Value | None:
    """A vector of channels where dimension 1 is theirs."""
    return None if vector is None else write("reshape", vector, shape=(vector.shape[0], *[1] * (rank - 2)))


def _fixed(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


_RULES: dict[str, Callable[[_Writer, Node], Value | None]] = {
    "softmax": _softmax, "log_softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm,
    "batch_norm": _batch_norm,
}  # fmt: skip
