"""How many edges the busiest node has: on a GPU a segment of very many rows comes in pieces, so that no block works alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from suture.drivers.relational.variants import Target

_LONG = 2048  # rows: fewer take a block no longer than the launches of what takes pieces
_RUNNING = 512  # blocks that run at a time
_SHORTEST, _LONGEST = 256, 2048  # rows of a piece


def piece_length(indices: Mapping[str, torch.Tensor], typing: Sequence[str], target: Target) -> int:
    """The rows of a piece, for programs that sum over equal indices; 0 where segments stay whole.

    On a processor they do: its few threads take segments as they come, and one of them is long only where it is most of the edges.

    :param indices: the edges
    :param typing: those that choose among weights: their segments are taken in tiles anyway
    """
    if target != "cuda":
        return 0
    ends = [index for name, index in indices.items() if name not in typing and index.dim() == 1 and len(index)]
    return max((worthwhile(int(torch.bincount(end).max()), len(end)) for end in ends), default=0)


def worthwhile(longest: int, rows: int) -> int:
    """How many rows of a GPU's segments one block should take at most; 0 for all, where no segment is long.

    A long one is what a block is still busy with when all others are done: a few hundred blocks run at a time. About as many pieces as a piece has
    rows, so that adding up the pieces takes no longer than a piece.

    :param longest: the rows of the longest segment
    :param rows: of all segments
    """
    if longest < max(_LONG, rows // _RUNNING):
        return 0
    return min(max(1 << math.ceil(math.log2(longest) / 2), _SHORTEST), _LONGEST)
