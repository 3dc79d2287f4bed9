"""Scripts planned and run: effects, checks, outputs, and everything that must be refused before or while a script runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import suture
from suture.backends.onnx import summarise_onnx
from suture.frontends.archive import load_graph, save_graph
from suture.frontends.script.diagnostics import CheckFailed, ScriptError
from suture.frontends.script.interpret import interpret
from suture.frontends.script.outside import Backends, Exporter
from suture.frontends.script.parser import parse
from suture.frontends.script.report import Report, quantity
from suture.ir.errors import Code, SutureError
from suture.ir.folders import replacing_folder
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.passes.contract import Contract
from suture.passes.registry import _REGISTRY, Notes, register
from suture.passes.registry import passes as registered_passes

NETS = """
import torch
from torch import nn

def mlp(width=8, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width, bias=bias), nn.ReLU(), nn.Linear(width, 3, bias=bias))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.head = nn.Linear(6, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids, mask=None, flag=True):
        hidden = self.table(ids)
        return self.head(hidden * mask.unsqueeze(-1)) if flag else hidden

def needs_numbers():
    nn.Linear(1, 1).weight.detach().sum().item()
    return mlp()

def broken():
    raise ValueError("no luck\\nat all")

def number():
    return 3

made = mlp()
constant = 5
"""


@dataclass
class Row:
    name: str
    max_abs: float
    relative: float
    cosine: float


@dataclass
class Rows:
    outputs: list[Row]


def compare(a: Graph, b: Graph, inputs) -> Rows:
    rows = []
    for name, x, y in zip(a.output_names, evaluate(a, inputs), evaluate(b, inputs), strict=True):
        off = (x - y).abs().max().item()
        cosine = torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
        rows.append(Row(name, off, off / x.abs().max().item(), cosine))
    return Rows(rows)


def write(graph: Graph, path: Path, *, opset: int = 21) -> None:
    path.write_text(f"opset {opset}\n{graph.source}\n{graph}")
    path.with_name(path.name + ".data").write_text("weights")


def write_folder(graph: Graph, path: Path, *, target: str = "cpp") -> None:
    with replacing_folder(path, {}) as made:
        (made / "net.txt").write_text(f"{target}\n{graph}")


BACKENDS = Backends(compare, {".onnx": Exporter(write, {"opset": int})}, Exporter(write_folder, {"target": str}))


class Bench:
    """A folder with a script's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(NETS)

    def do(self, body: str, *, planned: bool) -> Report:
        script = self.folder / "s.suture"
        script.write_text(f"suture 1\n{body}\n")
        return interpret(parse(script.read_text(), str(script)), BACKENDS, planned=planned)

    def run(self, body: str) -> Report:
        return self.do(body, planned=False)

    def plan(self, body: str) -> Report:
        return self.do(body, planned=True)

    def files(self) -> set[str]:
        return {item.name for item in self.folder.iterdir()} - {"nets.py", "s.suture", "__pycache__"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "bench").mkdir()
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path / "bench")


@pytest.fixture
def passes():
    """Small passes that exist for one test."""
    before = registered_passes()

    @register(contract=Contract.APPROXIMATE)
    def jolt(graph: Graph, notes: Notes, *, by: float = 0.1, only: tuple[str, ...] = (), mode: str = "add") -> Graph:
        """Move every parameter.

        :param by: how far
        """
        result = graph.copy()
        for parameter in result.parameters.values():
            if not only or parameter.name in only:
                parameter.assign(parameter.data + by if mode == "add" else parameter.data * (1 + by))
        notes.note(f"moved {len(only) or len(result.parameters)} tensors")
        return result

    @register(contract=Contract.EXACT)
    def idle(graph: Graph, notes: Notes) -> Graph:
        """Do nothing."""
        notes.not_applicable("there is nothing to do")
        return graph

    @register(contract=Contract.EXACT)
    def liar(graph: Graph, notes: Notes) -> Graph:
        """Promise too much."""
        result = graph.copy()
        for parameter in result.parameters.values():
            parameter.assign(parameter.data * 2)
        return result

    @register(contract=Contract.STRUCTURAL)
    def adopt(
        graph: Graph, notes: Notes, *, other: Graph, hook: Callable[[int], int] | None = None, note: Path | None = None
    ) -> Graph:
        """Take another graph's parameters."""
        result = graph.copy()
        for name, parameter in result.parameters.items():
            parameter.assign(other.parameters[name].data)
        notes.note(f"hook {hook(20) if hook else None}, file {note.name if note else None}")
        return result

    @register(contract=Contract.STRUCTURAL)
    def average(graph: Graph, notes: Notes, *, others: tuple[Graph, ...]) -> Graph:
        """Average the parameters of several graphs."""
        result = graph.copy()
        for name, parameter in result.parameters.items():
            tensors = [held.parameters[name].data for held in (graph, *others)]
            parameter.assign(torch.stack(tensors).mean(0))
        return result

    yield
    _REGISTRY.clear()
    _REGISTRY.update(before)


