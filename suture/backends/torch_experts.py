"""Experts by random partition as plain torch calls. Whether a module trains is a number here, 0 or 1, so that one code says both."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from suture.backends.torch_site import Argument, Site, Writer


def _random_order(site: Site) -> fx.Node:
    place = site.method("select", site.operand(0), -1, 0)
    device = site.call(getattr, place, "device")
    drawn = site.call(torch.randperm, site.method("numel", place), device=device)
    trained = site.call(torch.mul, drawn, site.call(operator.mul, 1, site.training()))
    return site.method("reshape", trained, site.call(getattr, place, "shape"))


def _expert_linear(site: Site) -> fx.Node:
    x, weight, bias, order = (site.operand(k) for k in range(4))
    experts, outputs, inputs = _sizes(site)
    trains = site.call(operator.mul, 1, site.training())
    rows = site.method("reshape", x, -1, inputs)
    count = site.method("size", rows, 0)
    missing = site.call(operator.mod, site.call(operator.neg, count), experts)
    size = site.call(operator.floordiv, site.call(operator.add, count, missing), experts)
    place = _place(site, order, count, rows, trains)
    taken = site.method("index_select", rows, 0, site.call(torch.argsort, place, stable=True))
    parts = site.method("reshape", site.call(F.pad, taken, (0, 0, 0, missing)), experts, size, inputs)
    maps = _chosen(site, weight, trains)
    turned = maps if site.attributes["transposed"] else site.method("transpose", maps, 1, 2)
    results = site.call(torch.matmul, parts, turned)
    if bias is not None:
        results = site.call(operator.add, results, site.method("unsqueeze", _chosen(site, bias, trains), 1))
    flat = site.method("reshape", results, site.call(operator.mul, experts, size), outputs)
    leading = [site.method("size", x, k) for k in range(site.rank() - 1)]
    return site.method("reshape", site.method("index_select", flat, 0, place), (*leading, outputs))


def _place(site: Site, order: Argument, count: Argument, rows: Argument, trains: Argument) -> fx.Node:
    """The place of every row: in the random order, or in its own."""
    own = site.call(torch.arange, count, device=site.call(getattr, rows, "device"))
    drawn = site.call(torch.mul, site.method("reshape", order, -1), trains)
    return site.call(operator.add, drawn, site.call(torch.mul, own, site.call(operator.sub, 1, trains)))


def _chosen(site: Site, stacked: Argument, trains: Argument) -> fx.Node:
    """Each expert's tensor, or the mean of all in its place."""
    mean = site.call(torch.mean, stacked, 0, keepdim=True)
    return site.call(torch.lerp, mean, stacked, site.call(operator.mul, 1.0, trains))


def _sizes(site: Site) -> tuple[int, int, int]:
    weight = site.node.inputs[1]
    assert weight is not None
    experts, *sides = (dim for dim in weight.shape if isinstance(dim, int))
    outputs, inputs = reversed(sides) if site.attributes["transposed"] else sides
    return experts, outputs, inputs


EXPERTS: dict[str, Writer] = {"random_order": _random_order, "expert_linear": _expert_linear}
"""Operator -> what writes it."""
