"""The command line: what each command prints, and the exit status of everything that can happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from suture.cli import app
from suture.cli.guard import BAD_INPUT, CHECK_FAILED, INTERRUPTED, OK, OUR_BUG
from suture.passes.registry import passes

NETS = """
import time
import torch
from torch import nn

def mlp(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def slow():
    print("building", flush=True)
    time.sleep(60)
"""
MODEL = 'model net = torch "nets:mlp" input f32[batch, 4]\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def suture(*arguments: str, status: int = OK, stdin: str | None = None):
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def script(body: str, name: str = "s.suture") -> str:
    Path(name).write_text("suture 1\n" + body)
    return name


# ------------------------------------------------------------------------------------------------ run and check


def test_a_run_prints_a_row_per_statement_and_what_it_wrote() -> None:
    name = script(MODEL + 'prune net keep 0.5\ncheck net.params < original.params\nsave net to "n.suture-graph"\n')
    output = suture("run", name).stdout
    for words in ("prune net keep 0.5", "approximate", "holds", "67 → ", "wrote ", "n.suture-graph"):
        assert words in output
    assert Path("n.suture-graph").is_file()


def test_a_check_plans_and_writes_nothing() -> None:
    name = script(MODEL + 'prune net keep 0.5\nsave net to "n.suture-graph"\n')
    output = suture("check", name).stdout
    assert "planned" in output
    assert "67 → " in output
    assert not Path("n.suture-graph").exists()


def test_quiet_prints_nothing() -> None:
    name = script(MODEL + "show net\n")
    result = suture("run", name, "--quiet")
    assert result.output == ""


def test_json_is_one_object_with_every_statement() -> None:
    name = script(MODEL + 'prune net keep 0.5\nsave net to "n.suture-graph"\n')
    for command, planned in (("check", True), ("run", False)):
        found = json.loads(suture(command, name, "--json").stdout)
        assert (found["ok"], found["planned"], len(found["files"])) == (True, planned, 0 if planned else 1)
        model, prune, _ = found["statements"]
        assert model["after"] == {"params": 67, "macs": 56, "bytes": 268, "nodes": 3}
        assert prune["before"] == model["after"]
        assert prune["contract"] == "approximate"


def test_a_failed_check_exits_with_1_and_says_where() -> None:
    name = script(MODEL + 'check net.params < 3\nsave net to "n.suture-graph"\n')
    for command in ("run", "check"):
        result = suture(command, name, status=CHECK_FAILED)
        assert "s.suture:3:1: the check does not hold: the left side is 67, the right 3" in result.stderr
        assert "3 | check net.params < 3\n    ^^^^" in result.stderr
        assert 'torch "nets:mlp"' in result.stdout  # what was done before it
    found = json.loads(suture("run", name, "--json", status=CHECK_FAILED).stdout)
    assert found["ok"] is False
    assert found["error"]["code"] == "S305"
    assert (found["error"]["line"], found["error"]["column"]) == (3, 1)
    assert [item["status"] for item in found["statements"]] == ["done", "fails"]
    assert not Path("n.suture-graph").exists()


def test_json_tells_which_planned_checks_fail() -> None:
    found = json.loads(suture("check", script(MODEL + "check net.params < 3\n"), "--json", status=CHECK_FAILED).stdout)
    assert found["ok"] is False
    assert found["statements"][1]["status"] == "fails"


BAD = [
    ("", "s.suture:1:8: the script does nothing"),
    ("prune net keep\n", "s.suture:2:15: the script ends in the middle of a statement"),
    (MODEL + "prun net\n", "the nearest is 'prune'"),
    (MODEL + "prune net kep 1\n", "the nearest is 'keep'"),
    (MODEL + 'prune net at "99"\n', "s.suture:3:1: "),
    (MODEL + "prune net keep 0\n", "s.suture:3:1: "),
    ('model net = torch "nets:mpl" input f32[batch, 4]\n', "the nearest is 'mlp'"),
    ('model net = torch "nets:mlp" weights "../w.pt" input f32[batch, 4]\n', "leaves the folder"),
    (MODEL + 'export net to "../n.onnx"\n', "leaves the folder"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_bad_input_exits_with_2_one_line_and_no_traceback(body: str, words: str) -> None:
    name = script(body)
    for command in ("run", "check"):
        result = suture(command, name, status=BAD_INPUT)
        first = result.stderr.split("\n")[0]
        assert first.startswith("error: [S")
        assert words in first
        assert "Traceback" not in result.output
        found = json.loads(suture(command, name, "--json", status=BAD_INPUT).stdout)
        assert words in f"{found['error']['where']}: {found['error']['what']}; {found['error']['remedy']}"


def test_a_missing_script_exits_with_2() -> None:
    assert "none.suture" in suture("run", "none.suture", status=BAD_INPUT).stderr


ELSEWHERE = """
import json, sys
from typer.testing import CliRunner
from suture.cli import app
limit, commands = json.loads(sys.argv[1])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
found = [CliRunner().invoke(app, command) for command in commands]
sys.__stdout__.write(json.dumps([[item.exit_code, item.stdout, item.stderr] for item in found]))
"""


def elsewhere(*commands: list[str], limit: int = 0) -> tuple[list[list], str]:
    """Run commands in a process of their own: their status, output and errors, and what went past them to standard error."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [sys.executable, "-c", ELSEWHERE, json.dumps([limit, commands])]
    found = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return json.loads(found.stdout), found.stderr


def test_what_torch_says_of_a_module_that_does_not_export_is_one_line() -> None:
    Path("branch.py").write_text(
        "from torch import nn\nclass Branch(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    cases = [
        ("branch:Branch", "f32[batch, 4]", "S201"),
        ("nets:mlp", "f32[batch, 5]", "S202"),
        ("nets:mlp", "x: f32[batch, 4]", "S202"),
    ]
    found, beside = elsewhere(*(["show", model, "--input", inputs] for model, inputs, _ in cases))
    assert beside == ""
    for (status, output, error), (_, _, code) in zip(found, cases, strict=True):
        assert (status, output) == (BAD_INPUT, "")
        assert error.startswith(f"error: [{code}] ")
        assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_full_disk_leaves_the_old_files_whole(folder: Path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails in the same place."""
    Path("n.onnx").write_text("old")
    model = 'model net = torch "nets:mlp" args 4000 input f32[batch, 4]\n'
    scripts = [
        script(model + 'export net to "n.onnx"\n', "a.suture"),
        script(model + 'save net to "n.suture-graph"\n', "b.suture"),
    ]
    found, beside = elsewhere(*(["run", name] for name in scripts), limit=50_000)
    assert "Traceback" not in beside
    for (status, _, error), name in zip(found, scripts, strict=True):
        assert status == BAD_INPUT, error
        assert f"[S504] {name}:3:1" in error
        assert "Traceback" not in error
    assert {path.name for path in folder.iterdir()} == {"nets.py", *scripts, "n.onnx"}
    assert Path("n.onnx").read_text() == "old"


def test_an_onnx_file_cut_short_is_refused() -> None:
    suture("export", "nets:mlp", "n.onnx", "--input", "f32[batch, 4]")
    data = Path("n.onnx").read_bytes()
    for share in (0.0, 0.3, 0.9):
        Path("n.onnx").write_bytes(data[: int(len(data) * share)])
        for arguments in (("show", "n.onnx"), ("compare", "n.onnx", "n.onnx")):
            result = suture(*arguments, status=BAD_INPUT)
            assert result.stderr.startswith("error: [S")
            assert "n.onnx" in result.stderr
            assert "Traceback" not in result.output


def test_the_traceback_of_a_models_own_code_is_there_on_request() -> None:
    Path("bad.py").write_text("def make():\n    return 1 / 0\n")
    name = script('model net = torch "bad:make" input f32[batch, 4]\n')
    assert "return 1 / 0" not in suture("run", name, status=BAD_INPUT).stderr
    assert "return 1 / 0" in suture("run", name, "--traceback", status=BAD_INPUT).stderr


def test_our_own_bug_exits_with_70_and_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from suture import surgery

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(surgery, "run", fail)
    result = suture("run", script(MODEL), status=OUR_BUG)
    assert "Traceback" in result.stderr
    assert "please report" in result.stderr


def test_an_interrupt_exits_with_130_and_leaves_nothing(folder: Path) -> None:
    name = script('model net = torch "nets:slow" input f32[batch, 4]\n')
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "suture.cli", "run", name]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background are started to ignore it
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert error.strip() == "error: [S307] interrupted; files are as they were; run it again"


# --------------------------------------------------------------------------------------------------------- fmt

MESSY = "suture   1\nfold   net#why\n"
TIDY = "suture 1\nfold net  # why\n"


def test_fmt_rewrites_files_and_says_which() -> None:
    Path("a.suture").write_text(MESSY)
    Path("b.suture").write_text(TIDY)
    assert suture("fmt", "a.suture", "b.suture").stdout == "changed a.suture\n"
    assert Path("a.suture").read_text() == TIDY
    assert suture("fmt", "a.suture").stdout == ""


def test_fmt_check_changes_nothing_and_exits_with_1() -> None:
    Path("a.suture").write_text(MESSY)
    assert suture("fmt", "--check", "a.suture", status=CHECK_FAILED).stdout == "would change a.suture\n"
    assert Path("a.suture").read_text() == MESSY
    Path("a.suture").write_text(TIDY)
    suture("fmt", "--check", "a.suture")


def test_fmt_reads_standard_input() -> None:
    assert suture("fmt", "-", stdin=MESSY).stdout == TIDY
    assert suture("fmt", "--check", "-", stdin=MESSY, status=CHECK_FAILED).stdout == ""


def test_fmt_refuses_what_does_not_parse_and_leaves_it() -> None:
    Path("a.suture").write_text("suture 1\nfold net keep\n")
    assert "a.suture:2:14" in suture("fmt", "a.suture", status=BAD_INPUT).stderr
    assert Path("a.suture").read_text() == "suture 1\nfold net keep\n"


# --------------------------------------------------------------------------------- show, passes, compare, export


def test_show_a_traced_callable() -> None:
    arguments = ("show", "nets:mlp", "--input", "f32[batch, 4]")
    assert "67" in suture(*arguments).stdout
    assert "linear" in suture(*arguments, "--stats").stdout
    text = suture(*arguments, "--text").stdout
    assert "graph " in text
    assert "f32[batch, 4]" in text
    assert "0.weight" in suture(*arguments, "--axes").stdout
    found = json.loads(suture(*arguments, "--args", "width=16", "--json").stdout)
    assert found["models"]["nets:mlp"]["stats"]["params"] == 4 * 16 + 16 + 16 * 3 + 3


def test_show_a_script_as_it_leaves_its_models() -> None:
    name = script(MODEL + "let before = net\nprune net keep 0.5\n")
    found = json.loads(suture("show", name, "--json").stdout)["models"]
    assert found["net"]["stats"]["params"] < found["before"]["stats"]["params"] == 67


def test_show_refuses_what_it_cannot_read() -> None:
    for arguments, words in [
        (("show", "nets:mlp"), "--input"),
        (("show", "nets:mlp", "--input", "f32[batch"), "cannot read --input 'f32[batch'"),
        (("show", "nets:mlp", "--input", "f32[batch, 4]", "--args", "1 2"), "or --args '1 2'"),
        (("show", "nets:mpl", "--input", "f32[batch, 4]"), "the nearest is 'mlp'"),
        (("show", "nets:mlp", "--input", "float[batch, 4]"), "no type 'float'"),
        (("show", "net.py"), "is no model"),
        (("show", "n.onnx"), "n.onnx"),
        (("show", "n.suture-graph"), "n.suture-graph"),
        (("show", "nets:mlp", "--axes", "--text"), "exclude each other"),
    ]:
        result = suture(*arguments, status=BAD_INPUT)
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_passes_are_listed_and_explained() -> None:
    listed = suture("passes").stdout
    for entry in passes().values():
        assert entry.name in listed
        explained = suture("passes", entry.name).stdout
        assert entry.contract.value in explained
        for option in entry.options:
            assert option.name in explained
    found = json.loads(suture("passes", "prune", "--json").stdout)["passes"]
    assert {"keep", "at", "by"} <= {option["name"] for option in found[0]["options"]}
    assert "the nearest is 'prune'" in suture("passes", "prun", status=BAD_INPUT).stderr


def test_export_compare_and_show_an_onnx_file() -> None:
    arguments = ("--input", "f32[batch, 4]")
    assert suture("export", "nets:mlp", "n.onnx", *arguments).stdout == "wrote n.onnx\n"
    suture("export", "nets:mlp", "n.suture-graph", *arguments, "--quiet")
    assert "f32[batch, 4]" in suture("show", "n.onnx").stdout
    assert json.loads(suture("show", "n.onnx", "--json").stdout)["opset"] == 21
    assert "exclude" in suture("show", "n.onnx", "--axes", "--text", status=BAD_INPUT).stderr
    assert "an ONNX file has no axes" in suture("show", "n.onnx", "--axes", status=BAD_INPUT).stderr
    np.savez("p.npz", np.ones((5, 4), dtype=np.float32))
    for pair in (
        ("n.onnx", "n.suture-graph"),
        ("n.suture-graph", "n.onnx"),
        ("n.onnx", "n.onnx"),
        ("nets:mlp", "n.onnx"),
    ):
        for probes in ((), ("--on", "p.npz")):
            found = json.loads(suture("compare", *pair, *arguments, *probes, "--json").stdout)
            assert found["outputs"][0]["max_abs"] < 1e-5
            assert found["outputs"][0]["cosine"] > 0.9999


def test_compare_exits_with_1_beyond_the_bound() -> None:
    suture("export", "nets:mlp", "n.suture-graph", "--input", "f32[batch, 4]")
    suture("run", script('model net = graph "n.suture-graph"\nprune net keep 0.5\nsave net to "m.suture-graph"\n'))
    assert "cosine" in suture("compare", "n.suture-graph", "m.suture-graph").stdout
    result = suture("compare", "n.suture-graph", "m.suture-graph", "--within", "1e-9", status=CHECK_FAILED)
    assert "differs by more than 1e-09" in result.stderr
    suture("compare", "n.suture-graph", "m.suture-graph", "--within", "1e9", "--relative")


def test_export_refuses_other_endings() -> None:
    assert (
        ".onnx or .suture-graph"
        in suture("export", "nets:mlp", "n.tflite", "--input", "f32[batch, 4]", status=BAD_INPUT).stderr
    )


def test_usage_errors_exit_with_2() -> None:
    suture("run", status=BAD_INPUT)
    suture("rum", "x", status=BAD_INPUT)
    suture("run", "x", "--unknown", status=BAD_INPUT)


def test_help_documents_the_exit_status() -> None:
    for arguments in (("--help",), ("run", "--help"), ("fmt", "-h")):
        output = " ".join(suture(*arguments).stdout.split())
        for status in (OK, CHECK_FAILED, BAD_INPUT, OUR_BUG, INTERRUPTED):
            assert f"{status}: " in output
    assert suture("--version").stdout.startswith("suture ")
