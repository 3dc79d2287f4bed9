"""Message passing leaves as a folder of sources: for fixed edges, whose orders are constants of it, or with sources that sort any edges."""

from __future__ import annotations

import ctypes
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from relational_graphs import I64, PROGRAMS, inputs_of
from standalone_nets import Buffer, Built, compile_folder, have_compilers
from typer.testing import CliRunner

import suture
from suture.cli import app
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.relational.baking import bake_edges

BUILT = ["convolution", "attention", "transformer", "compact_pairs"]
DRAWN = {"nodes": 9, "edges": 70, "seed": 2}


@pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")
@pytest.mark.parametrize("name", BUILT)
def test_a_build_for_fixed_edges_computes_what_its_graph_does(name: str, tmp_path: Path) -> None:
    graph = PROGRAMS[name](torch.float32)
    inputs = inputs_of(graph, DRAWN)
    edges = {key: tensor for key, tensor in inputs.items() if tensor.dtype == I64}
    suture.build(graph, tmp_path / "out", edges=edges, sizes=("nodes=9",))
    library = compile_folder(tmp_path / "out", graph.name)
    net = Built(library, graph.name, tmp_path / "out" / "weights.safetensors")
    found = net.run([inputs["x"]])
    for a, b in zip(suture.evaluate(graph, inputs), found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    net.destroy()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Graph, Path, Path]]:
    """Programs for any edges: the graph, its folder, its library."""
    found = {}
    for name in ("attention", "convolution"):
        graph, folder = PROGRAMS[name](torch.float32), tmp_path_factory.mktemp("any") / name
        suture.build(graph, folder)
        found[name] = (graph, folder, compile_folder(folder, graph.name))
    return found


def listed(text: str, title: str) -> list[str]:
    """The names that a header lists under a title, numbered from 0."""
    lines = text[text.index(title) :].split("\n")[1:]
    found = list(itertools.takewhile(bool, (re.match(r"     \d+: (\w+)", line) for line in lines)))
    return [match[1] for match in found if match]


