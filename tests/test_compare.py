"""Comparing modules, graphs and ONNX files; and ONNX files that are not what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from suture.backends.compare import compare, difference
from suture.backends.onnx import export_onnx, summarise_onnx
from suture.backends.onnxruntime import OnnxModel
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.sizes import symbol
from suture.ir.types import TensorType

BATCH = symbol("batch")


class Two(nn.Module):
    """A vector, and which of its entries are positive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.drop(self.first(features))
        return {"logits": logits, "positive": logits > 0}


@pytest.fixture
def module() -> Two:
    return Two()


@pytest.fixture
def graph(module: Two) -> Graph:
    made = Graph("two")
    x = made.add_input("features", TensorType(torch.float32, (BATCH, 6)))
    weight, bias = (made.add_parameter(name, p.detach()) for name, p in module.named_parameters())
    logits = made.add("linear", [x, weight, bias]).output
    made.set_outputs([logits, made.add("gt", [logits], {"scalar": 0}).output], ["logits", "positive"])
    return made


@pytest.fixture
def path(graph: Graph, tmp_path: Path) -> Path:
    return export_onnx(graph, tmp_path / "two.onnx")


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"features": torch.randn(5, 6)}


def test_any_two_of_module_graph_and_file_agree(
    module: Two, graph: Graph, path: Path, inputs: dict[str, torch.Tensor]
) -> None:
    for a in (module, graph, path, str(path)):
        for b in (module, graph, path):
            for given in (inputs, list(inputs.values())):
                result = compare(a, b, given)
                assert [item.name for item in result.outputs] == ["logits", "positive"]
                assert result.max_abs < 1e-6
                assert result.cosine > 0.999999


def test_a_module_is_compared_in_evaluation_mode_and_gets_its_own_mode_back(
    module: Two, graph: Graph, inputs: dict[str, torch.Tensor]
) -> None:
    module.train()
    module.first.eval()
    assert compare(module, graph, inputs).max_abs < 1e-6
    assert module.training
    assert module.drop.training
    assert not module.first.training


def test_the_numbers_are_those_of_the_definition(graph: Graph, module: Two, inputs: dict[str, torch.Tensor]) -> None:
    twin = graph.copy()
    twin.parameters["first.bias"].assign(module.first.bias.detach() + 0.25)
    a = module.first(inputs["features"]).detach().double()
    b = a + 0.25
    found = compare(module, twin, inputs).outputs[0]
    assert found.max_abs == pytest.approx(0.25, rel=1e-5)
    assert found.relative == pytest.approx(0.25 / float(a.abs().max()), rel=1e-5)
    assert found.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-6)
    result = compare(module, twin, inputs)
    assert result.max_abs == max(item.max_abs for item in result.outputs)
    assert result.cosine == min(item.cosine for item in result.outputs)


