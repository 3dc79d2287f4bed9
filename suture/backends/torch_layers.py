"""Layers as plain torch calls: contractions, norms, pooling and resampling, recurrences."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from suture.backends.torch_site import Argument, Site, Writer, call_of


def _conv(site: Site) -> fx.Node:
    a = site.attributes
    function = (F.conv1d, F.conv2d, F.conv3d)[site.rank(1) - 3]
    x, weight, bias = (site.operand(k) for k in range(3))
    return site.call(function, x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])


def _conv_transpose(site: Site) -> fx.Node:
    a = site.attributes
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[site.rank(1) - 3]
    x, weight, bias = (site.operand(k) for k in range(3))
    return site.call(
        function, x, weight, bias, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
    )


def _attention(site: Site) -> fx.Node:
    a = site.attributes
    q, k, v, mask = (site.operand(index) for index in range(4))
    dropout: Argument = site.call(operator.mul, a["dropout"], site.training()) if a["dropout"] else 0.0
    return site.call(
        F.scaled_dot_product_attention, q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=a["causal"],
        scale=a["scale"], enable_gqa=a["grouped"],
    )  # fmt: skip


def _einsum(site: Site) -> fx.Node:
    return site.call(torch.einsum, site.attributes["equation"], *site.operands)


def _batch_norm(site: Site) -> fx.Node:
    x, gain, bias, mean, var = (site.operand(k) for k in range(5))
    a = site.attributes
    batch: Argument = True if mean is None else False if a["frozen"] else site.training()
    return site.call(F.batch_norm, x, mean, var, gain, bias, batch, a["momentum"], a["eps"])


def _layer_norm(site: Site) -> fx.Node:
    x, gain, bias = (site.operand(k) for k in range(3))
    normalised = site.shapes[0][site.rank() - site.attributes["rank"] :]
    return site.call(F.layer_norm, x, normalised, gain, bias, site.attributes["eps"])


def _rms_norm(site: Site) -> fx.Node:
    x, gain = site.operand(0), site.operand(1)
    rank, eps = site.attributes["rank"], site.attributes["eps"]
    dims = tuple(range(site.rank() - rank, site.rank()))
    value = site.node.inputs[0]
    assert value is not None
    floor = torch.finfo(value.dtype).eps if eps is None else eps
    square = site.method("mean", site.method("pow", x, 2), dims, keepdim=True)
    unit = site.call(torch.mul, x, site.call(torch.rsqrt, site.call(torch.add, square, floor)))
    return unit if gain is None else site.call(torch.mul, gain, unit)


def _group_norm(site: Site) -> fx.Node:
    x, gain, bias = (site.operand(k) for k in range(3))
    return site.call(F.group_norm, x, site.attributes["groups"], gain, bias, site.attributes["eps"])


def _instance_norm(site: Site) -> fx.Node:
    x, gain, bias, mean, var = (site.operand(k) for k in range(5))
    a = site.attributes
    batch: Argument = True if mean is None else site.training()
    return site.call(F.instance_norm, x, mean, var, gain, bias, batch, a["momentum"], a["eps"])


def _max_pool(site: Site) -> fx.Node:
    a = site.attributes
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(a["kernel"]) - 1]
    return site.call(function, site.operand(0), a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])


def _max_pool_index(site: Site) -> fx.Node:
    a = site.attributes
    functions = (F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)
    function = functions[len(a["kernel"]) - 1]
    both = site.call(function, site.operand(0), a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])
    return site.call(operator.getitem, both, 1)


def _adaptive_max_pool_index(site: Site) -> fx.Node:
    rank = site.attributes["rank"]
    functions = (
        F.adaptive_max_pool1d_with_indices,
        F.adaptive_max_pool2d_with_indices,
        F.adaptive_max_pool3d_with_indices,
    )
    return site.call(operator.getitem, site.call(functions[rank - 1], site.operand(0), site.shapes[0][-rank:]), 1)


def _avg_pool(site: Site) -> fx.Node:
    a = site.attributes
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(a["kernel"]) - 1]
    divisor = [a["divisor"]] if len(a["kernel"]) > 1 and a["divisor"] is not None else []
    return site.call(
        function, site.operand(0), a["kernel"], a["stride"], a["padding"], a["ceil"], a["count_padding"], *divisor
    )


def _adaptive(*functions: Callable[..., Any]) -> Writer:
    def write(site: Site) -> fx.Node:
        rank = site.attributes["rank"]
        return site.call(functions[rank - 1], site.operand(0), site.shapes[0][-rank:])

    return write


def _interpolate(site: Site) -> fx.Node:
    a = site.attributes
    where = {"size": site.shapes[0][-a["rank"] :]} if a["scales"] is None else {"scale_factor": list(a["scales"])}
    return site.call(
        F.interpolate,
        site.operand(0),
        **where,
        mode=a["mode"],
        align_corners=a["align_corners"],
        antialias=a["antialias"],
    )


def _lstm(site: Site) -> fx.Node:
    x, h, c, *weights = site.operands
    return site.call(torch.lstm, x, (h, c), weights, *_recurrent_flags(site))


def _recurrent(function: Callable[..., Any]) -> Writer:
    def write(site: Site) -> fx.Node:
        x, h, *weights = site.operands
        return site.call(function, x, h, weights, *_recurrent_flags(site))

    return write


def _recurrent_flags(site: Site) -> list[Argument]:
    a = site.attributes
    training: Argument = site.training() if a["dropout"] else False
    return [a["biased"], a["layers"], a["dropout"], training, a["bidirectional"], a["batch_first"]]


LAYERS: dict[str, Writer] = {
    "addmm": call_of(torch.addmm),
    "einsum": _einsum,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "attention": _attention,
    "bilinear": call_of(F.bilinear),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "softmax": call_of(torch.softmax, "dim"),
    "log_softmax": call_of(torch.log_softmax, "dim"),
    "l_normalise": call_of(F.normalize, "p", "dim", "eps"),
    "max_pool": _max_pool,
    "max_pool_index": _max_pool_index,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "adaptive_max_pool": _adaptive(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    "adaptive_max_pool_index": _adaptive_max_pool_index,
    "interpolate": _interpolate,
    "grid_sample": call_of(F.grid_sample, "mode", "padding", "align_corners"),
    "lstm": _lstm,
    "gru": _recurrent(torch.gru),
    "rnn_tanh": _recurrent(torch.rnn_tanh),
    "rnn_relu": _recurrent(torch.rnn_relu),
}
"""Operator -> what writes it."""
