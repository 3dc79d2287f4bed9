"""The pass `quantise`: what runs in integers, how exact that is, and what it says of what stays in floats."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import suture
from suture.backends.onnxruntime import OnnxModel
from suture.backends.ort_report import quantisation_report
from suture.drivers.quantising import milliseconds_of, quantise_within
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.quantise.mixed_precision import sensitivities
from suture.passes.quantise.placement import find_sites, place

quantise: Any = suture.passes.quantise
IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(0))


class Convolutions(nn.Module):
    """A residual sum, a depthwise layer behind ReLU6, pools, a concatenation, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x))
        y = y + self.point(F.relu6(self.depthwise(y)))
        joined = torch.cat([F.max_pool2d(y, 2), F.max_pool2d(self.side(x), 2)], 1)
        return self.head(F.adaptive_avg_pool2d(joined, 1).flatten(1))


class Encoder(nn.Module):
    """One pre-norm transformer block and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def made(kind: type[nn.Module], data: torch.Tensor) -> tuple[Any, Graph]:
    torch.manual_seed(1)
    module = kind().eval()
    return module, suture.trace(module, data[:2], dynamic={"x": {0: "batch"}})


CNN, CNN_GRAPH = made(Convolutions, IMAGES)
ENCODER, ENCODER_GRAPH = made(Encoder, TOKENS)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def outputs(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    return evaluate(graph, [x])[0].detach()


@pytest.mark.parametrize(("graph", "data"), [(CNN_GRAPH, IMAGES), (ENCODER_GRAPH, TOKENS)], ids=["cnn", "encoder"])
@pytest.mark.parametrize(
    "options",
    [{}, {"observer": "percentile"}, {"observer": "entropy"}, {"observer": "mse"}, {"search_weights": True}, {"per_channel": False},
     {"reduce_range": True}, {"correct_bias": False}, {"trainable": True}],
    ids=str,
)  # fmt: skip
def test_close_to_the_floats_and_the_same_in_onnx_runtime_and_torch(
    graph: Graph, data: torch.Tensor, options: dict[str, Any], tmp_path: Path
) -> None:
    quantised = quantise(graph, data={"x": data}, probes=[data[:4]], **options)
    expected = outputs(quantised, data)
    assert relative(expected, outputs(graph, data)) < 0.04
    suture.export_onnx(quantised, tmp_path / "q.onnx")
    (received,) = OnnxModel(tmp_path / "q.onnx").run([data])
    # where a float rounds the other way in the runtime, an integer differs by one step
    step = max(float(p.data) for name, p in quantised.parameters.items() if name.endswith("_scale") and not p.rank)
    torch.testing.assert_close(received, expected, rtol=0, atol=step)
    assert relative(received, expected) < 0.005
    assert relative(suture.to_torch(quantised)(data), expected) < 1e-5


def test_a_convolutional_network_runs_in_integers_throughout(tmp_path: Path) -> None:
    quantised = quantise(CNN_GRAPH, data={"x": IMAGES})
    suture.export_onnx(quantised, tmp_path / "q.onnx")
    report = quantisation_report(tmp_path / "q.onnx", [IMAGES[:2]])
    assert report.counts(integer=False) == {}
    counts = report.counts(integer=True)
    assert counts["QLinearConv"] == 4 and counts["QLinearAdd"] == 1 and counts["QLinearGlobalAveragePool"] == 1
    assert report.integer_share == 1.0
    assert report.conversions["QuantizeLinear"] == 1, "the input's is the only conversion"


def test_a_transformer_keeps_sums_norms_and_softmax_in_floats(tmp_path: Path) -> None:
    quantised = quantise(ENCODER_GRAPH, data={"x": TOKENS})
    suture.export_onnx(quantised, tmp_path / "q.onnx")
    report = quantisation_report(tmp_path / "q.onnx", [TOKENS[:2]])
    assert sum(n for name, n in report.counts(integer=True).items() if name in ("QGemm", "MatMulIntegerToFloat")) == 5
    names = set(report.counts(integer=False))
    assert {"Softmax", "Gelu"} <= names and any("LayerNorm" in name for name in names)
    assert not any(name.startswith("QLinear") for name in report.counts(integer=True))
    assert [node for node in quantised.nodes if node.operator.name == "attention"]


def test_values_between_which_integers_pass_unchanged_share_a_quantiser() -> None:
    sites, _ = find_sites(CNN_GRAPH)
    placement = place(CNN_GRAPH, sites)
    (concat,) = (node for node in CNN_GRAPH.nodes if node.operator.name == "concat")
    pools = [node.output for node in CNN_GRAPH.nodes if node.operator.name == "max_pool"]
    leader = placement.leader(concat.output)
    assert all(placement.leader(value) is leader for value in (*concat.inputs, *pools) if value is not None)
    quantised = quantise(CNN_GRAPH, data={"x": IMAGES})
    scales = {n.inputs[1].name for n in quantised.nodes if n.operator.name == "quantise" and n.inputs[1].rank == 0}
    assert len(scales) == len({placement.leader(value) for value in placement.quantised()})


def test_integers_are_those_of_a_hand_written_layer() -> None:
    """Every number of a quantised linear layer, from NumPy."""
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    x = torch.randn(20, 6)
    graph = quantise(suture.trace(module, x), data={"input": x}, correct_bias=False)
    values = x.numpy().astype(np.float64)
    scale = np.float32((values.max() - values.min()) / 255)
    zero = np.rint(-values.min() / np.float64(scale))
    weight, bias = (p.detach().numpy() for p in (module.weight, module.bias))
    steps = (np.abs(weight).max(1) / 127).astype(np.float32)
    integers = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255) - zero
    rows = np.rint(weight / steps[:, None])
    shift = np.rint(bias / (scale * steps))
    expected = (integers @ rows.T + shift) * (scale * steps)
    np.testing.assert_allclose(outputs(graph, x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bias_correction_takes_back_the_mean_error() -> None:
    """The mean of each output channel over the calibration data, against the original module's."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3, bias=False)).eval()
    data = IMAGES.abs()
    graph = suture.trace(module, data[:2], dynamic={"input": {0: "batch"}})
    exact = module(data).detach().mean((0, 2, 3))
    shifts = {}
    for corrected in (False, True):
        made = quantise(graph, data={"input": data}, correct_bias=corrected, per_channel=False, reduce_range=True)
        shifts[corrected] = float((outputs(made, data).mean((0, 2, 3)) - exact).abs().mean())
    assert shifts[True] < 0.35 * shifts[False]


