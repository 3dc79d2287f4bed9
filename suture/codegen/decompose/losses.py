"""Cross-entropy and negative log-likelihood of classes, which come in as opaque nodes, over rows that are read twice and never written."""

from __future__ import annotations

import json

import torch

from suture.codegen.decompose.writer import Writer, operand
from suture.ir.graph import Node, Value

_TARGETS = ("aten.cross_entropy_loss.default", "aten.nll_loss_nd.default", "aten.nll_loss.default")


def cross_entropy(write: Writer, node: Node) -> Value | None:
    """log sum exp(x) - x[class], averaged or added over what is not ignored; None for other opaque nodes, weights and smoothed labels."""
    if node.attributes.get("target") not in _TARGETS or len(node.outputs) != 1:
        return None
    x, y = operand(node, 0), operand(node, 1)
    given = json.loads(str(node.attributes["arguments"]))
    arguments = [*given["args"], *[None] * 6]
    named = {
        "weight": arguments[2],
        "reduction": arguments[3],
        "ignore_index": arguments[4],
        "label_smoothing": arguments[5],
    }
    named.update(given.get("kwargs", {}))
    if x is None or y is None or named["weight"] is not None or named["label_smoothing"] or y.dtype != torch.int64:
        return None
    if x.rank < 2 or y.rank != x.rank - 1 or arguments[:2] != [{"$": 0}, {"$": 1}]:
        return None
    reduction = 1 if named["reduction"] is None else named["reduction"]
    ignored = -100 if named["ignore_index"] is None else named["ignore_index"]
    wide = write.wide(x)
    rows = (x.shape[0], 1, *x.shape[2:])
    classes = write("reshape", y, shape=rows)
    picked = write("gather", wide, classes, dim=1)
    if str(node.attributes["target"]).startswith("aten.cross"):
        top = write("amax", wide, dims=(1,), keepdim=True)
        total = write("sum", write("exp", write("sub", wide, top)), dims=(1,), keepdim=True)
        loss = write("sub", write("log", total), write("sub", picked, top))
    else:
        loss = write("neg", picked)
    counts = write("ne", classes, None, scalar=ignored)
    loss = write("where", counts, loss, None, on_false=0.0)
    if reduction == 0:
        return write.back(write("reshape", loss, shape=y.shape), node.output)
    every = tuple(range(x.rank))
    added = write("sum", loss, dims=every, keepdim=False)
    if reduction == 1:
        again = write("ne", classes, None, scalar=ignored)  # a comparison more, and nothing between the kernels
        number = write("sum", write("cast", again, dtype=wide.dtype), dims=every, keepdim=False)
        added = write("div", added, number)
    return write.back(added, node.output)
