"""How a matrix product is cut up, where nothing was measured.

A tile costs what its arithmetic does; a block pays once for the panel that it brings near, and for rows that come from beyond the processor's own
cache. What counts is the processor that has the most to do.
"""

from __future__ import annotations

import os
from itertools import pairwise

import torch

from suture.codegen.gemm.roles import Roles
from suture.codegen.schedule import GemmSchedule

_HIGH = 12  # rows of the largest register tile
_NEAR = 1024 * 1024  # bytes that stay in a processor's own cache
_DEEP = 512  # how long sums are for which it pays to read rows for twice the columns
_GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def default_schedule(roles: Roles, dtype: torch.dtype, processors: int | None = None) -> GemmSchedule:
    """Register tiles of 12 rows, and as many of them one below the other in a block as leaves all processors about the same to do.

    A block brings a panel near once, so more tiles in it are better, until the rows that they take leave the processor's own cache.

    :param processors: how many there are; those of this machine if None
    """
    rows, columns, inner, batch = (roles.size(each) for each in (roles.rows, roles.columns, roles.inner, roles.batch))
    width = 16 if isinstance(columns, int) and columns <= 16 else 32
    if not (isinstance(rows, int) and isinstance(columns, int) and isinstance(inner, int) and isinstance(batch, int)):
        return GemmSchedule(columns=width)
    tiles = max(1, -(-rows // _HIGH))
    row_bytes = _HIGH * inner * dtype.itemsize
    if inner >= _DEEP and columns >= 8 * width and tiles * row_bytes > _NEAR:
        width = 64  # rows come from far away: each time for more columns
    panels = max(1, -(-columns // width))
    shares = processors or os.cpu_count() or 1
    far = 0.25 if inner * columns * dtype.itemsize > _NEAR else 0.05  # what a panel costs once, of what a tile costs

    def price(group: int) -> float:
        leaves = 0.08 if group * row_bytes > _NEAR else 0.0
        return _longest(tiles, group, panels, batch, shares) * (1 + far / group + leaves)

    group = min((each for each in (*_GROUPS, tiles) if each <= tiles), key=price)
    return GemmSchedule(max(1, -(-rows // tiles)), width, group=group)


def _longest(tiles: int, group: int, panels: int, batch: int, shares: int) -> int:
    """The tiles of the processor that has the most, where each takes as many neighbouring blocks."""
    groups, last = -(-tiles // group), tiles - (-(-tiles // group) - 1) * group
    blocks = batch * groups * panels

    def before(block: int) -> int:
        """The tiles of all blocks before one."""
        row, column = divmod(block, panels)
        matrix, row = divmod(row, groups)
        return (matrix * tiles + row * group) * panels + column * (last if row == groups - 1 else group)

    ends = [blocks * share // shares for share in range(shares + 1)]
    return max(before(stop) - before(start) for start, stop in pairwise(ends))