def test_sites_are_chosen_by_path_weight_and_operator() -> None:
    def stays(**query: Any) -> set[str]:
        graph = quantise(CNN_GRAPH, data={"x": IMAGES}, **query)
        return {name for name in ("stem", "side", "depthwise", "point", "head") if f"{name}.weight" in graph.parameters}

    assert stays() == set()
    assert stays(exclude=("side", "head.weight")) == {"side", "head"}
    assert stays(at=("*point*",)) == {"stem", "side", "depthwise", "head"}
    assert stays(operator=("linear",)) == {"stem", "side", "depthwise", "point"}


def test_products_of_activations_are_quantised_if_they_are_asked_for(tmp_path: Path) -> None:
    class Scores(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.transpose(1, 2)

    graph = suture.trace(Scores(), TOKENS)
    quantised = quantise(graph, data={"x": TOKENS}, operator=("matmul",))
    assert relative(outputs(quantised, TOKENS), outputs(graph, TOKENS)) < 0.02
    suture.export_onnx(quantised, tmp_path / "q.onnx")
    assert quantisation_report(tmp_path / "q.onnx", [TOKENS]).integer_share == 1.0
    alone = quantise(graph, data={"x": TOKENS})
    assert alone.history[-1].outcome == "not applicable"
    assert any("two activations" in note for note in alone.history[-1].notes)


REFUSED: dict[str, tuple[dict[str, Any], Code, str]] = {
    "no data": ({"data": None}, Code.CALIBRATION, "no calibration data"),
    "empty": ({"data": {"x": IMAGES[:0]}}, Code.CALIBRATION, "no examples"),
    "no batch": ({"data": [3]}, Code.CALIBRATION, "of type int"),
    "other names": ({"data": {"y": IMAGES}}, Code.CALIBRATION, "'x'"),
    "not a number": ({"data": {"x": IMAGES * float("nan")}}, Code.CALIBRATION, "not finite"),
    "infinite": ({"data": {"x": IMAGES / 0}}, Code.CALIBRATION, "not finite"),
    "shape": ({"data": [{"x": IMAGES[:, :2]}]}, Code.INPUT, "would be right"),
    "operator without integers": ({"operator": ("gelu",)}, Code.QUANTISER, "conv, linear, addmm, matmul have them"),
    "operator with a reason": ({"operator": ("attention",)}, Code.QUANTISER, "softmax stays in floats"),
    "no such operator": ({"operator": ("convv",)}, Code.OPERATOR, "conv"),
    "no such site": ({"at": ("layer7",)}, Code.SITE, "layer7"),
    "nothing to exclude": ({"exclude": ("layer7",)}, Code.SITE, "layer7"),
    "too small": ({"size": 100}, Code.QUANTISER, "with every site in integers"),
    "too exact for the size": ({"error": 1e-9, "size": 2000}, Code.QUANTISER, "larger size"),
    "observer": ({"observer": "max"}, Code.OPTION, "min_max"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_in_one_line(name: str) -> None:
    options, code, text = REFUSED[name]
    with pytest.raises(SutureError) as caught:
        quantise(CNN_GRAPH, **{"data": {"x": IMAGES}} | options)
    assert caught.value.code is code and text in str(caught.value) and "\n" not in str(caught.value)


def test_a_tighter_bound_leaves_more_sites_in_floats() -> None:
    tables = [sensitivities(CNN_GRAPH, data={"x": IMAGES}, error=bound) for bound in (1.0, 0.003, 0.0015, 0.0)]
    floats = [{row.site for row in table.rows[: table.dropped]} for table in tables]
    assert all(fewer <= more for fewer, more in itertools.pairwise(floats))
    assert floats[0] == set() and len(floats[-1]) == 5
    assert all(table.deviation <= bound for table, bound in zip(tables, (1.0, 0.003, 0.0015, 0.0), strict=True))
    deviations = [row.deviation for row in tables[0].rows]
    assert deviations == sorted(deviations, reverse=True)
    assert "int8" in str(tables[0]) and "float" in str(tables[-1])


def test_a_bound_holds_on_the_data() -> None:
    quantised = quantise(CNN_GRAPH, data={"x": IMAGES}, error=0.002)
    assert relative(outputs(quantised, IMAGES), outputs(CNN_GRAPH, IMAGES)) <= 0.002
    assert any("stays in floats: alone in integers" in note for note in quantised.history[-1].notes)


def test_a_budget_of_bytes_is_used_for_the_sites_that_cost_most() -> None:
    full, least = CNN_GRAPH.stats().bytes, quantise(CNN_GRAPH, data={"x": IMAGES}).stats().bytes
    sizes, errors = [], []
    for size in (least, (full + least) // 2, full - 500):
        graph = quantise(CNN_GRAPH, data={"x": IMAGES}, size=size)
        assert graph.stats().bytes <= size
        sizes.append(graph.stats().bytes)
        errors.append(relative(outputs(graph, IMAGES), outputs(CNN_GRAPH, IMAGES)))
    assert sizes == sorted(sizes) and errors[0] > errors[-1]


def test_a_budget_of_time_is_used_for_the_sites_that_cost_most() -> None:
    def milliseconds(graph: Graph) -> float:
        return 10.0 - sum(p.data.dtype == torch.int8 for p in graph.parameters.values())

    dropped = []
    for budget in (5.0, 7.5, 9.0):
        graph, table = quantise_within(CNN_GRAPH, budget, data={"x": IMAGES}, measure=milliseconds)
        assert milliseconds(graph) <= budget
        dropped.append(table.dropped)
        assert relative(outputs(graph, IMAGES), outputs(CNN_GRAPH, IMAGES)) == pytest.approx(table.deviation, rel=1e-3)
    assert dropped == [0, 2, 4]
    assert milliseconds_of(CNN_GRAPH, {"x": IMAGES[:1]}, rounds=2) > 0
    with pytest.raises(SutureError, match="with every site in integers") as caught:
        quantise_within(CNN_GRAPH, 4.9, data={"x": IMAGES}, measure=milliseconds)
    assert caught.value.code is Code.QUANTISER


def test_weights_behind_quantisers_train_on_and_export_as_integers(tmp_path: Path) -> None:
    fixed = quantise(CNN_GRAPH, data={"x": IMAGES})
    graph = quantise(CNN_GRAPH, data={"x": IMAGES}, trainable=True)
    assert torch.equal(outputs(graph, IMAGES), outputs(fixed, IMAGES))
    sizes = [suture.export_onnx(g, tmp_path / "q.onnx").stat().st_size for g in (fixed, graph)]
    assert abs(sizes[1] - sizes[0]) < 400
    module = suture.to_torch(graph).train()
    targets = outputs(CNN_GRAPH, IMAGES)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.mse_loss(module(IMAGES), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0]


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    return module


def with_dead_channel() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight[1] = 0
        module[0].bias[1] = 3.0
        module[2].weight[0] *= 1e-9
    return module


@pytest.mark.parametrize("make", [tied, with_dead_channel])
def test_odd_parameters(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = make(), torch.randn(32, 6)
    graph = quantise(suture.trace(module, x), data={"input": x})
    assert relative(outputs(graph, x), module(x)) < 0.02
    suture.export_onnx(graph, tmp_path / "q.onnx")
    torch.testing.assert_close(OnnxModel(tmp_path / "q.onnx").run([x])[0], outputs(graph, x), rtol=1e-4, atol=1e-5)


def test_a_tied_weight_is_stored_once() -> None:
    x = torch.randn(8, 6)
    graph = quantise(suture.trace(tied(), x), data={"input": x})
    assert [name for name, p in graph.parameters.items() if p.data.dtype == torch.int8] == ["0.weight_integers"]
    assert "0.weight" not in graph.parameters


def test_data_of_nothing_but_zero() -> None:
    x = torch.zeros(4, 6)
    module = nn.Linear(6, 3)
    graph = quantise(suture.trace(module, x), data={"input": x})
    torch.testing.assert_close(outputs(graph, x), module(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_left_alone_with_a_reason(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, dtype=dtype)
    graph = quantise(suture.trace(nn.Linear(6, 3).to(dtype), x), data={"input": x})
    assert graph.history[-1].outcome == "not applicable"
    assert any("float32" in note for note in graph.history[-1].notes)


def test_a_graph_without_sites_is_left_alone() -> None:
    graph = quantise(suture.trace(nn.ReLU(), torch.randn(2, 3)))
    assert graph.history[-1].outcome == "not applicable"


def test_a_quantised_graph_is_saved_loaded_and_left_alone_the_second_time(tmp_path: Path) -> None:
    graph = quantise(CNN_GRAPH, data={"x": IMAGES})
    suture.save(graph, tmp_path / "q.suture-graph")
    loaded = suture.load(tmp_path / "q.suture-graph")
    assert str(loaded) == str(graph) and torch.equal(outputs(loaded, IMAGES), outputs(graph, IMAGES))
    again = quantise(loaded, data={"x": IMAGES})
    assert again.history[-1].outcome == "not applicable"
    assert any("in integers already" in note for note in again.history[-1].notes)


def test_a_planned_graph_becomes_what_the_real_one_does() -> None:
    planned = CNN_GRAPH.copy()
    for parameter in planned.parameters.values():
        parameter.assign(parameter.data.to("meta"))
    shapes, real = quantise(planned), quantise(CNN_GRAPH, data={"x": IMAGES}, correct_bias=False)
    shapes.history = real.history = ()
    assert str(shapes) == str(real)
    assert all(parameter.data.is_meta for parameter in shapes.parameters.values())


def test_nothing_depends_on_how_the_data_are_batched() -> None:
    whole = quantise(CNN_GRAPH, data={"x": IMAGES}, observer="mse")
    batched = quantise(CNN_GRAPH, data=[{"x": part} for part in torch.split(IMAGES, 10)], observer="mse")
    assert relative(outputs(batched, IMAGES), outputs(whole, IMAGES)) < 1e-4


def test_scripts_quantise(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=IMAGES.numpy())
    suture.save(CNN_GRAPH, tmp_path / "cnn.suture-graph")
    script = tmp_path / "quantise.suture"
    script.write_text(
        'suture 1\n\nmodel net = graph "cnn.suture-graph"\n\n'
        'quantise net\n    exclude "side"\n    observer percentile\n    data "data.npz"\n    on "data.npz"\n\n'
        'check net ~ original within 5e-2 relative on "data.npz"\nexport net to "cnn-int8.onnx"\n'
    )
    suture.run(script)
    report = quantisation_report(tmp_path / "cnn-int8.onnx", [IMAGES[:1]])
    assert report.counts(integer=True)["QLinearConv"] == 3


def test_the_page_says_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The programs of the documentation run; of what stands behind each, all that is no measured number is what they print."""
    page = (Path(__file__).parents[1] / "docs" / "quantisation.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for program, shown in re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)*)", page, re.DOTALL):
        exec(program, names)
        printed = capsys.readouterr().out
        for line in textwrap.dedent(shown).splitlines():
            first = line.split("  ")[0].removesuffix("1.08e-03")
            assert first in printed, f"{first!r} is not in {printed!r}"


def test_what_multiplies_and_stays_in_floats_is_named() -> None:
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.down(x))

    graph = quantise(suture.trace(Upsampling(), IMAGES), data={"x": IMAGES})
    assert any(note.startswith("up (conv_transpose) stays in floats: ") for note in graph.history[-1].notes)
    encoder = quantise(ENCODER_GRAPH, data={"x": TOKENS})
    assert any("(attention) stays in floats" in note for note in encoder.history[-1].notes)
