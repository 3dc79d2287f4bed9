"""Early exits: what they compute, how they train, and the graphs that leave where a gate says so."""

from __future__ import annotations

import math
import re
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import suture
from suture.backends.onnx import export_onnx
from suture.backends.onnxruntime import OnnxModel
from suture.ir import semantics
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.verify import verify
from suture.passes import add_exits, early_exit
from suture.passes.exits import (
    ExitOutputs,
    calibrate_thresholds,
    exit_costs,
    exit_loss,
    exit_outputs,
    exit_probabilities,
    exits_of,
    submodels,
    warm_up_loss,
)

CLASSES = 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Tokens(nn.Module):
    """A classifier of sequences: the head has a norm, and averages."""

    def __init__(self, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, CLASSES)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def streams(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The stream behind the stem and behind every block."""
        found = [self.stem(x)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    def classify(self, stream: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(stream).mean(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.streams(x)[-1])


class Images(nn.Module):
    """A classifier of images, whose stages have other widths and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x)).mean(dim=(2, 3)))


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(seed))


def traced(net: nn.Module, x: torch.Tensor) -> Graph:
    return suture.trace(net, (x,), dynamic={"x": {0: "batch"}})


def with_exits(**options: object) -> tuple[Tokens, Graph]:
    torch.manual_seed(0)
    net = Tokens().eval()
    graph = add_exits(traced(net, tokens(2)), **options)
    verify(graph)
    return net, graph


def confident(graph: Graph) -> Graph:
    """The graph with gates spread over [0, 1], so that samples leave at different exits."""
    for name, parameter in graph.parameters.items():
        if name.endswith("gate.weight"):
            parameter.assign(torch.tensor([[6.0, 4.0, -5.0]]))
        elif name.endswith("gate.bias"):
            parameter.assign(torch.tensor([-1.0]))
        elif name.startswith("exits.") and name.endswith("head.weight"):
            parameter.assign(parameter.data * 3)
    return graph


# what exits compute


