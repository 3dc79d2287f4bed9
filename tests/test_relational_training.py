"""The peers of the relational benchmark give PyTorch Geometric's numbers; the training examples learn the same with compiled layers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
import relational_choice  # noqa: E402
import relational_probe  # noqa: E402
import relational_report  # noqa: E402
import relational_training  # noqa: E402
from measure import Report  # noqa: E402
from relational_apart import FAILED, OUT_OF_MEMORY, TOO_SLOW, Children, apart  # noqa: E402
from relational_cases import LAYERS, OURS, PLAIN, PYG, Bench, Case  # noqa: E402
from relational_probe import probe, store_expected  # noqa: E402

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
def test_a_probe_tells_what_ran_from_what_ran_out(tmp_path: Path) -> None:
    given = relational.asked(["--memory", "8", "--seconds", "300"])
    small = Case("rgat", "bgs", 32, 1, 0.02)
    bench, expected = Bench(small, relational_cases.load_graph("bgs", 0.02)), tmp_path / "expected.pt"
    assert store_expected(bench, given, expected) is None
    for found in probe(bench, PLAIN, given, expected).values():
        assert found["status"] == "ran"
        assert found["seconds"] > 0
        assert 0 < found["peak"] < 500
        assert found["error"] < 1e-5
    outputs, gradient = torch.load(expected)
    torch.save((outputs, gradient + gradient.abs().max()), expected)
    wrong = probe(bench, PLAIN, given, expected)
    assert [found["status"] for found in wrong.values()] == ["ran", FAILED]
    wide = Bench(
        Case("rgat", "bgs", 256, 1, 0.2), relational_cases.load_graph("bgs", 0.2)
    )  # its matrices by edge: half a terabyte
    assert {found["status"] for found in probe(wide, PYG, given).values()} == {OUT_OF_MEMORY}
    given.seconds = 0.05
    assert {found["status"] for found in probe(bench, PLAIN, given).values()} == {TOO_SLOW}


def test_what_a_child_says_counts_even_where_it_fails_later() -> None:
    def work(say: Callable[[dict[str, object]], None]) -> None:
        say({"mode": "inference"})
        raise MemoryError

    assert apart(work, memory=0, seconds=60, threads=1) == (
        [{"mode": "inference"}], {"status": OUT_OF_MEMORY, "why": "MemoryError"}
    )  # fmt: skip


def test_a_child_that_takes_too_long_is_ended() -> None:
    said, failure = apart(lambda say: time.sleep(60), memory=0, seconds=0.1, threads=1)
    assert not said
    assert failure is not None
    assert failure["status"] == TOO_SLOW


def test_slow_sides_are_timed_less_often_and_silent_ones_not_at_all() -> None:
    times = relational_probe.in_turn(
        {
            "fast": lambda: {"seconds": 0.1, "spent": 0.2},
            "slow": lambda: {"seconds": 1e9, "spent": 1e9},
            "silent": lambda: None,
        },
        4,
    )
    assert times == {"fast": [0.1] * 4, "slow": [1e9], "silent": []}


def test_children_answer_until_they_end() -> None:
    def prepare() -> Callable[[str], dict[str, object]]:
        heard: list[str] = []

        def service(question: str) -> dict[str, object]:
            heard.append(question)
            if question == "end":
                raise MemoryError
            if question == "wait":
                time.sleep(60)
            return {"heard": "".join(heard)}

        return service

    with Children(memory=0, threads=1) as children:
        children.start("one", prepare)
        children.start("two", prepare)
        assert children.ask("one", "a", 60) == {"heard": "a"}
        assert children.ask("two", "b", 60) == {"heard": "b"}
        assert children.ask("one", "c", 60) == {"heard": "ac"}
        assert children.ask("one", "end", 60) is None
        assert children.ask("one", "d", 60) is None
        assert children.ask("two", "wait", 0.1) is None
        assert children.ask("two", "e", 60) is None


@pytest.mark.slow
def test_sides_are_timed_in_turn_in_processes_of_their_own() -> None:
    given = relational.asked(["--seconds", "300"])
    bench = Bench(Case("rgcn", "bgs", 8, 1, 0.02), relational_cases.load_graph("bgs", 0.02))
    found = relational_probe.together(bench, {"inference": [OURS, PLAIN], "training": [PLAIN]}, 2, given)
    assert {mode: list(times) for mode, times in found.items()} == {"inference": [OURS, PLAIN], "training": [PLAIN]}
    assert all(seconds > 0 for times in found.values() for seconds in times.values())


def test_the_whole_grid_runs_where_the_aims_are_and_one_setting_elsewhere() -> None:
    found = [str(case) for case in relational.chosen(relational.asked([]))]
    for graph in ("aifb", "mutag"):
        assert sum(graph in name for name in found) == 3 + 2 * 3 * 2
    assert [name for name in found if "biokg" in name] == ["rgcn biokg 64", "rgat biokg 64", "hgt biokg 64"]
    assert [str(case) for case in relational.chosen(relational.asked(["--quick"]))] == [
        "rgcn aifb 64",
        "rgat aifb 64",
        "hgt aifb 64",
    ]
    one = relational.asked(["--only", "hgt mutag 128x8"])
    assert [str(case) for case in relational.chosen(one)] == ["hgt mutag 128x8"]


def row(times: dict[str, float], peaks: dict[str, float], case: str = "rgat aifb 64") -> dict[str, Any]:
    probes = {name: {"status": "ran", "peak": peak} for name, peak in peaks.items()}
    return {
        "case": case, "mode": "inference", "scale": 1.0, "milliseconds": times, "probes": probes, "alone": [],
        "limits": {"memory": 8.0, "seconds": 60.0},
    }  # fmt: skip


def figures(of: dict[str, Any]) -> Report:
    report = Report("test", quick=True)
    relational_report.figures(of, report, "cpu")
    return report


def test_a_missed_aim_is_a_failure() -> None:
    good = figures(row({OURS: 1.0, PYG: 21.0, PLAIN: 1.6}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}))
    assert all(figure.met is not False for figure in good.figures)
    for times, peaks in (
        ({OURS: 1.0, PYG: 19.0, PLAIN: 1.6}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}),
        ({OURS: 1.0, PYG: 21.0, PLAIN: 1.4}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}),
        ({OURS: 1.0, PYG: 21.0, PLAIN: 1.6}, {OURS: 16.0, PYG: 30.0, PLAIN: 20.0}),
    ):
        assert sum(figure.met is False for figure in figures(row(times, peaks)).figures) == 1


def test_our_side_running_out_of_memory_is_a_failure() -> None:
    made = row({PYG: 1.0}, {PYG: 1.0})
    made["probes"][OURS] = {"status": OUT_OF_MEMORY, "why": "killed"}
    assert [figure.met for figure in figures(made).figures] == [False]


def test_a_run_in_pieces_adds_up_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
        measured.append(str(case))
        made = row({OURS: 1.0, PYG: 16.0 * len(measured)}, {OURS: 10.0, PYG: 30.0, PLAIN: 20.0}, str(case))
        made["probes"][PLAIN] = {"status": TOO_SLOW, "why": "not done in 60 s"}
        return [made, made | {"mode": "training"}]

    monkeypatch.setattr(relational, "measure", measure)
    stored, shown = tmp_path / "results.json", tmp_path / "results.md"

    def run(*words: str) -> int:
        usual = ["relational.py", *["--widths", "64", "--heads", "1", "--graphs", "aifb"]]
        files = ["--resume", str(stored), "--markdown", str(shown)]
        monkeypatch.setattr(sys, "argv", [*usual, *files, *words])
        return relational.main()

    assert run("--layers", "rgat") == 1  # 16 times, and not 20
    assert run() == 1
    assert measured == ["rgat aifb 64", "rgcn aifb 64", "hgt aifb 64"]
    layers = [row["case"].split()[0] for row in json.loads(stored.read_text())["rows"]]
    assert layers == ["rgcn", "rgcn", "rgat", "rgat", "hgt", "hgt"]
    assert (
        "| rgat aifb 64, inference | 1.00 | 16.00 | too slow | 16.0 (aim 20, missed) |  | 10 | 30 |  |"
        in shown.read_text()
    )
    assert "| PyG, inference | 3 | 29.07 | 16.00 | 48.0 | 0 | 0 |" in shown.read_text()
    assert run("--only", "rgat aifb 64") == 0  # again: now 64 times
    assert len(measured) == 4
    with pytest.raises(SystemExit, match="measured otherwise"):
        run("--threads", "2")


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
def test_compiled_layers_learn_what_pyg_learns(
    layer: str, classified: RelationalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(classify_nodes.SETTINGS[layer, "aifb"], decay=5e-4, dropout=0.1)
    monkeypatch.setitem(classify_nodes.SETTINGS, (layer, "aifb"), settings)
    ours, theirs = (classify_nodes.train(layer, classified, 0, compiled=side, epochs=25) for side in (True, False))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-2, abs=1e-3)
    assert ours.losses[-1] < 0.3 * ours.losses[0]
    assert ours.accuracy == theirs.accuracy


def test_a_training_that_runs_out_of_time_has_no_accuracy(classified: RelationalData) -> None:
    found = classify_nodes.train("rgcn", classified, 0, compiled=False, seconds=0)
    assert len(found.losses) == 2
    assert found.accuracy is None
    assert classify_nodes.train("rgcn", classified, 0, compiled=False, seconds=0, epochs=2).accuracy is not None


def test_settings_are_chosen_on_training_nodes_that_were_held_out(
    classified: RelationalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, held = [], []

    def learn(model: object, nodes: torch.Tensor, labels: torch.Tensor, settings: object) -> Iterator[float]:
        learned.append(set(nodes.tolist()))
        yield from [0.0] * 10

    def evaluate(model: object, nodes: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        held.append(set(nodes.tolist()))
        return 50.0, 1.0

    monkeypatch.setattr(classify_nodes, "make", lambda *rest, **options: None)
    monkeypatch.setattr(classify_nodes, "learn", learn)
    monkeypatch.setattr(classify_nodes, "evaluate", evaluate)
    tried = relational_choice.validate("rgcn", classified, classify_nodes.Settings(decay=0.1), epochs=10)
    assert tried == [{"decay": 0.1, "dropout": 0.0, "epochs": 10, "accuracy": 50.0, "loss": 1.0}]
    assert classified.task is not None
    known = set(classified.task.train_nodes.tolist())
    assert [one | other for one, other in zip(learned, held, strict=True)] == [known] * 3
    assert not any(one & other for one, other in zip(learned, held, strict=True))
    assert sum(map(len, held)) == len(known)


def test_the_best_accuracy_is_chosen_and_the_least_loss_among_equals() -> None:
    settings = classify_nodes.Settings()
    names = [each.mechanism for each in relational_choice.candidates("rgat-onehot", settings, quick=True)]
    assert names == [classify_nodes.ACROSS] * 2 + [classify_nodes.WITHIN] * 2
    assert len(relational_choice.candidates("hgt", settings, quick=False)) == len(relational_choice.CANDIDATES)
    tried = [{"accuracy": 90.0, "loss": 0.1}, {"accuracy": 95.0, "loss": 0.4}, {"accuracy": 95.0, "loss": 0.3}]
    assert relational_choice.choose(tried) is tried[2]


def test_results_of_training_are_shown_beside_what_was_published() -> None:
    one = {"losses": [2.0, 1.0], "accuracy": 96.0, "epoch": 0.01}
    other = one | {"losses": [2.0, 1.5], "accuracy": None, "epoch": 0.5}
    made = {"case": "rgcn aifb", "published": {"accuracy": 95.83, "spread": 0.62, "source": "theirs"}}
    found = relational_training.complete(
        {"rgcn aifb": made | {"compiled": [one], "PyG": [other]}},
        argparse.Namespace(quick=False),
        "training, 1 threads",
    )
    assert [figure.name for figure in found.figures if figure.met is False] == [
        "rgcn aifb: losses apart, relative to the first"
    ]
    cells = "| rgcn aifb | one-hot | 95.83 ± 0.62 | 96.00 ± 0.00 (1) |  | 2 | 2 | 2.5e-01 | 10.0 | 500 | 50.0 |"
    assert cells in relational_training.page(found)


def test_what_pyg_cannot_run_is_measured_alone() -> None:
    one = {"losses": [2.0, 1.0], "accuracy": 90.0, "epoch": 0.01}
    made = {"case": "rgat-onehot aifb", "published": {"accuracy": 96.9, "spread": 0.0, "source": "theirs"}}
    found = relational_training.complete(
        {"rgat-onehot aifb": made | {"compiled": [one], "PyG": []}}, argparse.Namespace(quick=False), "training, 1 threads"
    )  # fmt: skip
    assert [figure.name for figure in found.figures if figure.met is False] == [
        "rgat-onehot aifb: accuracy, compiled, mean of 1"
    ]
    assert (
        "| rgat-onehot aifb | one-hot | 96.90 ± 0.00 | 90.00 ± 0.00 (1) |  | 2 |  |  | 10.0 |  |  |"
        in relational_training.page(found)
    )


def test_one_hot_features_train_as_embeddings_that_are_the_identity(classified: RelationalData) -> None:
    nodes, labels = torch.arange(classified.num_nodes), torch.arange(classified.num_nodes) % 3
    settings = classify_nodes.Settings(mechanism=classify_nodes.WITHIN, bases=2)
    model = classify_nodes.make("rgat-onehot", classified, 0, settings, compiled=True)
    plain = classify_nodes.make("rgat-onehot", classified, 0, settings, compiled=False)
    plain.numbers = torch.eye(classified.num_nodes)
    losses = [
        [loss for _, loss in zip(range(8), classify_nodes.learn(each, nodes, labels, settings), strict=False)]
        for each in (model, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


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
