"""Which stitch to take: the accuracy of each, the Pareto front, and the best within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.stitch.configurations import Configuration, check_route, configurations
from suture.passes.stitch.sites import STITCH

_BATCH = 256


def accuracies(
    graph: Graph,
    data: Mapping[str, torch.Tensor],
    targets: torch.Tensor,
    *,
    routes: Sequence[int] | None = None,
    batch: int = _BATCH,
) -> dict[int, float]:
    """The share of examples that each route classifies rightly, by number; of the first output, the last dimension being classes.

    :param data: inputs by name, without `stitch`
    :param targets: the right classes, [examples]
    :param routes: the routes to try; all if absent
    :raises SutureError: STITCH, if a route does not exist; INPUT, if the data do not fit
    """
    chosen = range(len(configurations(graph))) if routes is None else [check_route(graph, route) for route in routes]
    found = {}
    for route in chosen:
        right = 0
        for inputs, wanted in _batches(data, targets, batch):
            with torch.no_grad():
                scores = evaluate(graph, {**inputs, STITCH: torch.tensor(route)})[0]
            right += int((scores.argmax(dim=-1) == wanted).sum())
        found[route] = right / len(targets)
    return found


def _batches(
    data: Mapping[str, torch.Tensor], targets: torch.Tensor, batch: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    if not len(targets) or any(len(tensor) != len(targets) for tensor in data.values()):
        counts = ", ".join(f"{len(tensor)} of {name}" for name, tensor in data.items())
        raise SutureError(Code.INPUT, f"{len(targets)} targets for {counts}", remedy="one target an example, and some")
    for start in range(0, len(targets), batch):
        yield (
            {name: tensor[start : start + batch] for name, tensor in data.items()},
            targets[start : start + batch],
        )


def pareto_front(costs: Mapping[int, float], scores: Mapping[int, float]) -> tuple[int, ...]:
    """The numbers that no other beats: none is as cheap and as good, and better in one of the two. From the cheapest on.

    Of several that are equal in both, the lowest number stays.
    """
    front: list[int] = []
    best = float("-inf")
    for number in sorted(scores, key=lambda k: (costs[k], -scores[k], k)):
        if scores[number] > best:
            front.append(number)
            best = scores[number]
    return tuple(front)


def best_stitch(
    graph: Graph,
    budget: float,
    *,
    accuracies: Mapping[int, float] | None = None,
    costs: Mapping[int, float] | None = None,
) -> Configuration:
    """The most accurate route within a budget.

    Of equally accurate ones the cheapest is taken; without accuracies, the dearest that fits.

    :param budget: the most that a route may cost: MACs for one example, or whatever `costs` are in
    :param accuracies: of the routes by number, as measured; those without one are not considered
    :param costs: of the routes by number, say seconds on a device; their MACs if absent
    :raises SutureError: STITCH, if nothing fits the budget, or the graph is no supernet
    """
    known = configurations(graph)
    price = {item.number: float(item.macs) for item in known} if costs is None else dict(costs)
    scores = price if accuracies is None else accuracies
    for route in scores:
        check_route(graph, route)
    candidates = [route for route in scores if route in price]
    fitting = [route for route in candidates if price[route] <= budget]
    if not fitting:
        cheapest = min((price[route] for route in candidates), default=float("inf"))
        raise SutureError(
            Code.STITCH, f"no stitch costs {budget:,.4g} or less", where=graph.name,
            remedy=f"the cheapest costs {cheapest:,.4g}",
        )  # fmt: skip
    return known[max(fitting, key=lambda route: (scores[route], -price[route], -route))]