def gate_by_hand(logits: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(dim=1)
    best = p.sort(dim=1, descending=True).values
    entropy = torch.distributions.Categorical(probs=p).entropy() / math.log(logits.shape[1])
    return torch.sigmoid(torch.stack([best[:, 0], best[:, 0] - best[:, 1], entropy], dim=1) @ weight[0] + bias)


def test_copied_heads_classify_every_stream_as_the_model_would() -> None:
    net, graph = with_exits()
    x = tokens(7)
    outputs = exit_outputs(graph, suture.to_torch(graph)(x))
    assert [item.number for item in exits_of(graph)] == [0, 1, 2]
    for logits, stream in zip(outputs.logits, net.streams(x)[1:], strict=True):
        torch.testing.assert_close(logits, net.classify(stream))
    torch.testing.assert_close(outputs.logits[-1], net(x))
    for gate, logits in zip(outputs.gates, outputs.logits[:-1], strict=True):
        torch.testing.assert_close(gate, gate_by_hand(logits, torch.tensor([[1.0, 1.0, -1.0]]), torch.zeros(1)))
    record = graph.history[-1]
    assert record.contract == "exact"
    assert record.deviation == 0.0
    assert record.notes[0] == "exit_0 at %blocks_0_add: a copy of the head"
    copy = graph.parameters["exits.0.head.head.weight"].data
    assert torch.equal(copy, net.head.weight)
    assert copy.data_ptr() != net.head.weight.data_ptr()


def test_pooled_heads_average_everything_but_features() -> None:
    net, graph = with_exits(at=("blocks.1", "stem"), head="pooled", seed=3)
    x = tokens(5)
    outputs = exit_outputs(graph, evaluate(graph, [x]))
    streams = net.streams(x)
    for number, stream in ((0, streams[0]), (1, streams[2])):
        weight, bias = (graph.parameters[f"exits.{number}.head.{name}"].data for name in ("weight", "bias"))
        torch.testing.assert_close(outputs.logits[number], F.linear(stream.mean(dim=1), weight, bias))
        assert weight.abs().max() <= 1 / math.sqrt(16)
    _, again = with_exits(at=("blocks.1", "stem"), head="pooled", seed=3)
    _, other = with_exits(at=("blocks.1", "stem"), head="pooled", seed=4)
    name = "exits.0.head.weight"
    assert torch.equal(graph.parameters[name].data, again.parameters[name].data)
    assert not torch.equal(graph.parameters[name].data, other.parameters[name].data)


def test_the_features_of_an_image_are_its_channels() -> None:
    torch.manual_seed(0)
    net = Images().eval()
    x = torch.randn(3, 1, 8, 8)
    graph = add_exits(traced(net, x), at=("one", "two"), classes=5)
    verify(graph)
    outputs = exit_outputs(graph, evaluate(graph, [x]))
    pooled = net.one(x).mean(dim=(2, 3))
    weight, bias = (graph.parameters[f"exits.0.head.{name}"].data for name in ("weight", "bias"))
    torch.testing.assert_close(outputs.logits[0], F.linear(pooled, weight, bias))
    assert [tuple(logits.shape) for logits in outputs.logits] == [(3, 5), (3, 5), (3, CLASSES)]


def test_exits_are_spread_over_the_blocks() -> None:
    _, graph = with_exits(count=1)
    assert graph.history[-1].notes == ("exit_0 at %blocks_1_add: a copy of the head",)


def test_frozen_models_train_their_exits_only() -> None:
    _, graph = with_exits(freeze=True)
    module = suture.to_torch(graph)
    assert {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad} == {"exits"}


# costs and the loss


def test_costs_count_the_way_to_each_exit_with_the_heads_before_it() -> None:
    _, graph = with_exits(at=("blocks.0", "blocks.2"))
    stem, block, head = 5 * 6 * 16, 2 * 5 * 16 * 32, 16 * CLASSES
    one = head + 3
    assert exit_costs(graph) == (stem + block + one, stem + 3 * block + 2 * one, stem + 4 * block + 2 * one + head)


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=4))
def test_places_to_leave_are_a_distribution(gates: list[list[float]]) -> None:
    found = exit_probabilities([torch.tensor(gate, dtype=torch.float64) for gate in gates])
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, dtype=torch.float64))
    for sample in range(2):
        for place in range(len(gates) + 1):
            expected = math.prod(1 - gate[sample] for gate in gates[:place])
            expected *= gates[place][sample] if place < len(gates) else 1
            assert found[sample, place] == pytest.approx(expected)


def test_the_loss_is_the_expectation_over_where_samples_leave() -> None:
    torch.manual_seed(1)
    logits = tuple(torch.randn(4, CLASSES, dtype=torch.float64) for _ in range(3))
    gates = tuple(torch.rand(4, dtype=torch.float64) for _ in range(2))
    targets, costs = torch.tensor([0, 2, 1, 1]), (10, 30, 40)
    found = exit_loss(ExitOutputs(logits, gates), targets, costs, tradeoff=0.7)
    entropy = cost = 0.0
    for k in range(4):
        g = [float(gate[k]) for gate in gates]
        for p, place in ((g[0], 0), ((1 - g[0]) * g[1], 1), ((1 - g[0]) * (1 - g[1]), 2)):
            entropy -= p * float(logits[place][k].log_softmax(dim=0)[targets[k]]) / 4
            cost += p * costs[place] / 40 / 4
    assert float(found.cross_entropy) == pytest.approx(entropy)
    assert float(found.cost) == pytest.approx(cost)
    assert float(found.total) == pytest.approx(entropy + 0.7 * cost)
    mean = sum(float(F.cross_entropy(row, targets)) for row in logits) / 3
    assert float(warm_up_loss(ExitOutputs(logits, gates), targets)) == pytest.approx(mean)


