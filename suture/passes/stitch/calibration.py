"""Fitting all stitching layers of a space at once: one forward pass of each anchor over the calibration data, with taps at the points.

The target of entering block k is what that block takes in its own anchor, so for block 0 the stem's output. The sums of products of a source are
shared by all stitches that leave it with the same resampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.semantics import arrange_inputs, evaluate
from suture.passes.stitch.adapters import Adapter
from suture.passes.stitch.anchor import Anchor
from suture.passes.stitch.interface import Interface
from suture.passes.stitch.least_squares import Gram, Moments, Solution, average, solve, with_ones
from suture.passes.stitch.positions import Position
from suture.passes.stitch.space import Pair, StitchSpace

Shared = Literal["joint", "mean"]
LayerKey = tuple[Pair, int]

_BATCH = 32
"""How many examples go through the anchors at a time."""


def batches(graph: Graph, data: Mapping[str, torch.Tensor], size: int = _BATCH) -> Iterator[list[torch.Tensor]]:
    """Calibration data in batches, in the order of the graph's inputs. A graph of a fixed batch size takes batches of that size.

    :raises SutureError: CALIBRATION, if there are none, or they do not fill a batch; INPUT, if they do not fit the graph
    """
    names = [value.name for value in graph.inputs]
    missing = [name for name in names if name not in data]
    if missing or not names:
        raise SutureError(
            Code.CALIBRATION, f"the calibration data have no {missing[0] if missing else 'input'!r}", where=graph.name,
            remedy=f"give {', '.join(names)}",
        )  # fmt: skip
    tensors = [data[name] for name in names]
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    count = lengths.pop()
    if lengths or count < 1:
        what = "differ in their number of examples" if lengths else "have no examples"
        raise SutureError(
            Code.CALIBRATION, f"the calibration data {what}", where=graph.name, remedy="give some of each"
        )
    fixed = graph.inputs[0].shape[0] if graph.inputs[0].rank else 1
    step = fixed if isinstance(fixed, int) else size
    if isinstance(fixed, int) and count % fixed:
        raise SutureError(
            Code.CALIBRATION, f"{count} calibration examples do not fill batches of {fixed}", where=graph.name,
            remedy=f"give a multiple of {fixed}, or trace with a dynamic batch",
        )  # fmt: skip
    device = device_of(graph)
    for start in range(0, count, step):
        yield arrange_inputs(graph, [tensor[start : start + step].to(device) for tensor in tensors])


def device_of(graph: Graph) -> torch.device:
    """Where a graph's tensors are."""
    return next((parameter.data.device for parameter in graph.parameters.values()), torch.device("cpu"))


