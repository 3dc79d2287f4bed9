"""The Python that stands on pages of the documentation runs, block after block."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _blocks(page: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler on this machine")
def test_kernels() -> None:
    exec(_blocks("kernels.md"), {})


def test_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    from suture.ir.derivatives import RULES
    from suture.ir.operator import OPERATORS

    for table in (OPERATORS, RULES):  # the page declares an operator of its own, which is gone afterwards
        monkeypatch.setitem(table, "cube", None)
        monkeypatch.delitem(table, "cube")
    exec(_blocks("derivatives.md"), {})


def test_low_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import suture

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(64), nn.MultiheadAttention(64, 4, batch_first=True)
            self.grow, self.shrink = nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return x + self.shrink(torch.relu(self.grow(x)))

    names = {"suture": suture, "model": Block().eval(), "x": torch.randn(2, 5, 64), "samples": torch.randn(2, 5, 64)}
    exec(_blocks("low-bits.md"), names)
    assert (tmp_path / "small.onnx").stat().st_size > 0


def test_relational_graphs() -> None:
    exec(_blocks("relational.md"), {})