MLP = 'model net = torch "nets:mlp" input f32[batch, 4]'


def refused(call, code: Code, place: str, *words: str) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.code == code, message
    assert caught.value.where.endswith(f"s.suture:{place}"), message
    for word in words:
        assert word in message
    return caught.value


# --------------------------------------------------------------------------------------------------- effects


def test_a_run_replaces_what_a_name_holds_and_keeps_the_original(bench: Bench, passes) -> None:
    report = bench.run(
        f"{MLP}\nlet before = net\njolt net by 0.5 within 100\ncheck net ~ original within 100\ncheck before ~ original within 100"
    )
    assert [outcome.status for outcome in report.outcomes] == ["done", "done", "done", "holds", "holds"]
    jolted = report.outcomes[2]
    assert (jolted.contract, jolted.notes) == ("approximate", ("moved 4 tensors",))
    assert jolted.deviation is not None
    assert jolted.deviation > 0
    net, before = report.graphs["net"], report.graphs["before"]
    assert torch.equal(net.parameters["0.bias"].data, before.parameters["0.bias"].data + 0.5)
    assert [record.name for record in net.history] == ["jolt"]
    assert before.history == ()


def test_the_module_is_traced_with_its_arguments_and_weights(bench: Bench) -> None:
    wanted = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    save_file(wanted.state_dict(), bench.folder / "w.safetensors")
    report = bench.run('model net = torch "nets:mlp" args 5, seed=3 weights "w.safetensors" input f32[batch, 4]')
    x = torch.randn(7, 4)
    assert torch.equal(evaluate(report.graphs["net"], [x])[0], wanted(x))


def test_named_inputs_symbols_and_constants(bench: Bench) -> None:
    report = bench.run(
        'model net = torch "nets:Pair" input ids: i64[batch, sequence=9], mask: f32[batch, sequence], flag=false'
    )
    (net,) = report.graphs.values()
    assert [str(dim) for dim in net.inputs[0].shape] == ["batch", "sequence"]
    assert net.hints["sequence"] == 9
    assert str(net.outputs[0].type) == "f32[batch, sequence, 6]"


def test_a_module_object_is_taken_as_it_is(bench: Bench) -> None:
    assert bench.run('model net = torch "nets:made" input f32[batch, 4]').graphs["net"].stats().parameters == 67


def test_a_pass_may_take_several_models(bench: Bench, passes) -> None:
    models = "".join(f'model m{k} = torch "nets:mlp" args seed={k} input f32[batch, 4]\n' for k in range(3))
    report = bench.run(f"{models}average m0 others m1, m2")
    held = [report.graphs[name].parameters["0.weight"].data for name in ("m0", "m1", "m2")]
    first = bench.run(models).graphs["m0"].parameters["0.weight"].data
    assert torch.allclose(held[0], (first + held[1] + held[2]) / 3)
    assert report.graphs["m0"].history[-1].options["others"] == "m1, m2"
    one = bench.run(f"{models}average m0 others m1")
    assert torch.allclose(one.graphs["m0"].parameters["0.weight"].data, (first + held[1]) / 2)
    refused(lambda: bench.run(f"{models}average m0 others m1, m4"), Code.SCRIPT_NAME, "5:23", "'m4'")
    refused(lambda: bench.run(f"{models}adopt m0 other m1, m2"), Code.SCRIPT_OPTION, "5:10", "takes a model")


