"""Weights as integers in ONNX files: what ONNX Runtime computes from them, and how large they are."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import suture
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate


class Layers(nn.Module):
    """Linear layers of both orientations, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        self.turned = nn.Parameter(torch.randn(64, 32) * 0.1)
        self.shift = nn.Parameter(torch.randn(32))
        self.head = nn.Linear(32, 160)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))) @ self.turned + self.shift)


@functools.cache
def traced(*shape: int) -> tuple[Graph, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(*shape)
    return suture.trace(Layers().eval(), x), x


def run(path: Path, x: torch.Tensor) -> torch.Tensor:
    """What ONNX Runtime computes, with products of dequantised weights in full precision (by default it rounds their operands to 8 bits)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def operators(path: Path) -> Counter[str]:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("shape", [(3, 5, 64), (7, 64)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "with zero points"])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (8, 32), (4, None), (8, None)])
def test_files_compute_what_the_evaluator_does(
    shape: tuple[int, ...], symmetric: bool, bits: int, block: int | None, tmp_path: Path
) -> None:
    graph, x = traced(*shape)
    made = suture.passes.quantise_weights(graph, bits=bits, block=block, symmetric=symmetric)
    expected = evaluate(made, [x])[0].detach()
    for profile in ("portable", "onnxruntime"):
        path = tmp_path / f"{profile}.onnx"
        suture.export_onnx(made, path, profile=profile)
        torch.testing.assert_close(run(path, x), expected, atol=2e-5, rtol=2e-5)
        counts = operators(path)
        assert counts["Transpose"] == 0
        assert counts["MatMulNBits"] == (4 if block and profile == "onnxruntime" else 0)


@pytest.mark.parametrize("shape", [(3, 64), (2, 3, 64)], ids=str)
def test_an_odd_number_of_blocks_is_padded_to_whole_bytes(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape[:-1], 48)
    graph = suture.trace(nn.Linear(48, 24).eval(), x)
    made = suture.passes.quantise_weights(graph, bits=4, block=16, symmetric=False)
    suture.export_onnx(made, tmp_path / "odd.onnx", profile="onnxruntime")
    assert operators(tmp_path / "odd.onnx")["MatMulNBits"] == 1
    torch.testing.assert_close(run(tmp_path / "odd.onnx", x), evaluate(made, [x])[0].detach(), atol=2e-5, rtol=2e-5)


def test_files_shrink_with_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    graph = suture.trace(module.eval(), torch.randn(2, 3, 256))
    sizes = {}
    for name, options in {"real": None, "int8": {"bits": 8}, "int4": {"bits": 4, "block": 64}}.items():
        made = graph if options is None else suture.passes.quantise_weights(graph, **options)
        for profile in ("portable", "onnxruntime"):
            path = tmp_path / f"{name}-{profile}.onnx"
            suture.export_onnx(made, path, profile=profile)
            sizes[name, profile] = path.stat().st_size
    for profile in ("portable", "onnxruntime"):
        assert sizes["int4", profile] < 0.2 * sizes["real", profile]
        assert sizes["int8", profile] < 0.3 * sizes["real", profile]


def test_convolutions_and_tables_run_too(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv = nn.Embedding(50, 32), nn.Conv1d(32, 16, 3, padding=1)
            self.up = nn.ConvTranspose1d(16, 8, 2, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.up(F.relu(self.conv(self.table(ids).transpose(1, 2))))

    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 6))
    graph = suture.trace(Mixed().eval(), ids)
    made = suture.passes.quantise_weights(graph, bits=8, embeddings=True)
    assert len([name for name in made.parameters if name.endswith("_integers")]) == 3
    suture.export_onnx(made, tmp_path / "mixed.onnx")
    torch.testing.assert_close(
        run(tmp_path / "mixed.onnx", ids), evaluate(made, [ids])[0].detach(), atol=1e-5, rtol=1e-5
    )


def test_an_opset_too_old_is_named_with_the_lowest_that_has_it(tmp_path: Path) -> None:
    graph, _ = traced(3, 5, 64)
    for options in ({"bits": 4}, {"bits": 8, "block": 32}):
        with pytest.raises(SutureError, match="opset 21 is the lowest") as caught:
            suture.export_onnx(suture.passes.quantise_weights(graph, **options), tmp_path / "old.onnx", opset=19)
        assert caught.value.code is Code.ONNX_EXPORT
    path = suture.export_onnx(suture.passes.quantise_weights(graph, bits=8), tmp_path / "old.onnx", opset=17)
    assert operators(Path(path))["DequantizeLinear"] == 4


def test_one_weight_of_two_layers_is_one_tensor_of_the_file(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(F.relu(self.layer(x)))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 64)
    graph = suture.trace(Twice().eval(), x)
    for data in (None, {graph.inputs[0].name: x}):
        made = suture.passes.quantise_weights(graph, bits=4, block=32, data=data)
        for profile in ("portable", "onnxruntime"):
            path = tmp_path / f"{profile}.onnx"
            suture.export_onnx(made, path, profile=profile)
            held = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
            assert len(held) == (2 if profile == "onnxruntime" else 3)
            torch.testing.assert_close(run(path, x), evaluate(made, [x])[0].detach(), atol=2e-5, rtol=2e-5)
