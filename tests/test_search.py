"""Schedules chosen by measuring: values that print, save and load; a search that ends in time, is kept, and changes no result."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import suture
from suture.backends.compiled import compile_program
from suture.codegen import search as searching
from suture.codegen.program import KernelStep, lower, plan
from suture.codegen.schedule import GemmSchedule, TraversalSchedule, from_json, show, to_json
from suture.codegen.search import search
from suture.codegen.traversal.candidates import candidates
from suture.ir.errors import Code, SutureError

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine"
)


def _graph() -> tuple[nn.Module, torch.Tensor, suture.Graph]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 40)).eval()
    inputs = torch.randn(50, 48)
    return module, inputs, suture.trace(module, (inputs,), dynamic={"input": {0: "batch"}})


def test_schedules_are_plain_data() -> None:
    for schedule in (GemmSchedule(rows=6), TraversalSchedule()):
        assert from_json(json.loads(json.dumps(to_json(schedule)))) == schedule
    assert show(GemmSchedule(rows=6)).startswith("gemm rows 6, columns 32")
    with pytest.raises(TypeError):
        from_json({"template": "gemm", "colour": 3})


def test_what_is_chosen_is_kept_and_computes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    module, inputs, graph = _graph()
    compiled = suture.compile(graph, search=100.0, sizes={"batch": 50})
    assert len(compiled.choices) == 2 and all(len(choice.seconds) > 1 for choice in compiled.choices)
    assert all(choice.speedup >= 1 for choice in compiled.choices)
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs), module(inputs), rtol=1e-5, atol=1e-5)
    used = {step.schedule for step in compiled.program.steps if isinstance(step, KernelStep)}
    assert {choice.schedule for choice in compiled.choices} <= used
    # the second time nothing is measured, and the same code comes out
    monkeypatch.setattr(searching, "_fastest", lambda *_: pytest.fail("measured again"))
    again = suture.compile(graph, search=100.0, sizes={"batch": 50})
    assert [choice.schedule for choice in again.choices] == [choice.schedule for choice in compiled.choices]
    assert again.program.kernels == compiled.program.kernels
    assert all("known before" in str(choice) for choice in again.choices)


def test_a_chosen_schedule_is_the_one_that_is_lowered() -> None:
    _, _, graph = _graph()
    keys = [choice.key for choice in search(graph, {"batch": 50}, 0.0, cached=False)]
    assert not keys, "no time, no choice"
    name = graph.nodes[0].output.name
    program = lower(graph, schedules={name: GemmSchedule(rows=5, columns=32, group=3)})
    steps = [step for step in program.steps if isinstance(step, KernelStep)]
    assert steps[0].schedule == GemmSchedule(rows=5, columns=32, group=3) != steps[1].schedule


class _Traversals(nn.Module):
    """A row, a column, a pass over all, and one whose operand lies the other way."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            x.softmax(1),
            (x * x).sum(0),
            torch.sigmoid(y) * 2.0 - y,
            torch.tanh(x.transpose(0, 1) + y[: x.shape[1], : x.shape[0]]),
        )


def test_traversals_have_candidates_that_all_compute_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    inputs = torch.randn(200, 190), torch.randn(301, 250)
    graph = suture.trace(_Traversals(), inputs)
    context, groups, _ = plan(graph)
    tried = {group.key: candidates(group, context) for group in groups}
    assert len(tried) >= 4 and all(len(each) > 2 for each in tried.values())
    for k in (1, 2, -1):
        program = lower(graph, schedules={key: each[k] for key, each in tried.items()})
        assert not program.left and {step.schedule for step in program.steps if isinstance(step, KernelStep)} == {
            each[k] for each in tried.values()
        }
        for found, wanted in zip(compile_program(program)(*inputs), _Traversals()(*inputs), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    chosen = search(graph, {}, 100.0)
    assert {choice.key for choice in chosen} <= tried.keys() and chosen
    assert all(len(choice.seconds) == len(tried[choice.key]) and choice.speedup >= 1 for choice in chosen)


def test_traversals_that_are_over_at_once_are_not_measured() -> None:
    graph = suture.trace(_Traversals(), (torch.randn(200, 100), torch.randn(100, 200)))
    assert not search(graph, {}, 10.0, cached=False)


def test_a_cache_that_cannot_be_read_or_written_costs_time_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    _, _, graph = _graph()
    (tmp_path / "schedules").write_text("not a folder")
    start = time.monotonic()
    assert len(search(graph, {"batch": 8}, 100.0)) == 2
    assert time.monotonic() - start < 300
    (tmp_path / "schedules").unlink()
    found = search(graph, {"batch": 8}, 100.0)
    for path in (tmp_path / "schedules").iterdir():
        path.write_text('{"template": "gemm", "rows": ')
    assert [choice.key for choice in search(graph, {"batch": 8}, 100.0)] == [choice.key for choice in found]


def test_a_symbol_without_a_number_is_an_error() -> None:
    _, _, graph = _graph()
    with pytest.raises(SutureError) as caught:
        suture.compile(graph, search=5.0)
    assert caught.value.code is Code.SIZE and "batch" in str(caught.value)
