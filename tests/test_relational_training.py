"""The peers of the relational benchmark give PyTorch Geometric's numbers; the training examples learn the same with compiled layers."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
ROOT = Path(__file__).parents[1]
for folder in ("benchmarks", "examples/relational"):
    sys.path.insert(0, str(ROOT / folder))

import classify_nodes  # noqa: E402
import predict_links  # noqa: E402
import relational  # noqa: E402
import relational_cases  # noqa: E402
from measure import Report  # noqa: E402
from relational_cases import LAYERS, OURS, PLAIN, PYG, Bench, Case  # noqa: E402
from relational_probe import OUT_OF_MEMORY, TOO_SLOW, probe  # noqa: E402

from suture.frontends.messages.datasets import RelationalData, Task  # noqa: E402
from suture.frontends.messages.synthetic import Sizes, synthetic  # noqa: E402

SMALL = Sizes((60,), 3, 400, 12, True, 1.0, 0.6, "none")


def with_gaps() -> RelationalData:
    """A graph with a relation without edges, a node without any, an edge that is there twice, and a self-loop."""
    made = synthetic(SMALL)
    src, dst, kind = (torch.cat([each, each[:1]]) for each in (made.src, made.dst, made.type))
    loop = torch.tensor([0])
    same = next(t for t, (start, _, end) in enumerate(made.edge_types) if start == end)
    src, dst, kind = torch.cat([src, loop]), torch.cat([dst, loop]), torch.cat([kind, torch.tensor([same])])
    first = made.node_types.index(made.edge_types[same][0])
    loop_node = int((made.node_type == first).nonzero()[0])
    src[-1] = dst[-1] = loop_node
    kept = kind != 3
    return RelationalData(
        "gaps", src[kept], dst[kept], kind[kept], made.num_nodes, made.num_types, made.node_type, made.num_node_types
    )


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_plain_plan_has_the_numbers_and_gradients_of_pyg(layer: str, heads: int) -> None:
    bench = Bench(Case(layer, "gaps", 8, heads), with_gaps())
    assert bench.check(bench.side(PYG), gradients=True) < 1e-5
    assert bench.check(bench.side(PLAIN), gradients=True) < 1e-5


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_plain_weights_are_those_of_pyg(layer: str) -> None:
    bench = Bench(Case(layer, "gaps", 8, 2 if layer != "rgcn" else 1), with_gaps())
    theirs, plain = bench.side(PYG), bench.side(PLAIN)
    theirs.train()
    plain.train()
    kept = {"rgcn": lambda p: p[0][:, 0], "rgat": lambda p: p[0][:, 0], "hgt": lambda p: p[7]}[layer]
    names = [name for name, _ in bench.layer.named_parameters()]
    wanted = theirs.parameters[names.index("weight")].grad if layer != "hgt" else torch.cat([
        parameter.grad for name, parameter in zip(names, theirs.parameters, strict=True) if name.startswith("skip")
    ])  # fmt: skip
    found = kept([parameter.grad for parameter in plain.parameters])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_side_that_is_wrong_is_found() -> None:
    bench = Bench(Case("rgcn", "gaps", 8, 1), with_gaps())
    side = bench.side(PLAIN)
    with torch.no_grad():
        side.parameters[0][0, 0, 0, 0] += 1
    assert bench.check(side, gradients=False) > 1e-3


def test_the_suture_side_agrees_with_every_switch() -> None:
    bench = Bench(Case("rgcn", "gaps", 8, 1), with_gaps())
    for name in (OURS, relational_cases.NEITHER):
        assert bench.check(bench.side(name), gradients=True) < 1e-5


@pytest.mark.slow
def test_a_probe_tells_what_ran_from_what_ran_out() -> None:
    case = Case("rgat", "bgs", 32, 1, 0.02)
    settings = {"device": "cpu", "threads": 1, "train": False}
    ran = probe(case, PLAIN, memory=8, seconds=300, **settings)
    assert ran["status"] == "ran"
    assert ran["seconds"] > 0
    assert 0 < ran["peak"] < 500
    wide = Case("rgat", "bgs", 256, 1, 0.2)  # half a terabyte of gathered matrices
    assert probe(wide, PYG, memory=8, seconds=300, **settings)["status"] == OUT_OF_MEMORY
    assert probe(case, PLAIN, memory=8, seconds=0.05, **settings)["status"] == TOO_SLOW


def test_slow_sides_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relational.gc, "collect", lambda: 0)
    runs = dict.fromkeys(("fast", "slow"), 0)
    now = 0.0

    def run(name: str, seconds: float) -> None:
        nonlocal now
        runs[name] += 1
        now += seconds

    times = relational.in_turn({"fast": lambda: run("fast", 0.1), "slow": lambda: run("slow", 1e9)}, 4, lambda: now)
    assert len(times["fast"]) == 4
    assert times["slow"] == [pytest.approx(1e9)]


def asked(**options: object) -> argparse.Namespace:
    usual = {
        "quick": False,
        "graphs": None,
        "layers": None,
        "widths": None,
        "heads": None,
        "scale": 1.0,
        "only": None,
        "device": "cpu",
    }
    return argparse.Namespace(**{**usual, **options})


def test_the_whole_grid_runs_where_the_aims_are_and_one_setting_elsewhere() -> None:
    found = [str(case) for case in relational.chosen(asked())]
    for graph in ("aifb", "mutag"):
        assert sum(graph in name for name in found) == 3 + 2 * 3 * 2
    assert [name for name in found if "biokg" in name] == ["rgcn biokg 64", "rgat biokg 64", "hgt biokg 64"]
    assert [str(case) for case in relational.chosen(asked(quick=True))] == [
        "rgcn aifb 64",
        "rgat aifb 64",
        "hgt aifb 64",
    ]
    assert [str(case) for case in relational.chosen(asked(only=["hgt mutag 128x8"]))] == ["hgt mutag 128x8"]


def figures(times: dict[str, float], peaks: dict[str, float]) -> Report:
    report = Report("test", quick=True)
    probes = {name: {"status": "ran", "peak": peak} for name, peak in peaks.items()}
    relational._figures(Case("rgat", "aifb", 64, 1), "inference", times, probes, asked(), report, defaultdict(list))
    return report


def test_a_missed_aim_is_a_failure() -> None:
    good = figures({OURS: 1.0, PYG: 21.0, PLAIN: 1.6}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0})
    assert all(figure.met is not False for figure in good.figures)
    for times, peaks in (
        ({OURS: 1.0, PYG: 19.0, PLAIN: 1.6}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}),
        ({OURS: 1.0, PYG: 21.0, PLAIN: 1.4}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}),
        ({OURS: 1.0, PYG: 21.0, PLAIN: 1.6}, {OURS: 16.0, PYG: 30.0, PLAIN: 20.0}),
    ):
        assert sum(figure.met is False for figure in figures(times, peaks).figures) == 1


def test_our_side_running_out_of_memory_is_a_failure() -> None:
    report = Report("test", quick=True)
    probes = {OURS: {"status": OUT_OF_MEMORY, "why": "killed"}, PYG: {"status": "ran", "peak": 1.0}}
    relational._figures(
        Case("rgat", "aifb", 64, 1), "inference", {PYG: 1.0}, probes, asked(), report, defaultdict(list)
    )
    assert [figure.met for figure in report.figures] == [False]


@pytest.fixture
def classified() -> RelationalData:
    """A graph whose nodes' classes follow from an edge that each has."""
    torch.manual_seed(0)
    nodes, classes = 24, 3
    label = torch.arange(nodes) % classes
    src = torch.cat([nodes + label, torch.randint(0, nodes, (40,))])
    dst = torch.cat([torch.arange(nodes), torch.randint(0, nodes, (40,))])
    kind = torch.cat([torch.zeros(nodes), torch.ones(40)]).long()
    order = torch.randperm(nodes)
    task = Task(("a", "b", "c"), order[:15], label[order[:15]], order[15:], label[order[15:]])
    node_type = torch.cat([torch.zeros(nodes), torch.ones(classes)]).long()
    data = RelationalData("aifb", src, dst, kind, nodes + classes, 2, node_type, 2, task=task)
    return data.with_reverses()


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_layers_learn_what_pyg_learns(layer: str, classified: RelationalData) -> None:
    ours, theirs = (classify_nodes.train(layer, classified, 0, compiled=side, epochs=25) for side in (True, False))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-2, abs=1e-3)
    assert ours.losses[-1] < 0.3 * ours.losses[0]
    assert ours.accuracy == theirs.accuracy


def test_link_prediction_falls_alike() -> None:
    made = synthetic(Sizes((40,), 1, 300, 3, False, 0.5, 0.5, "none"))
    data = RelationalData(
        "links",
        made.src,
        made.dst,
        made.type,
        made.num_nodes,
        3,
        made.node_type,
        1,
        split=(torch.arange(300) % 10 > 7).long(),
    )
    ours, theirs = (predict_links.train(data, 0, compiled=side, epochs=4, width=8) for side in (True, False))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert ours.losses == sorted(ours.losses, reverse=True)
    assert ours.rank == pytest.approx(theirs.rank, rel=0.05)
