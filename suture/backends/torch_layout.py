"""Moving and making tensors as plain torch calls: shapes, slices, lookups, constants, ranges, and operators kept as they were."""

from __future__ import annotations

import json
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from suture.backends.torch_site import Argument, Site, Writer, call_of, front, plus, times
from suture.ir.operators.source import resolve_target


def _expand(site: Site) -> fx.Node:
    return site.method("expand", site.operand(0), site.shapes[0])


def _split(site: Site) -> fx.Node:
    dim = front(site, "dim")
    return site.call(torch.split, site.operand(0), [shape[dim] for shape in site.shapes], dim)


def _slice(site: Site) -> fx.Node:
    dim, start, step = front(site, "dim"), site.attributes["start"], site.attributes["step"]
    length = site.shapes[0][dim]
    span = length if step == 1 else times(site, length, step)
    stop = span if start == 0 else plus(site, start, span)
    key = [slice(None)] * dim + [slice(None if start == 0 else start, stop, None if step == 1 else step)]
    return site.call(operator.getitem, site.operand(0), tuple(key))


def _pad(site: Site) -> fx.Node:
    pads, mode, value = (site.attributes[name] for name in ("pads", "mode", "value"))
    half = len(pads) // 2
    flat = [amount for k in reversed(range(half)) for amount in (pads[k], pads[half + k])]
    least = 2 if mode == "constant" else 2 * (site.rank() - 2)
    while len(flat) > least and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return site.call(F.pad, site.operand(0), flat, mode, *([] if value is None else [value]))


def _index(site: Site) -> fx.Node:
    key: list[Argument] = [slice(None)] * site.rank()
    for dim, index in zip(site.attributes["dims"], site.operands[1:], strict=True):
        key[dim] = index
    while key and key[-1] == slice(None):
        key.pop()
    return site.call(operator.getitem, site.operand(0), tuple(key))


def _segment_sum(site: Site) -> fx.Node:
    x, index, batches = site.operand(0), site.operand(1), site.rank(1) - 1
    total = site.method("new_zeros", x, site.shapes[0])
    if not batches:
        return site.method("index_add", total, 0, index, x)
    for _ in range(site.rank(0) - site.rank(1)):
        index = site.method("unsqueeze", index, -1)
    return site.method("scatter_add", total, batches, site.method("expand_as", index, x), x)


def _embedding(site: Site) -> fx.Node:
    if site.rank() == 2:
        return site.call(F.embedding, site.operand(1), site.operand(0), site.attributes["padding"])
    if site.rank(1) == 1:
        return site.call(torch.index_select, site.operand(0), 0, site.operand(1))
    return site.call(operator.getitem, site.operand(0), site.operand(1))


def _triangle(site: Site) -> fx.Node:
    return site.call(
        torch.triu if site.attributes["upper"] else torch.tril, site.operand(0), site.attributes["diagonal"]
    )


def _full(site: Site) -> fx.Node:
    a = site.attributes
    return site.call(torch.full, site.shapes[0], a["value"], dtype=a["dtype"], device=site.device())


def _arange(site: Site) -> fx.Node:
    a = site.attributes
    length, start, step = site.shapes[0][0], a["start"], a["step"]
    if any(isinstance(number, float) for number in (start, step)) and length != 0:
        length = plus(site, length, -0.5)  # rounding cannot add or lose an element
    span = length if step == 1 else times(site, length, step)
    stop = span if start == 0 else plus(site, start, span)
    return site.call(torch.arange, start, stop, step, dtype=a["dtype"], device=site.device())


def _opaque(site: Site) -> fx.Node:
    """The torch operator itself, its argument template filled."""
    template = json.loads(site.attributes["arguments"])

    def fill(item: Any) -> Argument:
        match item:
            case {"$": index}:
                return site.operand(index)
            case {"dtype": name} | {"memory_format": name}:
                return getattr(torch, name)
            case {"device": name}:
                return torch.device(name) if name != "cpu" else site.device()
            case {"layout": _}:
                return torch.strided
            case {"size": index}:
                return site.attributes["sizes"][index]
            case list():
                return [fill(part) for part in item]
            case _:
                return item

    keywords = {name: fill(value) for name, value in template["kwargs"].items()}
    return site.call(resolve_target(site.attributes["target"]), *fill(template["args"]), **keywords)


LAYOUT: dict[str, Writer] = {
    "reshape": lambda site: site.call(torch.reshape, site.operand(0), site.shapes[0]),
    "permute": call_of(torch.permute, "dims"),
    "expand": _expand,
    "repeat": lambda site: site.method("repeat", site.operand(0), site.attributes["repeats"]),
    "repeat_interleave": call_of(torch.repeat_interleave, "repeats", "dim"),
    "concat": lambda site: site.call(torch.cat, list(site.operands), site.attributes["dim"]),
    "split": _split,
    "slice": _slice,
    "select": call_of(torch.select, "dim", "index"),
    "roll": call_of(torch.roll, "shifts", "dims"),
    "flip": call_of(torch.flip, "dims"),
    "pad": _pad,
    "triangle": _triangle,
    "embedding": _embedding,
    "index": _index,
    "gather": lambda site: site.call(torch.gather, site.operand(0), site.attributes["dim"], site.operand(1)),
    "segment_sum": _segment_sum,
    "pixel_shuffle": call_of(F.pixel_shuffle, "factor"),
    "pixel_unshuffle": call_of(F.pixel_unshuffle, "factor"),
    "full": _full,
    "arange": _arange,
    "opaque": _opaque,
}
"""Operator -> what writes it."""