def test_gates_learn_what_leaving_is_worth() -> None:
    """The end classifies as the targets say, earlier exits do not: free time makes samples stay, dear time makes them leave."""
    x = tokens(32)
    costs_after = {}
    for tradeoff in (0.0, 4.0):
        net, graph = with_exits(at=("blocks.0", "blocks.2"))
        net.head.weight.data *= 5
        targets, module = net(x).argmax(dim=1), suture.to_torch(graph)
        gates = [parameter for name, parameter in module.named_parameters() if ".gate." in name]
        costs, losses = [], []
        for _ in range(8):
            found = exit_loss(exit_outputs(graph, module(x)), targets, exit_costs(graph), tradeoff=tradeoff)
            module.zero_grad()
            found.total.backward()
            with torch.no_grad():
                for parameter in gates:
                    parameter -= 2 * parameter.grad
            costs.append(float(found.cost.detach()))
            losses.append(float(found.total.detach()))
        assert losses[-1] < losses[0]
        # inference modules and the model itself train on the same loss
        assert all(parameter.grad is not None for parameter in module.parameters())
        costs_after[tradeoff] = costs
    assert costs_after[0.0][-1] > costs_after[0.0][0] == costs_after[4.0][0] > costs_after[4.0][-1]


# thresholds


def mean_cost(gates: torch.Tensor, threshold: float, costs: tuple[int, ...]) -> float:
    """Sample by sample."""
    total = 0
    for row in gates.tolist():
        total += costs[next((k for k, gate in enumerate(row) if gate >= threshold), len(row))]
    return total / len(gates)


@settings(max_examples=8)
@given(budget=st.floats(0.31, 1.0))
def test_thresholds_go_as_deep_as_the_budget_allows(budget: float) -> None:
    graph = GATED
    x = tokens(24, seed=5)
    found = calibrate_thresholds(graph, {"x": x}, budget=budget)
    gates = torch.stack(exit_outputs(graph, evaluate(graph, [x])).gates, dim=1).detach().double()
    costs = exit_costs(graph)
    allowed = budget * (costs[-1] - 3 * (16 * CLASSES + 3))
    assert found.mean_macs == pytest.approx(mean_cost(gates, found.values[0], costs))
    assert found.mean_macs <= allowed
    every = {mean_cost(gates, threshold, costs) for threshold in [*(gates + 1e-9).flatten().tolist(), -1.0]}
    assert found.mean_macs == pytest.approx(max(cost for cost in every if cost <= allowed))
    assert sum(found.shares) == pytest.approx(1)
    assert sum(s * c for s, c in zip(found.shares, found.costs, strict=True)) == pytest.approx(found.mean_macs)


GATED = confident(with_exits()[1])


def test_thresholds_print_as_a_table() -> None:
    lines = str(calibrate_thresholds(GATED, {"x": tokens(40)}, budget=0.7)).splitlines()
    assert lines[0].split() == ["leaves", "at", "threshold", "MACs", "samples"]
    assert lines[-1].startswith("mean MACs ")
    assert len(lines) == 6


# leaving early


def test_a_sample_leaves_at_the_first_exit_whose_gate_fires(tmp_path: Path) -> None:
    graph = GATED
    thresholds = (0.8, 0.7, 0.6)
    dynamic = early_exit(graph, thresholds=thresholds)
    verify(dynamic)
    assert dynamic.output_names == ["output"]
    module = suture.to_torch(dynamic)
    export_onnx(dynamic, tmp_path / "dynamic.onnx")
    session = OnnxModel(tmp_path / "dynamic.onnx", threads=1)
    left = set()
    for x in tokens(24, seed=2).split(1):
        outputs = exit_outputs(graph, evaluate(graph, [x]))
        place = next((k for k, gate in enumerate(outputs.gates) if gate.item() >= thresholds[k]), 3)
        left.add(place)
        torch.testing.assert_close(module(x), outputs.logits[place])
        torch.testing.assert_close(session.run([x])[0], outputs.logits[place], rtol=1e-4, atol=1e-5)
    assert len(left) >= 3


