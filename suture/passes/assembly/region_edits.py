"""What can be done to a region so that less is left of a model, and what it does to the outputs: drop it, share the weights of a like one, swap it.

Diffusion models are assembled so from parts of U-Nets (Kim et al. 2024, "BK-SDM", section 3.1): what changes the outputs least can go, share the
weights of a like region, or come from a sibling.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.paths import is_below
from suture.ir.regions import Region, at_path, difference, module_tree
from suture.ir.regions.outline import count_macs
from suture.ir.semantics import evaluate
from suture.ir.splice import remove
from suture.passes.assembly.transplant import require_alike, tie, transplant

Data = Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
Action = Literal["drop", "share", "swap"]


@dataclass(frozen=True)
class Edit:
    """What can be done to a region: `apply` does it, in place, to a graph that has the region.

    :param like: the module path of the region that stands in for it, where one does
    """

    path: str
    like: str
    apply: Callable[[Graph], None]


@dataclass(frozen=True)
class Effect:
    """What an edit of a region does to the outputs.

    :param change: the root mean square of the outputs' change over that of the outputs themselves, on the calibration data
    :param parameters: the trained elements of the region
    """

    edit: Edit
    change: float
    parameters: int
    macs: int

    @property
    def path(self) -> str:
        """The module path of the region."""
        return self.edit.path

    def __str__(self) -> str:
        stand_in = f" with {self.edit.like} in its place" if self.edit.like else ""
        size = f"{self.parameters:,} parameters, {self.macs:,} MACs"
        return f"{self.path}: the outputs change by {self.change:.3g}{stand_in} ({size})"


def rank(
    graph: Graph,
    data: Data,
    at: Sequence[str] | None = None,
    *,
    action: Action = "drop",
    other: Graph | None = None,
) -> tuple[Effect, ...]:
    """The regions by what becomes of the outputs, the least influential first.

    :param data: calibration inputs, in order or by name
    :param at: module paths, as patterns; numbered modules of several nodes that keep the type of their stream if absent, the outermost
    :param action: what is measured: `drop` lets the stream pass by, `share` puts the like region in its place that changes the outputs least,
        `swap` takes the tensors that another model has there
    :param other: for `swap`, that model
    :raises SutureError: CALIBRATION, if the data do not fit; SITE, SEAM or REGION, if the regions do not
    """
    regions = regions_at(graph, at, action)
    return measure(graph, data, edits(regions, action, other=other))


def regions_at(graph: Graph, at: Sequence[str] | None, action: Action) -> tuple[Region, ...]:
    """The modules that can be dropped, shared or swapped, none within another.

    :raises SutureError: SITE, with the nearest path, if a pattern matches nothing; SEAM, if the only one that a pattern matches does not keep the
        type of its stream; REGION, if nothing is left
    """
    trees = [tree for tree in module_tree(graph).walk() if tree.path]
    if at is None:
        chosen = [tree.region for tree in trees if tree.path.rpartition(".")[2].isdecimal() and len(tree.region) > 1]
    else:
        chosen = [tree.region for tree in trees if any(_matches(tree.path, pattern) for pattern in at)]
        for pattern in at:
            if not any(_matches(region.name, pattern) for region in chosen):
                at_path(graph, pattern)  # says that there is none, and which is the nearest
    found: list[Region] = []
    for region in chosen:
        is_fit = action == "swap" or keeps_type(region)
        if is_fit and not any(is_below(region.name, other.name) for other in found):
            found.append(region)
    if len(chosen) == 1 and not found:
        raise SutureError(
            Code.SEAM, f"{chosen[0].name} takes {chosen[0].entry.type} and gives {_results(chosen[0])}",
            where=graph.name, remedy="a region that keeps the type of its stream can be dropped or shared",
        )  # fmt: skip
    if not found:
        raise SutureError(
            Code.REGION, "no module keeps the type of its stream", where=graph.name,
            remedy="blocks that take and give the same type would be right",
        )  # fmt: skip
    return tuple(found)


def keeps_type(region: Region) -> bool:
    """Whether the stream can pass by a region."""
    return len(region.outputs) == 1 and region.stream is not None and region.stream.type == region.outputs[0].type


def edits(
    regions: Iterable[Region],
    action: Action,
    *,
    other: Graph | None = None,
    stand_ins: Sequence[Region] | None = None,
) -> list[Edit]:
    """What can be done to regions: one edit each, or one for each like region that may stand in for it.

    :param stand_ins: for `share`, the regions whose weights may be shared; the regions themselves if absent
    :raises SutureError: OPTION, if a swap has no other model; SITE or REGION, if that has no such region
    """
    listed = list(regions)
    if action == "drop":
        return [Edit(region.name, "", _dropping(region.name)) for region in listed]
    if action == "share":
        return [
            Edit(region.name, like.name, _sharing(region.name, like.name))
            for region in listed
            for like in (stand_ins if stand_ins is not None else listed)
            if like.name != region.name and difference(region, like) is None
        ]
    if other is None:
        raise SutureError(Code.OPTION, "a swap needs another model", remedy="give the option 'other'")
    found = []
    for region in listed:
        theirs = at_path(other, region.name)
        require_alike(region, theirs, other_name=other.name)
        found.append(Edit(region.name, "", _swapping(region.name, theirs)))
    return found


def measure(graph: Graph, data: Data, candidates: Sequence[Edit]) -> tuple[Effect, ...]:
    """What edits do to the outputs, each by itself on a copy of the graph; of the edits of one region the best, the least influential region first.

    :raises SutureError: CALIBRATION, if the data do not fit
    """
    expected = _run(graph, data)
    best: dict[str, Effect] = {}
    for edit in candidates:
        edited = graph.copy()
        region = at_path(edited, edit.path)
        parameters, macs = region.parameter_count(), count_macs(graph, region.macs())
        edit.apply(edited)
        found = Effect(edit, _relative_change(expected, _run(edited, data)), parameters, macs)
        held = best.get(edit.path)
        if held is None or found.change < held.change:
            best[edit.path] = found
    return tuple(sorted(best.values(), key=lambda item: item.change))


def _matches(path: str, pattern: str) -> bool:
    """Whether a path is what a pattern says, number of dots included: `up.*` are the levels, not all that they hold."""
    return path.count(".") == pattern.count(".") and fnmatch.fnmatchcase(path, pattern)


def _dropping(path: str) -> Callable[[Graph], None]:
    return lambda graph: remove(at_path(graph, path))


def _sharing(path: str, like: str) -> Callable[[Graph], None]:
    def share(graph: Graph) -> None:
        tie(at_path(graph, path), at_path(graph, like))

    return share


def _swapping(path: str, theirs: Region) -> Callable[[Graph], None]:
    return lambda graph: transplant(at_path(graph, path), theirs)


def _relative_change(expected: Sequence[torch.Tensor], received: Sequence[torch.Tensor]) -> float:
    change = size = 0.0
    for before, after in zip(expected, received, strict=True):
        change += float((before.double() - after.double()).square().sum())
        size += float(before.double().square().sum())
    return (change / size) ** 0.5 if size else float(change > 0)


def _run(graph: Graph, data: Data) -> list[torch.Tensor]:
    try:
        with torch.no_grad():
            return list(evaluate(graph, data))
    except SutureError as error:
        if error.code is not Code.INPUT:
            raise
        raise SutureError(
            Code.CALIBRATION, f"the calibration data do not fit: {error.what}", where=error.where, remedy=error.remedy
        ) from None


def _results(region: Region) -> str:
    return ", ".join(str(value.type) for value in region.outputs) or "nothing"
