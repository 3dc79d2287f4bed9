"""Kernels over rows in segments compute what the operators mean, whatever the segments are, on every print; and few of them are written."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import (
    AS_MANY,
    ATTENTION,
    CHANNELS,
    COUNTS,
    INNER_PRODUCTS,
    SPREAD,
    WEIGHTED_SUM,
    draw,
    expected,
    graph_of,
    program_of,
    run,
)
from ragged_programs import random_graph, random_inputs

import suture
from suture.codegen.cpp.printer import print_cpp
from suture.codegen.program import lower
from suture.codegen.runner import build_files, print_kernels
from suture.codegen.step import KernelStep
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
_CLOSE = {"f64": 1e-11, "f32": 2e-5, "bf16": 2e-2, "f16": 4e-3}
_CASES: list[tuple[str, dict[str, int]]] = [
    (WEIGHTED_SUM, {"F": 64}),
    (WEIGHTED_SUM, {"F": 7}),
    (WEIGHTED_SUM, {"F": 1}),
    (WEIGHTED_SUM, {"F": 520}),
    (ATTENTION, {"H": 1, "D": 64}),
    (ATTENTION, {"H": 3, "D": 5}),
    (ATTENTION, {"H": 8, "D": 16}),
    (INNER_PRODUCTS, {"H": 1, "D": 64}),
    (INNER_PRODUCTS, {"H": 4, "D": 16}),
    (INNER_PRODUCTS, {"H": 3, "D": 70}),
    (INNER_PRODUCTS, {"H": 17, "D": 3}),
    (CHANNELS, {"F": 3}),
    (CHANNELS, {"F": 33}),
    (SPREAD, {"F": 40}),
    (AS_MANY, {"F": 2}),
    (AS_MANY, {"F": 24}),
]
_NAMES = [f"{text.split('(')[0].split()[1]}-{'x'.join(map(str, sizes.values()))}" for text, sizes in _CASES]
_lengths = st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 17, 40]), min_size=0, max_size=12)


def _agree(text: str, sizes: dict[str, int], lengths: list[int], seed: int, mode: str, dtype: str = "f32") -> None:
    if text is AS_MANY:
        lengths = (lengths + [0] * sum(lengths))[: max(sum(lengths), 0)]
        lengths = _as_many(lengths)
    graph = graph_of(text, dtype, **sizes)
    inputs = draw(graph, lengths, 9, seed)
    found = run(program_of(graph, mode), inputs, mode)
    for made, right in zip(found, expected(text, inputs, **sizes), strict=True):
        torch.testing.assert_close(made.double(), right.double(), rtol=_CLOSE[dtype], atol=_CLOSE[dtype])


def _as_many(lengths: list[int]) -> list[int]:
    """Lengths that add up to how many they are."""
    rest, found = len(lengths), []
    for length in lengths:
        found.append(min(length, rest))
        rest -= found[-1]
    if found:
        found[-1] += rest
    return found


@pytest.mark.parametrize(("text", "sizes"), _CASES, ids=_NAMES)
@settings(max_examples=12, deadline=None)
@given(lengths=_lengths, seed=st.integers(0, 9))
def test_kernels_compute_what_operators_mean(text: str, sizes: dict[str, int], lengths: list[int], seed: int) -> None:
    _agree(text, sizes, lengths, seed, "fast")


@pytest.mark.parametrize("mode", ["forwards", "backwards", "gpu", "gpu backwards"])
@pytest.mark.parametrize(("text", "sizes"), _CASES, ids=_NAMES)
def test_lanes_may_run_in_any_order(text: str, sizes: dict[str, int], mode: str) -> None:
    _agree(text, sizes, [3, 0, 1, 40, 2, 17], 1, mode)
    _agree(text, sizes, [], 1, mode)


@pytest.mark.parametrize("dtype", ["f64", "bf16", "f16"])
@pytest.mark.parametrize("mode", ["fast", "gpu"])
@pytest.mark.parametrize("number", [0, 5, 8, 12])
def test_numbers_of_every_type(number: int, mode: str, dtype: str) -> None:
    text, sizes = _CASES[number]
    _agree(text, sizes, [3, 0, 1, 40, 2, 17], 2, mode, dtype)


@pytest.mark.parametrize("mode", ["fast", "forwards", "gpu"])
@pytest.mark.parametrize("features", [1, 20])
def test_integers_are_summed_exactly(features: int, mode: str) -> None:
    graph = graph_of(COUNTS, F=features)
    inputs = draw(graph, [4, 0, 33, 1], 1, 0)
    for made, right in zip(
        run(program_of(graph, mode), inputs, mode), expected(COUNTS, inputs, F=features), strict=True
    ):
        assert torch.equal(made, right)


def test_a_lookup_a_weight_a_sum_and_what_follows_are_one_kernel() -> None:
    program = program_of(graph_of(WEIGHTED_SUM, F=64), "fast")
    assert [step.kernel.name for step in program.steps] == ["segments_0"]
    assert all(value.name != "m" for value in program.steps[0].arguments)


def test_an_attention_is_two_kernels_and_nothing_of_its_width_lies_in_memory() -> None:
    program = program_of(graph_of(ATTENTION, H=4, D=16), "fast")
    kernels = [step for step in program.steps if hasattr(step, "kernel")]
    assert [step.kernel.name for step in kernels] == ["segments_0", "segments_1"]
    between = {value.name for step in kernels for value in step.arguments} - {
        value.name for value in program.graph.inputs
    }
    assert between == {"alpha", "y"}


def test_not_a_number_and_infinities_stay_in_their_segments() -> None:
    graph = graph_of(ATTENTION, H=1, D=8)
    inputs = draw(graph, [3, 4, 2], 9, 0)
    inputs[1] = torch.arange(9)
    inputs[2][4] = float("nan")
    (made,) = run(program_of(graph, "fast"), inputs, "fast")
    assert made[1].isnan().all() and not made[0].isnan().any() and not made[2].isnan().any()


def test_scores_beyond_what_an_exponential_holds() -> None:
    graph = graph_of(ATTENTION, H=1, D=8)
    inputs = draw(graph, [3, 4, 2], 9, 0)
    inputs[2] *= 1e4
    (made,) = run(program_of(graph, "fast"), inputs, "fast")
    (right,) = expected(ATTENTION, inputs, H=1, D=8)
    torch.testing.assert_close(made.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["cpp", "cuda"])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_of_random_programs_is_left_to_torch(seed: int, target: str) -> None:
    program = lower(random_graph(seed), target)
    assert not program.left


@pytest.mark.parametrize(
    ("seed", "mode"), [(0, "fast"), (1, "fast"), (2, "fast"), (3, "fast"), (4, "gpu"), (5, "backwards")]
)
def test_random_programs_compute_what_their_operators_mean(seed: int, mode: str) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    found = run(program_of(graph, mode), inputs, mode)
    for made, right in zip(found, evaluate(graph, inputs), strict=True):
        torch.testing.assert_close(made, right, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_results_are_the_same_whoever_computes_which_segments() -> None:
    graph = graph_of(ATTENTION, H=4, D=16)
    inputs = draw(graph, [5000, *[3] * 3000], 900, 0)
    program = program_of(graph, "fast")
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        made.append(run(program, inputs, "fast")[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(each, made[0]) for each in made)


def test_sums_of_lanes_stay_in_registers_and_what_is_looked_up_is_fetched_ahead() -> None:
    (step,) = program_of(graph_of(WEIGHTED_SUM, F=52), "fast").steps
    assert isinstance(step, KernelStep)
    text = print_cpp(step.kernel)
    assert "k_float16 k_sum0_2" in text and "k_float4 k_sum0_3" in text
    assert "__builtin_prefetch" in text and "schedule(dynamic)" in text


def test_inner_products_are_summed_in_registers() -> None:
    (step,) = program_of(graph_of(INNER_PRODUCTS, H=2, D=20), "fast").steps
    assert isinstance(step, KernelStep)
    text = print_cpp(step.kernel)
    assert "met1[0] = k_total(k_sum0_0) + k_total(k_sum0_1);" in text


@pytest.mark.parametrize(("lanes", "features"), [(16, 15), (64, 64), (256, 520)])
def test_teams_of_a_gpus_block_take_turns_at_rows(lanes: int, features: int) -> None:
    (step,) = program_of(graph_of(WEIGHTED_SUM, F=features), "gpu").steps
    assert isinstance(step, KernelStep)
    text = str(step.kernel)
    assert f"let side = t % {lanes}" in text or lanes == 256
    assert ("stage1[team" in text) is (lanes < 256)


def test_kernels_of_both_kinds_are_one_file() -> None:
    kernels = [
        replace(kernel, name=f"{kernel.name}_{number}")
        for number, (text, sizes) in enumerate(
            [(ATTENTION, {"H": 4, "D": 16}), (INNER_PRODUCTS, {"H": 2, "D": 20})] * 2
        )
        for kernel in program_of(graph_of(text, **sizes), "fast").kernels
    ]
    library = build_files(print_kernels(kernels))
    assert all(hasattr(library, kernel.name) for kernel in kernels)


@pytest.mark.parametrize("wrong", [[0, 9, 6], [0, 4, 2], [0, 10**9, 6], [-5, 2, 6], [1, 2, 6]], ids=str)
def test_pointers_that_do_not_rise_are_refused_before_anything_runs(wrong: list[int]) -> None:
    graph = Graph("given")
    rows, segments = symbol("rows"), symbol("segments")
    x = graph.add_input("x", TensorType(torch.float32, (rows, 4)))
    p = graph.add_input("p", TensorType(torch.int64, (segments + 1,)))
    graph.set_outputs([graph.add("csr_sum", [x, p]).output], ["y"])
    compiled, ones = suture.compile(graph), torch.ones(6, 4)
    assert compiled(ones, torch.tensor([0, 2, 6]))[:, 0].tolist() == [2.0, 4.0]
    with pytest.raises(suture.SutureError, match="the pointers p do not rise from 0 to 6"):
        compiled(ones, torch.tensor(wrong))