def test_a_pass_may_take_another_model_a_function_and_a_file(bench: Bench, passes) -> None:
    (bench.folder / "d.txt").write_bytes(b"")
    (bench.folder / "hooks.py").write_text("def double(x):\n    return 2 * x\n")
    report = bench.run(
        f'{MLP}\nmodel two = torch "nets:mlp" args seed=1 input f32[batch, 4]\nadopt net other two hook "hooks:double" note "d.txt"'
    )
    assert report.outcomes[2].notes == ("hook 40, file d.txt",)
    assert torch.equal(report.graphs["net"].parameters["0.bias"].data, report.graphs["two"].parameters["0.bias"].data)


def test_history_keeps_options_as_they_were_written(bench: Bench, passes) -> None:
    (bench.folder / "hooks.py").write_text("def double(x):\n    return 2 * x\n")
    body = f'{MLP}\nmodel two = torch "nets:mlp" input f32[batch, 4]\nadopt net other two hook "hooks:double"'
    options = bench.run(body).graphs["net"].history[-1].options
    assert (options["other"], options["hook"]) == ("two", "hooks:double")


def test_calibration_inputs_come_from_a_file(bench: Bench) -> None:
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    np.savez(bench.folder / "unnamed.npz", x)
    np.savez(bench.folder / "named.npz", input=x)
    body = f"{MLP}\nprune net by activation data"
    kept = [
        bench.run(f'{body} "{name}"').graphs["net"].parameters["0.weight"].data for name in ("unnamed.npz", "named.npz")
    ]
    assert torch.equal(*kept)
    assert bench.run(f'{body} "named.npz"').graphs["net"].history[-1].options["data"] == "named.npz"
    assert bench.plan(f'{body} "named.npz"').graphs["net"].parameters["0.weight"].shape == kept[0].shape
    refused(lambda: bench.run(f"{MLP}\nprune net by activation"), Code.CRITERION, "3:1", "calibration inputs")


def test_how_many_sites_a_query_selects_may_be_stated(bench: Bench) -> None:
    for expect in ("1", ">=1", "<3"):
        assert bench.run(f"{MLP}\nprune net expect {expect}").outcomes[1].status == "done"
    for act in (bench.plan, bench.run):
        refused(lambda act=act: act(f"{MLP}\nprune net expect >=2"), Code.SITE, "3:1", "2")


def test_a_pass_that_does_not_apply_says_why(bench: Bench, passes) -> None:
    outcome = bench.run(f"{MLP}\nidle net").outcomes[1]
    assert (outcome.status, outcome.notes) == ("not applicable", ("there is nothing to do",))


def test_conditions_of_where_become_the_options_that_answer_them(bench: Bench) -> None:
    body = f'{MLP}\nprune net where op == "linear" and path != "2" keep 0.5'
    assert dict(bench.run(body).graphs["net"].history[-1].options)["operator"] == ("linear",)
    assert dict(bench.plan(body).graphs["net"].history[-1].options)["exclude"] == ("2",)
    refused(lambda: bench.plan(f"{MLP}\nprune net where size == 3"), Code.SCRIPT_OPTION, "3:17", "'size =='", "op ==")
    refused(
        lambda: bench.plan(f"{MLP}\nprune net operator conv where op == linear"),
        Code.SCRIPT_OPTION,
        "3:31",
        "'operator' is given twice",
    )


# -------------------------------------------------------------------------------------------------- planning


def test_a_plan_counts_what_a_run_counts_without_weights_or_files(bench: Bench) -> None:
    body = f'{MLP}\nprune net keep 0.5\ncheck net ~ original within 0\ncheck net.params < original.params\nexport net to "n.onnx"\nsave net to "n.suture-graph"'
    plan = bench.plan(body)
    assert bench.files() == set()
    assert [outcome.status for outcome in plan.outcomes] == ["done", "done", "planned", "holds", "planned", "planned"]
    assert all(parameter.data.is_meta for graph in plan.graphs.values() for parameter in graph.parameters.values())
    run = bench.run(body.replace("within 0", "within 100"))
    for planned, done in zip(plan.outcomes, run.outcomes, strict=True):
        assert planned.after == done.after
        assert planned.before == done.before


