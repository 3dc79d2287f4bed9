"""Which inner units of a feed-forward layer make up which expert: by what calibration data of different domains activate.

After Cai et al., "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design" (arXiv 2410.19123): an expert
is the set of units that the data of one domain activate most often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import evaluate
from suture.passes.counter import counter_integers
from suture.passes.experts.feed_forward import FeedForward, feed_forwards

_ROUNDS = 25
Members = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class ExpertPlan:
    """For every feed-forward layer, by its path, the units of each expert, ascending; and where the domains lie in the value that is routed on.

    `centroids` is `[experts, d]` in float64, or None without data.
    """

    members: Mapping[str, Members]
    centroids: torch.Tensor | None = None

    def __str__(self) -> str:
        return "\n".join(
            f"{path}: experts of {', '.join(str(len(e)) for e in m)} units" for path, m in self.members.items()
        )

    def is_partition(self, path: str, units: int) -> bool:
        """Whether every unit of a layer is in exactly one expert."""
        return sorted(unit for expert in self.members[path] for unit in expert) == list(range(units))


def plan_in_order(feeds: Sequence[FeedForward], experts: int, size: int | None = None) -> ExpertPlan:
    """Experts of neighbouring units, where there are no data to tell them apart."""
    members: dict[str, Members] = {}
    for feed in feeds:
        counts = _capacities(feed, experts) if size is None else [_fitting(feed, size)] * experts
        steps = (
            [sum(counts[:k]) for k in range(experts)]
            if size is None
            else [k * (feed.units - size) // max(experts - 1, 1) for k in range(experts)]
        )
        members[feed.path] = tuple(tuple(range(b, b + n)) for b, n in zip(steps, counts, strict=True))
    return ExpertPlan(members)


def plan_by_activation(
    graph: Graph,
    feeds: Sequence[FeedForward],
    entry: Value,
    data: Mapping[str, torch.Tensor],
    *,
    experts: int,
    domains: Sequence[int] | None = None,
    size: int | None = None,
    seed: int = 0,
) -> ExpertPlan:
    """Give each expert the units that its domain activates most often.

    A position activates the units of the largest magnitudes, as many as an expert has. Without `size`, every unit goes to one expert, the one of
    whose domain the largest share of positions activates it, as far as the expert has room; units for which the shares differ most come first. With
    it, each expert has the `size` units of its own domain, and a unit may be in several or none.

    :param entry: the value that is routed on, whose mean over each sample's positions tells domains apart where `domains` does not
    :param domains: the domain of each sample, 0 to experts - 1
    :raises SutureError: CALIBRATION, if a domain has no sample; INPUT, if the data do not fit the graph
    """
    watched = _watch(graph, [entry, *(feed.hidden for feed in feeds)], data)
    samples = _samples(watched[entry])
    labels = _labels(samples.mean(1), experts, domains, seed)
    members: dict[str, Members] = {}
    for feed in feeds:
        hidden = watched[feed.hidden].reshape(len(labels), -1, feed.units)
        counts = _capacities(feed, experts) if size is None else [_fitting(feed, size)] * experts
        shares = torch.stack([_activated(hidden[labels == k], counts[k]) for k in range(experts)])
        members[feed.path] = _dealt(shares, counts) if size is None else _most_active(shares, size)
    centroids = torch.stack([samples[labels == k].mean((0, 1)) for k in range(experts)])
    return ExpertPlan(members, centroids)


def routing_shares(graph: Graph, plan: ExpertPlan, data: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How much of each position's activation every expert holds, in the mean over the layers: `[batch, positions, experts]`, rows sum to 1.

    What a router is trained to predict: which experts the activations of the dense graph would choose.

    :param graph: the dense graph, for which the plan was made
    :raises SutureError: PLAN, if it has not the layers of the plan; CALIBRATION or INPUT, if the data do not fit it
    """
    feeds = {feed.path: feed for feed in feed_forwards(graph)}
    missing = [path for path in plan.members if path not in feeds]
    if missing or not plan.members:
        what = f"the graph has no feed-forward layer {missing[0]!r}" if missing else "the plan has no layer"
        raise SutureError(Code.PLAN, what, where=graph.name, remedy="give the dense graph that the plan was made for")
    chosen = {path: feeds[path] for path in plan.members}
    watched = _watch(graph, [feed.hidden for feed in chosen.values()], data)
    batch = next(iter(data.values())).shape[0]
    shares = []
    for path, feed in chosen.items():
        hidden = watched[feed.hidden].abs().reshape(batch, -1, feed.units)
        mass = torch.stack([hidden[..., list(units)].sum(-1) for units in plan.members[path]], -1)
        shares.append(mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny))
    return torch.stack(shares).mean(0)


