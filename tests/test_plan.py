"""Memory planned ahead: what lives at the same time never shares a byte, and the arena is no longer than all side by side."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from suture.codegen.plan import ALIGNMENT, Lifetime, aligned, place
from suture.ir.graph import Graph, Value
from suture.ir.types import TensorType


def _lifetime(graph: Graph, first: int, length: int) -> Lifetime:
    return Lifetime(Value(graph, "v", TensorType(torch.uint8, (1,))), first, first + length)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(0, 2000)), max_size=30))
def test_what_lives_at_the_same_time_lies_apart(drawn: list[tuple[int, int, int]]) -> None:
    graph = Graph("g")
    lifetimes = [_lifetime(graph, first, length) for first, length, _ in drawn]
    sizes = [size for *_, size in drawn]
    offsets, total = place(lifetimes, sizes)
    assert total <= sum(map(aligned, sizes))
    for k, (one, offset, size) in enumerate(zip(lifetimes, offsets, sizes, strict=True)):
        assert offset % ALIGNMENT == 0 and offset + size <= total
        for other, at, length in zip(lifetimes[:k], offsets[:k], sizes[:k], strict=True):
            together = one.first <= other.last and other.first <= one.last
            assert not together or offset + size <= at or at + length <= offset
    # no shorter than what lives at any one time
    for moment in range(30):
        alive = sum(
            aligned(size) for one, size in zip(lifetimes, sizes, strict=True) if one.first <= moment <= one.last
        )
        assert total >= alive