def test_a_plan_reads_only_the_header_of_weights(bench: Bench) -> None:
    types = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    save_file({name: torch.randn(shape) for name, shape in types.items()}, bench.folder / "w.safetensors")
    data = bytearray((bench.folder / "w.safetensors").read_bytes())
    data[-268:] = b"\xff" * 268  # every number is a NaN now
    (bench.folder / "w.safetensors").write_bytes(data)
    bench.plan('model net = torch "nets:mlp" weights "w.safetensors" input f32[batch, 4]')
    body = 'model net = torch "nets:mlp" args 9 weights "w.safetensors" input f32[batch, 4]'
    for act in (bench.plan, bench.run):
        refused(lambda act=act: act(body), Code.WEIGHTS, "2:1", "0.weight is f32[8, 4] in the file", "f32[9, 4]")


def test_a_plan_builds_with_numbers_where_a_constructor_needs_them(bench: Bench) -> None:
    report = bench.plan('model net = torch "nets:needs_numbers" input f32[batch, 4]')
    assert report.graphs["net"].parameters["0.weight"].data.is_meta


def test_a_plan_collects_every_check_that_fails(bench: Bench) -> None:
    report = bench.plan(f"{MLP}\ncheck net.params < 1\ncheck net.macs >= 0\ncheck net.nodes == 0")
    assert [outcome.status for outcome in report.outcomes[1:]] == ["fails", "holds", "fails"]
    assert not report.ok
    assert [failure.span.line for failure in report.failures] == [3, 5]


def test_a_tied_tensor_may_be_absent_from_the_weights(bench: Bench) -> None:
    save_file({"table.weight": torch.ones(50, 6)}, bench.folder / "w.safetensors")
    body = 'model net = torch "nets:Pair" weights "w.safetensors" input ids: i64[batch, sequence], mask: f32[batch, sequence]'
    for report in (bench.plan(body), bench.run(body)):
        assert report.graphs["net"].stats().parameters == 300


def test_a_check_on_sizes_that_a_plan_only_estimates_is_left_to_the_run(bench: Bench, passes) -> None:
    @register(contract=Contract.STRUCTURAL)
    def guess(graph: Graph, notes: Notes) -> Graph:
        """Guess."""
        if any(parameter.data.is_meta for parameter in graph.parameters.values()):
            notes.note("estimated: the weights decide")
        return graph.copy()

    body = f"{MLP}\nguess net\nlet b = net\ncheck net.params < 3\ncheck b.params < 3\ncheck net.params > 3"
    assert [outcome.status for outcome in bench.plan(body).outcomes[3:]] == ["planned", "planned", "holds"]
    with pytest.raises(CheckFailed):
        bench.run(body)


# ---------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "condition",
    [
        "net.params == 67",
        "net.params == 8*4 + 8 + 3*8 + 3",
        "net.macs == 56",
        "net.bytes == 4 * net.params",
        "net.nodes <= 3",
        "-net.params < -(60 + 6)",
        "net.params / 2 > 33",
        "net.params <= 0.1K",
        "net.params - original.params == 0",
        "net.params != 1 - -3",
    ],
)
def test_checks_that_hold(bench: Bench, condition: str) -> None:
    assert bench.run(f"{MLP}\ncheck {condition}").outcomes[-1].status == "holds"


