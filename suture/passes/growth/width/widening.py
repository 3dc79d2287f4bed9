"""A plan of widening: which axes become how wide by which maps, what that does to the function, and what has to be corrected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from suture.ir.algebra import Atom
from suture.ir.axes import AxisTable
from suture.ir.files import replacing
from suture.ir.graph import Graph, Node, Parameter, Stats
from suture.passes.axis_map import AxisMap, DimensionMap, Reads, Twin, apply_to, dimension_maps
from suture.passes.exactness import Correction, Verdict
from suture.passes.growth.masking import insert_masks
from suture.passes.growth.optimizer_state import ParameterSource
from suture.passes.growth.width.shares import share
from suture.passes.linear_maps import Gather
from suture.passes.statistics import restore_statistics

Method: TypeAlias = Literal["split", "aki", "zero", "mean", "random"]

FORMAT = "suture-widening 1"


@dataclass(frozen=True)
class Recipe:
    """How axes become wider. The options are those of `suture.passes.widen`."""

    method: Method = "split"
    split: Literal["even", "uneven"] = "even"
    alpha: float = 0.75
    mask: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Widening:
    """One axis, how wide it was and is to be, and what that does to the function."""

    axis: str
    kind: str
    before: int
    after: int
    verdict: str

    def __str__(self) -> str:
        return f"{self.axis} ({self.kind}): {self.before} -> {self.after}, {self.verdict}"


@dataclass(eq=False)
class WideningPlan:
    """Widenings to make together on one graph. Printing it shows one line an axis, and what the model grows to."""

    table: AxisTable
    recipe: Recipe = Recipe()
    maps: dict[Atom, AxisMap] = field(default_factory=dict)
    reads: Reads = field(default_factory=dict)
    verdicts: dict[Atom, Verdict] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    donors: Mapping[str, str] = field(default_factory=dict)
    masks: list[tuple[Node, str]] = field(default_factory=list)

    @property
    def widenings(self) -> tuple[Widening, ...]:
        """The lines of the plan."""
        infos = self.table.infos
        return tuple(
            Widening(infos[atom].name, infos[atom].kind, _fixed(atom), m.size, str(self.verdicts[atom]))
            for atom, m in self.maps.items()
        )

    @property
    def exact(self) -> bool:
        """Whether the function is kept."""
        return all(verdict.level != "approximate" for verdict in self.verdicts.values())

    @property
    def corrections(self) -> list[Correction]:
        """The corrections of all widenings."""
        return [correction for verdict in self.verdicts.values() for correction in verdict.corrections]

    def apply(self) -> Graph:
        """The widened graph."""
        return self._made(Twin.of(self.table.graph))[0]

    def sources(self) -> dict[str, ParameterSource]:
        """For every parameter of the widened graph, what it is made of: optimiser state grows by it."""
        graph, factors = self._made(_without_numbers(self.table.graph))
        dimensions = dimension_maps(self.table, self.maps, self.reads)
        return {
            name: ParameterSource(name, dimensions.get(name, ()), factors.get(name))
            for name in graph.parameters
            if name in self.table.graph.parameters
        }

    def stats(self) -> tuple[Stats, Stats]:
        """The size of the graph before and after."""
        return self.table.graph.stats(), self._made(_without_numbers(self.table.graph))[0].stats()

    def to_json(self) -> str:
        """The plan as JSON: what to do, axis by axis; `suture.passes.replay` does it again on another checkpoint."""
        rows = [{"axis": w.axis, "kind": w.kind, "before": w.before, "after": w.after} for w in self.widenings]
        return json.dumps({"format": FORMAT, "recipe": asdict(self.recipe), "widenings": rows}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically.

        :raises SutureError: WRITE, if the file cannot be written
        """
        with replacing(path) as draft:
            draft.write_text(self.to_json(), encoding="utf-8")

    def __str__(self) -> str:
        if not self.maps:
            return "nothing to widen"
        before, after = self.stats()
        total = f"{before.parameters:,} -> {after.parameters:,} parameters, {before.macs:,} -> {after.macs:,} MACs per sample"
        return "\n".join([*map(str, self.widenings), *self.remarks, total])

    def _made(self, twin: Twin) -> tuple[Graph, dict[str, torch.Tensor]]:
        originals = {name: parameter.data for name, parameter in twin.graph.parameters.items()}
        apply_to(twin, self.table, self.maps, self.reads, seed=self.recipe.seed)
        self._take_from_donors(twin, originals)
        if self.recipe.mask:
            insert_masks(twin, self.table, self.maps, self.masks, self.corrections)
            return twin.graph, {}
        sizes = {atom: m.size for atom, m in self.maps.items()}
        scaled = restore_statistics(twin, self.table, sizes, self.corrections)
        shares = {atom: m.read for atom, m in self.maps.items() if isinstance(m.read, Gather)}
        factors = share(twin, self.table, shares, self.corrections)
        for name, factor in scaled.items():
            factors[name] = factors.get(name, torch.ones((), dtype=torch.float64)) * factor
        return twin.graph, factors

    def _take_from_donors(self, twin: Twin, originals: Mapping[str, torch.Tensor]) -> None:
        """Give new rows what the same rows of another layer hold."""
        if not self.donors:
            return
        for name, dimensions in dimension_maps(self.table, self.maps, self.reads).items():
            donor = self.donors.get(name)
            if donor is None:
                continue
            parameter, data = twin.graph.parameters[name], originals[donor]
            for dimension in dimensions:
                data = dimension.apply(data)
            for dimension in dimensions:
                data = torch.where(self._written(dimension, parameter), data, parameter.data.detach())
            parameter.assign(data.contiguous().requires_grad_(parameter.data.requires_grad))

    def _written(self, dimension: DimensionMap, parameter: Parameter) -> torch.Tensor:
        original = self.table.graph.parameters[parameter.name]
        read = {p.dim for atom in dimension.value for p in self.reads.get(atom, ()) if p.value is original}
        atoms = () if dimension.dim in read else tuple(dimension.value)
        return dimension.is_new(parameter.data.shape, atoms).to(parameter.data.device)


def _without_numbers(graph: Graph) -> Twin:
    """A copy that holds shapes only."""
    twin = Twin.of(graph)
    for parameter in twin.graph.parameters.values():
        parameter.data = parameter.data.detach().to("meta")
    return twin


def _fixed(atom: Atom) -> int:
    assert isinstance(atom.size, int)
    return atom.size


__all__ = ["FORMAT", "Method", "Recipe", "Widening", "WideningPlan"]
