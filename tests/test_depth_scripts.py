"""Depth surgery as scripts say it: planned without weights, run, exported, and opened in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import suture
from suture import surgery

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width=8, depth=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def net(width=8, depth=3, seed=0):
    return Net(width, depth, seed).eval()
"""

MODELS = """suture 1
model small = torch "depth_nets:net" args 8, 3 input f32[batch, 4]
model big = torch "depth_nets:net" args 16, 3, 1 input f32[batch, 4]
model twin = torch "depth_nets:net" args 8, 3, 2 input f32[batch, 4]
"""

STATEMENTS = [
    "stack small times 2",
    "stack small to 5 how interpolate",
    "insert_identity small count 2\ncheck small ~ original within 1e-6",
    "insert_masked small after 1\ncheck small ~ original within 1e-6",
    'widen small at "blocks.*.up" factor 2\ncheck small ~ original within 1e-5',
    'compose small others twin layers "0", "1.1:3"',
    "recurse small blocks 1 rank 2\nuntie small",
    "share_stages small stages 2, 1\nexpand_stages small repeats 3, 2",
    'skip_layers small drop 1 data "data.npz"',
    'join small to big exit "blocks_1_add" entry "blocks_1_add" data "data.npz"',
    "add_exits small",
    'upcycle small at "blocks.*" experts 2 top 1\ncheck small ~ original within 1e-5',
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "depth_nets.py").write_text(NETS)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("statements", STATEMENTS, ids=lambda text: text.split()[0])
def test_a_script_is_planned_as_it_runs(folder: Path, statements: str) -> None:
    path = folder / "s.suture"
    path.write_text(MODELS + statements + '\nexport small to "out.onnx"\nsave small to "out.suture-graph"\n')
    planned = surgery.check(path)
    assert not (folder / "out.onnx").exists()
    done = suture.run(path)
    for a, b in zip(planned.outcomes, done.outcomes, strict=True):
        if a.after is not None and b.after is not None:
            assert (a.after.parameters, a.after.macs) == (b.after.parameters, b.after.macs)
    graph = done.graphs["small"]
    x = torch.from_numpy(np.load(folder / "data.npz")["x"][:5])
    expected = suture.evaluate(graph, [x])
    session = onnxruntime.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])
    for a, b in zip(expected, session.run(None, {"x": x.numpy()}), strict=True):
        np.testing.assert_allclose(b, a.detach().numpy(), atol=1e-5)
    loaded = suture.load(folder / "out.suture-graph")
    for a, b in zip(expected, suture.evaluate(loaded, [x]), strict=True):
        assert torch.equal(a, b)


def test_a_family_leaves_as_one_file_and_as_one_per_stitch(folder: Path) -> None:
    path = folder / "s.suture"
    path.write_text(
        MODELS
        + 'stitch small others big data "data.npz"\nlet one = small\nspecialise one input stitch value 3\n'
        + 'export one to "one.onnx"\nexport small to "family.onnx"\n'
    )
    surgery.check(path)
    suture.run(path)
    x = np.load(folder / "data.npz")["x"][:5]
    one, family = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("one", "family"))
    assert [value.name for value in family.get_inputs()] == ["x", "stitch"]
    expected = one.run(None, {"x": x})[0]
    received = family.run(None, {"x": x, "stitch": np.array(3)})[0]
    np.testing.assert_allclose(received, expected, atol=1e-6)
    other = family.run(None, {"x": x, "stitch": np.array(0)})[0]
    assert np.abs(other - expected).max() > 1e-3
