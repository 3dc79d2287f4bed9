"""Tuning: what is measured decides, what computes something else is refused, and what was measured once is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import suture
from suture.drivers import tuning, tuning_cache
from suture.drivers.tuning_measure import Candidate, Timing, compare_times
from suture.ir.graph import Graph

SAME = Timing(1.0, 1.0, 0.0, 0.01)
FASTER = Timing(1.0, 0.5, 0.5, 0.01)
SLOWER = Timing(1.0, 2.0, -1.0, 0.01)


class Net(nn.Module):
    """One block with a residual branch, attention aside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.fc2(nn.functional.gelu(self.fc1(x))))


@pytest.fixture
def net() -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    return suture.trace(Net().eval(), (x,), dynamic={"x": {0: "batch"}}), x


@pytest.fixture(autouse=True)
def few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_FUSIONS", ("residual", "gelu", "skip_norm"))
    monkeypatch.setattr(tuning, "_ROUNDS", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuning"


def judge(monkeypatch: pytest.MonkeyPatch, timing: Timing) -> list[int]:
    """Let every measurement say the same; returns the sizes of what was measured."""
    seen: list[int] = []

    def compare(before: Candidate, after: Candidate) -> Timing:
        seen.append(after.nodes)
        return timing

    monkeypatch.setattr(tuning, "compare_times", compare)
    return seen


def test_the_simpler_stays_where_nothing_is_faster(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, SAME)
    tuned = suture.tune(net[0], [net[1]])
    names = [node.operator.name for node in tuned.graph.nodes]
    assert names == ["linear", "bias_gelu", "linear", "skip_layer_norm"] or "bias_residual" in names
    assert not any("taken: faster" in row.verdict for row in tuned.table)


def test_what_is_slower_is_left(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, SLOWER)
    tuned = suture.tune(net[0], [net[1]])
    assert [node.operator.name for node in tuned.graph.nodes] == [
        "linear", "bias_gelu", "linear", "bias_residual", "layer_norm",
    ]  # fmt: skip
    assert all(row.verdict.startswith("left: slower") for row in tuned.table[1:])


def test_what_is_faster_is_taken(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge(monkeypatch, FASTER)
    tuned = suture.tune(net[0], [net[1]])
    assert any(row.change == "without gelu" and "taken: faster" in row.verdict for row in tuned.table)
    path = tuned.export(tmp_path / "net.onnx")
    assert suture.compare(net[0], path, [net[1]]).outputs[0].max_abs < 1e-5


def test_what_computes_something_else_is_refused(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is: a file is held against the evaluator before it is measured."""
    measured = judge(monkeypatch, FASTER)
    honest = Candidate.deviation_from

    def lie(self: Candidate, expected: Sequence[Tensor]) -> float:
        return honest(self, expected) + (1.0 if self.nodes > 5 else 0.0)

    monkeypatch.setattr(Candidate, "deviation_from", lie)
    tuned = suture.tune(net[0], [net[1]])
    assert all(count <= 6 for count in measured)
    assert any(row.verdict.startswith("wrong: deviation 1.0") for row in tuned.table)


def test_what_was_measured_is_kept(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    measured = judge(monkeypatch, FASTER)
    first = suture.tune(net[0], [net[1]])
    count = len(measured)
    second = suture.tune(net[0], [net[1]])
    assert len(measured) == count
    assert (second.kinds, second.choices, second.table) == (first.kinds, first.choices, first.table)
    assert str(second.graph) == str(first.graph)
    assert len(list(cache.glob("*.json"))) == 1
    assert not list(cache.glob(".*"))
    suture.tune(net[0], [net[1]], threads=2)
    assert len(list(cache.glob("*.json"))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "kinds": ["nothing"], "choices": {}, "table": []}',
        '{"format": 1, "kinds": [], "choices": 3, "table": 4}',
    ],
)
def test_a_broken_cache_is_ignored(
    net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, cache: Path, text: str
) -> None:
    judge(monkeypatch, SAME)
    suture.tune(net[0], [net[1]], budget=0)
    (entry,) = cache.glob("*.json")
    entry.write_text(text)
    assert suture.tune(net[0], [net[1]], budget=0).table
    assert json.loads(entry.read_text())["kinds"]


def test_a_cache_that_cannot_be_written_keeps_nothing(
    net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, where the folder would be")
    judge(monkeypatch, SAME)
    assert suture.tune(net[0], [net[1]], budget=0).table


def test_other_constants_are_another_graph(net: tuple[Graph, Tensor]) -> None:
    facts = {"opset": 21}
    key = tuning_cache.key_of(net[0], facts)
    other = net[0].copy()
    other.add_parameter("table", torch.ones(3), "constant")
    third = other.copy()
    third.parameters["table"].assign(torch.zeros(3))
    assert len({key, tuning_cache.key_of(other, facts), tuning_cache.key_of(third, facts)}) == 3
    assert key == tuning_cache.key_of(net[0].copy(), facts)
    assert key != tuning_cache.key_of(net[0], {"opset": 22})


def test_the_budget_ends_the_search(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = judge(monkeypatch, FASTER)
    tuned = suture.tune(net[0], [net[1]], budget=0)
    assert not measured
    assert "the time is up" in tuned.table[-1].verdict
    assert str(tuned).splitlines()[0].split() == ["change", "nodes", "ms", "verdict"]


def test_files_are_measured_in_turns(net: tuple[Graph, Tensor], tmp_path: Path) -> None:
    path = suture.export_onnx(net[0], tmp_path / "net.onnx")
    candidates = [Candidate(path, [net[1]], 1) for _ in range(2)]
    timing = compare_times(candidates[0], candidates[1])
    assert timing.noise >= 0.01 * timing.before > 0
    assert not (timing.faster and timing.slower)


def test_export_tunes_where_it_is_asked_to(
    net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge(monkeypatch, SLOWER)
    plain = suture.export_onnx(net[0], tmp_path / "plain.onnx", profile="onnxruntime")
    tuned = suture.export_onnx(net[0], tmp_path / "tuned.onnx", profile="onnxruntime", tune=True)
    counts = [len(onnx.load(str(path)).graph.node) for path in (plain, tuned)]
    assert counts[1] < counts[0]
    assert suture.compare(net[0], tuned, [net[1]]).outputs[0].max_abs < 1e-5


def test_a_script_tunes_too(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge(monkeypatch, SLOWER)
    suture.save(net[0], tmp_path / "net.safetensors")
    script = tmp_path / "tune.suture"
    script.write_text(
        'suture 1\nmodel net = graph "net.safetensors"\nexport net to "net.onnx" profile "onnxruntime" tune true\n'
    )
    suture.run(script)
    assert {node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node} >= {"Sum", "BiasGelu"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "S402.*threads=0"),
        ({"budget": -1.0}, "S402.*budget=-1"),
        ({"profile": "edge"}, "S506.*no profile 'edge'"),
        ({"opset": 3}, "S501.*opset 3"),
        ({"profile": "mobile"}, "S506.*batch"),
    ],
)
def test_what_cannot_be_tuned_is_an_error(net: tuple[Graph, Tensor], options: dict[str, object], message: str) -> None:
    with pytest.raises(suture.SutureError, match=message):
        suture.tune(net[0], [net[1]], **options)


def test_the_page_runs(net: tuple[Graph, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge(monkeypatch, SLOWER)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "fusion.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {"suture": suture, "graph": net[0]}
    for block in blocks:
        exec(compile(block, "docs/fusion.md", "exec"), names)
    assert (tmp_path / "fast.onnx").exists()
