"""Relational graphs as ONNX files: programs over edges, with gradients, laid out or not, as the evaluator runs them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from grouped import Product
from relational_graphs import PROGRAMS, inputs_of

import suture
from suture.backends.onnx import export_onnx
from suture.backends.onnxruntime import OnnxModel
from suture.ir.graph import Graph
from suture.passes import gradient, lay_out

DRAWN = [{"nodes": 6, "edges": 20, "seed": 3}, {"nodes": 4, "edges": 1, "seed": 4}, {"nodes": 3, "edges": 0, "seed": 5}]


def runs_as_evaluated(graph: Graph, path: Path) -> None:
    export_onnx(graph, path)
    model = OnnxModel(path, threads=1)
    for drawn in DRAWN:
        inputs = inputs_of(graph, drawn)
        found = model.run({name: tensor for name, tensor in inputs.items() if name in model.inputs})
        for a, b in zip(suture.evaluate(graph, inputs), found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    runs_as_evaluated(PROGRAMS[name](torch.float32), tmp_path / "program.onnx")


@pytest.mark.parametrize("name", ["attention", "compact_pairs", "convolution"])
def test_gradients_run_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    runs_as_evaluated(gradient(PROGRAMS[name](torch.float32), check=False), tmp_path / "gradient.onnx")


@pytest.mark.parametrize("name", ["attention", "compact_pairs", "convolution"])
def test_what_is_laid_out_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    runs_as_evaluated(lay_out(PROGRAMS[name](torch.float32), check=False), tmp_path / "laid.onnx")


def test_rows_that_are_put_in_another_order_run_in_onnx_runtime(tmp_path: Path) -> None:
    graph, inputs = Product((3, 0, 4), 5, 2, put=True, gathered=(False, False)).linear()
    export_onnx(graph, tmp_path / "put.onnx")
    names = [value.name for value in graph.inputs]
    [found] = OnnxModel(tmp_path / "put.onnx", threads=1).run(dict(zip(names, inputs, strict=True)))
    torch.testing.assert_close(found, suture.evaluate(graph, inputs)[0], rtol=1e-4, atol=1e-4)


def test_no_matrix_is_made_for_each_edge(tmp_path: Path) -> None:
    """The matrices of types are looked up for tiles of rows: with 320 edges of one type, for ten tiles and the padded ones of the others."""
    graph = PROGRAMS["products_alone"](torch.float32)
    path = tmp_path / "scores.onnx"
    export_onnx(graph, path)
    file = onnx.load(path)
    weights = {tensor.name for tensor in file.graph.initializer if len(tensor.dims) == 3}
    (lookup,) = (node for node in file.graph.node if node.op_type == "Gather" and node.input[0] in weights)
    file.graph.output.append(onnx.helper.make_tensor_value_info(lookup.output[0], onnx.TensorProto.FLOAT, None))
    onnx.save(file, path)
    inputs = inputs_of(graph, {"nodes": 9, "edges": 320, "seed": 1})
    inputs["type"] = torch.zeros_like(inputs["type"])
    matrices = OnnxModel(path, threads=1).run(inputs)[-1]
    assert matrices.shape[0] == 10
