"""Optimiser state that grows with the parameters, so that training goes on without a spike.

A growth that keeps the function is a change of coordinates, `L'(M w) = L(w)`, so the gradient by the new parameter is the old one under the
contragredient map: what writes an axis takes for its gradient what the axis's readers take for their values, and the other way round. (Where a
norm sees copies of uneven shares, or a mean, the old gradient does not say how the new one divides; the map gives one that adds up to it.) First
moments follow the gradient, second moments its square; what is new and has no gradient yet starts at zero, and with the mean of the old second
moments, so that its first steps are no longer than theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.ir.algebra import size_of
from suture.ir.errors import Code, SutureError, nearest
from suture.passes.axis_map import DimensionMap
from suture.passes.linear_maps import Dense, Gather, LinearMap, Pad, Scatter, map_dimension

LINEAR = ("exp_avg", "momentum_buffer", "grad_avg")
"""Entries of torch's optimisers that follow the gradient (Adam, SGD, RMSprop)."""

SQUARE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""Entries that follow the gradient's square (Adam, AMSGrad, RMSprop, Adagrad)."""


@dataclass(frozen=True, eq=False)
class ParameterSource:
    """What a new parameter is made of: an old one by name, its dimensions mapped in order, times a factor.

    Without dimensions and factor it is a copy of the old one: a block that was stacked.
    """

    name: str
    dimensions: tuple[DimensionMap, ...] = ()
    factor: torch.Tensor | None = None

    def first_moment(self, moment: torch.Tensor) -> torch.Tensor:
        """A gradient, or a running mean of gradients, by the new parameter."""
        for dimension in self.dimensions:
            maps = {
                atom: Pad(m.before, m.count, 0.0) if isinstance(m, Pad) else m for atom, m in dimension.gradient.items()
            }
            moment = map_dimension(moment, dimension.dim, dimension.axis, maps)
        return moment if self.factor is None else moment / self.factor.to(moment.device, moment.dtype)

    def second_moment(self, moment: torch.Tensor) -> torch.Tensor:
        """The square of a gradient, or a running mean of squares, by the new parameter."""
        for dimension in self.dimensions:
            maps = {atom: _squared(m) for atom, m in dimension.gradient.items()}
            moment = map_dimension(moment, dimension.dim, dimension.axis, maps)
        return moment if self.factor is None else moment / self.factor.to(moment.device, moment.dtype).square()


def map_optimizer_state(
    state_dict: Mapping[str, Any],
    old_names: Sequence[str],
    new_names: Sequence[str],
    sources: Mapping[str, ParameterSource],
) -> dict[str, Any]:
    """The state dict of an optimiser over the new parameters.

    Load it into an optimiser of the same class with the same groups. A parameter of no source begins without state, in the first group.

    :param state_dict: what a torch optimiser's `state_dict()` gave
    :param old_names: the names of the parameters that the optimiser was given, in its order, those of its first group first
    :param new_names: the names of the parameters that the new optimiser is given, likewise
    :param sources: for every new parameter, what it is made of
    :raises SutureError: GROWTH, if the names do not fit the state, a source does not exist, or an entry is of no known kind
    """
    groups, state = _parts(state_dict)
    ids = [identity for group in groups for identity in group["params"]]
    if len(ids) != len(old_names):
        raise SutureError(
            Code.GROWTH,
            f"{len(old_names)} names for an optimiser of {len(ids)} parameters",
            remedy="name every parameter it was given, in order",
        )
    by_name = dict(zip(old_names, ids, strict=True))
    group_of = {identity: k for k, group in enumerate(groups) for identity in group["params"]}
    members: list[list[str]] = [[] for _ in groups]
    for name in new_names:
        source = sources.get(name)
        if source is not None and source.name not in by_name:
            raise SutureError(
                Code.GROWTH,
                f"{name} is made of {source.name}, which the optimiser does not have",
                remedy=nearest(source.name, by_name, what="parameter"),
            )
        members[0 if source is None else group_of[by_name[source.name]]].append(name)
    numbered = {name: k for k, name in enumerate(name for group in members for name in group)}
    grown = {}
    for name, number in numbered.items():
        source = sources.get(name)
        entries = None if source is None else state.get(by_name[source.name])
        if source is not None and entries is not None:
            grown[number] = {key: _grown(key, value, source, name) for key, value in entries.items()}
    new_groups = [
        {**group, "params": [numbered[name] for name in names]} for group, names in zip(groups, members, strict=True)
    ]
    return {**state_dict, "state": grown, "param_groups": new_groups}


def _parts(state_dict: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], Mapping[int, Mapping[str, Any]]]:
    try:
        groups, state = list(state_dict["param_groups"]), state_dict["state"]
        if not groups or not isinstance(state, Mapping) or not all("params" in group for group in groups):
            raise KeyError
    except (KeyError, TypeError):
        raise SutureError(
            Code.GROWTH, "this is no optimiser's state", remedy="give what optimizer.state_dict() returns"
        ) from None
    return groups, state


def _grown(key: str, value: Any, source: ParameterSource, name: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim == 0 and (source.dimensions or key not in (*LINEAR, *SQUARE)):
        return value.clone()  # a counter of steps
    if key not in (*LINEAR, *SQUARE):
        raise SutureError(
            Code.GROWTH,
            f"the optimiser's entry {key!r} of {name} is of no known kind",
            remedy=f"known are {', '.join((*LINEAR, *SQUARE))}",
        )
    for dimension in source.dimensions:
        size = size_of(dimension.axis)
        if value.ndim <= dimension.dim or value.shape[dimension.dim] != size:
            raise SutureError(
                Code.GROWTH, f"the optimiser's entry {key!r} of {source.name} has shape {list(value.shape)}",
                remedy=f"dimension {dimension.dim} should have {size}: give the state of the model before its growth",
            )  # fmt: skip
    return (source.first_moment(value) if key in LINEAR else source.second_moment(value)).clone()


def _squared(linear: LinearMap) -> LinearMap:
    match linear:
        case Gather(index, scale):
            return Gather(index, None if scale is None else scale.square())
        case Scatter(index, size, scale):
            return Scatter(index, size, None if scale is None else scale.square())
        case Dense(matrix):
            return Dense(matrix.square())
        case Pad(before, count):
            return Pad(before, count, "mean")


__all__ = ["LINEAR", "SQUARE", "ParameterSource", "map_optimizer_state"]