def test_a_batch_leaves_when_all_its_samples_would() -> None:
    graph, thresholds = GATED, (0.75, 0.6, 0.5)
    dynamic = early_exit(graph, thresholds=thresholds)
    x = tokens(40, seed=2)
    outputs = exit_outputs(graph, evaluate(graph, [x]))
    for rows in (torch.arange(6), outputs.gates[0].argsort(descending=True)[:3], outputs.gates[0].argsort()[:3]):
        part = ExitOutputs(tuple(t[rows] for t in outputs.logits), tuple(t[rows] for t in outputs.gates))
        place = next((k for k, gate in enumerate(part.gates) if bool((gate >= thresholds[k]).all())), 3)
        torch.testing.assert_close(evaluate(dynamic, [x[rows]])[0], part.logits[place])


def test_what_comes_behind_an_exit_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run_node, ran = semantics.run_node, list[str]()

    def counted(node: object, *rest: object, **more: object) -> object:
        ran.append(node.path)  # type: ignore[attr-defined]
        return run_node(node, *rest, **more)  # type: ignore[arg-type]

    dynamic = early_exit(GATED, thresholds=(2.0, 0.0, 0.0))
    monkeypatch.setattr(semantics, "run_node", counted)
    evaluate(dynamic, [tokens(1)])
    blocks = {path.split(".")[1] for path in ran if path.startswith("blocks.")}
    assert blocks == {"0", "1"}
    assert not any(path.startswith("exits.2") for path in ran)


def test_there_is_an_if_for_every_exit(tmp_path: Path) -> None:
    export_onnx(early_exit(GATED, thresholds=(0.5, 0.5, 0.5)), tmp_path / "dynamic.onnx")

    def count(graph: onnx.GraphProto) -> int:
        inner = sum(
            count(attribute.g) for node in graph.node for attribute in node.attribute if attribute.HasField("g")
        )
        return inner + sum(node.op_type == "If" for node in graph.node)

    assert count(onnx.load(tmp_path / "dynamic.onnx").graph) == 3


def test_exits_that_are_never_taken_change_nothing() -> None:
    net, graph = with_exits()
    dynamic = early_exit(graph, thresholds=(1.5, 2.0, math.inf))
    assert dynamic.history[-1].contract == "exact"
    x = tokens(6)
    torch.testing.assert_close(suture.to_torch(dynamic)(x), net(x))
    assert dynamic.stats().macs == exit_costs(graph)[-1]


def test_the_model_of_every_exit_is_an_ordinary_graph() -> None:
    net, graph = with_exits(at=("blocks.0", "blocks.2"))
    x = tokens(5)
    outputs = exit_outputs(graph, evaluate(graph, [x]))
    models = submodels(graph)
    assert len(models) == 3
    for model, logits in zip(models, outputs.logits, strict=True):
        verify(model)
        assert model.output_names == ["output"]
        torch.testing.assert_close(suture.to_torch(model)(x), logits)
        assert all(p.data is graph.parameters[name].data for name, p in model.parameters.items())
    assert set(models[-1].parameters) == set(net.state_dict())
    assert {name.split(".")[1] for name in models[0].parameters if name.startswith("blocks.")} == {"0"}
    assert not any("gate" in name for model in models for name in model.parameters)


# bad input


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"at": "blocks_1_up"}, Code.EXIT, "%blocks_1_up is no cut value: %blocks_0_add crosses as well"),
        ({"at": "blocks.1.up"}, Code.EXIT, "blocks.1.up: %blocks_1_up is no cut value"),
        ({"at": "output"}, Code.SITE, "no node comes from the module 'output'"),
        ({"at": "head"}, Code.EXIT, "%head is no cut value"),
        ({"at": "blocks.9"}, Code.SITE, "no node comes from the module 'blocks.9'"),
        ({"at": "blocks.1", "count": 2}, Code.EXIT, "by their places or by their number"),
        ({"count": 4}, Code.EXIT, "4 exits in a stack of 4 blocks; 1 to 3 would be right"),
        ({"classes": 1}, Code.EXIT, "1 classes"),
        ({"head": "copied"}, Code.OPTION, "it takes one of 'auto', 'copy', 'pooled'"),
    ],
)
def test_exits_that_cannot_be_are_refused(options: dict[str, object], code: Code, words: str) -> None:
    graph = traced(Tokens().eval(), tokens(2))
    before = str(graph)
    with pytest.raises(SutureError, match=words) as caught:
        add_exits(graph, **options)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    assert str(graph) == before


