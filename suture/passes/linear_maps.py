"""Linear maps of atoms, and of the dimensions that hold them: products and concatenations compose, as the axis expressions say."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch

from suture.ir.algebra import Atom, Axis, Chain, Times, atoms_of, size_of
from suture.ir.graph import Parameter
from suture.ir.sizes import Dim
from suture.passes.counter import counter_normal

_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Gather:
    """Index j of the result is `scale[j]` times index `index[j]` of the source: a selection, a duplication, a permutation."""

    index: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """The size after the map."""
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Scatter:
    """The transpose of a gather: index i of the result sums `scale[j]` times the indices j of the source with `index[j] == i`."""

    index: torch.Tensor
    size: int
    scale: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Dense:
    """Any matrix, of shape `[size after, size before]`."""

    matrix: torch.Tensor

    @property
    def size(self) -> int:
        """The size after the map."""
        return self.matrix.shape[0]


@dataclass(frozen=True, eq=False)
class Pad:
    """The source, and behind it new entries: a number, the mean of the source's, or noise of the whole tensor's deviation."""

    before: int
    count: int
    fill: float | Literal["mean", "noise"]

    @property
    def size(self) -> int:
        """The size after the map."""
        return self.before + self.count


def diagonal(scale: torch.Tensor) -> Gather:
    """Every index stays where it is, and takes a factor."""
    return Gather(torch.arange(len(scale)), scale)


LinearMap: TypeAlias = Gather | Scatter | Dense | Pad


class Noise:
    """Normal numbers of a tensor's deviation, keyed by seed and name: the k-th call gives the same for the same key."""

    def __init__(self, parameter: Parameter, seed: int) -> None:
        self.data = parameter.data.detach()
        self.name = parameter.name
        self.seed = seed
        self.calls = 0

    @cached_property
    def deviation(self) -> float:
        """The standard deviation of the tensor's entries."""
        known = self.data.numel() > 1 and self.data.dtype.is_floating_point and not self.data.is_meta
        return float(self.data.to(torch.float64).std(correction=0)) if known else 0.0

    def like(self, data: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """Noise of a shape, of a tensor's type."""
        self.calls += 1
        if data.is_meta:
            return data.new_empty(shape)
        drawn = counter_normal(self.seed, f"{self.name}/{self.calls}", math.prod(shape)) * self.deviation
        return drawn.reshape(shape).to(data.device, data.dtype)


def mapped_size(axis: Axis, sizes: Mapping[Atom, int]) -> Dim:
    """The size of an axis after the surgery."""
    match axis:
        case Atom():
            return sizes.get(axis, axis.size)
        case Times(factors):
            result: Dim = 1
            for factor in factors:
                result = result * mapped_size(factor, sizes)
            return result
        case Chain(parts):
            total: Dim = 0
            for part in parts:
                total = total + mapped_size(part, sizes)
            return total


def touches_none(axis: Axis, atoms: Container[Atom]) -> bool:
    """Whether an axis holds none of the atoms."""
    return not any(atom in atoms for atom in atoms_of(axis))


def composed(axis: Axis, maps: Mapping[Atom, Gather]) -> Gather:
    """The map of a whole dimension, from those of its atoms: products and concatenations of index maps are index maps."""
    match axis:
        case Atom():
            return maps[axis] if axis in maps else Gather(torch.arange(fixed_size(axis.size)))
        case Times(factors):
            index, scale = torch.zeros(1, dtype=torch.int64), None
            for factor in factors:
                inner = composed(factor, maps)
                if scale is not None or inner.scale is not None:
                    outer = torch.ones(len(index), dtype=torch.float64) if scale is None else scale
                    own = torch.ones(inner.size, dtype=torch.float64) if inner.scale is None else inner.scale
                    scale = (outer[:, None] * own[None, :]).reshape(-1)
                index = (index[:, None] * fixed_size(size_of(factor)) + inner.index[None, :]).reshape(-1)
            return Gather(index, scale)
        case Chain(parts):
            offset, pieces = 0, []
            for part in parts:
                piece = composed(part, maps)
                pieces.append(Gather(piece.index + offset, piece.scale))
                offset += fixed_size(size_of(part))
            scaled = any(piece.scale is not None for piece in pieces)
            scales = [torch.ones(p.size, dtype=torch.float64) if p.scale is None else p.scale for p in pieces]
            return Gather(torch.cat([p.index for p in pieces]), torch.cat(scales) if scaled else None)


def map_dimension(
    data: torch.Tensor, dim: int, axis: Axis, maps: Mapping[Atom, LinearMap], noise: Noise | None = None
) -> torch.Tensor:
    """The tensor with one dimension mapped; differentiable in the tensor and in dense matrices.

    :param noise: where new entries that are noise come from; zeros without it
    """
    held = {atom: maps[atom] for atom in atoms_of(axis) if atom in maps}
    if not held:
        return data
    gathers = {atom: m for atom, m in held.items() if isinstance(m, Gather)}
    if len(gathers) == len(held):
        return _gathered(data, dim, composed(axis, gathers))
    match axis:
        case Atom():
            return _mapped(data, dim, held[axis], noise)
        case Times(factors):
            sizes = [fixed_size(size_of(factor)) for factor in factors]
            apart = data.reshape([*data.shape[:dim], *sizes, *data.shape[dim + 1 :]])
            # noise first: what is to be zero is zero in the noise too
            for k in sorted(range(len(factors)), key=lambda k: not is_noisy(factors[k], held)):
                apart = map_dimension(apart, dim + k, factors[k], held, noise)
            return apart.flatten(dim, dim + len(factors) - 1)
        case Chain(parts):
            pieces = torch.split_with_sizes(data, [fixed_size(size_of(part)) for part in parts], dim)
            mapped = [map_dimension(piece, dim, part, held, noise) for piece, part in zip(pieces, parts, strict=True)]
            return torch.cat(mapped, dim)


def _mapped(data: torch.Tensor, dim: int, linear: LinearMap, noise: Noise | None) -> torch.Tensor:
    match linear:
        case Gather():
            return _gathered(data, dim, linear)
        case Pad(count=count, fill=fill):
            return torch.cat([data, _padding(data, dim, count, fill, noise)], dim)
        case Scatter():
            return _scattered(data, dim, linear)
        case Dense(matrix):
            if not data.dtype.is_floating_point:  # a mask or an index table: the entry that weighs most
                return data.index_select(dim, matrix.detach().abs().argmax(1).to(data.device))
            wide = data.to(torch.float32) if data.dtype in _NARROW else data
            product: torch.Tensor = torch.tensordot(matrix.to(wide.device, wide.dtype), wide, dims=([1], [dim]))
            return product.movedim(0, dim).to(data.dtype)


def _padding(data: torch.Tensor, dim: int, count: int, fill: float | str, noise: Noise | None) -> torch.Tensor:
    shape = [count if k == dim else size for k, size in enumerate(data.shape)]
    if fill == "mean" and data.dtype.is_floating_point:
        return data.mean(dim, keepdim=True).expand(shape)
    if fill == "noise" and noise is not None and data.dtype.is_floating_point:
        return noise.like(data, shape)
    return torch.full(shape, fill if isinstance(fill, float) else 0.0, device=data.device).to(data.dtype)


def _scattered(data: torch.Tensor, dim: int, scatter: Scatter) -> torch.Tensor:
    shape = [scatter.size if k == dim else size for k, size in enumerate(data.shape)]
    if data.is_meta:
        return data.new_empty(shape)
    index = scatter.index.to(data.device)
    if not data.dtype.is_floating_point:  # the first of those that meet
        first = torch.full((scatter.size,), len(index), device=data.device)
        first = first.scatter_reduce(0, index, torch.arange(len(index), device=data.device), "amin")
        return data.index_select(dim, first)
    wide = data.to(torch.float32) if data.dtype in _NARROW else data
    if scatter.scale is not None:
        wide = wide * scatter.scale.to(wide.device, wide.dtype).reshape(
            [-1 if k == dim else 1 for k in range(wide.ndim)]
        )
    return wide.new_zeros(shape).index_add(dim, index, wide).to(data.dtype)


def _gathered(data: torch.Tensor, dim: int, gather: Gather) -> torch.Tensor:
    if data.is_meta:
        return data.new_empty([gather.size if k == dim else size for k, size in enumerate(data.shape)])
    chosen = data.index_select(dim, gather.index.to(data.device))
    if gather.scale is None or not data.dtype.is_floating_point:
        return chosen
    scale = gather.scale.to(data.device).reshape([-1 if k == dim else 1 for k in range(data.ndim)])
    return (chosen * scale).to(data.dtype) if data.dtype in _NARROW else chosen * scale.to(data.dtype)


def is_noisy(axis: Axis, maps: Mapping[Atom, LinearMap]) -> bool:
    """Whether an axis gets noise."""
    return any(isinstance(m, Pad) and m.fill == "noise" for atom in atoms_of(axis) if (m := maps.get(atom)) is not None)


def fixed_size(size: Dim) -> int:
    """A size that is a number: symbolic ones are those of inputs, which are pinned."""
    assert isinstance(size, int), f"a symbolic size {size} cannot be mapped"
    return size
