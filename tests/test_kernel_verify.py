"""The verifier of kernels: what is right passes, and each check has a kernel that only it refuses."""

from __future__ import annotations

import dataclasses

import pytest
from kernels import EXAMPLES, Example

from suture.ir.errors import Code, SutureError
from suture.ir.kernel import Scope, Threads
from suture.ir.kernel_text import parse_kernel
from suture.ir.kernel_verify import verify_kernel


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_kernels_that_are_right_pass(example: Example) -> None:
    verify_kernel(parse_kernel(example.text))


_ARGUMENTS = "n: size, m: size, x: f32[n, m], i: i64[n] below m, y: f32[n, m]"
_LOCALS = "  shared held: f32[64]\n  thread own: f32[]\n  uniform all: f32[]\n"


def _refused(body: str, arguments: str = _ARGUMENTS, grid: str = "  grid row < n\n") -> str:
    lines = "\n".join(f"  {line}" for line in body.strip("\n").splitlines())
    with pytest.raises(SutureError) as caught:
        verify_kernel(parse_kernel(f"kernel wrong({arguments})\n{grid}{_LOCALS}{lines}\n"))
    assert caught.value.code is Code.KERNEL
    return str(caught.value)


def test_an_index_beyond_its_dimension() -> None:
    said = _refused("each t < 64:\n  y[row, t] = f32(0.0)")
    assert "the index t of y in 'y[row, t] = f32(0.0)' may be beyond m" in said
    assert "may be below 0" in _refused("each t < 64:\n  if t < m:\n    y[row, t] = x[row, t - 1]")
    assert "may be beyond m" in _refused(
        "each t < 64:\n  for j in 0 .. (m + 63) // 64:\n    y[row, j * 64 + t] = f32(0.0)"
    )
    assert "may be beyond n" in _refused("each t < 1:\n  y[row + 1, i[row]] = f32(0.0)")


def test_a_guard_or_a_bound_makes_the_index_right() -> None:
    text = f"kernel right({_ARGUMENTS})\n  grid row < n\n  each t < 64:\n    for j in 0 .. (m + 63) // 64:\n"
    text += "      if j * 64 + t < m:\n        y[row, j * 64 + t] = x[row, i[row]]\n"
    verify_kernel(parse_kernel(text))


def test_the_strongest_of_several_conditions_counts_wherever_it_stands() -> None:
    for first, second in (("t < m - 3", "t < m - 1"), ("t < m - 1", "t < m - 3")):
        text = f"kernel right({_ARGUMENTS})\n  grid row < n\n  each t < 64:\n    if {first}:\n      if {second}:\n"
        text += "        y[row, t] = x[row, t + 3]\n"
        verify_kernel(parse_kernel(text))
    assert "may be beyond m" in _refused(
        "each t < 64:\n  if t < m - 2:\n    if t < m - 1:\n      y[row, t] = x[row, t + 3]"
    )


def test_an_index_that_was_looked_up_needs_a_bound() -> None:
    loose = _ARGUMENTS.replace(" below m", "")
    assert "may be below 0" in _refused("each t < 64:\n  if t < m:\n    y[row, t] = x[row, i[row]]", loose)


@pytest.mark.parametrize("kind", ["i32", "i64"])
def test_what_an_index_was_read_from_is_not_empty(kind: str) -> None:
    text = f"kernel right(n: size, i: {kind}[n], x: f32[n], y: f32[n])\n  grid tile < (n + 63) // 64\n  each t < 64:\n"
    text += "    for j in 0 .. min((n - tile * 64 - t + 63) // 64, 1):\n      let at = tile * 64 + j * 64 + t\n      let v = i[at]\n"
    text += "      y[at] = x[max(0, min(n - 1, cast(i64, v)))]\n"
    verify_kernel(parse_kernel(text))


def test_two_lanes_or_blocks_that_write_one_element() -> None:
    assert "two values of t may write" in _refused("each t < 64:\n  y[row, i[row]] = f32(0.0)")
    assert "two values of row may write" in _refused("each t < 64:\n  if t < m and 0 < n:\n    y[0, t] = f32(0.0)")
    # j * 32 + t: lane 0 of turn 1 is lane 32 of turn 0
    said = _refused("each t < 64:\n  for j in 0 .. m:\n    if j * 32 + t < m:\n      y[row, j * 32 + t] = f32(0.0)")
    assert "two values of t may write" in said
    assert "two values of t may write" in _refused("each t < 64:\n  held[t // 2] = f32(0.0)")