def test_models_that_are_no_classifiers_have_no_exits() -> None:
    sequence = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(SutureError, match=r"logits \[batch, classes\]") as caught:
        add_exits(suture.trace(sequence, (tokens(2),)))
    assert caught.value.code is Code.EXIT
    with pytest.raises(SutureError, match="the graph has exits already"):
        add_exits(GATED)
    double = traced(Tokens().eval(), tokens(2))
    double.set_outputs([*double.outputs, double.nodes[0].output])
    with pytest.raises(SutureError, match="the graph returns 2 values"):
        add_exits(double)
    images = traced(Images().eval(), torch.randn(2, 1, 8, 8))
    with pytest.raises(SutureError, match="no head behind a stack of blocks"):
        add_exits(images, at="one", head="copy")


def test_thresholds_that_do_not_fit_are_refused() -> None:
    plain = traced(Tokens().eval(), tokens(2))
    wider = with_exits(classes=4)[1]
    cases = [
        (lambda: early_exit(GATED, thresholds=(0.5,)), Code.EXIT, "1 thresholds for 3 exits; one each"),
        (lambda: early_exit(GATED, thresholds=(0.5, 0.5, math.nan)), Code.EXIT, "a threshold is no number"),
        (lambda: early_exit(plain, thresholds=()), Code.EXIT, "the graph has no exits; add_exits gives it some"),
        (lambda: early_exit(wider, thresholds=(0.5,) * 3), Code.EXIT, r"exit_0 is f32\[batch, 4\], the result f32\[batch, 3\]"),
        (lambda: calibrate_thresholds(GATED, None, budget=0.5), Code.CALIBRATION, "thresholds need data"),
        (lambda: calibrate_thresholds(GATED, {"z": tokens(2)}, budget=0.5), Code.CALIBRATION, "the calibration data have no 'x'"),
        (lambda: calibrate_thresholds(GATED, {"x": tokens(4)}, budget=0.1), Code.EXIT, "is below the first exit's 5,651"),
        (lambda: exit_loss(ExitOutputs((torch.zeros(1, 2),) * 2, (torch.zeros(1),)), torch.zeros(1).long(), [1], tradeoff=1.0), Code.EXIT,
         "1 costs for 2 places to leave"),
        (lambda: exit_outputs(GATED, torch.zeros(2)), Code.EXIT, "the result holds 1 tensors, the graph returns 7"),
    ]  # fmt: skip
    for call, code, words in cases:
        with pytest.raises(SutureError, match=words) as caught:
            call()
        assert caught.value.code is code


def test_a_script_hangs_exits_and_leaves_early(tmp_path: Path) -> None:
    from suture.frontends.archive import load_graph, save_graph

    net = Tokens().eval()
    save_graph(traced(net, tokens(2)), tmp_path / "net.suture-graph")
    script = tmp_path / "exits.suture"
    script.write_text(
        'suture 1\n\nmodel net = graph "net.suture-graph"\nadd_exits net at "blocks.0", "blocks.1"\nearly_exit net thresholds 2.0, 2.0\n'
        'save net to "early.suture-graph"\nexport net to "early.onnx"\n'
    )
    suture.run(script)
    x = tokens(3)
    torch.testing.assert_close(suture.to_torch(load_graph(tmp_path / "early.suture-graph"))(x), net(x))
    torch.testing.assert_close(OnnxModel(tmp_path / "early.onnx", threads=1).run([x])[0], net(x), rtol=1e-4, atol=1e-5)


def test_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "exits.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {
        "suture": suture,
        "torch": torch,
        "model": Tokens().eval(),
        "x": tokens(8),
        "targets": torch.zeros(8).long(),
    }
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "dynamic.onnx").exists()
