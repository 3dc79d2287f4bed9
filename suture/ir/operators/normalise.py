"""Operators that normalise by statistics: batch, layer, group, instance and RMS norm, softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.notation import Binding, Instance, instantiate, parse_signature
from suture.ir.operator import REQUIRED, Call, FunctionClass, declare

OTHER, ZERO = FunctionClass.OTHER, FunctionClass.ZERO_PRESERVING
_Maybe = torch.Tensor | None


def _batch_norm(
    x: torch.Tensor,
    gain: _Maybe,
    bias: _Maybe,
    mean: _Maybe = None,
    var: _Maybe = None,
    *,
    eps: float,
    momentum: float,
    frozen: bool,
    training: bool = False,
) -> torch.Tensor:
    batch = mean is None or (training and not frozen)
    return F.batch_norm(x, mean, var, gain, bias, batch, momentum, eps)


def _batch_norm_instance(call: Call) -> Instance:
    """Without running statistics those of the batch are taken, always: samples and positions are mixed."""
    running = len(call.types) > 3 and call.types[3] is not None
    x = "x[n, c, *h]" if running else "x[~n, c, ~*h]"
    notation = f"{x}, gain[c]?, bias[c]?, mean[c]?, var[c]? -> y{x[1:]}"
    return instantiate(
        parse_signature(notation), [None if t is None else t.shape for t in call.types], where=call.where
    )


declare(
    "batch_norm", "x[n, c, *h], gain[c]?, bias[c]?, mean[c]?, var[c]? -> y[n, c, *h]", _batch_norm, build=_batch_norm_instance,
    attributes={"eps": 1e-5, "momentum": 0.1, "frozen": False}, function=OTHER, training=True,
    doc="Batch norm; by running statistics, or by the batch's in training mode (never where `frozen`, always where there are none).",
)  # fmt: skip


def _trailing(call: Call) -> Binding:
    count = call.ints("rank")[0]
    if not 0 < count <= call.type(0).rank:
        raise SutureError(
            Code.SHAPE,
            f"rank={count} of {call.type(0)} to normalise",
            where=call.where,
            remedy=f"1 to {call.type(0).rank} would be right",
        )
    return Binding({"b": call.type(0).rank - count, "d": count})


def _layer_norm(x: torch.Tensor, gain: _Maybe = None, bias: _Maybe = None, *, rank: int, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[x.ndim - rank :], gain, bias, eps)


declare(
    "layer_norm",
    "x[*b, ~*d], gain[~*d]?, bias[~*d]? -> y[*b, ~*d]",
    _layer_norm,
    attributes={"rank": 1, "eps": 1e-5},
    function=OTHER,
    bind=_trailing,
    doc="(x - mean) / sqrt(variance + eps) * gain + bias over the last `rank` dimensions.",
)


def _rms_norm(x: torch.Tensor, gain: _Maybe = None, *, rank: int, eps: float | None) -> torch.Tensor:
    # Term by term, in the order of the models that write it out: their results stay bit-equal.
    dims = tuple(range(x.ndim - rank, x.ndim))
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    normalised = x * torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + floor)
    return normalised if gain is None else gain * normalised


declare(
    "rms_norm", "x[*b, ~*d], gain[~*d]? -> y[*b, ~*d]", _rms_norm, attributes={"rank": 1, "eps": 1e-6}, function=ZERO, bind=_trailing,
    doc="x / sqrt(mean(x^2) + eps) * gain over the last `rank` dimensions (Zhang and Sennrich 2019, equation 4).",
)  # fmt: skip


def _group_norm(x: torch.Tensor, gain: _Maybe = None, bias: _Maybe = None, *, groups: int, eps: float) -> torch.Tensor:
    return F.group_norm(x, groups, gain, bias, eps)


def _groups(call: Call) -> Binding:
    return Binding(sizes={"g": call.ints("groups")[0]})


def _group_norm_instance(call: Call) -> Instance:
    notation = parse_signature("x[n, g*c, ~*h], gain[g*c]?, bias[g*c]? -> y[n, g*c, ~*h]")
    shapes = [None if t is None else t.shape for t in call.types]
    instance = instantiate(notation, shapes, _groups(call), where=call.where)
    from suture.ir.notation import Role

    return Instance(instance.inputs, instance.outputs, instance.sizes, {**instance.roles, "c": Role.MIXED})


declare(
    "group_norm",
    "x[n, g*c, ~*h], gain[g*c]?, bias[g*c]? -> y[n, g*c, ~*h]",
    _group_norm,
    attributes={"groups": REQUIRED, "eps": 1e-5},
    function=OTHER,
    build=_group_norm_instance,
    letters={"groups": "g"},
    doc="Norm within each of g groups of c channels: free on g, mixed on c.",
)


def _instance_norm(
    x: torch.Tensor, gain: _Maybe = None, bias: _Maybe = None, mean: _Maybe = None, var: _Maybe = None, *, eps: float, momentum: float,
    training: bool = False,
) -> torch.Tensor:  # fmt: skip
    return F.instance_norm(x, mean, var, gain, bias, mean is None or training, momentum, eps)


declare(
    "instance_norm", "x[n, c, ~*h], gain[c]?, bias[c]?, mean[c]?, var[c]? -> y[n, c, ~*h]", _instance_norm, attributes={"eps": 1e-5, "momentum": 0.1},
    function=OTHER, training=True, doc="Norm over space, one channel at a time; by running statistics where there are any, in evaluation.",
)  # fmt: skip


def _axis(call: Call) -> Binding:
    dim = call.dim()
    return Binding({"a": dim, "b": call.type(0).rank - dim - 1})


def _with_dim(function: Any) -> Any:
    def run(x: torch.Tensor, *, dim: int) -> torch.Tensor:
        result: torch.Tensor = function(x, dim)
        return result

    return run


declare(
    "softmax",
    "x[*a, ~d, *b] -> y[*a, ~d, *b]",
    _with_dim(torch.softmax),
    attributes={"dim": -1},
    function=OTHER,
    bind=_axis,
    doc="Softmax over `dim`.",
)
declare(
    "log_softmax",
    "x[*a, ~d, *b] -> y[*a, ~d, *b]",
    _with_dim(torch.log_softmax),
    attributes={"dim": -1},
    function=OTHER,
    bind=_axis,
    doc="Log of softmax over `dim`.",
)


def _normalise(x: torch.Tensor, *, p: float, dim: int, eps: float) -> torch.Tensor:
    return F.normalize(x, p, dim, eps)


declare("l_normalise", "x[*a, ~d, *b] -> y[*a, ~d, *b]", _normalise, attributes={"p": 2.0, "dim": 1, "eps": 1e-12}, function=ZERO, bind=_axis,
        doc="x / max(|x|_p, eps) over `dim`.")  # fmt: skip