@pytest.mark.parametrize(
    "condition", ["net.params != 67", "net.params < 67", "net.params <= 66.5", "net.macs > 1M", "net.bytes == 1"]
)
def test_checks_of_size_that_fail(bench: Bench, condition: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        bench.run(f"{MLP}\ncheck {condition}")
    assert caught.value.code == Code.SCRIPT_CHECK
    assert "s.suture:3:1" in str(caught.value)


def test_closeness_is_measured_as_asked(bench: Bench, passes) -> None:
    body = f"{MLP}\njolt net by 1e-3 mode scale\ncheck net ~ original within"
    measured = {
        word: bench.run(f"{body} 1 {word}").outcomes[-1].measured for word in ("", "absolute", "relative", "cosine")
    }
    assert measured[""] == measured["absolute"] != measured["relative"]
    assert 0 <= measured["cosine"] < 1e-5 < measured["relative"]
    with pytest.raises(CheckFailed, match="the largest relative difference on random probes is"):
        bench.run(f"{body} 1e-9 relative")


def test_probes_come_from_a_file(bench: Bench, passes) -> None:
    np.savez(bench.folder / "p.npz", np.zeros((5, 4), dtype=np.float32))
    np.savez(bench.folder / "named.npz", wrong=np.zeros((5, 4), dtype=np.float32))
    np.savez(bench.folder / "doubles.npz", np.zeros((5, 4)))
    (bench.folder / "cut.npz").write_bytes((bench.folder / "p.npz").read_bytes()[:50])
    body = f'{MLP}\njolt net by 0.5 only "0.weight"\ncheck net ~ original within 0 on'
    assert bench.run(f'{body} "p.npz"').outcomes[-1].measured == 0  # zeros do not see the weights
    refused(lambda: bench.run(f'{body} "named.npz"'), Code.PROBE, "4:1", "'wrong'")
    refused(lambda: bench.run(f'{body} "doubles.npz"'), Code.PROBE, "4:1", "f32[batch, 4]")
    refused(lambda: bench.run(f'{body} "cut.npz"'), Code.CHECKPOINT, "4:1", "cut.npz")
    assert bench.run(f'{MLP}\njolt net by 0.5 only "0.weight" within 0 on "p.npz"').outcomes[-1].deviation == 0


def test_a_model_that_yields_nan_is_close_to_nothing(bench: Bench, passes) -> None:
    with pytest.raises(CheckFailed, match="nan"):
        bench.run(
            f"{MLP}\njolt net by 1e308 mode scale check false\njolt net by 1e308 mode scale check false\ncheck net ~ original within 1e300"
        )


def test_a_broken_contract_is_a_failed_check_at_its_statement(bench: Bench, passes) -> None:
    with pytest.raises(CheckFailed) as caught:
        bench.run(f'{MLP}\nliar net\nsave net to "n.suture-graph"')
    assert caught.value.code == Code.CONTRACT
    assert "s.suture:3:1" in str(caught.value)
    assert bench.files() == set()


def test_a_bound_on_an_approximation_is_held(bench: Bench, passes) -> None:
    with pytest.raises(CheckFailed):
        bench.run(f"{MLP}\njolt net by 0.5 within 1e-6")


# --------------------------------------------------------------------------------------------------- outputs


def test_outputs_appear_together_with_what_lies_beside_them(bench: Bench) -> None:
    (bench.folder / "n.onnx").write_text("old")
    report = bench.run(f'{MLP}\nexport net to "n.onnx" opset 20\nsave net to "n.suture-graph"')
    assert bench.files() == {"n.onnx", "n.onnx.data", "n.suture-graph"}
    assert [path.name for path in report.files] == ["n.onnx", "n.suture-graph"]
    written = (bench.folder / "n.onnx").read_text()
    assert written.startswith("opset 20\n")
    assert "s.suture (sha256 " in written
    assert 'model net = torch "nets:mlp" input f32[batch, 4]' in written


def test_a_saved_graph_is_a_model_again(bench: Bench) -> None:
    first = bench.run(f'{MLP}\nsave net to "n.suture-graph"').graphs["net"]
    report = bench.run('model net = graph "n.suture-graph"\nsave net to "m.suture-graph"')
    x = torch.randn(3, 4)
    assert torch.equal(evaluate(report.graphs["net"], [x])[0], evaluate(first, [x])[0])
    planned = bench.plan('model net = graph "n.suture-graph"').graphs["net"]
    assert planned.stats() == first.stats()
    assert all(parameter.data.is_meta for parameter in planned.parameters.values())


def test_nothing_is_written_if_a_later_check_fails(bench: Bench) -> None:
    (bench.folder / "n.onnx").write_text("old")
    with pytest.raises(CheckFailed):
        bench.run(f'{MLP}\nexport net to "n.onnx"\nsave net to "n.suture-graph"\ncheck net.params == 0')
    assert bench.files() == {"n.onnx"}
    assert (bench.folder / "n.onnx").read_text() == "old"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"]
)
def test_an_export_that_fails_leaves_old_files_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    for name in ("a.onnx", "b.onnx"):
        (bench.folder / name).write_text("old")

    def fail(graph: Graph, path: Path) -> None:
        path.write_text("half")
        if path.name == "b.onnx":
            raise error

    monkeypatch.setitem(BACKENDS.exporters, ".onnx", Exporter(fail, {}))
    with pytest.raises((SutureError, KeyboardInterrupt)) as caught:
        bench.run(f'{MLP}\nexport net to "a.onnx"\nexport net to "b.onnx"')
    assert isinstance(caught.value, KeyboardInterrupt) or caught.value.code == Code.WRITE
    assert bench.files() == {"a.onnx", "b.onnx"}
    assert {(bench.folder / name).read_text() for name in bench.files()} == {"old"}