def test_a_scatter_may_meet() -> None:
    text = f"kernel right({_ARGUMENTS})\n  grid row < n\n  each t < 64:\n    scatter y[row, i[row]] += f32(1.0) by atomic\n"
    verify_kernel(parse_kernel(text))
    assert "held in" in _refused("each t < 64:\n  scatter held[t] += f32(0.0) by atomic")


def test_reading_in_the_region_that_writes() -> None:
    said = _refused("each t < 64:\n  held[t] = f32(1.0)\n  own = held[(t + 1) % 64]")
    assert "which another lane may be writing; end the region between" in said
    said = _refused(
        "each t < 64:\n  if t < m:\n    y[row, t] = f32(1.0)\neach t < 64:\n  if t < m:\n    own = y[row, i[row]]"
    )
    assert "write into another buffer" in said


def test_reading_before_anything_wrote() -> None:
    assert "reads held before anything wrote it" in _refused("each t < 64:\n  own = held[t]")
    assert "reads own before anything wrote it" in _refused("all = reduce + own over 64")


def test_branches_between_regions_are_the_blocks() -> None:
    said = _refused("each t < 64:\n  own = f32(1.0)\nif own < f32(0.0):\n  each t < 64:\n    own = f32(0.0)")
    assert "which every lane has its own of" in said


def test_regions_do_not_nest() -> None:
    assert "stands inside a region" in _refused("each t < 64:\n  each u < 64:\n    own = f32(1.0)")
    assert "stands inside a region" in _refused("each t < 64:\n  own = f32(1.0)\n  all = reduce + own over 64")


def test_what_stands_between_regions() -> None:
    assert "stands between regions" in _refused("y[row, i[row]] = f32(1.0)")
    assert "stands between regions" in _refused("scatter y[row, i[row]] += f32(1.0) by atomic")
    assert "writes a uniform buffer in a region" in _refused("each t < 64:\n  all = f32(1.0)")


def test_lanes_that_share_their_own_buffers_are_as_many() -> None:
    assert "regions of 32 and 64 lanes" in _refused("each t < 64:\n  own = f32(1.0)\neach t < 32:\n  held[t] = own")


def test_collectives_find_their_operands_in_their_scopes() -> None:
    assert "own in 'own = reduce + own over 64' is thread; uniform of rank 0" in _refused(
        "each t < 64:\n  own = f32(1.0)\nown = reduce + own over 64"
    )
    assert "is thread; shared of rank 2" in _refused("own = copy x[0, 0] over 64 fill 0.0")


def test_groups_of_lanes_are_powers_of_two_within_a_warp_and_fill_the_block() -> None:
    for width in (3, 64):
        said = _refused(f"each t < 64:\n  own = f32(1.0)\nown = reduce + own over 64 in groups of {width}")
        assert f"has groups of {width}; a power of two up to 32 that divides the lanes" in said
    assert "has groups of 16" in _refused("each t < 40:\n  own = f32(1.0)\nown = reduce + own over 40 in groups of 16")
    assert "is uniform; thread of rank 0" in _refused(
        "each t < 64:\n  own = f32(1.0)\nall = reduce + own over 64 in groups of 16"
    )


def test_types() -> None:
    assert "mixes" in _refused("each t < 64:\n  own = f32(1.0) + t")
    assert "puts torch.int64 into torch.float32" in _refused("each t < 64:\n  own = t")
    assert "has 1 indices" in _refused("each t < 64:\n  own = x[row]")
    assert "has an index that is no integer" in _refused("each t < 64:\n  own = x[row, f32(1.0)]")
    assert "operands" in _refused("each t < 64:\n  own = exp(f32(1.0), f32(2.0))")
    assert "the condition of" in _refused("each t < 64:\n  if t:\n    own = f32(1.0)")
    short = _ARGUMENTS.replace("x: f32", "x: bf16")
    assert "short floats are for storage" in _refused(
        "each t < 64:\n  if t < m:\n    own = cast(f32, x[row, t] + x[row, t])", short
    )
    shorter = _ARGUMENTS.replace("y: f32", "y: bf16")
    said = _refused("each t < 64:\n  if t < m:\n    y[row, t] += cast(bf16, x[row, t])", shorter)
    assert "combines numbers of torch.bfloat16; combine wider numbers" in said
    assert "combines numbers of torch.bfloat16" in _refused(
        "each t < 64:\n  if t < m:\n    scatter y[row, t] += cast(bf16, x[row, t]) by atomic", shorter
    )
    assert "combines nothing" in _refused("each t < 64:\n  own = f32(1.0)\nall = reduce times own over 64")


