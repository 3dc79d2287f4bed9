"""Bias correction: what quantisation shifts on average is taken back in the biases (Nagel et al. 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from suture.ir.graph import Graph, Node, Parameter, Value
from suture.passes.quantise.calibration import Feed, watch
from suture.passes.quantise.parameters import QuantiserParameters
from suture.passes.quantise.placement import Placement, Site


def mean_errors(
    graph: Graph,
    data: Sequence[Feed],
    placement: Placement,
    activations: Mapping[Value, QuantiserParameters],
    weights: Mapping[Site, QuantiserParameters],
) -> dict[Site, torch.Tensor]:
    """Per output channel, what quantisation takes from a site's result on average: E[W x] - E[Q(W) Q(x)], over examples and positions.

    x is what the site reads in the float model, on the calibration data; one batch is in memory at a time.

    :returns: float64 vectors, one per site that has a weight and may have a bias
    """
    sites = [site for site in placement.sites if site.weight is not None and site.form.bias is not None]
    waiting: dict[Value, list[Site]] = {}
    for site in sites:
        value = site.node.inputs[site.activations[0]]
        assert value is not None
        waiting.setdefault(value, []).append(site)
    rounded = {site: _round_trip(site, weights[site]) for site in sites}
    sums: dict[Site, torch.Tensor] = {}
    counts: dict[Site, int] = {}

    def see(value: Value, tensor: torch.Tensor) -> None:
        for site in waiting.get(value, ()):
            coarse = activations[placement.leader(value)].round_trip(tensor)
            difference = _run(site, tensor, _weight(site)) - _run(site, coarse, rounded[site])
            channels = difference.to(torch.float64).movedim(_channels(site.node), -1).flatten(0, -2)
            sums[site] = sums.get(site, torch.zeros((), dtype=torch.float64)) + channels.sum(0)
            counts[site] = counts.get(site, 0) + len(channels)

    with torch.no_grad():
        watch(graph, data, see)
    return {site: sums[site] / max(counts[site], 1) for site in sites if site in sums}


def _channels(node: Node) -> int:
    """The dimension of the result that a bias is along."""
    return 1 if node.operator.name == "conv" else node.output.rank - 1


def _weight(site: Site) -> torch.Tensor:
    assert site.weight is not None
    weight = site.node.inputs[site.weight]
    assert isinstance(weight, Parameter)
    return weight.data.detach()


def _round_trip(site: Site, chosen: QuantiserParameters) -> torch.Tensor:
    return chosen.round_trip(_weight(site))


def _run(site: Site, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The site's operator without its bias."""
    operands: list[Any] = [None] * len(site.node.inputs)
    operands[site.activations[0]], operands[site.weight or 0] = x, weight
    if site.node.operator.name == "addmm":  # its bias is its first operand, and never absent
        return x @ weight
    attributes: dict[str, Any] = dict(site.node.attributes)
    result: torch.Tensor = site.node.operator.run(*operands, **attributes)
    return result
