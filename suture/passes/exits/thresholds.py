"""Thresholds of gates for a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.exits.cost import exit_costs, model_cost
from suture.passes.exits.loss import exit_outputs
from suture.passes.exits.sites import exits_of
from suture.passes.stitch.calibration import batches

NEVER = 2.0  # no gate reaches it


@dataclass(frozen=True)
class Thresholds:
    """A threshold per exit, and what they came to on the calibration data.

    :param shares: which share of the samples leaves at each exit, and at the end
    :param costs: MACs per sample of leaving there
    """

    values: tuple[float, ...]
    mean_macs: float
    shares: tuple[float, ...]
    costs: tuple[int, ...]

    def __str__(self) -> str:
        rows = [("leaves at", "threshold", "MACs", "samples")]
        for k, (share, cost) in enumerate(zip(self.shares, self.costs, strict=True)):
            limit = f"{self.values[k]:.4g}" if k < len(self.values) else ""
            rows.append((f"exit {k}" if limit else "the end", limit, f"{cost:,}", f"{share:.1%}"))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*table, f"mean MACs {self.mean_macs:,.0f}"])


def calibrate_thresholds(graph: Graph, data: Mapping[str, torch.Tensor] | None, *, budget: float) -> Thresholds:
    """The threshold at which the model goes as deep as a budget of mean MACs allows, on calibration data.

    All exits have the same threshold: gates are probabilities, comparable between exits. A sample leaves at the first exit whose gate reaches it; the
    mean is over single samples, as a batch leaves only when all its samples would.

    :param data: inputs by name, many samples
    :param budget: mean MACs per sample; up to 1, a share of those of the model without exits
    :raises SutureError: EXIT, if the graph has no exits or not even leaving at the first one is within the budget; CALIBRATION, if there are no data
    """
    exits, costs = exits_of(graph), exit_costs(graph)
    if data is None or not data:
        raise SutureError(Code.CALIBRATION, "thresholds need data", where=graph.name, remedy="give inputs by name")
    allowed = budget * model_cost(graph) if budget <= 1 else budget
    gates = _gates(graph, data)
    if costs[0] > allowed:
        raise SutureError(
            Code.EXIT, f"a budget of {allowed:,.0f} MACs is below the first exit's {costs[0]:,}", where=graph.name,
            remedy="allow more, or hang an exit earlier",
        )  # fmt: skip
    candidates = _candidates(gates)
    low, high = 0, len(candidates) - 1  # the mean cost grows with the threshold; the lowest lets all leave at once
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _mean_cost(gates, candidates[middle], costs) <= allowed else (low, middle - 1)
    threshold = candidates[low]
    leaves = _leaves(gates, threshold)
    shares = tuple(float((leaves == k).double().mean()) for k in range(len(costs)))
    return Thresholds((threshold,) * len(exits), _mean_cost(gates, threshold, costs), shares, costs)


def _gates(graph: Graph, data: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The gates of all samples, [samples, exits]."""
    with torch.no_grad():
        found = [exit_outputs(graph, evaluate(graph, batch)).gates for batch in batches(graph, data)]
    return torch.cat([torch.stack(gates, dim=1) for gates in found]).double()


def _candidates(gates: torch.Tensor) -> list[float]:
    """Thresholds that tell all gates seen apart: half-way between neighbours, so that rounding elsewhere decides nothing."""
    seen = sorted(set(gates.flatten().tolist()))
    return [0.0, *((a + b) / 2 for a, b in itertools.pairwise(seen)), NEVER]


def _leaves(gates: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where each sample leaves: the number of its exit, or one more."""
    fires = torch.cat([gates >= threshold, torch.ones(len(gates), 1, dtype=torch.bool)], dim=1)
    return fires.double().argmax(dim=1)


def _mean_cost(gates: torch.Tensor, threshold: float, costs: tuple[int, ...]) -> float:
    leaves = _leaves(gates, threshold)
    return math.fsum(costs[k] for k in leaves.tolist()) / len(leaves)
