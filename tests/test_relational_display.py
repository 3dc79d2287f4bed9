"""`suture show --relational`: what a program becomes on edges, assumed and real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from suture.cli import app

PROGRAM = """
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self, inputs, outputs, relations):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(relations, inputs, outputs))
        self.key = nn.Parameter(torch.randn(relations, outputs))
        self.query = nn.Parameter(torch.randn(relations, outputs))

    def forward(self, g, x):
        e = g.edges
        source, target = x[e.src] @ self.weight[e.type], x[e.dst] @ self.weight[e.type]
        scores = (source * self.key[e.type]).sum(-1) + (target * self.query[e.type]).sum(-1)
        return g.sum(g.softmax(scores).unsqueeze(-1) * source)
"""
MODEL = ("show", "attending:Attention", "--args", "16, 16, 6", "--input", "f32[nodes, 16]", "--relational")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "attending.py").write_text(PROGRAM)
    generator = np.random.default_rng(0)
    src, dst = generator.integers(0, 40, (2, 3000))
    np.savez(tmp_path / "edges.npz", src=src, dst=dst, rel=generator.integers(0, 6, 3000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, [*MODEL, *arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def test_assumed_sizes_are_enough() -> None:
    text = show("--size", "edges=1000000", "--size", "nodes=5000")
    assert "edges=1,000,000, nodes=5,000" in text
    assert "weights first" in text
    assert "pair of type and src" in text
    assert "sizes and pairs are assumed" in text


def test_edges_are_measured_and_run() -> None:
    found = json.loads(show("--edges", "edges.npz", "--json"))
    assert found["sizes"] == {"edges": 3000, "nodes": 40}
    assert 0 < found["pairs"]["src and type"] <= 240
    values = {value["name"]: value for value in found["values"]}
    places = {value["lives"] for value in values.values()}
    assert {"edge", "node", "weight"} <= places and any(place.startswith("pair of type") for place in places)
    assert any(step.startswith("compact") for step in found["steps"])
    assert any(value["measured"] for value in values.values())
    assert all(value["predicted"] is None or value["predicted"] > 0 for value in values.values())
    assert found["measured"]["as decided"] > 0 and found["measured"]["as written"] > 0
    assert found["predicted"]["as decided"] < found["predicted"]["as written"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--edges", "edges.npz", "--size", "edges=3"), "leave --size out"),
        (("--edges", "missing.npz"), "missing.npz"),
        (("--stats",), "exclude each other"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    text = show(*arguments, status=2)
    assert words in text and "Traceback" not in text


def test_edges_without_the_option_are_an_error() -> None:
    result = CliRunner().invoke(app, ["show", "attending:Attention", "--edges", "edges.npz"])
    assert result.exit_code == 2 and "--relational" in result.output


def test_an_unknown_size_of_an_input_is_an_error() -> None:
    result = CliRunner().invoke(app, ["show", "attending:Attention", "--args", "16, 16, 6", "--input", "f32[knots, 16]", "--relational"])  # fmt: skip
    assert result.exit_code == 2 and "knots" in result.output
