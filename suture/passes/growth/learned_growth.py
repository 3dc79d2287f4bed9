"""Learned growth: linear maps from the small model's parameters to the large one's, trained for a few steps (Wang et al. 2023, LiGO).

In width every atom has one matrix B of shape `[after, before]`: what writes the atom is multiplied by B, what reads it by B scaled so that copies
share (section 3.2's tying of layers that meet is what an atom is). In depth every kind of parameter of a block has mixing weights w: the j-th large
one is `sum_i w[j, i] * (B_out W_i B_in^T)` (section 3.1). Blocks of one stack share their matrices. At the start B copies and w stacks, so the
model is the one that `widen` and `stack` make; then B and w follow the user's loss while the small parameters rest, and `bake` multiplies out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from suture.ir.algebra import Atom, atoms_of
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.regions import Stack, correspondence, stack_at, stacks
from suture.ir.semantics import evaluate
from suture.ir.splice import arrange
from suture.passes.axis_map import DimensionMap
from suture.passes.counter import counter_normal
from suture.passes.growth.width.widening import WideningPlan
from suture.passes.linear_maps import Dense, Gather, LinearMap, map_dimension

Loss: TypeAlias = Callable[[Any, int], torch.Tensor]


@dataclass(frozen=True)
class _Mixture:
    """The small parameters that a large one is mixed from, and the row of the mixing weights that says how."""

    names: tuple[str, ...]
    weights: str
    row: int


class LearnedGrowth(nn.Module):
    """The large model as a function of the small one's parameters and the growth matrices, which are what trains.

    Called like the graph: one tensor per input, in order or by name; the result is a tensor, or a tuple of them.

    :param plan: how the width grows, by splitting; None leaves it
    :param order: the blocks of the stack that the large one begins with, `(0, 1, 0, 1)` for stacking; None leaves the depth
    :param at: the stack's path; the one with most parameters if absent
    :param noise: the deviation of what is added to the matrices at first, relative to their entries; 0 begins with copies
    :raises SutureError: GROWTH, if the plan does not split, or the order names no block; REGION or SITE, if there is no stack
    """

    def __init__(
        self,
        graph: Graph,
        plan: WideningPlan | None = None,
        order: Sequence[int] | None = None,
        *,
        at: str | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if plan is not None and not all(isinstance(m.write, Gather) for m in plan.maps.values()):
            raise SutureError(
                Code.GROWTH, "the growth does not begin with copies", remedy="plan it with method='split'"
            )
        self.small = graph
        self.plan = plan
        wide = graph.copy() if plan is None else plan.apply()
        self.large = wide if order is None else wide.copy()
        self.sources = {} if plan is None else plan.sources()
        self.matrices = nn.ParameterDict()
        self.mixing = nn.ParameterDict()
        self._keys: dict[Atom, str] = {}
        self._mixtures: dict[str, _Mixture] = {}
        if order is not None:
            self._mix(wide, stack_at(wide, at), tuple(order), noise, seed)
        for atom, axis_map in () if plan is None else plan.maps.items():
            key = self._keys.setdefault(atom, f"atom{atom.number}")
            assert isinstance(axis_map.write, Gather)
            if key not in self.matrices:
                matrix = torch.nn.functional.one_hot(axis_map.write.index, atom.size)  # type: ignore[arg-type]
                self.matrices[key] = self._parameter(matrix, key, noise, seed)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the large model with the parameters that the matrices make."""
        given: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] = inputs
        if named:
            given = {**dict(zip((value.name for value in self.large.inputs), inputs, strict=False)), **named}
        results = evaluate(self.large, given, training=self.training, parameters=self.grown())
        return results[0] if len(results) == 1 else tuple(results)

    def grown(self) -> dict[str, torch.Tensor]:
        """The large model's trained parameters by name, as functions of the matrices."""
        maps = {atom: self._ends(self.matrices[key]) for atom, key in self._keys.items()}
        widened: dict[str, torch.Tensor] = {}

        def widen(name: str) -> torch.Tensor:
            if name not in widened:
                widened[name] = self._widened(name, maps)
            return widened[name]

        grown = {}
        for name, parameter in self.large.parameters.items():
            if parameter.role != "parameter" or not parameter.dtype.is_floating_point:
                continue
            mixture = self._mixtures.get(name)
            if mixture is not None:
                row = self.mixing[mixture.weights][mixture.row]
                grown[name] = torch.stack([row[i] * widen(source) for i, source in enumerate(mixture.names)]).sum(0)
            elif name in self.small.parameters:
                grown[name] = widen(name)
        return grown

    def bake(self) -> Graph:
        """The large model as an ordinary graph."""
        result = self.large.copy()
        with torch.no_grad():
            for name, tensor in self.grown().items():
                parameter = result.parameters[name]
                data = tensor.detach().clone().to(parameter.dtype)
                parameter.assign(data.requires_grad_(parameter.data.requires_grad))
        return result

    def fit(self, loss: Loss, steps: int, *, learning_rate: float = 1e-3) -> list[float]:
        """Train the matrices with Adam; the losses.

        :param loss: called as `loss(model, step)`; a single number to be made smaller
        :raises SutureError: TRAINING, if it returns something else, a number that is not finite, or one that the matrices have no part in
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(self, step)
            _require_loss(value, step)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(value.detach()))
        return losses

    def _widened(self, name: str, maps: Mapping[Atom, tuple[Dense, Dense]]) -> torch.Tensor:
        data = self.small.parameters[name].data.detach()
        source = self.sources.get(name)
        if source is None:
            return data
        for dimension in source.dimensions:
            data = map_dimension(data, dimension.dim, dimension.axis, self._chosen(name, dimension, maps))
        return data if source.factor is None else data * source.factor.to(data.device, data.dtype)

    def _chosen(
        self, name: str, dimension: DimensionMap, maps: Mapping[Atom, tuple[Dense, Dense]]
    ) -> dict[Atom, LinearMap]:
        assert self.plan is not None
        value = self.small.parameters[name]
        chosen: dict[Atom, LinearMap] = {}
        for atom in dimension.value:
            reading = any(
                place.value is value and place.dim == dimension.dim for place in self.plan.reads.get(atom, ())
            )
            chosen[atom] = maps[atom][reading]
        return chosen

    @staticmethod
    def _ends(matrix: torch.Tensor) -> tuple[Dense, Dense]:
        """The maps of what writes and of what reads: for a matrix that copies, the second shares."""
        return Dense(matrix), Dense(matrix / matrix.square().sum(0, keepdim=True))

    def _mix(self, wide: Graph, stack: Stack, order: tuple[int, ...], noise: float, seed: int) -> None:
        """Arrange the large model's stack, and let every parameter of a block be mixed from those of all blocks."""
        name, blocks = stack.name, stack.blocks
        arrange(stack_at(self.large, name), order)
        titles = (name, stack.numbering.prefix if stack.numbering is not None else name)
        grown = next((s for s in stacks(self.large) if s.name in titles and len(s) == len(order)), None)
        if grown is None:
            raise SutureError(
                Code.GROWTH,
                f"{name} is not a stack of {len(order)} blocks after its growth",
                remedy="mix a stack of plain blocks",
            )
        across = [correspondence(blocks[0], block).parameters for block in blocks]
        along = [correspondence(blocks[0], block).parameters for block in grown.blocks]
        own = set(blocks[0].own_parameters())
        for k, parameter in enumerate(blocks[0].parameters):
            if parameter not in own or parameter.role != "parameter" or not parameter.dtype.is_floating_point:
                continue
            names = tuple(pairs[parameter].name for pairs in across)
            key = f"weights{k}"
            start = torch.nn.functional.one_hot(torch.tensor(order), len(blocks))
            self.mixing[key] = self._parameter(start, key, noise, seed)
            for row, pairs in enumerate(along):
                self._mixtures[pairs[parameter].name] = _Mixture(names, key, row)
            self._tie(names)

    def _tie(self, names: Sequence[str]) -> None:
        """Parameters of the same kind in all blocks share the matrices of their own atoms."""
        if self.plan is None:
            return
        table, parameters = self.plan.table, self.small.parameters
        for dim in range(parameters[names[0]].rank):
            atoms = [list(dict.fromkeys(atoms_of(table.axis(parameters[name], dim)))) for name in names]
            for first, *others in zip(*atoms, strict=False):
                if first in self.plan.maps:
                    key = self._keys.setdefault(first, f"atom{first.number}")
                    for other in others:
                        self._keys.setdefault(other, key)

    def _parameter(self, start: torch.Tensor, key: str, noise: float, seed: int) -> nn.Parameter:
        like = next(p.data for p in self.small.parameters.values() if p.dtype.is_floating_point)
        drawn = counter_normal(seed, key, start.numel()).reshape(start.shape) * (noise / start.shape[1] ** 0.5)
        return nn.Parameter((start + drawn).to(like.device, like.dtype))


def _require_loss(value: object, step: int) -> None:
    where = f"step {step}"
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shown = (
            f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        )
        raise SutureError(Code.TRAINING, f"the loss is {shown}", where=where, remedy="a single number would be right")
    if not value.requires_grad:
        raise SutureError(
            Code.TRAINING,
            "the loss does not depend on the growth",
            where=where,
            remedy="compute it from what the given model returns",
        )
    if not bool(value.isfinite()):
        raise SutureError(
            Code.TRAINING, f"the loss is {float(value.detach()):g}", where=where, remedy="a smaller step may help"
        )


__all__ = ["LearnedGrowth", "Loss"]
