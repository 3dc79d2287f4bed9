"""The quantisers of activations, from one sweep over the calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Use, Value
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.quantise_weights.sweep import Sweep, whole
from suture.passes.repq.clipping import dual_clipping
from suture.passes.repq.norm_sites import NormSite
from suture.passes.repq.ranges import (
    ChannelQuantiser,
    channel_quantisers,
    log2_scale,
    percentile_quantiser,
)

Softmax = Literal["uniform", "log2"]


@dataclass(frozen=True)
class Activation:
    """A value that products read, the operands that read it, and the bits of its integers."""

    value: Value
    uses: tuple[Use, ...]
    bits: int


@dataclass(frozen=True)
class LogScale:
    """The scale of a quantiser of logarithms."""

    scale: torch.Tensor
    bits: int


Quantiser = QuantiserParameters | LogScale


def channel_calibration(
    graph: Graph, sites: Mapping[NormSite, int], data: Mapping[str, torch.Tensor], *, clip: bool
) -> dict[NormSite, ChannelQuantiser]:
    """The quantisers of every norm's channels, given their bits."""
    sweep = Sweep(graph, data)
    found: dict[NormSite, ChannelQuantiser] = {}
    for site, bits in sites.items():
        sweep.run_to(_first_reader(graph, site.norm.output))
        rows = site.rows(sweep.tensors(site.norm.output))
        _require_finite(rows, site.norm.output)
        made = channel_quantisers(rows, bits, symmetric=site.symmetric)
        if clip:
            made = dual_clipping(rows, site.gram(), made, symmetric=site.symmetric)
        found[site] = made
    return found


def tensor_calibration(
    graph: Graph,
    activations: Mapping[Value, Activation],
    known: Mapping[Value, QuantiserParameters],
    data: Mapping[str, torch.Tensor],
    softmax: Softmax,
) -> dict[Value, Quantiser]:
    """The quantiser of every activation; of those in `known` it is the one given."""
    sweep = Sweep(graph, data)
    found: dict[Value, Quantiser] = {}
    for value, activation in activations.items():
        if value in known:
            found[value] = known[value]
            continue
        sweep.run_to(_first_reader(graph, value))
        numbers = whole(sweep.tensors(value))
        _require_finite(numbers, value)
        if softmax == "log2" and is_probability(value):
            scale = torch.tensor(log2_scale(numbers, activation.bits), dtype=torch.float32)
            found[value] = LogScale(scale, activation.bits)
        else:
            found[value] = percentile_quantiser(numbers, activation.bits)
    return found


def planned(activations: Mapping[Value, Activation], softmax: Softmax) -> dict[Value, Quantiser]:
    """Quantisers without numbers, for a graph without."""
    found: dict[Value, Quantiser] = {}
    scale = torch.empty((), device="meta")
    for value, activation in activations.items():
        logarithmic = softmax == "log2" and is_probability(value)
        zero = torch.empty((), dtype=torch.uint8, device="meta")
        plain = QuantiserParameters(scale, zero, activation.bits)
        found[value] = LogScale(scale, activation.bits) if logarithmic else plain
    return found


def is_probability(value: Value) -> bool:
    """Whether a value is a softmax's, perhaps with elements dropped in training."""
    node = value.producer
    while node is not None and node.operator.name in ("dropout", "cast", "clone"):
        operand = node.inputs[0]
        node = operand.producer if operand is not None else None
    return node is not None and node.operator.name == "softmax"


def in_order(graph: Graph, found: Mapping[Value, Activation]) -> dict[Value, Activation]:
    """By the first node that reads each."""
    place = {node: k for k, node in enumerate(graph.nodes)}
    return dict(sorted(found.items(), key=lambda item: min(place[node] for node, _ in item[0].uses)))


def _require_finite(numbers: torch.Tensor, value: Value) -> None:
    if not bool(numbers.isfinite().all()):
        raise SutureError(
            Code.CALIBRATION, f"{value} holds numbers that are not finite on the data",
            where=value.producer.where() if value.producer is not None else "",
            remedy="mend the weights or the data that make them",
        )  # fmt: skip


def _first_reader(graph: Graph, value: Value) -> Node:
    readers = {node for node, _ in value.uses}
    return next(node for node in graph.nodes if node in readers)