@pytest.mark.parametrize("name", ["double", "k_block", "while"])
def test_names_that_the_printed_code_has_taken(name: str) -> None:
    with pytest.raises(SutureError, match=f"{name} means something in the printed code"):
        verify_kernel(
            parse_kernel(
                f"kernel k(n: size, {name}: f32[n])\n  grid row < n\n  each t < 1:\n    {name}[row] = f32(1.0)\n"
            )
        )


def test_names() -> None:
    assert "is declared twice" in _refused(
        "each t < 64:\n  own = f32(1.0)", _ARGUMENTS.replace("m: size", "own: size, m: size")
    )
    assert "hides another row" in _refused("each row < 64:\n  own = f32(1.0)")
    assert "hides another held" in _refused("each t < 64:\n  let held = f32(1.0)\n  own = f32(2.0)")
    kernel = parse_kernel(
        f"kernel wrong({_ARGUMENTS})\n  grid row < n\n  thread own: f32[]\n  each t < 64:\n    own = f32(1.0)\n"
    )
    (region,) = kernel.body
    assert isinstance(region, Threads)
    with pytest.raises(SutureError, match="is not known in"):
        verify_kernel(dataclasses.replace(kernel, grid=(), body=(parse_region("y[row, t] = f32(0.0)"),)))
    foreign = dataclasses.replace(kernel.locals[0], name="foreign")
    with pytest.raises(SutureError, match="that is not declared so"):
        verify_kernel(dataclasses.replace(kernel, locals=(foreign,)))


def parse_region(statement: str) -> Threads:
    kernel = parse_kernel(f"kernel k({_ARGUMENTS})\n  grid row < n\n  each t < 64:\n    {statement}\n")
    (region,) = kernel.body
    assert isinstance(region, Threads)
    return region


def test_scopes_of_buffers() -> None:
    kernel = parse_kernel(
        f"kernel k({_ARGUMENTS})\n  grid row < n\n  thread own: f32[]\n  each t < 64:\n    own = f32(1.0)\n"
    )
    local = dataclasses.replace(kernel.arguments[0], scope=Scope.SHARED)
    with pytest.raises(SutureError, match="the argument x is shared"):
        verify_kernel(dataclasses.replace(kernel, arguments=(local, *kernel.arguments[1:])))
    with pytest.raises(SutureError, match="of a shape that is not fixed"):
        verify_kernel(
            parse_kernel(f"kernel k({_ARGUMENTS})\n  shared s: f32[n]\n  each t < 64:\n    s[t] = f32(1.0)\n")
        )
    with pytest.raises(SutureError, match="the uniform u has dimensions"):
        verify_kernel(parse_kernel(f"kernel k({_ARGUMENTS})\n  uniform u: f32[2]\n  u[0] = f32(1.0)\n"))


def test_digits_of_a_number_to_the_base_of_a_size() -> None:
    text = "kernel digits(n: size, m: size, x: f32[n, m], y: f32[n, m])\n  grid block < (n * m + 63) // 64\n  each t < 64:\n"
    text += "    let i = block * 64 + t\n    if i < n * m:\n      y[i // m, i % m] = x[i // m, i % m]\n"
    verify_kernel(parse_kernel(text))
    for before, after in (
        ("if i < n * m", "if i <= n * m"),
        ("if i < n * m", "if i < n * m + m"),
        ("x[i // m,", "x[i // n,"),
    ):
        with pytest.raises(SutureError, match="may be"):
            verify_kernel(parse_kernel(text.replace(before, after)))
