"""Norms, softmaxes and losses as sums, maxima and arithmetic: the traversal template knows nothing else.

Each rule writes the definition into the graph in front of the node, in the operators of the IR; what reads the node reads the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from suture.codegen.decompose.losses import cross_entropy
from suture.codegen.decompose.writer import Writer, first, number, operand
from suture.ir.expansion import expanded
from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, product


def decompose(graph: Graph) -> Graph:
    """A copy in which every node that has a rule is written out; fused operators are their bodies."""
    result = expanded(graph)
    result = graph.copy() if result is graph else result
    for node in result.nodes:
        rule = _RULES.get(node.operator.name)
        made = rule(Writer(result, node), node) if rule is not None else None
        if made is not None:
            result.replace_uses(node.output, made)
            result.remove(node)
    return result


def _softmax(write: Writer, node: Node) -> Value:
    x, dim = write.wide(first(node)), (int(number(node, "dim")),)
    shifted = write("sub", x, write("amax", x, dims=dim, keepdim=True))
    grown = write("exp", shifted)
    total = write("sum", grown, dims=dim, keepdim=True)
    if node.operator.name == "log_softmax":
        return write.back(write("sub", shifted, write("log", total)), node.output)
    return write.back(write("mul", grown, write("reciprocal", total)), node.output)


def _layer_norm(write: Writer, node: Node) -> Value:
    rank = int(number(node, "rank"))
    made = write.normalised(write.wide(first(node)), tuple(range(-rank, 0)), number(node, "eps"))
    return write.back(_affine(write, made, operand(node, 1), operand(node, 2)), node.output)


def _rms_norm(write: Writer, node: Node) -> Value | None:
    x, rank, eps = write.wide(first(node)), int(number(node, "rank")), node.attributes["eps"]
    floor = torch.finfo(first(node).dtype).eps if eps is None else eps
    square = write.mean(write("mul", x, x), tuple(range(-rank, 0)))
    made = write("mul", x, write("rsqrt", write("add", square, None, scalar=floor)))
    return write.back(_affine(write, made, operand(node, 1), None), node.output)


def _group_norm(write: Writer, node: Node) -> Value | None:
    x, groups = first(node), int(number(node, "groups"))
    apart = write(
        "reshape", write.wide(x), shape=(x.shape[0], groups, -(-_fixed(x.shape[1]) // groups) * product(x.shape[2:]))
    )
    made = write("reshape", write.normalised(apart, (-1,), number(node, "eps")), shape=x.shape)
    gain, bias = (_over_channels(write, operand(node, k), x.rank) for k in (1, 2))
    return write.back(_affine(write, made, gain, bias), node.output)


def _batch_norm(write: Writer, node: Node) -> Value | None:
    x, mean, variance = first(node), operand(node, 3), operand(node, 4)
    gain, bias = operand(node, 1), operand(node, 2)
    if mean is None or variance is None:
        dims = (*(() if node.operator.name == "instance_norm" else (0,)), *range(2, x.rank))
        made = write.normalised(write.wide(x), dims, number(node, "eps"))
        wide = (_over_channels(write, each, x.rank) for each in (gain, bias))
        return write.back(_affine(write, made, *wide), node.output)
    scale = write("rsqrt", write("add", variance, None, scalar=number(node, "eps")))
    scale = scale if gain is None else write("mul", scale, gain)
    shift = write("mul", mean, scale)
    shift = write("neg", shift) if bias is None else write("sub", bias, shift)
    return _affine(write, x, _over_channels(write, scale, x.rank), _over_channels(write, shift, x.rank))


def _variance(write: Writer, node: Node) -> Value | None:
    x, dims, keep = first(node), _dims(node), bool(node.attributes["keepdim"])
    count = product([x.shape[dim] for dim in dims])
    if not isinstance(count, int) or count <= number(node, "correction"):
        return None
    nearly = write("sub", write.wide(x), write.mean(write.wide(x), dims))
    centred = write("sub", nearly, write.mean(nearly, dims))
    total = write("sum", write("mul", centred, centred), dims=dims, keepdim=keep)
    return write.back(write("mul", total, None, scalar=1 / (count - number(node, "correction"))), node.output)


def _norm(write: Writer, x: Value, p: float, dims: tuple[int, ...], keep: bool) -> Value:
    """The p-norm over some dimensions."""
    if p == 2:
        return write("sqrt", write("sum", write("mul", x, x), dims=dims, keepdim=keep))
    size = write("abs", x)
    if math.isinf(p):
        return write("amax" if p > 0 else "amin", size, dims=dims, keepdim=keep)
    if p == 0:
        there = write("cast", write("ne", x, None, scalar=0.0), dtype=x.dtype)
        return write("sum", there, dims=dims, keepdim=keep)
    if p == 1:
        return write("sum", size, dims=dims, keepdim=keep)
    total = write("sum", write("pow", size, None, scalar=p), dims=dims, keepdim=keep)
    return write("pow", total, None, scalar=1 / p)


def _vector_norm(write: Writer, node: Node) -> Value | None:
    x = write.wide(first(node))
    return write.back(_norm(write, x, number(node, "p"), _dims(node), bool(node.attributes["keepdim"])), node.output)


def _l_normalise(write: Writer, node: Node) -> Value | None:
    x = write.wide(first(node))
    size = _norm(write, x, number(node, "p"), (int(number(node, "dim")) % x.rank,), True)
    return write.back(write("div", x, write("clamp", size, min=number(node, "eps"), max=None)), node.output)


def _any(write: Writer, node: Node) -> Value | None:
    """How many are true, or are not: of no elements too."""
    every = node.operator.name == "all"
    true = write("cast", first(node), dtype=torch.bool)
    counted = write("cast", write("logical_not", true) if every else true, dtype=torch.int64)
    total = write("sum", counted, dims=_dims(node), keepdim=bool(node.attributes["keepdim"]))
    return write("eq" if every else "ne", total, None, scalar=0)


def _extreme_index(write: Writer, node: Node) -> Value | None:
    """The first index at which the extreme stands; not a number counts as one."""
    x, dims = first(node), _dims(node)[:1]
    if not dims or not isinstance(x.shape[dims[0]], int) or not x.dtype.is_floating_point:
        return None
    best = write("amax" if node.operator.name == "argmax" else "amin", x, dims=dims, keepdim=True)
    other = write("logical_and", write("ne", x, best), write("logical_not", write("isnan", x)))
    count = write("arange", start=0, step=1, dtype=torch.int64, shape=(x.shape[dims[0]],))
    along = write("reshape", count, shape=(x.shape[dims[0]], *[1] * (x.rank - dims[0] - 1)))
    index = write("where", other, None, along, on_true=2**62)
    return write("amin", index, dims=dims, keepdim=bool(node.attributes["keepdim"]))


def _prelu(write: Writer, node: Node) -> Value | None:
    x, slope = first(node), operand(node, 1)
    assert slope is not None
    slope = slope if x.rank < 2 or slope.shape == (1,) else _over_channels(write, slope, x.rank)
    return write("where", write("lt", x, None, scalar=0), write("mul", x, slope), x)


def _in_two_steps(write: Writer, node: Node) -> Value | None:
    """A reduction of very much to one number: parts side by side first, then those."""
    x, dims = first(node), _dims(node)
    elements = product(x.shape)
    if not isinstance(elements, int) or elements < _MUCH or product([x.shape[dim] for dim in dims]) != elements:
        return None
    pieces = next((each for each in _PIECES if elements % each == 0), None)
    if pieces is None:
        return None
    name = node.operator.name
    apart = write("reshape", x, shape=(pieces, elements // pieces))
    parts = write(name, apart, dims=(1,), keepdim=False)
    whole = write(name, parts, dims=(0,), keepdim=False)
    return whole if node.output.rank == 0 else write("reshape", whole, shape=node.output.shape)


_MUCH = 1 << 16
_PIECES = (64, 48, 32, 36, 40, 24, 20, 16, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2)


def _dims(node: Node) -> tuple[int, ...]:
    dims, rank = node.attributes["dims"], first(node).rank
    items = dims if isinstance(dims, tuple) else (dims,)
    return tuple(int(dim) % max(rank, 1) for dim in items if isinstance(dim, int))


def _affine(write: Writer, x: Value, gain: Value | None, bias: Value | None) -> Value:
    x = x if gain is None else write("mul", x, gain)
    return x if bias is None else write("add", x, bias)


def _over_channels(write: Writer, vector: Value | None, rank: int) -> Value | None:
    """A vector of channels where dimension 1 is theirs."""
    return None if vector is None else write("reshape", vector, shape=(vector.shape[0], *[1] * (rank - 2)))


def _fixed(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


_RULES: dict[str, Callable[[Writer, Node], Value | None]] = {
    "softmax": _softmax, "log_softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm,
    "batch_norm": _batch_norm, "instance_norm": _batch_norm, "var": _variance, "vector_norm": _vector_norm, "l_normalise": _l_normalise,
    "any": _any, "all": _any, "argmax": _extreme_index, "argmin": _extreme_index, "prelu": _prelu, "opaque": cross_entropy,
    **dict.fromkeys(("sum", "mean", "amax", "amin"), _in_two_steps),
}  # fmt: skip
