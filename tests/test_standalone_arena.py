"""The planner of memory that a build contains places values where the compiler's own does, and never two at once in one place."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.backends.standalone import template
from suture.codegen.plan import Lifetime, aligned, place
from suture.ir.graph import Graph
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

MAIN = """
#include "arena.h"
int64_t length(const arena_life *lives, const int64_t *bytes, int64_t *offsets, int *room, int count) {
  return arena_place(lives, bytes, offsets, room, room + count, count);
}
"""


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("arena")
    (folder / "arena.h").write_text(template("arena.h"))
    (folder / "main.c").write_text(MAIN)
    flags = [
        "-std=c99",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-fsanitize=undefined",
        "-fsanitize-undefined-trap-on-error",
    ]
    subprocess.run(["gcc", *flags, "main.c", "-o", "arena.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "arena.so"))
    library.length.restype = ctypes.c_int64
    return library


def planned(planner: ctypes.CDLL, lives: Sequence[tuple[int, int]], sizes: Sequence[int]) -> tuple[list[int], int]:
    count = len(sizes)
    spans = (ctypes.c_int * (2 * count + 1))(*(step for life in lives for step in life))
    offsets, room = (ctypes.c_int64 * (count + 1))(), (ctypes.c_int * (2 * count + 1))()
    length = planner.length(spans, (ctypes.c_int64 * (count + 1))(*sizes), offsets, room, count)
    return list(offsets[:count]), length


LIVES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 400)), max_size=24)


@settings(max_examples=200, deadline=None)
@given(LIVES)
def test_both_planners_agree_and_nothing_overlaps(planner: ctypes.CDLL, drawn: list[tuple[int, int, int]]) -> None:
    graph = Graph("g")
    values = [graph.add_input(f"v{k}", TensorType(torch.uint8, (size,))) for k, (_, _, size) in enumerate(drawn)]
    lives = [(first, first + length) for first, length, _ in drawn]
    sizes = [size for _, _, size in drawn]
    lifetimes = [Lifetime(value, *life) for value, life in zip(values, lives, strict=True)]
    offsets, total = planned(planner, lives, sizes)
    assert (offsets, total) == place(lifetimes, sizes)
    for k in range(len(drawn)):
        assert offsets[k] % 64 == 0 and offsets[k] + sizes[k] <= total
        for j in range(k):
            together = lives[k][0] <= lives[j][1] and lives[j][0] <= lives[k][1]
            apart = offsets[k] + aligned(sizes[k]) <= offsets[j] or offsets[j] + aligned(sizes[j]) <= offsets[k]
            assert apart or not together or not sizes[k] or not sizes[j]


def test_lengths_that_do_not_fit_are_told(planner: ctypes.CDLL) -> None:
    assert planned(planner, [(0, 1)], [2**62])[1] == -1
    assert planned(planner, [(0, 1)], [-1])[1] == -1
    assert planned(planner, [(0, 1), (1, 2)], [2**60, 2**60])[1] == 2**61
    assert planned(planner, [(0, 1), (0, 1), (0, 1), (1, 2)], [2**61] * 4)[1] == -1
