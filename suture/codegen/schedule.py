"""Schedules: the choices of a kernel that do not change what it computes. They are values: frozen, comparable, saved as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class TraversalSchedule:
    """How a traversal runs over its rows.

    :param lanes: the lanes of a block
    :param tile: how many elements of a long row one block takes, where nothing is reduced
    :param rows: how many short rows one block takes
    :param split: of rows in segments, how many one block takes at most: longer segments come in pieces; 0 for all
    """

    lanes: int = 64
    tile: int = 4096
    rows: int = 1
    split: int = 0


@dataclass(frozen=True)
class GemmSchedule:
    """How a matrix product is cut up.

    :param rows: rows of a register tile
    :param columns: its columns
    :param depth: how much of the contracted dimension is taken at a time; 0 for all
    :param group: how many register tiles, one below the other, one block computes
    """

    rows: int = 12
    columns: int = 32
    depth: int = 0
    group: int = 8


@dataclass(frozen=True)
class AttentionSchedule:
    """How attention runs over queries and keys.

    :param queries: queries of a tile
    :param keys: keys of a tile
    :param lanes: the lanes of a block
    :param across: how many of them stand side by side in a tile's columns
    :param staged: whether keys and values come into the block's own memory first
    """

    queries: int = 32
    keys: int = 64
    lanes: int = 32
    across: int = 32
    staged: bool = False


@dataclass(frozen=True)
class ConvolutionSchedule:
    """How a convolution is cut up.

    :param pixels: the output pixels that one block takes at most; of a depthwise one, those that a lane holds at a time
    :param channels: the output channels that it takes; 0 where their number says how many
    :param panels_outside: whether blocks go over all pixels before they come to the next channels, or the other way round
    """

    pixels: int = 64
    channels: int = 0
    panels_outside: bool = False


@dataclass(frozen=True)
class CudaGemmSchedule:
    """How a matrix product is cut up for a GPU.

    :param rows: rows of a block's tile; a multiple of its warps, on tensor cores of 16 times that
    :param columns: its columns, a multiple of 32
    :param depth: how much of the contracted dimension comes into shared memory at a time, a multiple of 16
    :param lanes: the lanes of a block, whole warps
    """

    rows: int = 64
    columns: int = 64
    depth: int = 16
    lanes: int = 128


@dataclass(frozen=True)
class OwnerSchedule:
    """Who makes what the device's library has too; generated code is then cut up as its template does by default.

    :param library: whether it is the library
    """

    library: bool = True


Schedule: TypeAlias = (
    "TraversalSchedule | GemmSchedule | AttentionSchedule | ConvolutionSchedule | CudaGemmSchedule | OwnerSchedule"
)
_KINDS: Mapping[str, type[Schedule]] = {
    "traversal": TraversalSchedule,
    "gemm": GemmSchedule,
    "attention": AttentionSchedule,
    "convolution": ConvolutionSchedule,
    "cuda_gemm": CudaGemmSchedule,
    "owner": OwnerSchedule,
}


def kind_of(schedule: Schedule) -> str:
    """The template that a schedule is for."""
    return next(name for name, kind in _KINDS.items() if isinstance(schedule, kind))


def to_json(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain data."""
    return {"template": kind_of(schedule), **dataclasses.asdict(schedule)}


def from_json(data: Mapping[str, Any]) -> Schedule:
    """What `to_json` made; unknown fields are an error of whoever wrote them (`KeyError`, `TypeError`)."""
    fields = dict(data)
    return _KINDS[fields.pop("template")](**fields)


def show(schedule: Schedule) -> str:
    """One line: `gemm rows 12, columns 32, ...`."""
    fields = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(schedule).items())
    return f"{kind_of(schedule)} {fields}"
