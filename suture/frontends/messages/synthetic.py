"""Typed graphs with the published sizes of data sets that are too large to come along.

A generated graph has the sizes, the skew of relation sizes, and the hub nodes of the real one, not its edges. Relation sizes are quantiles of a
log-normal distribution (its width fits the largest, median and smallest relation of AIFB and MUTAG within a factor of two); every relation joins one
pair of node types; one end of it is drawn evenly, the other from a power law, so that a few nodes have most of the edges. The same seed makes the
same graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from suture.frontends.messages.datasets import RelationalData
from suture.ir.errors import Code, SutureError, nearest


@dataclass(frozen=True)
class Sizes:
    """The counts of a data set as published.

    :param nodes: how many nodes each type has; one number where only the sum is known
    :param edges: how many edges there are; with their reverses, if there are any
    :param edge_types: the same of edge types
    :param reverses: every edge has a reverse, with a type of its own
    :param skew: the width of the log-normal distribution of relation sizes
    :param hubs: the exponent of the power law, below 1: 0 draws both ends evenly
    :param relations: (source type, destination type, edges) of every relation, where these are known
    :param source: who published the counts
    """

    nodes: tuple[int, ...]
    node_types: int
    edges: int
    edge_types: int
    reverses: bool
    skew: float
    hubs: float
    source: str
    relations: tuple[tuple[int, int, int], ...] = ()


_MAG = ((1, 3, 1_043_998), (1, 0, 7_145_660), (0, 0, 5_416_271), (0, 2, 7_505_078))
SIZES = {
    "aifb": Sizes((7_262,), 7, 48_810, 104, True, 1.3, 0.7, "DGL, AIFBDataset"),
    "mutag": Sizes((27_163,), 5, 148_100, 50, True, 2.2, 0.7, "DGL, MUTAGDataset"),
    "bgs": Sizes((94_806,), 27, 672_884, 122, True, 1.8, 0.7, "DGL, BGSDataset"),
    "am": Sizes((881_680,), 7, 5_668_682, 108, True, 1.8, 0.7, "DGL, AMDataset"),
    "mag": Sizes((736_389, 1_134_649, 59_965, 8_740), 4, 21_111_007, 4, False, 0.6, 0.6, "OGB, ogbn-mag", _MAG),
    "biokg": Sizes((10_687, 17_499, 10_533, 9_969, 45_085), 5, 4_762_678, 51, False, 1.3, 0.6, "OGB, ogbl-biokg, training"),
}  # fmt: skip


def synthetic(name: str | Sizes, *, seed: int = 0, scale: float = 1.0) -> RelationalData:
    """Generate a graph with the published sizes of aifb, mutag, bgs, am, mag or biokg, or with sizes of one's own.

    :param scale: the share of nodes and edges, at most 1; the numbers of types stay
    :raises SutureError: INPUT: no sizes of that name, or a scale that leaves fewer nodes or edges than types
    """
    if isinstance(name, str) and name not in SIZES:
        raise SutureError(Code.INPUT, f"no sizes {name!r}", remedy=nearest(name, SIZES, what="size"))
    sizes = SIZES[name] if isinstance(name, str) else name
    halves = 2 if sizes.reverses else 1
    nodes, edges, relations = int(sum(sizes.nodes) * scale), int(sizes.edges * scale), sizes.edge_types // halves
    if not 0 < scale <= 1 or nodes < sizes.node_types or edges < sizes.edge_types:
        what = f"a scale of {scale:g} leaves {nodes} nodes and {edges} edges"
        raise SutureError(Code.INPUT, what, remedy="give a scale of at most 1 that leaves one of every type")
    random = np.random.default_rng(seed)
    known = len(sizes.nodes) == sizes.node_types
    counts = _shares(nodes, np.array(sizes.nodes) if known else 1.0 / np.arange(1, sizes.node_types + 1))
    starts = np.concatenate([[0], np.cumsum(counts)])
    ends, shares = _relations(random, sizes, relations)
    relation = np.repeat(np.arange(relations), _shares(edges // halves, shares))
    hub_end = random.integers(0, 2, relations)
    src, dst = (
        _draw(random, starts, types[relation], np.where(hub_end == side, sizes.hubs, 0.0)[relation])
        for side, types in enumerate(ends)
    )
    order = random.permutation(len(relation))
    source, target, kind = (torch.from_numpy(np.ascontiguousarray(each[order])) for each in (src, dst, relation))
    made = RelationalData(
        name if isinstance(name, str) else "synthetic", source, target, kind, nodes, relations,
        torch.from_numpy(np.repeat(np.arange(sizes.node_types), counts)), sizes.node_types,
        node_types=tuple(f"n{place}" for place in range(sizes.node_types)),
        edge_types=tuple((f"n{start}", f"e{place}", f"n{end}") for place, (start, end) in enumerate(ends.T)),
    )  # fmt: skip
    return made.with_reverses() if sizes.reverses else made


def _relations(random: np.random.Generator, sizes: Sizes, relations: int) -> tuple[np.ndarray, np.ndarray]:
    """The node types at both ends of every relation, and its weight."""
    if sizes.relations:
        known = np.array(sizes.relations)
        return known[:, :2].T, known[:, 2]
    ends = random.integers(0, sizes.node_types, (2, relations))
    some = min(sizes.node_types, relations)
    ends[0, :some] = random.permutation(sizes.node_types)[:some]  # every node type sends something
    places = torch.special.ndtri((torch.arange(relations, dtype=torch.float64) + 0.5) / relations)
    return ends, torch.exp(sizes.skew * places).flip(0).numpy()


def _shares(total: int, weights: np.ndarray) -> np.ndarray:
    """Cut a total into parts by their weights, each at least one; what rounding leaves goes to the first."""
    shares: np.ndarray = 1 + np.floor((total - len(weights)) * weights / weights.sum()).astype(np.int64)
    shares[0] += total - shares.sum()
    return shares


def _draw(random: np.random.Generator, starts: np.ndarray, kind: np.ndarray, hubs: np.ndarray) -> np.ndarray:
    """One node of the wanted type per edge: the k-th of n nodes with a probability like k to the power -hubs (by its inverse distribution)."""
    counts = (starts[1:] - starts[:-1])[kind]
    place = counts * random.random(len(kind)) ** (1.0 / (1.0 - hubs))
    drawn: np.ndarray = starts[kind] + np.minimum(place.astype(np.int64), counts - 1)
    return drawn
