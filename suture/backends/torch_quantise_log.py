"""Quantisers of logarithms as plain torch calls: rounding passes gradients straight through, as that of `torch_quantise` does."""

from __future__ import annotations

import math
import operator

import torch
from torch import fx

from suture.backends.torch_site import Site, Writer
from suture.ir.graph import Value


def _quantise(site: Site) -> fx.Node:
    bits, steps = site.attributes["bits"], site.attributes["steps"]
    last, value = (1 << bits) - 1, site.node.inputs[0]
    assert value is not None
    x, scale = site.operand(0), site.operand(1)
    if value.dtype not in (torch.float32, torch.float64):
        x, scale = site.method("to", x, torch.float32), site.method("to", scale, torch.float32)
    ratio = site.call(torch.div, x, scale)
    if not _keeps_gradients(site.node.output):
        octaves = site.call(operator.neg, site.call(torch.log2, site.call(torch.clamp, ratio, min=0)))
        rounded = site.call(torch.round, site.call(operator.mul, octaves, steps))
        kept = site.call(torch.nan_to_num, rounded, nan=last, posinf=last, neginf=0)
        return site.method("to", site.call(torch.clamp, kept, 0, last), torch.uint8)
    # so small that it becomes the last integer: below that the logarithm has no gradient to pass
    positive = site.call(torch.clamp, ratio, min=2.0 ** -((last + 1) / steps))
    code = site.call(operator.mul, site.call(torch.log2, positive), -steps)
    rounding = site.method("detach", site.call(operator.sub, site.call(torch.round, code), code))
    return site.call(torch.clamp, site.call(operator.add, code, rounding), 0, last)


def _dequantise(site: Site) -> fx.Node:
    integers, scales = site.node.inputs[0], site.node.inputs[1]
    assert integers is not None and scales is not None
    last, steps = (1 << site.attributes["bits"]) - 1, site.attributes["steps"]
    code, scale = site.operand(0), site.operand(1)
    if _keeps_gradients(integers):
        power = site.call(torch.exp2, site.call(operator.truediv, code, -steps))
        zeroed = site.call(torch.where, site.call(operator.lt, code, last - 0.5), power, 0.0)
        return site.call(torch.mul, site.method("to", zeroed, scales.dtype), scale)
    whole = site.method("to", code, torch.int32)
    shift = site.call(torch.div, site.call(operator.add, whole, steps - 1), steps, rounding_mode="floor")
    both = site.call(torch.stack, [scale, site.call(operator.mul, scale, math.sqrt(2.0))])
    parity = site.method("to", site.call(operator.mod, whole, steps), torch.int64)
    number = site.call(torch.ldexp, site.call(operator.getitem, both, parity), site.call(operator.neg, shift))
    return site.call(torch.where, site.call(operator.eq, whole, last), 0.0, number)


def _keeps_gradients(integers: Value) -> bool:
    """Whether a value is a quantiser's, and read by dequantisers alone."""
    node = integers.producer
    if node is None or node.operator.name != "log2_quantise" or integers.is_graph_output():
        return False
    return all(use.node.operator.name == "log2_dequantise" and use.index == 0 for use in integers.uses)


LOG_QUANTISERS: dict[str, Writer] = {"log2_quantise": _quantise, "log2_dequantise": _dequantise}
"""Operator -> what writes it."""
