"""The search on a GPU: the library or generated code for a product, lanes for a traversal; kept, reproducible, and the results stay the same.

On the stand-in, which has no speed worth measuring, the clock counts what is launched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cuda_stand_in
import pytest
import torch
from cuda_stand_in import state
from torch import nn

import suture
from suture.backends import cuda_search
from suture.backends.compiled_cuda import compile_cuda
from suture.backends.cuda_search import search_on_gpu
from suture.codegen import choices
from suture.codegen.cuda.candidates import candidates, generated
from suture.codegen.cuda.launch import Device
from suture.codegen.program import lower, plan
from suture.codegen.schedule import CudaGemmSchedule, OwnerSchedule, TraversalSchedule, from_json, to_json
from suture.codegen.step import KernelStep
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node
from suture.ir.semantics import evaluate
from suture.ir.types import TensorType

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_search, "_ROUNDS", 1)  # the clock says the same every time


def counted(library: float) -> Callable[[torch.device, Callable[[], object], int], float]:
    """A clock by which a run takes 1 for each 1024 threads of its last launch, and `library` where nothing is launched."""

    def seconds(place: torch.device, run: Callable[[], object], calls: int) -> float:
        before = state().launches
        run()
        return 1e-3 * state().threads / 1024 if state().launches > before else library

    return seconds


def _device(library: float) -> Device:
    return replace(cuda_stand_in.device(), clock=counted(library))


def _model() -> tuple[nn.Module, torch.Tensor, suture.Graph]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(48, 70), nn.Softmax(-1)).eval()
    x = torch.randn(5, 48)
    return module, x, suture.trace(module, (x,), dynamic={"input": {0: "batch"}})


def test_a_product_is_the_librarys_or_not_as_measured_and_lanes_are_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choices, "cache_folder", lambda name: tmp_path / name)
    module, x, graph = _model()
    device = _device(library=1.0)
    monkeypatch.setattr(cuda_search, "find_device", lambda: device)
    compiled = suture.compile(graph, target="cuda", search=60.0, sizes={"batch": 5})
    product, rows = compiled.choices
    assert isinstance(product.schedule, CudaGemmSchedule) and product.schedule.lanes == 128
    assert product.speedup == pytest.approx(8000.0)
    assert isinstance(rows.schedule, TraversalSchedule) and rows.schedule.lanes == 32
    steps = compiled.program.steps
    assert all(isinstance(step, KernelStep) for step in steps)
    assert [step.schedule for step in steps if isinstance(step, KernelStep)] == [product.schedule, rows.schedule]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    # the second time nothing is measured, and the same code comes out
    monkeypatch.setattr(cuda_search._Search, "_fastest", lambda *_: pytest.fail("measured again"))
    again = suture.compile(graph, target="cuda", search=60.0, sizes={"batch": 5})
    assert [each.schedule for each in again.choices] == [product.schedule, rows.schedule]
    assert again.program.kernels == compiled.program.kernels


def test_what_the_library_does_faster_is_left_to_it() -> None:
    _, _, graph = _model()
    found = search_on_gpu(graph, {"batch": 5}, 60.0, _device(library=1e-9), cached=False)
    assert found[0].schedule == OwnerSchedule() and from_json(to_json(OwnerSchedule())) == OwnerSchedule()
    program = lower(graph, "cuda", {each.key: each.schedule for each in found})
    assert isinstance(program.steps[0], Node) and "library multiplies" in str(program)


def test_no_time_and_no_sizes() -> None:
    _, _, graph = _model()
    assert search_on_gpu(graph, {"batch": 5}, 0.0, _device(1.0), cached=False) == []
    with pytest.raises(SutureError, match="batch") as caught:
        search_on_gpu(graph, {}, 1.0, _device(1.0))
    assert caught.value.code is Code.SIZE


def test_candidates_differ_in_their_kernels_and_the_default_is_first() -> None:
    _, _, graph = _model()
    context, groups, _ = plan(graph, "cuda", generated(graph))
    product, rows = (candidates(group, context) for group in groups)
    assert product[0] == OwnerSchedule() and len(product) == len(set(product)) >= 3
    assert isinstance(rows[0], TraversalSchedule) and len(rows) == len(set(rows)) >= 2
    assert all(isinstance(each, TraversalSchedule) and each.lanes % 32 == 0 for each in rows)


def test_products_by_type_and_sums_over_segments_have_candidates_that_compute_the_same() -> None:
    graph, rows = Graph("typed"), 70
    x, w = (
        graph.add_input(name, TensorType(torch.float32, shape))
        for name, shape in (("x", (rows, 24)), ("w", (2, 24, 40)))
    )
    tiles, types, segments = (
        graph.add_input(name, TensorType(torch.int64, (size,))) for name, size in (("tiles", 4), ("types", 3), ("p", 6))
    )
    y = graph.add("grouped_linear", [x, w, tiles, types]).output
    graph.set_outputs([graph.add("csr_sum", [y, segments]).output], ["z"])
    device = _device(library=1.0)
    found = {each.key: each for each in search_on_gpu(graph, {}, 60.0, device, cached=False)}
    product, sums = found[y.name], found["csr_sum"]
    assert isinstance(product.schedule, CudaGemmSchedule) and product.schedule.lanes == 64  # the fewest threads
    assert isinstance(sums.schedule, TraversalSchedule) and sums.schedule.rows == 1
    given = [
        torch.randn(rows, 24), torch.randn(2, 24, 40), torch.tensor([0, 48, 60, 70]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 3, 40, 41, 70]),
    ]  # fmt: skip
    (expected,) = evaluate(graph, given)
    schedules = {product.key: product.schedule, sums.key: sums.schedule}
    received = compile_cuda(lower(graph, "cuda", schedules), device)(*given)
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)
