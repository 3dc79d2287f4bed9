"""Mixtures of experts become dense layers again: experts cut out of a layer are put side by side, experts that began as copies are averaged.

The mean is the end of "Experts Weights Averaging" (Huang et al., arXiv 2308.06093); it keeps the function if the experts are equal.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.algebra import Atom, Axis, Chain, atoms_of, size_of
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.paths import is_below
from suture.ir.regions import Region, at_path
from suture.ir.splice import extract, replace
from suture.passes.axis_map import AxisMap, apply
from suture.passes.contract import Contract
from suture.passes.experts.feed_forward import inner_axis, with_bias
from suture.passes.experts.mixture import EXPERTS, below
from suture.passes.linear_maps import Gather
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def merge_experts(
    graph: Graph, notes: Notes, *, by: Literal["concat", "mean"] = "concat", at: tuple[str, ...] | None = None
) -> Graph:
    """Turn mixtures of experts into dense layers, without a router.

    Concatenation keeps the function where every expert has a gate of 1, averaging where the gates sum to 1 and the experts are equal.

    :param by: concat puts the units of the experts side by side, as they were before `split_experts`; mean averages their weights
    :param at: the modules that hold the experts, as patterns; all if absent
    """
    result = graph.copy()
    sites = find_mixtures(result, at)
    if not sites:
        notes.not_applicable("no module holds numbered experts")
        return result
    read = {p.name for p in result.parameters.values() if p.uses}
    before = result.stats()
    for site in sites:
        merge_mixture(result, site, by)
    remove_unread(result, read)
    after = result.stats()
    notes.note(f"{len(sites)} layers are dense: {before.parameters:,} parameters, now {after.parameters:,}")
    return result


@dataclass(frozen=True)
class Mixture:
    """A mixture: the module that holds it, the region of its experts and their sum, and each expert."""

    path: str
    whole: Region
    experts: tuple[Region, ...]

    def own_name(self, name: str, number: int) -> str:
        """The name of an expert's tensor or module, as the dense layer has it."""
        prefix = below(self.path, f"{EXPERTS}.{number}")
        if not is_below(name, prefix):
            return name
        return below(self.path, name[len(prefix) + 1 :]) if name != prefix else self.path

    def gates(self) -> list[Value] | None:
        """What each expert's result is multiplied by; None where it is not one value."""
        found: list[Value] = []
        for expert in self.experts:
            uses = expert.output.uses
            if len(uses) != 1 or uses[0].node.operator.name != "mul":
                return None
            other = uses[0].node.inputs[1 - uses[0].index]
            if other is None or isinstance(other, Parameter):
                return None
            found.append(other)
        return found


def find_mixtures(graph: Graph, at: Sequence[str] | None) -> list[Mixture]:
    """The mixtures whose experts are numbered below a module.

    :raises SutureError: SITE, if a pattern matches none
    """
    pattern = re.compile(rf"(?:(.*)\.)?{EXPERTS}\.(\d+)\..*")
    numbers: dict[str, set[int]] = {}
    for name in graph.parameters:
        match = pattern.fullmatch(name)
        if match:
            numbers.setdefault(match[1] or "", set()).add(int(match[2]))
    for wanted in at or ():
        if not any(fnmatch.fnmatchcase(path, wanted) for path in numbers):
            raise SutureError(
                Code.SITE,
                f"the pattern {wanted!r} matches no module with experts",
                remedy=nearest(wanted, numbers, what="module"),
            )
    found = []
    for path, held in numbers.items():
        if at is None or any(fnmatch.fnmatchcase(path, wanted) for wanted in at):
            experts = tuple(at_path(graph, below(path, f"{EXPERTS}.{number}")) for number in sorted(held))
            found.append(Mixture(path, at_path(graph, below(path, EXPERTS), stream=experts[0].entry), experts))
    return found


def remove_unread(graph: Graph, names: Iterable[str]) -> None:
    """Remove what reaches no output, and those of the named parameters that nothing reads any more."""
    graph.remove_dead()
    for name in set(names) & set(graph.parameters):
        parameter = graph.parameters[name]
        if not parameter.uses and not parameter.is_graph_output():
            graph.remove_parameter(parameter)


