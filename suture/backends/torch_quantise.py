"""Quantisers as plain torch calls.

Integers that nothing but a dequantiser reads are kept as real numbers, so that gradients pass: rounding passes them straight through, saturation
stops them. So what is around quantisers trains (Bengio et al. 2013, section 4), and the scales do (Esser et al. 2020, equation 3).
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from suture.backends.torch_site import Argument, Site, Writer
from suture.ir.graph import Value
from suture.ir.operators.quantise import integer_range, integer_type


def _quantise(site: Site) -> fx.Node:
    faked, bits = keeps_gradients(site.node.output), site.attributes["bits"]
    low, high = integer_range(bits, site.attributes["signed"])
    x, scale, zero = site.operand(0), _spread(site, 1), _spread(site, 2)
    wide = _width(site, bits)
    if wide is not None:
        x, scale = site.method("to", x, wide), site.method("to", scale, wide)
    ratio = site.call(torch.div, x, scale)
    rounded = site.call(torch.round, ratio)
    if faked:
        rounded = site.call(operator.add, ratio, site.method("detach", site.call(operator.sub, rounded, ratio)))
    else:
        rounded = site.call(torch.nan_to_num, rounded, nan=0.0, posinf=2.0**40, neginf=-(2.0**40))
    shifted = rounded if zero is None else site.call(torch.add, rounded, zero)
    kept = site.call(torch.clamp, shifted, low, high)
    return kept if faked else site.method("to", kept, integer_type(bits, site.attributes["signed"]))


def _dequantise(site: Site) -> fx.Node:
    integers = site.node.inputs[0]
    scale, zero = _spread(site, 1), _spread(site, 2)
    value = site.node.inputs[1]
    assert integers is not None and value is not None
    steps: Argument = site.operand(0)
    if keeps_gradients(integers):
        steps = steps if zero is None else site.call(torch.sub, steps, zero)
    elif zero is not None:
        steps = site.call(torch.sub, site.method("to", steps, torch.int32), site.method("to", zero, torch.int32))
    return site.call(torch.mul, site.method("to", steps, value.dtype), scale)


def keeps_gradients(integers: Value) -> bool:
    """Whether a value is a quantiser's, and read by dequantisers alone."""
    node = integers.producer
    if node is None or node.operator.name != "quantise" or integers.is_graph_output():
        return False
    return all(use.node.operator.name == "dequantise" and use.index == 0 for use in integers.uses)


def _width(site: Site, bits: int) -> torch.dtype | None:
    """The type to compute in, where it is another than the operand's."""
    value = site.node.inputs[0]
    assert value is not None
    wanted = torch.float64 if bits == 32 else torch.float32
    return None if value.dtype in (wanted, torch.float64) else wanted


def _spread(site: Site, index: int) -> fx.Node | None:
    """The scale or zero point, shaped so that it broadcasts with the operand."""
    parameter, rank, block = site.operand(index), site.rank(), site.attributes["block"]
    if parameter is None or site.rank(index) == 0:
        return parameter
    axis = site.attributes["axis"] % rank
    if block is not None:
        return site.method("repeat_interleave", parameter, block, axis)
    if axis == rank - 1:
        return parameter
    return site.method("reshape", parameter, [-1 if k == axis else 1 for k in range(rank)])


QUANTISERS: dict[str, Writer] = {"quantise": _quantise, "dequantise": _dequantise}
"""Operator -> what writes it."""
