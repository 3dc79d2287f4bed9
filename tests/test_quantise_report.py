"""What ran in integers, by ONNX Runtime's own account: against files whose execution is known, and MACs counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import suture
from suture.backends.ort_report import quantisation_report
from suture.cli import app
from suture.ir.errors import Code, SutureError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()


def written(folder: Path, **options: Any) -> Path:
    graph = suture.trace(network(), X[:2], dynamic={"input": {0: "batch"}})
    if options:
        graph = suture.passes.quantise(graph, data={"input": X}, **options)
    return suture.export_onnx(graph, folder / "net.onnx")


CONV, LINEAR = 8 * 8 * 8 * 27, 512 * 10  # multiply-accumulates an image


def test_a_float_file_runs_in_floats(tmp_path: Path) -> None:
    report = quantisation_report(written(tmp_path), [X])
    assert report.integer_share == 0 and report.counts(integer=True) == {}
    assert report.counts(integer=False) == {"FusedConv": 1, "Gemm": 1}
    assert sum(node.macs for node in report.nodes) == 4 * (CONV + LINEAR)


def test_shares_of_macs_are_those_counted_by_hand(tmp_path: Path) -> None:
    whole = quantisation_report(written(tmp_path, correct_bias=True), [X])
    assert whole.integer_share == 1.0
    assert sum(node.macs for node in whole.nodes) == 4 * (CONV + LINEAR)
    half = quantisation_report(written(tmp_path, operator=("linear",)), [X])
    assert half.integer_share == pytest.approx(LINEAR / (CONV + LINEAR))
    assert half.counts(integer=True) == {"QGemm": 1} and half.counts(integer=False)["Conv"] == 1


def test_it_prints_and_is_data(tmp_path: Path) -> None:
    path = written(tmp_path, correct_bias=True)
    report = quantisation_report(path)
    assert "100.0% of the multiply-accumulates" in str(report) and "QLinearConv 1" in str(report)
    assert report.as_data()["integer_share_of_macs"] == 1.0
    shown = CliRunner().invoke(app, ["show", str(path), "--executed"])
    assert shown.exit_code == 0 and "QLinearConv 1" in shown.stdout
    stored = CliRunner().invoke(app, ["show", str(path), "--executed", "--json"])
    assert '"QLinearConv": 1' in stored.stdout


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SutureError):
        quantisation_report(tmp_path / "none.onnx")
    path = written(tmp_path)
    with pytest.raises(SutureError) as caught:
        quantisation_report(path, [X, X])
    assert caught.value.code is Code.INPUT
    with pytest.raises(SutureError) as caught:
        quantisation_report(path, [X[:, :2]])
    assert caught.value.code is Code.RUNTIME
    assert list(tmp_path.iterdir()) == [path], "no profile is left behind"
