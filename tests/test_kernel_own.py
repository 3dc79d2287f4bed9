"""What a lane may read again in a later region: the very elements that it wrote itself, and no others."""

from __future__ import annotations

import pytest

from suture.ir.errors import Code, SutureError
from suture.ir.kernel_text import parse_kernel
from suture.ir.kernel_verify import verify_kernel

_TEXT = """\
kernel again(n: size, m: size, x: f32[n, m], y: f32[n, m], z: f32[n, m])
  grid row < n
  thread part: f32[]
  uniform all: f32[]
  each t < 32:
    part = f32(0.0)
    for j in 0 .. (m - t + 31) // 32:
      let at = j * 32 + t
      y[row, at] = x[row, at] * x[row, at]
      part += x[row, at]
  all = reduce + part over 32
  each t < 32:
    for j in 0 .. (m - t + 31) // 32:
      let at = j * 32 + t
      z[row, at] = y[row, at] + all
"""


def _refused(text: str) -> str:
    with pytest.raises(SutureError) as caught:
        verify_kernel(parse_kernel(text))
    assert caught.value.code is Code.KERNEL
    return str(caught.value)


def test_a_lane_reads_again_what_it_wrote() -> None:
    verify_kernel(parse_kernel(_TEXT))


def test_a_neighbours_element_is_refused() -> None:
    wrong = _TEXT.replace("z[row, at] = y[row, at]", "z[row, at] = y[row, m - 1 - at]")
    assert "which another lane may be writing" in _refused(wrong)


def test_the_same_name_for_another_place_is_refused() -> None:
    first, second = _TEXT.rsplit("let at = j * 32 + t", 1)
    wrong = f"{first}let at = m - 1 - j * 32 - t{second}"
    assert "which another lane may be writing" in _refused(wrong)


def test_another_lanes_turns_are_refused() -> None:
    first, second = _TEXT.rsplit("each t < 32:\n    for j in 0 .. (m - t + 31) // 32", 1)
    wrong = f"{first}each t < 32:\n    for j in 0 .. (m - t + 31) // 32 - 1{second}"
    assert "which another lane may be writing" in _refused(wrong)


def test_what_only_one_lane_wrote_is_nobody_elses() -> None:
    text = """\
kernel first_lane(n: size, y: f32[n, 1], z: f32[n, 32])
  grid row < n
  each t < 32:
    if t < 1:
      y[row, t // 32] = f32(1.0)
  each t < 32:
    z[row, t] = y[row, t // 32]
"""
    assert "which another lane may be writing" in _refused(text)


def test_what_all_lanes_share_is_not_a_lanes_own() -> None:
    text = """\
kernel shared_by_all(n: size, y: f32[n], z: f32[n, 32])
  grid row < n
  each t < 1:
    y[row] = f32(1.0)
  each t < 32:
    z[row, t] = y[row]
"""
    assert "which another lane may be writing" in _refused(text)
