"""Long segments in pieces compute what whole ones do, on every print; a node with thousands of edges is many blocks' work, on a GPU and nowhere else."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import cuda_stand_in
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import (
    ATTENTION,
    CHANNELS,
    COUNTS,
    INNER_PRODUCTS,
    SPREAD,
    WEIGHTED_SUM,
    draw,
    expected,
    graph_of,
    run,
)
from ragged_programs import random_graph, random_inputs
from test_cuda_resources import needs_cuda_compiler, within_budget
from test_relational_function import Attention

from suture import relational
from suture.backends import compiled_cuda
from suture.codegen.cuda.report import report_all
from suture.codegen.program import Program, lower
from suture.codegen.schedule import TraversalSchedule
from suture.codegen.step import KernelStep
from suture.drivers.relational.hubs import worthwhile
from suture.ir.graph import Graph
from suture.ir.kernel import Scatter, walk
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType
from suture.relational import MessageGraph

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)
_LENGTH = 16
_CASES: list[tuple[str, dict[str, int]]] = [
    (WEIGHTED_SUM, {"F": 7}),
    (ATTENTION, {"H": 1, "D": 40}),
    (ATTENTION, {"H": 3, "D": 5}),
    (INNER_PRODUCTS, {"H": 3, "D": 70}),
    (CHANNELS, {"F": 33}),
    (SPREAD, {"F": 40}),
]
_NAMES = [f"{text.split('(')[0].split()[1]}-{'x'.join(map(str, sizes.values()))}" for text, sizes in _CASES]
# one row short of a piece, a piece, one more; nothing; a hub
_lengths = st.lists(st.sampled_from([0, 0, 1, 2, _LENGTH - 1, _LENGTH, _LENGTH + 1, 40, 300]), min_size=0, max_size=8)
_HUBS = ([3, 0, 1, 40, 0, 200, 17], [16, 16, 32, 33, 0], [1], [])


def _program(graph: Graph, mode: str, split: int = _LENGTH) -> Program:
    program = lower(graph, "cuda" if mode.startswith("gpu") else "cpp", split=split)
    assert not program.left, str(program)
    assert any("pieces" in step.kernel.name for step in program.steps if isinstance(step, KernelStep))
    return program


def _agree(text: str, sizes: dict[str, int], lengths: list[int], seed: int, mode: str) -> None:
    graph = graph_of(text, **sizes)
    inputs = draw(graph, lengths, 9, seed)
    found = run(_program(graph, mode), inputs, mode)
    for made, right in zip(found, expected(text, inputs, **sizes), strict=True):
        torch.testing.assert_close(made.double(), right, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(("text", "sizes"), _CASES, ids=_NAMES)
@settings(max_examples=6, deadline=None)
@given(lengths=_lengths, seed=st.integers(0, 9))
def test_pieces_add_up_to_segments(text: str, sizes: dict[str, int], lengths: list[int], seed: int) -> None:
    _agree(text, sizes, lengths, seed, "fast")


@pytest.mark.parametrize("mode", ["backwards", "gpu"])
@pytest.mark.parametrize(("text", "sizes"), _CASES, ids=_NAMES)
def test_every_print_of_pieces_agrees(text: str, sizes: dict[str, int], mode: str) -> None:
    _agree(text, sizes, _HUBS[0], 1, mode)


@pytest.mark.parametrize("mode", ["forwards", "backwards", "gpu", "gpu backwards"])
@pytest.mark.parametrize(("text", "sizes"), _CASES[2:3], ids=_NAMES[2:3])
def test_lanes_of_pieces_may_run_in_any_order(text: str, sizes: dict[str, int], mode: str) -> None:
    for lengths in _HUBS:
        _agree(text, sizes, lengths, 1, mode)


@pytest.mark.parametrize(("seed", "mode"), [(0, "fast"), (1, "gpu"), (4, "fast")])
def test_random_programs_in_pieces(seed: int, mode: str) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed, nodes=3, edges=70)
    found = run(_program(graph, mode), inputs, mode)
    for made, right in zip(found, evaluate(graph, inputs), strict=True):
        torch.testing.assert_close(made, right, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("mode", ["fast", "gpu"])
@pytest.mark.parametrize("features", [1, 20])
def test_integers_and_empty_segments(features: int, mode: str) -> None:
    graph = graph_of(COUNTS, F=features)
    inputs = draw(graph, [4, 0, 133, 1, 0], 1, 0)
    found = run(_program(graph, mode), inputs, mode)
    for made, right in zip(found, expected(COUNTS, inputs, F=features), strict=True):
        assert torch.equal(made, right)
    assert found[1][1].tolist() == [-1] * features


def test_pieces_are_the_same_bits_whoever_computes_them_and_nothing_is_scattered() -> None:
    graph = graph_of(ATTENTION, H=4, D=16)
    inputs = draw(graph, [5000, *[3] * 300], 900, 0)
    program = _program(graph, "fast", 512)
    assert not any(isinstance(each, Scatter) for kernel in program.kernels for each in walk(kernel.body))
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        made.append(run(program, inputs, "fast")[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(each, made[0]) for each in made)


def test_a_schedule_says_how_long_pieces_are() -> None:
    graph = graph_of(WEIGHTED_SUM, F=64)
    chosen = {"y": TraversalSchedule(split=100)}
    program = lower(graph, "cuda", chosen)
    texts = {step.kernel.name: str(step.kernel) for step in program.steps if isinstance(step, KernelStep)}
    assert list(texts) == ["piece_segments_0", "segments_pieces_0", "segments_0"]
    assert "grid chunk < (n0 + 99) // 100" in texts["segments_pieces_0"]
    whole = lower(graph, "cuda", {"y": TraversalSchedule()}, split=512)
    assert len(whole.steps) == 1


def test_few_rows_that_are_all_known_stay_whole() -> None:
    graph = Graph("few")
    x = graph.add_input("x", TensorType(torch.float32, (60, 4)))
    p = graph.add_input("p", TensorType(torch.int64, (6,)))
    graph.set_outputs([graph.add("csr_sum", [x, p]).output], ["y"])
    assert len(lower(graph, "cuda", split=64).steps) == 1
    assert len(lower(graph, "cuda", split=16).steps) == 3  # of 32 rows: lanes take so many side by side


@pytest.mark.parametrize(
    ("longest", "rows", "length"),
    [
        (5, 10**6, 0),
        (2047, 2047, 0),
        (2048, 2048, 256),
        (50_000, 10**6, 256),
        (10**5, 10**6, 512),
        (10**6, 10**7, 1024),
        (10_000, 10**7, 0),
        (10**9, 10**9, 2048),
    ],
)
def test_segments_are_cut_that_others_would_wait_for(longest: int, rows: int, length: int) -> None:
    assert worthwhile(longest, rows) == length


def _hub(nodes: int = 12, count: int = 2500) -> MessageGraph:
    source = torch.Generator().manual_seed(0)
    src, type = (torch.randint(below, (count,), generator=source) for below in (nodes, 3))
    dst = torch.full((count,), 5)
    dst[:40] = torch.randint(nodes, (40,), generator=source)
    return MessageGraph(src, dst, type, num_nodes=nodes, num_types=3)


def test_a_node_of_many_edges_is_many_blocks_work_and_gradients_are_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_cuda, "find_device", cuda_stand_in.device)
    g, x, module = _hub(), torch.randn(12, 6), Attention(3, 6, 1, 4)
    fast = relational.compile(copy.deepcopy(module), target="cuda")
    found = []
    for function in (module, fast):
        leaf = x.clone().requires_grad_()
        y, _ = function(g, leaf)
        weights = list(function.parameters())
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *weights])])
    for mine, right in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, right, rtol=2e-4, atol=2e-4)
    [variant] = [variant for program in fast.programs() for variant in program._variants.values()]
    assert variant.backward is not None
    for compiled in (variant.forward, variant.backward):
        assert any("pieces" in kernel.name for kernel in compiled.program.kernels)


def test_on_a_processor_segments_stay_whole() -> None:
    fast = relational.compile(Attention(3, 6, 1, 4))
    fast(_hub(), torch.randn(12, 6))
    [variant] = [variant for program in fast.programs() for variant in program._variants.values()]
    assert not any("pieces" in kernel.name for kernel in variant.forward.program.kernels)


@needs_cuda_compiler
@pytest.mark.parametrize("architecture", [80, 120])
def test_kernels_of_pieces_stay_within_budget(architecture: int) -> None:
    cases = [(WEIGHTED_SUM, {"F": 520}), (ATTENTION, {"H": 8, "D": 16}), (INNER_PRODUCTS, {"H": 4, "D": 16})]
    kernels = [kernel for text, sizes in cases for kernel in _program(graph_of(text, **sizes), "gpu", 512).kernels]
    named = [replace(kernel, name=f"kernel_{k}") for k, kernel in enumerate(kernels)]
    for found in report_all(named, architecture):
        within_budget(found)
