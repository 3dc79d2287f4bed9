"""The dictionaries that layers are called with, as one graph with numbered types, made once for the same edge indices."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.drivers.accelerating.structures import kept, own
from suture.frontends.messages.conversions import Kind, Stack, stack


def stacked(counts: Mapping[str, int], edges: Mapping[Kind, torch.Tensor], kinds: tuple[Kind, ...]) -> Stack:
    """The graph of dictionaries.

    :param counts: how many nodes there are, by their types
    :param edges: edge indices `[2, edges]` by types
    :param kinds: all types of edges, in the order of their numbers
    :raises SutureError: RELATION, if an edge leads outside
    """

    def make() -> Stack:
        return stack(counts, {kind: own(index) for kind, index in edges.items()}, kinds)

    found: Stack = kept(tuple(edges.values()), ("stack", tuple(counts.items()), tuple(edges), kinds), make)
    return found
