"""Whole models: what is traced with one batch and sequence length runs in ONNX Runtime with another, and gives the module's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

from suture.backends.compare import compare
from suture.backends.onnx import export_onnx, summarise_onnx
from suture.frontends.torch_export import trace

# Nodes that would say that sizes are computed where they could be copied or inferred: at most these many, however deep the model.
_SIZE_NODES = 6
_OPSETS = {"mobilenetv3_large_100": (17, 23), "bert": (17, 20, 23), "llama": (17, 23), "lstm": (17, 23)}


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_a_model_runs_in_onnx_runtime_at_other_sizes_than_traced(name: str, tmp_path: Path) -> None:
    entry = zoo.ENTRIES[name]
    module = zoo.randomise(entry.module())
    args, kwargs = entry.args(2, 12)
    graph = trace(module, args, kwargs, dynamic=entry.dynamic)
    path = export_onnx(graph, tmp_path / "model.onnx")
    torch.manual_seed(1)
    args, kwargs = entry.args(3, 9)
    result = compare(module, path, kwargs or args)
    assert result.relative < 1e-5
    assert result.cosine > 0.999999
    counts = summarise_onnx(path).operators
    assert counts.get("Shape", 0) <= 2
    assert sum(counts.get(kind, 0) for kind in ("Squeeze", "Identity", "Cast")) <= _SIZE_NODES
    for opset in _OPSETS.get(name, ()):
        older = export_onnx(graph, tmp_path / "model.onnx", opset=opset)
        assert summarise_onnx(older).opset == opset
        assert compare(module, older, kwargs or args).relative < 1e-5


class Apply(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


OPAQUE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "atan": torch.atan,
    "asinh": torch.asinh,
    "sort": lambda x: x.sort(1)[0],
    "sort down": lambda x: x.sort(-1, descending=True)[1],
    "argsort": lambda x: x.argsort(1),
    "stable argsort": lambda x: torch.argsort(x, stable=True, dim=1, descending=True),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "scatter_add": lambda x: torch.ones_like(x).scatter_add(-1, (x > 0).long(), x),
    "logsumexp": lambda x: torch.logsumexp(x, (0, 2), keepdim=True),
    "unfold": lambda x: F.unfold(x[:, None].expand(-1, 2, 8, 8), (3, 2), dilation=(1, 2), padding=1, stride=(2, 1)),
    "fold": lambda x: F.fold(
        F.unfold(x[:, None], (3, 2), stride=(1, 2), padding=(1, 0)), (8, 8), (3, 2), stride=(1, 2), padding=(1, 0)
    ),
    "one_hot": lambda x: F.one_hot((x > 0).long(), 3),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "trunc": lambda x: torch.trunc(x * 3),
    "frac": lambda x: torch.frac(x * 3),
    "exp2": torch.exp2,
    "fmod": lambda x: torch.fmod(x, 0.7) + torch.fmod(x, x.abs() + 0.3),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_torch_operators_without_notation_are_written_where_onnx_has_them(name: str, tmp_path: Path) -> None:
    module = Apply(OPAQUE[name])
    torch.manual_seed(0)
    graph = trace(module, (torch.randn(2, 8, 8),), dynamic={"x": {0: "batch"}})
    path = export_onnx(graph, tmp_path / "m.onnx")
    for batch in (2, 5):
        assert compare(module, path, [torch.randn(batch, 8, 8)]).relative < 1e-5