def test_it_prints_a_table() -> None:
    class Scale(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scaled": x * self.factor, "sum": x.sum()}

    text = str(compare(Scale(2.0), Scale(2.5), [torch.tensor([[1.0, -2.0]])]))
    assert text.splitlines() == [
        "output  shape   max |difference|   relative      cosine",
        "scaled  1x2            1.000e+00  2.500e-01  1.00000000",
        "sum     scalar         0.000e+00  0.000e+00  1.00000000",
    ]


@pytest.mark.parametrize(
    ("a", "b", "max_abs", "relative", "cosine"),
    [
        ([1.0, math.nan, -math.inf], [1.0, math.nan, -math.inf], 0.0, 0.0, 1.0),
        ([1.0, 2.0], [1.0, math.nan], math.inf, math.inf, 1.0),
        ([1.0, math.inf], [1.0, 3.0], math.inf, math.inf, 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0, 1.0),
        ([0.0, 0.0], [0.0, 1.0], 1.0, math.inf, 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 2.0, 2.0, -1.0),
        ([], [], 0.0, 0.0, 1.0),
    ],
)
def test_numbers_that_are_no_numbers(
    a: list[float], b: list[float], max_abs: float, relative: float, cosine: float
) -> None:
    found = difference("x", torch.tensor(a), torch.tensor(b))
    assert (found.max_abs, found.relative) == (max_abs, relative)
    assert found.cosine == pytest.approx(cosine)


def test_integers_truth_values_and_complex_numbers() -> None:
    big = torch.tensor([2**62, 5])
    assert difference("i", big, big).max_abs == 0
    assert difference("i", torch.tensor([1, 5]), torch.tensor([1, 2])).max_abs == 3
    assert difference("b", torch.tensor([True, False]), torch.tensor([True, True])).max_abs == 1
    assert difference("z", torch.tensor([1 + 2j]), torch.tensor([1 + 2.5j])).max_abs == 0.5
    assert (
        difference("h", torch.tensor([1.0], dtype=torch.float16), torch.tensor([1.5], dtype=torch.bfloat16)).max_abs
        == 0.5
    )


@dataclass
class _Result:
    first: torch.Tensor
    nothing: None
    more: tuple[torch.Tensor, ...]


torch.utils._pytree.register_dataclass(_Result)


def test_nested_results_are_flattened() -> None:
    class Nested(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> _Result:
            return _Result(x * scale, None, (x + 1, x + 2))

    result = compare(Nested(), Nested(), {"x": torch.randn(2), "scale": 3.0})
    assert [item.name for item in result.outputs] == ["first", "more.0", "more.1"]


# what cannot be compared


def code_of(action: Any, *args: Any) -> Code:
    with pytest.raises(SutureError) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_outputs_that_differ_in_number_or_shape(module: Two, graph: Graph, inputs: dict[str, torch.Tensor]) -> None:
    fewer = graph.copy()
    fewer.set_outputs(fewer.outputs[:1], ["logits"])
    assert code_of(compare, graph, fewer, inputs) == Code.COMPARE
    wider = graph.copy()
    wider.set_outputs([wider.inputs[0], wider.outputs[1]], ["logits", "positive"])
    assert code_of(compare, module, wider, inputs) == Code.COMPARE


def test_a_module_that_returns_no_tensor(graph: Graph, inputs: dict[str, torch.Tensor]) -> None:
    class Silent(nn.Module):
        def forward(self, features: torch.Tensor) -> str:
            return "nothing"

    assert code_of(compare, Silent(), graph, inputs) == Code.COMPARE


def test_inputs_that_a_module_does_not_take(module: Two, graph: Graph) -> None:
    assert code_of(compare, module, graph, {"other": torch.randn(2, 6)}) == Code.INPUT
    assert code_of(compare, module, graph, [torch.randn(2, 7)]) == Code.INPUT
    assert code_of(compare, graph, module, [torch.randn(2, 7)]) == Code.INPUT


def test_inputs_that_do_not_fit_a_file(path: Path) -> None:
    model = OnnxModel(path)
    assert code_of(model.run, []) == Code.INPUT
    assert code_of(model.run, {"other": torch.randn(2, 6)}) == Code.INPUT
    assert code_of(model.run, [torch.ones(2, 6, dtype=torch.int64)]) == Code.INPUT
    assert code_of(model.run, [torch.randn(2, 7)]) == Code.RUNTIME
    assert model.run([torch.randn(2, 6, dtype=torch.float64)])[0].shape == (2, 4)


# files that are not what they should be


def test_a_missing_file(tmp_path: Path) -> None:
    for action in (OnnxModel, summarise_onnx):
        assert code_of(action, tmp_path / "missing.onnx") == Code.FILE
        assert code_of(action, tmp_path) == Code.FILE


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x0a"], ids=["empty", "text", "no graph"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    for action in (OnnxModel, summarise_onnx):
        assert code_of(action, tmp_path / "m.onnx") == Code.ONNX_FILE


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short(path: Path, inputs: dict[str, torch.Tensor], graph: Graph, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert code_of(compare, graph, path, inputs) == Code.ONNX_FILE


def test_a_model_that_onnx_runtime_does_not_know(path: Path, graph: Graph, inputs: dict[str, torch.Tensor]) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    assert code_of(compare, graph, path, inputs) == Code.RUNTIME


@pytest.fixture
def external(graph: Graph, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "model"
    folder.mkdir()
    graph.parameters["first.weight"].assign(torch.randn(400, 6))
    graph.parameters["first.bias"].assign(torch.randn(400))
    wide = Graph("wide")
    x = wide.add_input("features", TensorType(torch.float32, (BATCH, 6)))
    wide.set_outputs(
        [wide.add("linear", [x, *(wide.add_parameter(p.name, p.data) for p in graph.parameters.values())]).output]
    )
    return export_onnx(wide, folder / "m.onnx", external_data=True)


def test_external_data_beside_the_model_is_read(external: Path) -> None:
    assert OnnxModel(external).run([torch.randn(2, 6)])[0].shape == (2, 400)


@pytest.mark.parametrize("location", ["../stolen.data", "/etc/hostname", "inner/../../stolen.data", "link.data", ""])
def test_external_data_outside_the_models_folder_is_refused(external: Path, location: str) -> None:
    (external.parent.parent / "stolen.data").write_bytes((external.parent / "m.onnx.data").read_bytes())
    (external.parent / "link.data").symlink_to(external.parent.parent / "stolen.data")
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    external.write_bytes(model.SerializeToString())
    assert code_of(OnnxModel, external) == Code.PATH
    assert code_of(summarise_onnx, external) == Code.PATH


def test_external_data_in_an_attribute_of_a_subgraph_is_refused(path: Path) -> None:
    model = onnx.load(path)
    tensor = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../x.data")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["positive"], ["q"], then_branch=inner, else_branch=inner))
    path.write_bytes(model.SerializeToString())
    assert code_of(summarise_onnx, path) == Code.PATH


def test_external_data_that_is_cut_short_or_missing(external: Path) -> None:
    data = external.parent / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert code_of(OnnxModel, external) == Code.ONNX_FILE
    data.unlink()
    assert code_of(OnnxModel, external) == Code.ONNX_FILE