def _watch(graph: Graph, values: Sequence[Value], data: Mapping[str, torch.Tensor]) -> dict[Value, torch.Tensor]:
    """Run a graph on data and keep some values, in float64."""
    wanted = set(values)
    found: dict[Value, torch.Tensor] = {}

    def keep(value: Value, tensor: torch.Tensor) -> None:
        if value in wanted:
            found[value] = tensor.to(torch.float64)

    try:
        with torch.no_grad():
            evaluate(graph, data, watch=keep)
    except (IndexError, RuntimeError) as error:  # a token beyond the vocabulary, say
        what = f"the graph cannot run on the data: {str(error).splitlines()[0]}"
        raise SutureError(Code.CALIBRATION, what, where=graph.name, remedy="give inputs that it takes") from None
    for value in wanted - set(found):  # an input of the graph
        found[value] = data[value.name].to(torch.float64)
    return found


def _samples(entry: torch.Tensor) -> torch.Tensor:
    return entry.reshape(len(entry), -1, entry.shape[-1])


def _labels(features: torch.Tensor, experts: int, domains: Sequence[int] | None, seed: int) -> torch.Tensor:
    if len(features) < experts:
        raise SutureError(
            Code.CALIBRATION,
            f"{len(features)} samples for {experts} experts",
            remedy="give at least one sample per expert",
        )
    if domains is None:
        return cluster(features, experts, seed)
    labels = torch.tensor(list(domains))
    if len(labels) != len(features):
        raise SutureError(
            Code.CALIBRATION, f"{len(labels)} domains for {len(features)} samples", remedy="give one per sample"
        )
    missing = sorted(set(range(experts)) ^ set(labels.tolist()))
    if missing:
        raise SutureError(
            Code.CALIBRATION, f"the domain {missing[0]} {'has no sample' if missing[0] in range(experts) else 'has no expert'}",
            remedy=f"number the domains 0 to {experts - 1}",
        )  # fmt: skip
    return labels


def cluster(features: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Lloyd's k-means on rows, from centres that are each the row farthest from those before it; the label of each row. No cluster is empty."""
    first = int(counter_integers(seed, "cluster", 1, len(features)))
    centres = [features[first]]
    for _ in range(1, count):
        distance = torch.cdist(features, torch.stack(centres)).amin(1)
        centres.append(features[int(distance.argmax())])
    labels = torch.cdist(features, torch.stack(centres)).argmin(1)
    for _ in range(_ROUNDS):
        labels = _filled(labels, features, count)
        means = torch.stack([features[labels == k].mean(0) for k in range(count)])
        nearest = torch.cdist(features, means).argmin(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
    return _numbered(_filled(labels, features, count))


def _numbered(labels: torch.Tensor) -> torch.Tensor:
    """The same clusters, numbered in the order in which they appear."""
    order = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return torch.tensor([order[label] for label in labels.tolist()])


def _filled(labels: torch.Tensor, features: torch.Tensor, count: int) -> torch.Tensor:
    """Give every empty cluster the row that lies farthest from the mean of its own, of those with company."""
    labels = labels.clone()
    for k in range(count):
        if (labels == k).any():
            continue
        means = {j: features[labels == j].mean(0) for j in set(labels.tolist())}
        crowded = [i for i, j in enumerate(labels.tolist()) if int((labels == j).sum()) > 1]
        far = max(crowded, key=lambda i: float((features[i] - means[int(labels[i])]).norm()))
        labels[far] = k
    return labels


def _activated(hidden: torch.Tensor, count: int) -> torch.Tensor:
    """The share of positions that have each unit among their `count` largest: `[samples, positions, units]` to `[units]`."""
    flat = hidden.abs().reshape(-1, hidden.shape[-1])
    chosen = flat.topk(count, 1).indices
    return torch.zeros_like(flat).scatter_(1, chosen, 1.0).mean(0)


def _dealt(shares: torch.Tensor, capacities: Sequence[int]) -> Members:
    """Every unit to the expert that activates it most, first those units to which it matters most which expert that is."""
    best = shares.topk(min(2, len(shares)), 0).values
    order = torch.sort(best[0] - best[-1], descending=True, stable=True).indices
    room = list(capacities)
    owned: list[list[int]] = [[] for _ in room]
    for unit in order.tolist():
        expert = max((k for k, left in enumerate(room) if left), key=lambda k: float(shares[k, unit]))
        owned[expert].append(unit)
        room[expert] -= 1
    return tuple(tuple(sorted(units)) for units in owned)


def _most_active(shares: torch.Tensor, size: int) -> Members:
    order = torch.sort(shares, dim=1, descending=True, stable=True).indices[:, :size]
    return tuple(tuple(sorted(row)) for row in order.tolist())


def _capacities(feed: FeedForward, experts: int) -> list[int]:
    if experts > feed.units:
        raise SutureError(
            Code.GROWTH,
            f"{experts} experts of {feed.units} units",
            where=feed.path,
            remedy=f"at most {feed.units} would be right",
        )
    return [feed.units // experts + (k < feed.units % experts) for k in range(experts)]


def _fitting(feed: FeedForward, size: int) -> int:
    if not 1 <= size <= feed.units:
        raise SutureError(
            Code.GROWTH,
            f"experts of {size} units of {feed.units}",
            where=feed.path,
            remedy=f"1 to {feed.units} would be right",
        )
    return size
