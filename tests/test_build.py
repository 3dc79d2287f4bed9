"""A graph leaves as a folder of sources: built and run, it computes what the graph does; bad calls get codes and sentences; files come whole or not."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from standalone_nets import Built, buffer, compile_folder, have_compilers, traced
from torch import nn

import suture
from suture.backends import standalone
from suture.backends.standalone_program import lower_alone
from suture.codegen.plan import place
from suture.frontends.archive import load_graph
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate
from suture.ir.sizes import evaluate_size

pytestmark = pytest.mark.skipif(not have_compilers(), reason="no C and C++ compilers on this machine")

NETS = ("mlp", "mixer", "ends", "picks", "picture", "attends")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Graph, Path, Path]]:
    """Every network: its graph, its folder, its library."""
    found = {}
    for name in NETS:
        folder = tmp_path_factory.mktemp("built") / name
        graph = traced(name)
        suture.build(graph, folder)
        found[name] = (graph, folder, compile_folder(folder, name))
    return found


def instance(made: dict[str, tuple[Graph, Path, Path]], name: str) -> tuple[Graph, Built]:
    graph, folder, library = made[name]
    return graph, Built(library, name, folder / "weights.safetensors", graph.symbols())


def drawn(graph: Graph, numbers: dict[str, int]) -> list[torch.Tensor]:
    """Inputs at some sizes; whole numbers are small."""
    inputs = []
    for value in graph.inputs:
        shape = [evaluate_size(dim, numbers) for dim in value.shape]
        inputs.append(torch.randn(shape) if value.dtype.is_floating_point else torch.randint(0, 6, shape))
    return inputs


# what it computes


@pytest.mark.parametrize("name", NETS)
def test_a_built_network_computes_what_its_graph_does_at_every_size(
    made: dict[str, tuple[Graph, Path, Path]], name: str
) -> None:
    graph, net = instance(made, name)
    for turn in ((3, 7), (1, 1), (5, 2), (0, 4), (17, 33), (3, 7)):
        numbers = dict(zip(graph.symbols(), turn, strict=False))
        inputs = drawn(graph, numbers)
        with torch.no_grad():
            expected = evaluate(graph, inputs)
        for found, wanted in zip(net.run(inputs, numbers), expected, strict=True):
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    net.destroy()


def test_memory_is_one_block_planned_by_lifetimes(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    graph, net = instance(made, "mixer")
    program = lower_alone(suture.drivers.exporting.prepare(graph, check=False)).program
    lifetimes = program.lifetimes()
    for turn in ((2, 5), (1, 1), (9, 13), (0, 3)):
        numbers = dict(zip(graph.symbols(), turn, strict=True))
        sizes = [evaluate_size(each.size, numbers) for each in lifetimes]
        _, total = place(lifetimes, sizes)
        assert net.function("memory")(net.sizes(numbers)) == total
    assert len(lifetimes) > 2 and total <= sum(-(-size // 64) * 64 for size in sizes)
    net.destroy()


def test_shapes_and_types_can_be_asked_for(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    graph, net = instance(made, "mixer")
    sizes = net.sizes({"batch": 4, "length": 9})
    described = [net.function("input")(k)[0] for k in range(2)] + [net.function("output")(k)[0] for k in range(2)]
    assert [each.name.decode() for each in described] == [*(v.name for v in graph.inputs), *graph.output_names]
    assert [each.type for each in described] == [b"I64", b"F32", b"F32", b"F32"]
    assert [net.shape("input", 0, sizes), net.shape("output", 0, sizes), net.shape("output", 1, sizes)] == [
        [4, 9],
        [4, 9, 24],
        [4, 24],
    ]
    assert net.function("input_bytes")(0, sizes) == 4 * 9 * 8 and net.function("output_bytes")(1, sizes) == 4 * 24 * 4
    assert not net.function("input")(2) and not net.function("output")(-1)
    assert net.function("output_bytes")(2, sizes) == -1 and "no tensor 2" in net.error()
    net.destroy()


def test_instances_run_side_by_side(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    graph, folder, library = made["mlp"]
    results: dict[int, list[torch.Tensor]] = {}
    inputs = {k: torch.randn(k + 1, 6) for k in range(6)}

    def work(k: int) -> None:
        net = Built(library, "mlp", folder / "weights.safetensors", graph.symbols())
        for _ in range(20):
            results[k] = net.run([inputs[k]], {"batch": k + 1})
        net.destroy()

    threads = [threading.Thread(target=work, args=(k,)) for k in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, given in inputs.items():
        torch.testing.assert_close(results[k][0], evaluate(graph, [given])[0].detach(), rtol=1e-4, atol=1e-5)


# what it links, and how it is built


def needed(binary: Path) -> set[str]:
    text = subprocess.run(["readelf", "-d", str(binary)], capture_output=True, text=True, check=True).stdout
    return {name.partition(".so")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", text)}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf on this machine")
def test_it_links_the_c_library_and_openmp_alone(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    for _, _, library in made.values():
        assert needed(library) <= {"libc", "libm", "libgomp", "ld-linux-x86-64"}
        names = subprocess.run(
            ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
        ).stdout
        net = library.stem.removeprefix("lib")
        assert all(line.split()[-1].startswith(f"{net}_") for line in names.splitlines())


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake on this machine")
@pytest.mark.parametrize("shared", [False, True])
def test_cmake_builds_it_and_the_example_runs(tmp_path: Path, shared: bool) -> None:
    graph = traced("mlp")
    suture.build(graph, tmp_path / "out")
    configure = ["cmake", "-S", "out", "-B", "out/build", f"-DBUILD_SHARED_LIBS={'ON' if shared else 'OFF'}"]
    subprocess.run(configure, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", "out/build", "-j2"], cwd=tmp_path, check=True, capture_output=True)
    example = tmp_path / "out/build/mlp_example"
    said = subprocess.run(
        [example, "weights.safetensors"], cwd=tmp_path / "out", check=True, capture_output=True, text=True
    )
    x = torch.tensor([n % 17 / 8 - 1 for n in range(12)]).view(2, 6)
    (expected,) = evaluate(graph, [x])
    assert said.stdout.startswith("output: 24 bytes of F32 ")
    found = torch.tensor([float(word) for word in said.stdout.split()[5:]])
    torch.testing.assert_close(found, expected.detach().flatten(), rtol=1e-4, atol=1e-4)
    assert needed(example) <= {"libc", "libm", "libgomp", "libmlp", "ld-linux-x86-64"}
    missing = subprocess.run([example, "nowhere"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "nowhere: the file cannot be opened" in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixer", "picture", "attends"])
def test_the_example_is_clean_under_address_sanitizer(
    made: dict[str, tuple[Graph, Path, Path]], tmp_path: Path, name: str
) -> None:
    _, built, _ = made[name]
    folder = tmp_path / "out"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("by_hand"))
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp"]
    sources = [str(path) for path in sorted(folder.glob("*.cpp"))]
    for source in sources:
        subprocess.run(
            ["g++", "-std=c++17", "-march=native", *flags, *standalone._BARE, "-c", source, "-o", f"{source}.o"],
            check=True,
        )
    objects = [f"{source}.o" for source in sources]
    subprocess.run(["gcc", *flags, "example.c", *objects, "-lm", "-o", "example"], cwd=folder, check=True)
    environment = {"OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=1", "PATH": "/usr/bin"}
    for weights in ("weights.safetensors", "example.c", "nowhere"):
        done = subprocess.run(
            ["./example", weights], cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
        assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
        assert done.returncode == int(weights != "weights.safetensors")


# bad calls


def test_what_is_missing_gets_a_code_and_a_sentence(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mlp")
    x, y, sizes = torch.randn(2, 6), torch.empty(2, 3), net.sizes([2])
    assert net.call(None, [x], [y]) == Built.ARGUMENT and "no sizes" in net.error()
    assert net.function("run")(None, sizes, None, None) == Built.ARGUMENT and "no instance" in net.error()
    assert net.function("run")(net.handle, sizes, None, None) == Built.ARGUMENT and "no inputs" in net.error()
    nothing = (ctypes.c_uint64 * 2)(0, 48)
    assert (
        net.function("run")(net.handle, sizes, nothing, ctypes.byref(buffer(y))) == Built.ARGUMENT
        and "input is missing" in net.error()
    )
    assert net.function("create")(None, b"x") == Built.ARGUMENT and net.error()
    assert net.function("create")(ctypes.byref(ctypes.c_void_p()), None) == Built.ARGUMENT and net.error()
    net.function("destroy")(None)
    assert net.call(sizes, [x], [y]) == Built.OK
    net.destroy()


def test_buffers_of_another_length_are_refused(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mlp")
    sizes = net.sizes([2])
    assert net.call(sizes, [torch.randn(3, 6)], [torch.empty(2, 3)]) == Built.SIZE
    assert net.error() == "input has 72 bytes, 48 would be right"
    assert (
        net.call(sizes, [torch.randn(2, 6)], [torch.empty(2, 2)]) == Built.SIZE and "output has 16 bytes" in net.error()
    )
    net.destroy()


def test_buffers_that_overlap_or_stand_askew_are_refused(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mlp")
    memory = torch.zeros(200, dtype=torch.uint8)
    whole, sizes = memory[:48].view(torch.float32), net.sizes([2])
    assert net.call(sizes, [whole], [memory[40:64].view(torch.float32)]) == Built.ARGUMENT and "overlaps" in net.error()
    assert net.call(sizes, [memory[1:49]], [torch.empty(2, 3)]) == Built.ARGUMENT and "multiple of 4" in net.error()
    net.destroy()


def test_sizes_that_cannot_be_are_refused(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mixer")
    tokens, shift = torch.zeros(2, 5, dtype=torch.long), torch.zeros(24)
    outputs = [torch.empty(2, 5, 24), torch.empty(2, 24)]
    for wrong in ([-1, 5], [2, 2**31], [2**62, 2**62]):
        assert net.call(net.sizes(wrong), [tokens, shift], outputs) == Built.SIZE and "the size " in net.error()
        assert net.function("memory")(net.sizes(wrong)) == -1
    empty = [torch.zeros(2, 0, dtype=torch.long), shift], [torch.empty(2, 0, 24), torch.empty(2, 24)]
    assert net.call(net.sizes([2, 0]), *empty) == Built.SIZE and net.error() == "amax amax is over no elements"
    assert net.function("memory")(net.sizes([2**31 - 1, 2**31 - 1])) == -1 and "too large" in net.error()
    assert net.call(net.sizes([2, 5]), [tokens, shift], outputs) == Built.OK
    net.destroy()


def test_too_little_memory_is_an_error_that_passes(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mixer")
    tokens, shift = torch.zeros(2, 5, dtype=torch.long), torch.zeros(24)
    outputs = [torch.empty(2, 5, 24), torch.empty(2, 24)]
    assert (
        net.call(net.sizes([2**31 - 1, 2**19]), [tokens, shift], outputs) == Built.MEMORY and "no memory" in net.error()
    )
    assert net.call(net.sizes([2, 5]), [tokens, shift], outputs) == Built.OK
    net.destroy()


def test_an_index_that_lies_outside_is_an_error_and_no_wild_read(made: dict[str, tuple[Graph, Path, Path]]) -> None:
    _, net = instance(made, "mixer")
    outputs = [torch.empty(1, 2, 24), torch.empty(1, 24)]
    for wrong in (11, -1, 2**62, -(2**62)):
        code = net.call(net.sizes([1, 2]), [torch.tensor([[0, wrong]]), torch.zeros(24)], outputs)
        assert code == Built.ARGUMENT and net.error() == "an index of embedding table (table) is not from 0 to below 11"
    assert net.call(net.sizes([1, 2]), [torch.tensor([[0, 10]]), torch.zeros(24)], outputs) == Built.OK
    net.destroy()
    _, net = instance(made, "picks")
    x, y = torch.randn(2, 6), torch.empty(2, 1)
    assert (
        net.call(net.sizes([2, 1]), [x, torch.tensor([6])], [y]) == Built.ARGUMENT
        and "from -6 to below 6" in net.error()
    )
    assert net.call(net.sizes([2, 1]), [x, torch.tensor([-6])], [y]) == Built.OK and torch.equal(y[:, 0], x[:, 0] * 2)
    net.destroy()


def test_weights_that_are_not_its_own_are_refused(made: dict[str, tuple[Graph, Path, Path]], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder, library = made["mlp"]
    own = load_file(folder / "weights.safetensors")
    name = sorted(own)[0]
    wrong: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "missing": ({key: tensor for key, tensor in own.items() if key != name}, f"have no tensor {name}"),
        "typed": (own | {name: own[name].double()}, f"the tensor {name} is F64, F32 would be right"),
        "shaped": (own | {name: torch.zeros(1, *own[name].shape)}, f"the tensor {name} has another shape"),
    }
    net = Built(library, "mlp")
    for key, (tensors, why) in wrong.items():
        save_file(tensors, tmp_path / key)
        assert net.create(tmp_path / key) == Built.WEIGHTS and why in net.error() and not net.handle
    (tmp_path / "cut").write_bytes((folder / "weights.safetensors").read_bytes()[:-1])
    assert net.create(tmp_path / "cut") == Built.WEIGHTS and "cut: " in net.error()
    assert net.create(tmp_path / "nowhere") == Built.WEIGHTS and "cannot be opened" in net.error()
    save_file(own | {"more": torch.zeros(3)}, tmp_path / "more")
    assert net.create(tmp_path / "more") == Built.OK
    net.destroy()


# what cannot leave


class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(torch.relu(x)) + 1.0


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strange = Strange()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.strange(x) * 2.0


def test_a_node_that_no_kernel_covers_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    graph = suture.trace(Holder(), (torch.eye(3),))
    for optimise in (True, False):
        with pytest.raises(SutureError) as caught:
            suture.build(graph, tmp_path / "out", optimise=optimise)
        assert caught.value.code is Code.KERNEL
        text = str(caught.value)
        assert "opaque aten.linalg_matrix_exp" in text and "at strange" in text and "%" in text and "\n" not in text
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        x = torch.randn(3, 3)
        torch.testing.assert_close(suture.compile(graph)(x), evaluate(graph, [x])[0])  # torch runs the node there


def test_many_nodes_are_counted(tmp_path: Path) -> None:
    graph = suture.trace(nn.Sequential(*(Strange() for _ in range(7))), (torch.eye(3),))
    with pytest.raises(SutureError) as caught:
        suture.build(graph, tmp_path / "out")
    assert str(caught.value).count("matrix_exp") == 4 and "and 3 more" in str(caught.value)


def test_a_graph_without_data_and_a_target_that_is_none_are_refused(tmp_path: Path) -> None:
    suture.save(traced("mlp"), tmp_path / "net.suture-graph")
    planned = load_graph(tmp_path / "net.suture-graph", weights=False)
    with pytest.raises(SutureError) as caught:
        suture.build(planned, tmp_path / "out", optimise=False)
    assert caught.value.code is Code.INPUT and "no data" in str(caught.value)
    with pytest.raises(SutureError) as caught:
        suture.build(traced("mlp"), tmp_path / "out", target="rust")  # type: ignore[arg-type]
    assert caught.value.code is Code.INPUT and "cpp or cuda" in str(caught.value)


# how it comes to be there


def test_the_same_graph_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        suture.build(traced("mlp"), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_second_build_replaces_the_first_and_leaves_what_else_is_there(tmp_path: Path) -> None:
    suture.build(traced("mixer"), tmp_path / "out", name="first")
    (tmp_path / "out/build").mkdir()
    (tmp_path / "out/build/kept").write_text("x")
    suture.build(traced("mlp"), tmp_path / "out", name="second")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "second.cpp" in names and "first.cpp" not in names and (tmp_path / "out/build/kept").read_text() == "x"
    assert names == {
        *json.loads((tmp_path / "out/suture-build.json").read_text())["files"],
        "suture-build.json",
        "build",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for target, why in (
        (tmp_path / "out", "'mine'"),
        (tmp_path / "file", "a file of that name"),
        (tmp_path / "no/out", "no folder"),
    ):
        with pytest.raises(SutureError) as caught:
            suture.build(traced("mlp"), target)
        assert caught.value.code is Code.WRITE and why in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "out"]


def test_a_build_that_fails_half_way_leaves_nothing_or_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suture.build(traced("mlp"), tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(standalone, "_save", full)
    for name in ("new", "old"):
        with pytest.raises(SutureError) as caught:
            suture.build(traced("mixer"), tmp_path / name)
        assert caught.value.code is Code.WRITE and "No space left" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_names_that_c_would_not_take_are_changed(tmp_path: Path) -> None:
    graph = traced("mlp")
    for name, right in (
        ("float", "float_net"),
        ("2d net", "net_2d_net"),
        ("a.b-c", "a_b_c"),
        ("é", "net"),
        ("k_x", "net_k_x"),
    ):
        suture.build(graph, tmp_path / right, name=name)
        assert (tmp_path / right / f"{right}.h").exists()
        source = tmp_path / right / f"{right}.cpp"
        subprocess.run(["g++", "-std=c++17", "-fopenmp", "-fsyntax-only", str(source)], check=True)