def for_other(graph: Graph, other: Graph, data: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The data under the names of another graph's inputs: by name, else by position where the types agree."""
    found = dict(data)
    for mine, theirs in zip(graph.inputs, other.inputs, strict=False):
        if theirs.name not in found and mine.name in data and mine.type == theirs.type:
            found[theirs.name] = data[mine.name]
    return found


def taps(graph: Graph, inputs: Sequence[torch.Tensor], values: Sequence[Value]) -> dict[Value, torch.Tensor]:
    """What some values are on a batch of inputs: one run."""
    wanted = set(values)
    found = {value: tensor for value, tensor in zip(graph.inputs, inputs, strict=True) if value in wanted}

    def keep(value: Value, tensor: torch.Tensor) -> None:
        if value in wanted:
            found[value] = tensor

    with torch.no_grad():
        evaluate(graph, inputs, watch=keep)
    return found


def adapter_at(anchors: Sequence[Anchor], pair: Pair, place: Position) -> Adapter:
    """What a stitching layer at a position leads from and to.

    :raises SutureError: STITCH, if there is no way
    """
    return Adapter(anchors[pair[0]].interface(place.exit + 1), anchors[pair[1]].interface(place.entry))


def adapters_of(anchors: Sequence[Anchor], space: StitchSpace) -> dict[LayerKey, Adapter]:
    """What each stitching layer leads from and to; all its positions agree."""
    return {
        (pair, number): adapter_at(anchors, pair, places[0])
        for pair, layers in space.layers.items()
        for number, places in layers.items()
    }


class _Sums:
    """The sums of products of all positions of a space."""

    def __init__(self, anchors: Sequence[Anchor], space: StitchSpace, adapters: Mapping[LayerKey, Adapter]) -> None:
        self.anchors = anchors
        self.adapters = adapters
        self.places = [(pair, place) for pair, places in space.stitches.items() for place in places]
        self.sources: dict[tuple[int, int, Interface], Gram] = {}
        self.targets: dict[tuple[int, int], Gram] = {}
        self.cross: dict[tuple[Pair, Position], torch.Tensor] = {}

    def points(self, anchor: int) -> list[Value]:
        """The points of an anchor that some position leaves from or leads to."""
        numbers = {place.exit + 1 for pair, place in self.places if pair[0] == anchor}
        numbers |= {place.entry for pair, place in self.places if pair[1] == anchor}
        return [self.anchors[anchor].points[number] for number in sorted(numbers)]

    def add(self, found: Sequence[Mapping[Value, torch.Tensor]]) -> None:
        """Add the taps of one batch, one mapping an anchor."""
        rows: dict[tuple[int, int, Interface], torch.Tensor] = {}
        targets: dict[tuple[int, int], torch.Tensor] = {}
        for pair, place in self.places:
            adapter = self.adapters[pair, place.layer]
            source, target = self._keys(pair, place)
            if source not in rows:
                rows[source] = adapter.rows(found[pair[0]][self.anchors[pair[0]].points[source[1]]])
                self.sources.setdefault(source, Gram(rows[source].shape[1])).add(rows[source])
                rows[source] = with_ones(rows[source])
            if target not in targets:
                features = adapter.target.rows(found[pair[1]][self.anchors[pair[1]].points[target[1]]])
                self.targets.setdefault(target, Gram(features.shape[1])).add(features)
                targets[target] = features.to(torch.float64)
            product = (rows[source].T @ targets[target]).cpu()
            self.cross[pair, place] = self.cross[pair, place] + product if (pair, place) in self.cross else product

    def moments(self, pair: Pair, place: Position) -> Moments:
        """What the fit of one position needs."""
        source, target = self._keys(pair, place)
        return Moments(self.sources[source].matrix, self.cross[pair, place], self.targets[target].energy)

    def _keys(self, pair: Pair, place: Position) -> tuple[tuple[int, int, Interface], tuple[int, int]]:
        target = self.adapters[pair, place.layer].target
        return (pair[0], place.exit + 1, target), (pair[1], place.entry)


def fit_layers(
    anchors: Sequence[Anchor],
    space: StitchSpace,
    adapters: Mapping[LayerKey, Adapter],
    data: Mapping[str, torch.Tensor],
    *,
    rank: int | None = None,
    shared: Shared = "joint",
    face: Graph | None = None,
) -> dict[LayerKey, Solution]:
    """The stitching layers by least squares on calibration data.

    :param data: inputs by name
    :param face: the graph whose names of inputs count; the first anchor's if absent
    :param rank: the largest rank of a layer
    :param shared: how a layer of several positions is found: fitted on all of them jointly, or as the mean of their solutions (SN-Net)
    :raises SutureError: CALIBRATION or INPUT, if the data do not fit; RANK, if the rank is beyond a layer
    """
    sums = _Sums(anchors, space, adapters)
    points = [sums.points(k) for k in range(len(anchors))]
    for inputs in batches(face or anchors[0].graph, data):
        sums.add([taps(anchor.graph, inputs, wanted) for anchor, wanted in zip(anchors, points, strict=True)])
    found: dict[LayerKey, Solution] = {}
    for pair, layers in space.layers.items():
        for number, places in layers.items():
            parts = [sums.moments(pair, place) for place in places]
            if shared == "mean" and rank is None:
                solutions = [solve(part) for part in parts]
                found[pair, number] = average(solutions) if len(solutions) > 1 else solutions[0]
                continue
            joint = parts[0]
            for part in parts[1:]:
                joint = joint + part
            found[pair, number] = solve(joint, rank=rank)
    return found
