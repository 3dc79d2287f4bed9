"""Calls take memory in turn: one piece serves all compiled graphs of a process, but for calls that run at once."""

from __future__ import annotations

import threading

import torch

import suture
from suture.backends.arenas import Arenas, shared_arenas
from suture.ir.text import parse_graph

TEXT = """
graph g(
    %x: f32[n, 16],
    %w: f32[16, 16],
) {
  %a: f32[n, 16] = matmul(%x, %w)
  %b: f32[n, 16] = matmul(%a, %w)
  %c: f32[n, 16] = matmul(%b, %w)
  return %c
}
"""


def test_the_largest_idle_piece_is_taken_and_a_small_one_is_replaced() -> None:
    pool = Arenas()
    small = pool.take(100)
    pool.give(small)
    assert pool.take(60) is small
    pool.give(small)
    large = pool.take(1000)
    assert large.numel() == 1000
    pool.give(large)
    assert pool.take(1) is large
    assert pool.take(1) is not large  # at the same time


def test_graphs_share_one_piece() -> None:

    first, second = (suture.compile(parse_graph(TEXT)) for _ in range(2))
    pool, w = shared_arenas(), torch.eye(16)
    before = len(pool._idle)
    for rows in (3, 50, 7):
        x = torch.randn(rows, 16)
        assert torch.equal(first(x, w), x)
        assert torch.equal(second(x, w), x)
    assert len(pool._idle) <= max(before, 1)


def test_calls_at_once_do_not_share() -> None:
    compiled, w = suture.compile(parse_graph(TEXT)), torch.eye(16)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = torch.randn(400, 16, generator=torch.Generator().manual_seed(seed))
        wrong.extend(seed for _ in range(30) if not torch.equal(compiled(x, w), x))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
