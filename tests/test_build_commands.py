"""`suture build` and `suture show --kernels`, and the script statement: what they write, print and refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from suture import surgery
from suture.cli import app
from suture.cli.guard import BAD_INPUT, CHECK_FAILED, OK
from suture.ir.errors import Code, SutureError

NETS = """
import torch
from torch import nn

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3), nn.LayerNorm(3))

class Strange(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x) + 1.0
"""
MODEL = 'model net = torch "buildable:mlp" input f32[batch, 4]\n'
TRACED = ("buildable:mlp", "--input", "f32[batch, 4]")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "buildable.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("buildable", None)
    return tmp_path


def suture(*arguments: str, status: int = OK) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def script(body: str) -> str:
    Path("s.suture").write_text("suture 1\n" + body)
    return "s.suture"


# the command


def test_build_writes_a_folder_and_says_how_to_go_on(folder: Path) -> None:
    said = suture("build", "buildable:mlp", "out", *TRACED[1:], "--name", "net")
    assert said == "wrote out: cmake -S out -B out/build && cmake --build out/build -j\n"
    assert {"net.h", "net.cpp", "net_runs.cpp", "weights.safetensors", "example.c", "CMakeLists.txt", "README.md"} <= {
        path.name for path in (folder / "out").iterdir()
    }
    assert "batch" in (folder / "out/net.h").read_text()


def test_build_takes_sizes_and_prints_json(folder: Path) -> None:
    said = json.loads(
        suture("build", "buildable:mlp", "out", *TRACED[1:], "--size", "batch=5", "--json", "--no-optimise")
    )
    assert said["ok"] and said["target"] == "cpp" and "weights.safetensors" in said["files"]
    assert "f32[5, 4]" in (folder / "out/Sequential.h").read_text()


def test_build_refuses_targets_folders_and_nodes_in_one_line(folder: Path) -> None:
    assert "there is no target 'rust'; cpp or cuda" in suture(
        "build", "buildable:mlp", "out", *TRACED[1:], "--target", "rust", status=BAD_INPUT
    )
    assert "[S504]" in suture("build", "buildable:mlp", ".", *TRACED[1:], status=BAD_INPUT)
    said = suture("build", "buildable:Strange", "out", "--input", "f32[3, 3]", status=BAD_INPUT)
    assert "[S112]" in said and "linalg_matrix_exp" in said and said.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_show_kernels_of_a_gpu_tells_registers_and_spills() -> None:
    said = suture("show", *TRACED, "--kernels", "--target", "cuda", "--arch", "90")
    assert "registers" in said and "sm_90" in said and "occupancy" in said


# show --kernels


def test_show_kernels_tells_what_each_is_and_what_memory_it_takes() -> None:
    said = suture("show", *TRACED, "--kernels", "--size", "batch=7")
    for word in (
        "gemm_0",
        "linear to [batch, 8], then gelu",
        "traversal_0",
        "schedule",
        "lines",
        "arena: ",
        "(at batch=7)",
    ):
        assert word in " ".join(said.split()), word
    assert "left to torch" not in said


def test_show_kernels_tells_what_is_left_to_torch_and_why() -> None:
    said = suture("show", "buildable:Strange", "--input", "f32[3, 3]", "--kernels")
    assert "left to torch: 1 node\n" in said
    assert "opaque aten.linalg_matrix_exp.default: nothing is known of what it computes" in said


def test_show_kernels_as_json_has_every_number() -> None:
    (found,) = json.loads(suture("show", *TRACED, "--kernels", "--size", "batch=7", "--json"))["models"].values()
    assert found["sizes"] == {"batch": 7} and found["target"] == "cpp" and found["left"] == []
    first = next(each for each in found["kernels"] if each["name"] == "gemm_0")
    assert first["calls"] == 1 and first["writes"] == 7 * 8 * 4 and first["lines"] > 10 and first["reads"] > 7 * 4 * 4
    assert 0 < found["arena"] <= found["together"]


def test_show_kernels_of_a_script_and_what_excludes_it() -> None:
    assert "gemm_0" in suture("show", script(MODEL), "--kernels")
    for wrong in (
        ("--kernels", "--axes"),
        ("--target", "cuda"),
        ("--kernels", "--target", "rust"),
        ("--size", "batch=2"),
    ):
        assert "[S306]" in suture("show", *TRACED, *wrong, status=BAD_INPUT)


# the statement


def test_a_script_builds_when_every_check_held(folder: Path) -> None:
    name = script(MODEL + 'build net to "out/" target cpp name small\ncheck net.params > 1\n')
    (folder / "out").mkdir()
    assert surgery.check(name).ok and not list((folder / "out").iterdir())
    report = surgery.run(name)
    assert report.files == (folder / "out",) and (folder / "out/small.h").exists()
    assert [outcome.kind for outcome in report.outcomes] == ["model", "build", "check"]
    (folder / "out/mine").write_text("x")
    surgery.run(name)
    assert (folder / "out/mine").read_text() == "x" and (folder / "out/small.h").exists()
    assert "s.suture" in (folder / "out/suture-build.json").read_text()  # where it comes from


def test_a_script_whose_check_fails_builds_nothing(folder: Path) -> None:
    assert "[S305]" in suture("run", script(MODEL + 'build net to "out"\ncheck net.params < 1\n'), status=CHECK_FAILED)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["buildable.py", "s.suture"]


@pytest.mark.parametrize(
    ("statement", "code", "why"),
    [
        ('build net to "../out"', Code.PATH, "leaves the folder"),
        ('build net to "."', Code.FILE, "the script's own folder"),
        ('build net to "mine"', Code.WRITE, "not ours"),
        ('build net to "out" target rust', Code.SCRIPT_OPTION, "rust"),
        ('build net to "out" level 3', Code.SCRIPT_OPTION, "build has no option 'level'"),
        ('build other to "out"', Code.SCRIPT_NAME, "no model is called 'other'"),
        ('build net to "out"\nbuild net to "out/"', Code.SCRIPT_OPTION, "written on line 3 already"),
        ("build net", Code.SCRIPT_SYNTAX, "expected 'to'"),
    ],
)
def test_statements_that_cannot_be_are_refused_at_their_place(
    folder: Path, statement: str, code: Code, why: str
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/thing").write_text("x")
    (folder / "mine/other").write_text("x")
    with pytest.raises(SutureError) as caught:
        surgery.check(script(MODEL + statement + "\n"))
    assert caught.value.code is code and why in str(caught.value) and "s.suture:" in str(caught.value)


def test_a_node_that_no_kernel_covers_is_told_when_the_script_is_planned() -> None:
    name = script('model net = torch "buildable:Strange" input f32[3, 3]\nbuild net to "out"\n')
    with pytest.raises(SutureError) as caught:
        surgery.check(name)
    assert (
        caught.value.code is Code.KERNEL
        and "s.suture:3" in str(caught.value)
        and "linalg_matrix_exp" in str(caught.value)
    )
