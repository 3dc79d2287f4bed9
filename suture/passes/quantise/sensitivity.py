"""How much each site costs in accuracy, and which of them to leave in floats: mixed precision by a sweep, one site quantised at a time.

The cost of a site is the deviation of the outputs on calibration data when it alone is quantised: the root mean square of their change over that of
the outputs themselves. Sites are dropped from the dearest on, so a tighter bound only ever leaves more of them in floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter
from suture.ir.semantics import evaluate
from suture.passes.quantise.calibration import Feed
from suture.passes.quantise.placement import Site


@dataclass(frozen=True)
class Sensitivity:
    """One site: its name, the deviation when it alone is quantised, and the bytes that its integers save."""

    site: str
    deviation: float
    saved: int


@dataclass(frozen=True)
class SensitivityTable:
    """All sites, the dearest first; the first `dropped` of them stay in floats, which leaves `deviation` in all."""

    rows: tuple[Sensitivity, ...]
    dropped: int
    deviation: float

    def __str__(self) -> str:
        width = max((len(row.site) for row in self.rows), default=4)
        lines = [f"{'site':{width}}  deviation  bytes saved  precision"]
        for position, row in enumerate(self.rows):
            precision = "float" if position < self.dropped else "int8"
            lines.append(f"{row.site:{width}}  {row.deviation:9.2e}  {row.saved:11,}  {precision}")
        return "\n".join([*lines, f"together {self.deviation:.2e}"])


class Deviation:
    """The deviation of graphs from one float graph on some batches, whose outputs are computed once."""

    def __init__(self, graph: Graph, data: Sequence[Feed]) -> None:
        self._data = list(data)
        self._expected = [_outputs(graph, feed) for feed in self._data]
        self._power = sum(_power(result) for results in self._expected for result in results)

    def of(self, graph: Graph) -> float:
        """The root mean square of the outputs' change over that of the outputs."""
        change = 0.0
        for feed, expected in zip(self._data, self._expected, strict=True):
            change += sum(_power(a - b) for a, b in zip(_outputs(graph, feed), expected, strict=True))
        return math.sqrt(change / self._power) if self._power else (math.inf if change else 0.0)


def saved_bytes(site: Site) -> int:
    """How many bytes fewer the site's weight takes as integers, with its scales."""
    weight = site.node.inputs[site.weight] if site.weight is not None else None
    if not isinstance(weight, Parameter):
        return 0
    channels = weight.data.shape[site.axis] if site.axis is not None else 1
    return weight.data.numel() * (weight.data.element_size() - 1) - 4 * channels


def rank_sites(
    sites: Sequence[Site], quantised_alone: Callable[[Site], Graph], deviation: Deviation
) -> list[tuple[Site, Sensitivity]]:
    """The sites with their sensitivities, the dearest first; equal ones in the order of the graph."""
    measured = [
        (site, Sensitivity(str(site), deviation.of(quantised_alone(site)), saved_bytes(site))) for site in sites
    ]
    return sorted(measured, key=lambda pair: -pair[1].deviation)


def fewest_dropped(count: int, with_dropped: Callable[[int], float], *, error: float, most: int) -> tuple[int, float]:
    """How many of the dearest sites have to stay in floats for the deviation to be no more than `error`, and that deviation.

    :param with_dropped: the deviation when so many stay in floats
    :param most: how many may stay at most, by the budget of size
    :raises SutureError: QUANTISER, if not even that many are enough
    """
    least = with_dropped(0)
    if least <= error:
        return 0, least
    last = with_dropped(most) if most else least
    if last > error:
        raise SutureError(
            Code.QUANTISER, f"the deviation is {last:.2g} with {most} of {count} sites in floats, more than {error:g}",
            remedy="allow a larger deviation" + (" or a larger size" if most < count else ""),
        )  # fmt: skip
    low, high, found = 0, most, last
    while high - low > 1:
        middle = (low + high) // 2
        reached = with_dropped(middle)
        if reached <= error:
            high, found = middle, reached
        else:
            low = middle
    return high, found


def droppable(ranked: Sequence[Sensitivity], total: int, size: int | None) -> int:
    """How many of the dearest sites may stay in floats for the parameters to take no more than `size` bytes.

    :param total: the bytes of all parameters with every site quantised
    :raises SutureError: QUANTISER, if they take more even so
    """
    if size is None:
        return len(ranked)
    if total > size:
        raise SutureError(
            Code.QUANTISER, f"the parameters take {total:,} bytes with every site in integers, more than {size:,}",
            remedy="allow more, or prune first",
        )  # fmt: skip
    count, used = 0, total
    for row in ranked:
        used += row.saved
        if used > size:
            break
        count += 1
    return count


def _outputs(graph: Graph, feed: Feed) -> list[torch.Tensor]:
    with torch.no_grad():
        results = evaluate(graph, feed)
    return [result.to(torch.float64) for result in results if result.is_floating_point()]


def _power(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())