class Edges:
    """What a build makes of edges, through its C interface."""

    def __init__(self, net: Built, folder: Path, inputs: dict[str, torch.Tensor], sizes: dict[str, int]) -> None:
        name = net.name
        names = listed((folder / f"{name}_edges.h").read_text(), "indices:")
        self.inputs = listed((folder / f"{name}.h").read_text(), "   inputs")
        self.symbols = listed((folder / f"{name}.h").read_text(), "   sizes:")
        self.net, self.pointer, self.given = net, ctypes.c_void_p(), [inputs[each].contiguous() for each in names]
        self.sizes = (ctypes.c_int64 * len(self.symbols))(*(sizes.get(each, 0) for each in self.symbols))
        table = (ctypes.c_void_p * len(names))(*(each.data_ptr() for each in self.given))
        self.code = int(net.function("edges_create")(ctypes.byref(self.pointer), table, self.sizes))
        net.function("edges_error").restype = ctypes.c_char_p

    def error(self) -> str:
        return bytes(self.net.function("edges_error")()).decode()

    def derived(self) -> dict[str, torch.Tensor]:
        """The inputs that it makes, by name."""
        buffers = (Buffer * len(self.inputs))()
        self.net.function("edges_inputs")(self.pointer, buffers)
        held = {name: each for name, each in zip(self.inputs, buffers, strict=True) if each.data}
        return {
            name: torch.tensor((ctypes.c_int64 * (each.bytes // 8)).from_address(each.data)[:], dtype=I64)
            for name, each in held.items()
        }

    def destroy(self) -> None:
        self.net.function("edges_destroy")(self.pointer)


@pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")
@pytest.mark.parametrize("name", ["attention", "convolution"])
def test_a_build_sorts_whatever_edges_it_is_given(built: dict[str, tuple[Graph, Path, Path]], name: str) -> None:
    graph, folder, library = built[name]
    net = Built(library, graph.name, folder / "weights.safetensors")
    for drawn in (
        DRAWN,
        {"nodes": 40, "edges": 500, "seed": 3},
        {"nodes": 1, "edges": 1, "seed": 4},
        {"nodes": 3, "edges": 0, "seed": 5},
    ):
        inputs = inputs_of(graph, drawn)
        edges = Edges(net, folder, inputs, {"nodes": drawn["nodes"], "edges": drawn["edges"]})
        assert edges.code == Built.OK, edges.error()
        known = {**inputs, **edges.derived()}
        found = net.run([known[each] for each in edges.inputs], list(edges.sizes))
        for a, b in zip(suture.evaluate(graph, inputs), found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
        edges.destroy()
    net.destroy()


@pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")
@pytest.mark.parametrize(
    ("index", "number", "said"),
    [
        ("type", 3, "an index is 3 where there are 3"),
        ("dst", 9, "an index is 9 where there are 9"),
        ("src", -1, "an index is negative"),
    ],
)
def test_edges_that_lie_outside_get_a_sentence(
    built: dict[str, tuple[Graph, Path, Path]], index: str, number: int, said: str
) -> None:
    graph, folder, library = built["attention"]
    net = Built(library, graph.name, folder / "weights.safetensors")
    inputs = inputs_of(graph, DRAWN)
    inputs[index][17] = number
    edges = Edges(net, folder, inputs, {"nodes": 9, "edges": 70})
    assert edges.code == Built.ARGUMENT
    assert not edges.pointer
    assert said in edges.error()
    net.destroy()


def test_a_build_for_a_gpu_needs_the_edges(tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        suture.build(PROGRAMS["attention"](torch.float32), tmp_path / "out", target="cuda")
    assert caught.value.code is Code.KERNEL
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_baked_edges_give_the_same_numbers_and_leave_no_index_as_an_input(name: str) -> None:
    graph = PROGRAMS[name]()
    inputs = inputs_of(graph, DRAWN)
    edges = {key: tensor for key, tensor in inputs.items() if tensor.dtype == I64}
    baked = bake_edges(graph, edges, {"nodes": 9})
    assert not baked.symbols()
    assert all(value.dtype.is_floating_point for value in baked.inputs)
    given = {value.name: inputs[value.name] for value in baked.inputs}
    for a, b in zip(suture.evaluate(graph, inputs), suture.evaluate(baked, given), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changed", "sizes", "said"),
    [
        ({"source": torch.zeros(3, dtype=I64)}, {"nodes": 9}, "no index is called 'source'"),
        ({"src": None}, {"nodes": 9}, "the edges lack src"),
        ({"src": torch.zeros(3, dtype=I64)}, {"nodes": 9}, "dst has 70 edges where there are 3"),
        ({"src": torch.zeros(3, 2, dtype=I64)}, {"nodes": 9}, "src has 2 dimensions"),
        ({}, {}, "the size nodes is not known"),
        ({}, {"nodes": 4}, "an index is"),
    ],
)
def test_edges_that_do_not_fit_are_an_error_of_one_line(
    changed: dict[str, torch.Tensor | None], sizes: dict[str, int], said: str
) -> None:
    graph = PROGRAMS["attention"]()
    edges: dict[str, torch.Tensor | None] = {k: v for k, v in inputs_of(graph, DRAWN).items() if v.dtype == I64}
    given = {name: tensor for name, tensor in {**edges, **changed}.items() if tensor is not None}
    with pytest.raises(SutureError, match=said) as caught:
        bake_edges(graph, given, sizes)
    assert caught.value.code is Code.INPUT
    assert "\n" not in str(caught.value)


PASSING = """
import torch
from torch import nn

class Passing(nn.Module):
    def __init__(self, width, kinds):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kinds, width, 5))

    def forward(self, g, x):
        return g.sum(x[g.edges.src] @ self.weight[g.edges.type])
"""


def test_the_command_builds_for_the_edges_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passing.py").write_text(PASSING)
    np.savez(tmp_path / "edges.npz", src=[0, 1, 2, 2], dst=[1, 2, 0, 0], type=[0, 1, 1, 0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = [
        "build",
        "passing:Passing",
        "out",
        "--args",
        "4, 2",
        "--input",
        "f32[nodes, 4]",
        "--edges",
        "edges.npz",
        "--name",
        "net",
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    header = (tmp_path / "out" / "net.h").read_text()
    assert "0: x, f32[3, 4]" in header
    assert "net_SIZES = 0, net_INPUTS = 1" in header
    assert CliRunner().invoke(app, [*command, "--size", "nodes=3"]).exit_code == 2
