"""How alike the representations of two models are, before anything is trained: between all cut values of both, on the same examples.

Two measures: linear CKA (Kornblith et al. 2019), which ignores rotations, and the relative residual of the least-squares map from front to back,
which is what a stitching layer starts with. Both come from streamed sums of products; no feature is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.regions import cuts
from suture.ir.regions.cuts import value_of
from suture.passes.stitch.adapters import Adapter
from suture.passes.stitch.calibration import batches, for_other, taps
from suture.passes.stitch.cka import PairSums
from suture.passes.stitch.interface import Interface, interface_of
from suture.passes.stitch.least_squares import solve

_MOST_BYTES = 2**28  # of sums of products held at a time


@dataclass(frozen=True)
class Similarity:
    """The likeness of every value of one model to every value of another; NaN where positions cannot be brought in line.

    :param cka: linear CKA, [front][back], 1 for features that are rotations of each other
    :param residual: of the best affine map from front to back, [front][back], 0 for a perfect one, 1 for none better than the mean
    """

    front: tuple[str, ...]
    back: tuple[str, ...]
    cka: tuple[tuple[float, ...], ...]
    residual: tuple[tuple[float, ...], ...]
    rows: int

    def best(self, entry: str | None = None) -> tuple[str, str]:
        """The pair of values of the least residual; of one value of the back, if that is given.

        :raises SutureError: SITE, if there is no such value; STITCH, if no pair can be compared
        """
        if entry is not None and entry.removeprefix("%") not in self.back:
            raise SutureError(Code.SITE, f"{entry} was not compared", remedy=f"one of {', '.join(self.back[:8])}")
        pairs = [
            (residual, i, k)
            for i, row in enumerate(self.residual)
            for k, residual in enumerate(row)
            if not math.isnan(residual) and (entry is None or self.back[k] == entry.removeprefix("%"))
        ]
        if not pairs:
            raise SutureError(Code.STITCH, "no two values can be compared", remedy="compare models of the same batch")
        _, i, k = min(pairs)
        return self.front[i], self.back[k]

    def __str__(self) -> str:
        lines = [f"b{k}  {name}" for k, name in enumerate(self.back)]
        for title, table in (("CKA", self.cka), ("least-squares residual, front to back", self.residual)):
            width = max(len(name) for name in self.front)
            lines += ["", title, " " * width + "".join(f"{f'b{k}':>6}" for k in range(len(self.back)))]
            for name, row in zip(self.front, table, strict=True):
                cells = "".join(f"{'-' if math.isnan(value) else f'{value:.2f}':>6}" for value in row)
                lines.append(f"{name:<{width}}{cells}")
        return "\n".join(lines)


def similarity(
    front: Graph,
    back: Graph,
    data: Mapping[str, torch.Tensor],
    *,
    exits: Sequence[str] | None = None,
    entries: Sequence[str] | None = None,
    debiased: bool = False,
) -> Similarity:
    """Compare the values at which two models can be cut.

    :param data: inputs of both by name, the same examples; an input of the back that has none takes the front's of the same position and type
    :param exits: names of values of the front; all cut values behind which there are parameters, if absent
    :param entries: names of values of the back, likewise
    :param debiased: estimate CKA without the bias that few rows give it (Song et al. 2012, theorem 5)
    :raises SutureError: CALIBRATION or INPUT, if the data do not fit; SITE, if a value does not exist; CUT, if a model cannot be cut
    """
    left, right = _layouts(front, exits), _layouts(back, entries)
    pairs = {(a, b): adapter for a in left for b in right if (adapter := _adapter(left[a], right[b])) is not None}
    names = tuple(value.name for value in left), tuple(value.name for value in right)
    cka = dict.fromkeys(((a, b) for a in left for b in right), math.nan)
    residual, rows = dict(cka), 0
    for group in _groups(pairs):
        sums = {pair: PairSums(adapter) for pair, adapter in group.items()}
        sources, targets = list({a: None for a, _ in group}), list({b: None for _, b in group})
        other = for_other(front, back, data)
        for inputs, others in zip(batches(front, data), batches(back, other), strict=True):
            here, there = taps(front, inputs, sources), taps(back, others, targets)
            for (a, b), total in sums.items():
                total.add(here[a], there[b])
        for pair, total in sums.items():
            cka[pair], residual[pair] = total.cka(debiased), solve(total.moments()).residual
            rows = max(rows, total.rows)
    table = [tuple(tuple(found[a, b] for b in right) for a in left) for found in (cka, residual)]
    return Similarity(*names, table[0], table[1], rows)


def _layouts(graph: Graph, names: Sequence[str] | None) -> dict[Value, Interface]:
    """The values to compare, with their layouts; those that have none are left out unless they were asked for."""
    table = graph.axes()
    if names is not None:
        return {value: interface_of(table, value) for value in (value_of(graph, name) for name in names)}
    found: dict[Value, Interface] = {}
    for value in _cuts_behind_parameters(graph):
        try:
            found[value] = interface_of(table, value)
        except SutureError:
            continue
    if not found:
        raise SutureError(Code.CUT, "no cut value has channels", where=graph.name, remedy="name the values to compare")
    return found


def _cuts_behind_parameters(graph: Graph) -> list[Value]:
    """The cut values such that between them and the one before some tensor is read: reshaping alone makes no new representation."""
    chain = cuts(graph)
    order = {node: k for k, node in enumerate(graph.nodes)}
    found: list[Value] = []
    last = -1
    for value in chain:
        if value.producer is None:
            continue
        position = order[value.producer]
        between = graph.nodes[last + 1 : position + 1]
        if any(isinstance(operand, Parameter) for node in between for operand in node.inputs):
            found.append(value)
        last = position
    return found


def _adapter(source: Interface, target: Interface) -> Adapter | None:
    try:
        return Adapter(source, target)
    except SutureError:
        return None


def _groups(pairs: Mapping[tuple[Value, Value], Adapter]) -> list[dict[tuple[Value, Value], Adapter]]:
    """The pairs in groups whose sums fit into memory; each group takes a pass over the data."""
    groups: list[dict[tuple[Value, Value], Adapter]] = [{}]
    held = 0
    for pair, adapter in pairs.items():
        d, m = adapter.source.channels, adapter.target.channels
        size = 8 * (d * d + d * m + m * m)
        if groups[-1] and held + size > _MOST_BYTES:
            groups.append({})
            held = 0
        groups[-1][pair] = adapter
        held += size
    return [group for group in groups if group]