def merge_mixture(graph: Graph, site: Mixture, by: str, shares: Sequence[float] | None = None) -> None:
    """Put one layer in the place of a mixture.

    :param shares: what each expert counts for in a mean; all alike if absent
    """
    pieces = [extract(expert) for expert in site.experts]
    if any(expert.entry is not site.experts[0].entry for expert in site.experts):
        raise SutureError(
            Code.REGION, "the experts read different values", where=site.path, remedy="merge none of them"
        )
    rows = _rows(site, pieces)
    dense = _averaged(pieces[0], rows, site, shares) if by == "mean" else _side_by_side(pieces, rows, site)
    names = {p.name: site.own_name(p.name, 0) for p in dense.parameters.values()}
    bias = next((p for p in site.whole.parameters if not is_below(p.name, below(site.path, EXPERTS)) and p.uses), None)
    if bias is not None:
        with_bias(
            dense,
            dense.add_parameter(
                bias.name, bias.data, bias.role, aliases=bias.aliases, requires_grad=bias.requires_grad
            ),
        )
    output = site.whole.output
    dense.rename_result(dense.outputs[0], output.name)
    replace(site.whole, dense, site.experts[0].inputs, rename=lambda name: names.get(name, site.own_name(name, 0)))


def _rows(site: Mixture, pieces: Sequence[Graph]) -> dict[str, list[Parameter]]:
    """For each tensor of the first expert, those of all experts."""
    rows: dict[str, list[Parameter]] = {name: [] for name in pieces[0].parameters}
    for number, piece in enumerate(pieces):
        by_name = {site.own_name(name, number): parameter for name, parameter in piece.parameters.items()}
        for name, row in rows.items():
            twin = by_name.get(site.own_name(name, 0))
            if twin is None or len(by_name) != len(rows):
                raise SutureError(Code.REGION, f"expert {number} has other tensors than expert 0", where=site.path)
            row.append(twin)
    return rows


def _averaged(piece: Graph, rows: dict[str, list[Parameter]], site: Mixture, shares: Sequence[float] | None) -> Graph:
    for name, row in rows.items():
        if any(p.type != row[0].type for p in row):
            raise SutureError(
                Code.REGION,
                f"{name} is {row[0].type}, other experts' are not",
                where=site.path,
                remedy="put the experts side by side",
            )
        first = row[0].data
        if first.is_floating_point():
            counts = torch.full((len(row),), 1 / len(row), dtype=torch.float64, device=first.device)
            if shares is not None and not first.is_meta:
                counts = torch.tensor(shares, dtype=torch.float64, device=first.device)
            stacked = torch.stack([p.data.detach().to(torch.float64) for p in row])
            mean = torch.tensordot(counts, stacked, 1).to(first.dtype)
            piece.parameters[name].assign(mean.requires_grad_(first.requires_grad))
    return piece


def _side_by_side(pieces: Sequence[Graph], rows: dict[str, list[Parameter]], site: Mixture) -> Graph:
    tables = [piece.axes() for piece in pieces]
    feeds = [inner_axis(piece, table) for piece, table in zip(pieces, tables, strict=True)]
    if any(feed is None or feed.bias is not None for feed in feeds):
        raise SutureError(
            Code.REGION,
            "the experts are no feed-forward layers without a last bias",
            where=site.path,
            remedy="average them",
        )
    atoms = [feed.axis.atom for feed in feeds if feed is not None]
    total = sum(feed.units for feed in feeds if feed is not None)
    first = Gather(torch.zeros(total, dtype=torch.int64))
    dense = apply(pieces[0], tables[0], {atoms[0]: AxisMap(first, first)})
    for name, row in rows.items():
        data = row[0].data
        for dim in range(data.ndim):
            axes = [table.axis(p, dim) for p, table in zip(row, tables, strict=True)]
            if atoms[0] in set(atoms_of(axes[0])):
                joined = _joined([p.data.detach() for p in row], dim, axes, atoms)
                dense.parameters[name].assign(joined.requires_grad_(data.requires_grad))
    return dense


def _joined(tensors: Sequence[torch.Tensor], dim: int, axes: Sequence[Axis], atoms: Sequence[Atom]) -> torch.Tensor:
    """The tensors side by side along the atoms; of a concatenation, part by part."""
    if isinstance(axes[0], Atom):
        return torch.cat(list(tensors), dim)
    if not all(isinstance(axis, Chain) for axis in axes):
        raise SutureError(
            Code.REGION, "the inner axis of an expert lies inside a product", remedy="average the experts"
        )
    chains = [axis.parts for axis in axes if isinstance(axis, Chain)]
    pieces = [
        torch.split_with_sizes(data, [int(size_of(part)) for part in parts], dim)  # type: ignore[arg-type]
        for data, parts in zip(tensors, chains, strict=True)
    ]
    joined = [
        torch.cat(row, dim) if part is atoms[0] else row[0]
        for row, part in zip(zip(*pieces, strict=True), chains[0], strict=True)
    ]
    return torch.cat(joined, dim)