def test_files_put_in_place_are_taken_back_if_a_later_one_cannot_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.folder / "a.onnx").write_text("old")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == "b.onnx":
            raise OSError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SutureError, match="Permission denied") as caught:
        bench.run(f'{MLP}\nexport net to "a.onnx"\nexport net to "b.onnx"')
    assert caught.value.code == Code.WRITE
    assert bench.files() == {"a.onnx"}
    assert (bench.folder / "a.onnx").read_text() == "old"


# ------------------------------------------------------------------------------------- refused before anything runs

REFUSED = [
    ("fold net", Code.SCRIPT_NAME, "2:6", ["no model is called 'net'", "a model comes first"]),
    (f"{MLP}\nfold nett", Code.SCRIPT_NAME, "3:6", ["'nett'", "the nearest is 'net'"]),
    (f"{MLP}\n{MLP}", Code.SCRIPT_NAME, "3:7", ["taken since line 2"]),
    (f"{MLP}\nlet original = net", Code.SCRIPT_NAME, "3:5", ["'original'"]),
    (f"{MLP}\nfold original", Code.SCRIPT_NAME, "3:6", ["'original' cannot change"]),
    (f"{MLP}\nprun net", Code.PASS, "3:1", ["no pass 'prun'", "the nearest is 'prune'"]),
    (f"{MLP}\nexprt net", Code.PASS, "3:1", ["'export'"]),
    (f"{MLP}\nprune net kep 0.5", Code.SCRIPT_OPTION, "3:11", ["no option 'kep'", "the nearest is 'keep'"]),
    (f"{MLP}\nprune net keep half", Code.SCRIPT_OPTION, "3:16", ["'keep'", "a number"]),
    (f"{MLP}\nprune net by l3", Code.SCRIPT_OPTION, "3:14", ["'by'", "'l2'"]),
    (f"{MLP}\nprune net round 1.5", Code.SCRIPT_OPTION, "3:17", ["an integer"]),
    (f"{MLP}\nprune net within low", Code.SCRIPT_OPTION, "3:11", ["'within'", "a number"]),
    (f"{MLP}\nprune net on probes", Code.SCRIPT_OPTION, "3:11", ["quotes"]),
    (f'{MLP}\nprune net on "none.npz"', Code.FILE, "3:14", ["no file 'none.npz'"]),
    (f'{MLP}\nprune net on "../p.npz"', Code.PATH, "3:14", ["leaves the folder"]),
    (f'{MLP}\nprune net by "nets:nothing"', Code.SCRIPT_MODEL, "3:14", ["no attribute 'nothing'"]),
    (f"{MLP}\ncheck net ~ net within 1", Code.SCRIPT_NAME, "3:1", ["always equal to itself"]),
    (f"{MLP}\ncheck net ~ other within 1", Code.SCRIPT_NAME, "3:13", ["'other'"]),
    (f"{MLP}\ncheck net ~ original within 1 relativ", Code.SCRIPT_OPTION, "3:31", ["the nearest is 'relative'"]),
    (f"{MLP}\ncheck net.mac < 1", Code.SCRIPT_OPTION, "3:11", ["the nearest is 'macs'"]),
    (f"{MLP}\ncheck nets.macs < 1", Code.SCRIPT_NAME, "3:7", ["the nearest is 'net'"]),
    (f"{MLP}\ncheck 1 < 2", Code.SCRIPT_NAME, "3:1", ["asks nothing"]),
    (f"{MLP}\nlet b = net\ncheck net.macs + b.macs < original.macs", Code.SCRIPT_NAME, "4:1", ["several models"]),
    (f"{MLP}\ncheck original.macs < 1", Code.SCRIPT_NAME, "3:1", ["which model"]),
    (f"{MLP}\nshow net axis", Code.SCRIPT_OPTION, "3:10", ["no view 'axis'", "'axes'"]),
    (f'{MLP}\nexport net to "n.tflite"', Code.SCRIPT_OPTION, "3:15", ["known endings: .onnx"]),
    (f'{MLP}\nexport net to "n.onnx" opst 3', Code.SCRIPT_OPTION, "3:24", ["the nearest is 'opset'"]),
    (f'{MLP}\nexport net to "n.onnx" opset new', Code.SCRIPT_OPTION, "3:30", ["an integer"]),
    (f'{MLP}\nexport net to "../n.onnx"', Code.PATH, "3:15", ["leaves the folder"]),
    (f'{MLP}\nexport net to "/n.onnx"', Code.PATH, "3:15", ["leaves the folder"]),
    (f'{MLP}\nexport net to "no/n.onnx"', Code.FILE, "3:15", ["does not exist"]),
    (f'{MLP}\nexport net to "n.onnx"\nexport net to "./n.onnx"', Code.SCRIPT_OPTION, "4:15", ["on line 3 already"]),
    (f'{MLP}\nsave net to "n.pt"', Code.SCRIPT_OPTION, "3:13", [".suture-graph"]),
    ('model net = graph "n.suture-graph"', Code.FILE, "2:19", ["no file"]),
    ('model net = torch "nets" input f32[1]', Code.SCRIPT_MODEL, "2:19", ["package.module:callable"]),
    ('model net = torch "nets:mlp"', Code.SCRIPT_MODEL, "2:13", ["no input"]),
    ('model net = torch "nets:mlp" input float[1]', Code.SCRIPT_MODEL, "2:36", ["no type 'float'"]),
    ('model net = torch "nets:mlp" weights "w" input f32[1]', Code.FILE, "2:38", ["no file 'w'"]),
    ('model net = torch "nets:mlp" weights "../w" input f32[1]', Code.PATH, "2:38", ["leaves the folder"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "place", "words"), REFUSED, ids=[f"{place} {words[0]}"[:50] for _, _, place, words in REFUSED]
)
def test_what_the_text_alone_shows_is_refused_before_anything_is_built(bench: Bench, body, code, place, words) -> None:
    first, *rest = body.split("\n")
    unbuildable = first.replace("nets:mlp", "nets:broken") if rest else first
    for act in (bench.plan, bench.run):
        refused(lambda act=act: act("\n".join([unbuildable, *rest])), code, place, *words)


def test_the_python_face_runs_a_script_with_the_real_backends(bench: Bench) -> None:
    script = bench.folder / "s.suture"
    script.write_text(
        f'suture 1\n{MLP}\nprune net keep 0.5\ncheck net ~ original within 10\nexport net to "n.onnx" opset 20\n'
    )
    report = suture.run(script)
    assert report.ok
    found = summarise_onnx(bench.folder / "n.onnx")
    assert found.opset == 20
    assert "s.suture (sha256 " in found.metadata["suture.source"]
    assert "prune" in found.metadata["suture.passes"]
    x = torch.randn(5, 4)
    assert suture.compare(report.graphs["net"], bench.folder / "n.onnx", [x]).max_abs < 1e-5


def test_an_empty_script_is_refused(bench: Bench) -> None:
    refused(lambda: bench.run("# nothing"), Code.SCRIPT_SYNTAX, "1:8", "does nothing")


# --------------------------------------------------------------------------------------- refused while building

UNBUILDABLE = [
    ("net:mlp", "", ["no module 'net'", "the nearest is 'nets'"]),
    ("nets.deep:mlp", "", ["no module 'nets.deep'"]),
    ("nets:mpl", "", ["no attribute 'mpl'", "the nearest is 'mlp'"]),
    ("nets:constant", "", ["is a int"]),
    ("nets:number", "", ["returned a int", "torch.nn.Module"]),
    ("nets:broken", "", ["raised ValueError: no luck (nets.py:"]),
    ("nets:mlp", "args 1, 2, 3, 4", ["raised TypeError", "it takes (width=8, bias=True, seed=0)"]),
    ("nets:mlp", "args depth=3", ["raised TypeError", "it takes (width=8"]),
    ("nets:made", "args 1", ["is a module already"]),
    ("fails:x", "", ["importing fails raised ZeroDivisionError"]),
    ("syntax:x", "", ["importing syntax raised SyntaxError"]),
    ("leaves:x", "", ["importing leaves raised SystemExit"]),
    ("lacks:x", "", ["importing lacks raised ModuleNotFoundError", "not_installed_anywhere"]),
]


@pytest.mark.parametrize(
    ("name", "clause", "words"), UNBUILDABLE, ids=[f"{name} {clause}" for name, clause, _ in UNBUILDABLE]
)
def test_a_model_that_cannot_be_built_gets_one_line(bench: Bench, name: str, clause: str, words: list[str]) -> None:
    (bench.folder / "fails.py").write_text("1 / 0\n")
    (bench.folder / "syntax.py").write_text("def f(:\n")
    (bench.folder / "leaves.py").write_text("raise SystemExit(3)\n")
    (bench.folder / "lacks.py").write_text("import not_installed_anywhere\n")
    for act in (bench.plan, bench.run):
        refused(
            lambda act=act: act(f'model net = torch "{name}" {clause} input f32[batch, 4]'),
            Code.SCRIPT_MODEL,
            "2:1",
            *words,
        )


def test_inputs_that_do_not_fit_get_one_line(bench: Bench) -> None:
    model = 'model net = torch "nets:mlp" input'
    refused(
        lambda: bench.run(f"{model} f32[b, 4], f32[b, 4]"),
        Code.SCRIPT_MODEL,
        "2:1",
        "takes 1 inputs by position",
        "input",
    )
    refused(lambda: bench.run(f"{model} f32[b=4, b=5]"), Code.SCRIPT_MODEL, "2:1", "traced at 4 and at 5")
    refused(lambda: bench.run(f"{model} f32[b=1, 4]"), Code.SCRIPT_MODEL, "2:1", "cannot be traced at 1")
    for wrong in ("f32[b, 5]", "x: f32[b, 4]"):
        with pytest.raises(ScriptError) as caught:
            bench.run(f"{model} {wrong}")
        assert caught.value.code.value.startswith(("S2", "S1"))
        assert "\n" not in str(caught.value)


def test_a_pass_that_refuses_is_told_at_its_statement(bench: Bench) -> None:
    error = refused(lambda: bench.plan(f'{MLP}\nprune net\n    at "layer9"'), Code.SITE, "3:1", "layer9")
    assert error.excerpt.startswith("3 | prune net\n    ^")


def test_two_scripts_may_name_their_modules_alike(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    one = bench.run(MLP).graphs["net"].stats().parameters
    second = Bench(other)
    (other / "nets.py").write_text(NETS.replace("width=8", "width=9"))
    assert second.run(MLP).graphs["net"].stats().parameters == one + 8
    assert str(other) not in sys.path


def test_modules_of_parents_up_to_the_current_folder_are_found(bench: Bench) -> None:
    deep = bench.folder / "a" / "b"
    deep.mkdir(parents=True)
    script = deep / "s.suture"
    script.write_text("suture 1\n" + MLP)
    assert interpret(parse(script.read_text(), str(script)), BACKENDS, planned=True).ok


def test_division_by_zero_is_a_users_error(bench: Bench) -> None:
    refused(
        lambda: bench.plan(f"{MLP}\ncheck 1 / (net.params - net.params) > 0"),
        Code.SCRIPT_CHECK,
        "3:1",
        "divides by zero",
    )


# ---------------------------------------------------------------------------------------------- saved graphs


def test_files_that_are_no_saved_graphs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.suture-graph"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(SutureError, match="holds no graph"):
        load_graph(path)
    graph = Graph("g")
    save_graph(graph, path)
    assert str(load_graph(path)) == str(graph)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SutureError) as caught:
        load_graph(path)
    assert caught.value.code == Code.CHECKPOINT


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9999, "9999"), (12345, "12.35K"), (4.1e9, "4.1G"), (2.5, "2.5"), (float("nan"), "nan")],
)
def test_quantities_read_well(value: float, text: str) -> None:
    assert quantity(value) == text
