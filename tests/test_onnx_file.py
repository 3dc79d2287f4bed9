"""What an exported file is like: names, shared parts, few nodes, where the weights stand, what it says of itself, and that it is whole or not there."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import weakref
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.backends.onnx import export_onnx, summarise_onnx, writing
from suture.backends.onnx.weights import Weight
from suture.backends.onnxruntime import OnnxModel
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Record
from suture.ir.semantics import evaluate
from suture.ir.sizes import Dim, evaluate_size, symbol
from suture.ir.types import TensorType

BATCH, N = symbol("batch"), symbol("n")
F32 = torch.float32


def perceptron(rows: int = 4) -> Graph:
    torch.manual_seed(0)
    graph = Graph("perceptron")
    x = graph.add_input("features", TensorType(F32, (BATCH, 8)))
    weight = graph.add_parameter("first.weight", torch.randn(rows, 8))
    bias = graph.add_parameter("first.bias", torch.randn(rows))
    hidden = graph.add("linear", [x, weight, bias], path="first").output
    graph.set_outputs([graph.add("relu", [hidden], path="act").output], ["logits"])
    graph.source = "examples.zoo:perceptron"
    return graph


def run(graph: Graph, path: Path, *tensors: torch.Tensor) -> None:
    expected = evaluate(graph, tensors)
    found = OnnxModel(path, threads=1).run({v.name: t for v, t in zip(graph.inputs, tensors, strict=True)})
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


# names and structure


def test_inputs_outputs_parameters_and_symbols_keep_their_names(tmp_path: Path) -> None:
    export_onnx(perceptron(), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in graph.input] == [
        ("features", ["batch", 8])
    ]
    assert [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in graph.output] == [
        ("logits", ["batch", 4])
    ]
    assert {t.name for t in graph.initializer} == {"first.weight", "first.bias"}
    assert [node.name for node in graph.node] == ["first/Gemm", "act/Relu"]
    assert [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in graph.value_info] == [
        ("linear", ["batch", 4])
    ]


def test_an_output_that_is_an_input_a_parameter_or_returned_twice_is_copied(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (BATCH,)))
    p = graph.add_parameter("x", torch.tensor([1.0, 2.0]))  # the same name as the input's
    y = graph.add("relu", [x]).output
    graph.set_outputs([x, p, y, y], ["x", "p", "y", "again"])
    export_onnx(graph, tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    assert list(model.inputs) == ["x"]
    assert model.outputs == ["x_1", "p", "y", "again"]
    run(graph, tmp_path / "m.onnx", torch.tensor([-1.0, 1.0, 3.0]))


def test_an_intermediate_value_named_like_an_output_does_not_take_its_name(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (BATCH,)))
    first = graph.add("relu", [x], name="logits").output
    second = graph.add("exp", [first], name="other").output
    graph.set_outputs([second, first], ["logits", "hidden"])
    export_onnx(graph, tmp_path / "m.onnx")
    assert OnnxModel(tmp_path / "m.onnx").outputs == ["logits", "hidden"]
    run(graph, tmp_path / "m.onnx", torch.randn(3))


def test_a_size_is_computed_once_and_in_front(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (BATCH * N, 6)))
    graph.add_input("mask", TensorType(F32, (BATCH, N)))
    values = [
        graph.add("reshape", [graph.add(name, [x]).output], shapes=[(BATCH, N, 6)]).output
        for name in ("relu", "exp", "tanh")
    ]
    graph.set_outputs(values)
    export_onnx(graph, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds[:2] == ["Shape", "Concat"]
    assert sorted(kinds[2:]) == ["Exp", "Relu", "Reshape", "Reshape", "Reshape", "Tanh"]


def test_a_symbol_that_no_input_has_alone_is_solved_for(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (N * 2 + 1,)))
    graph.set_outputs([graph.add("slice", [x], {"dim": 0, "start": 1}, shapes=[(N,)]).output])
    export_onnx(graph, tmp_path / "m.onnx")
    run(graph, tmp_path / "m.onnx", torch.randn(9))
    run(graph, tmp_path / "m.onnx", torch.randn(5))


def test_quotients_round_down_below_zero_as_well(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (N,)))
    sizes: list[Dim] = [(N - 5) // 2, (N - 5) % 3, N // 2, (N - 7) // (N + 1)]
    graph.set_outputs(
        [graph.add("full", [], {"value": size, "dtype": torch.int64}, shapes=[(N,)]).output for size in sizes] + [x]
    )
    export_onnx(graph, tmp_path / "m.onnx")
    for count in (1, 2, 4, 9):
        run(graph, tmp_path / "m.onnx", torch.randn(count))


def test_a_weight_that_is_also_an_embedding_is_stored_once(tmp_path: Path) -> None:
    graph = Graph()
    tokens = graph.add_input("tokens", TensorType(torch.int64, (BATCH, N)))
    table = graph.add_parameter("embed.weight", torch.randn(50, 8), aliases=("head.weight",))
    features = graph.add("embedding", [table, tokens]).output
    graph.set_outputs([graph.add("linear", [features, table]).output])
    export_onnx(graph, tmp_path / "m.onnx")
    assert [tuple(t.dims) for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == [(50, 8)]
    run(graph, tmp_path / "m.onnx", torch.randint(0, 50, (2, 5)))


def test_a_linear_weight_is_stored_transposed_and_only_so(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (BATCH, N, 8)))
    weight = graph.add_parameter("fc.weight", torch.randn(5, 8))
    graph.set_outputs(
        [
            graph.add(
                "linear", [graph.add("linear", [x, weight]).output, graph.add_parameter("up", torch.randn(8, 5))]
            ).output
        ]
    )
    export_onnx(graph, tmp_path / "m.onnx")
    stored = onnx.load(tmp_path / "m.onnx").graph
    assert {t.name: tuple(t.dims) for t in stored.initializer} == {
        "fc.weight.transposed": (8, 5),
        "up.transposed": (5, 8),
    }
    assert [node.op_type for node in stored.node] == ["MatMul", "MatMul"]


def test_parameters_and_nodes_that_nothing_reads_stay_out(tmp_path: Path) -> None:
    graph = perceptron()
    graph.add_parameter("unused", torch.randn(1000))
    graph.add("exp", [graph.inputs[0]])
    export_onnx(graph, tmp_path / "m.onnx")
    stored = onnx.load(tmp_path / "m.onnx").graph
    assert len(stored.node) == 2
    assert len(stored.initializer) == 2


def attention_layers(mask: TensorType, **attributes: object) -> Graph:
    graph = Graph()
    q = graph.add_input("q", TensorType(F32, (BATCH, N, 4, 8)))
    m = graph.add_input("mask", mask)
    stream = graph.add("permute", [q], {"dims": (0, 2, 1, 3)}).output
    for _ in range(2):
        keys = graph.add("permute", [q], {"dims": (0, 2, 1, 3)}).output
        stream = graph.add("attention", [stream, keys, stream, m], {"scale": 0.3, **attributes}).output
    graph.set_outputs([stream])
    return graph


@pytest.mark.parametrize("dtype", [torch.bool, F32])
def test_a_query_that_may_see_nothing_gets_zeros(tmp_path: Path, dtype: torch.dtype) -> None:
    graph = attention_layers(TensorType(dtype, (BATCH, 1, N, N)))
    export_onnx(graph, tmp_path / "m.onnx")
    seen = torch.rand(2, 1, 5, 5) < 0.6
    seen[0, 0, 1], seen[1, 0, :, :] = False, False
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    run(graph, tmp_path / "m.onnx", torch.randn(2, 5, 4, 8), mask)


def test_layers_share_what_they_make_of_one_mask(tmp_path: Path) -> None:
    export_onnx(attention_layers(TensorType(torch.bool, (BATCH, 1, N, N))), tmp_path / "m.onnx")
    counts = summarise_onnx(tmp_path / "m.onnx").operators
    assert counts["ReduceMax"] == 1
    assert counts["Where"] == 1 + 2  # the bias, and one guard a layer
    # The keys' permutation and transposition are one node.
    assert counts["Transpose"] == 3


def test_a_finite_mask_needs_no_guard(tmp_path: Path) -> None:
    graph = Graph()
    q = graph.add_input("q", TensorType(F32, (BATCH, 4, N, 8)))
    seen = graph.add_input("seen", TensorType(torch.bool, (N, N)))
    bias = graph.add("where", [seen, None, None], {"on_true": 0.0, "on_false": -1e4}).output
    graph.set_outputs([graph.add("attention", [q, q, q, bias], {"scale": 1.0}).output])
    export_onnx(graph, tmp_path / "m.onnx")
    assert summarise_onnx(tmp_path / "m.onnx").operators == {
        "MatMul": 2,
        "Add": 1,
        "Softmax": 1,
        "Transpose": 1,
        "Where": 1,
    }


# provenance


def test_a_file_says_where_it_comes_from_and_equal_graphs_give_equal_files(tmp_path: Path) -> None:
    graph = perceptron()
    graph.record(
        Record("prune", {"keep": 0.5, "by": "l2", "sites": ("layer*",)}, "approximate", "done", ("4 of 8",), 0.25)
    )
    graph.record(Record("fold", {}, "exact", "not applicable", ("no batch norm",)))
    export_onnx(graph, tmp_path / "a.onnx")
    export_onnx(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    said = summarise_onnx(tmp_path / "a.onnx").metadata
    assert said["suture.source"] == "examples.zoo:perceptron"
    assert said["suture.version"]
    assert json.loads(said["suture.passes"]) == [
        {"name": "prune", "options": {"keep": 0.5, "by": "l2", "sites": ["layer*"]}, "contract": "approximate", "outcome": "done", "notes": ["4 of 8"], "deviation": 0.25},
        {"name": "fold", "options": {}, "contract": "exact", "outcome": "not applicable", "notes": ["no batch norm"], "deviation": None},
    ]  # fmt: skip


def test_the_summary_reads_like_the_graph(tmp_path: Path) -> None:
    export_onnx(perceptron(), tmp_path / "m.onnx", opset=19)
    text = str(summarise_onnx(tmp_path / "m.onnx"))
    assert text.splitlines()[:5] == [
        "m.onnx: opset 19, 2 nodes, 144 bytes of weights",
        "  input  features: f32[batch, 8]",
        "  output logits: f32[batch, 4]",
        "       1 Gemm",
        "       1 Relu",
    ]


# external data


def test_external_weights_stand_beside_the_file(tmp_path: Path) -> None:
    graph = perceptron(rows=1000)
    graph.add_parameter("half", torch.randn(1000).to(torch.float16))
    export_onnx(graph, tmp_path / "m.onnx", external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 2500
    assert (
        tmp_path / "m.onnx.data"
    ).stat().st_size == 8 * 4096 + 4000  # 32,000 bytes, a gap up to the page, 4,000 bytes
    run(graph, tmp_path / "m.onnx", torch.randn(3, 8))


def test_weights_beyond_the_limit_go_outside_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suture.backends.onnx.export._LIMIT", 10_000)
    graph = perceptron(rows=1000)
    export_onnx(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    with pytest.raises(SutureError) as caught:
        export_onnx(graph, tmp_path / "n.onnx", external_data=False)
    assert caught.value.code == Code.ONNX_EXPORT


def test_external_weights_are_made_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed weight is a copy while it is written; the copies of all of them never live together."""
    graph = Graph()
    stream = graph.add_input("x", TensorType(F32, (2, 3, 64)))
    for k in range(8):
        stream = graph.add("linear", [stream, graph.add_parameter(f"w{k}", torch.randn(64, 64))]).output
    graph.set_outputs([stream])
    original, live, counts = Weight.raw, set(), []

    def raw(weight: Weight) -> memoryview:
        view = original(weight)
        live.add(id(view.obj))
        weakref.finalize(view.obj, live.discard, id(view.obj))
        counts.append(len(live))
        return view

    monkeypatch.setattr(Weight, "raw", raw)
    export_onnx(graph, tmp_path / "m.onnx", external_data=True)
    assert len(counts) == 8
    assert max(counts) <= 2
    run(graph, tmp_path / "m.onnx", torch.randn(2, 3, 64))


# what cannot be written


def test_an_opaque_operator_is_named_with_its_place(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (3,)))
    attributes = {"target": "aten.erfinv.default", "arguments": '{"args": [{"$": 0}], "kwargs": {}}', "dtypes": (F32,)}
    graph.set_outputs([graph.add("opaque", [x], attributes, shapes=[(3,)], path="head.warp").output])
    with pytest.raises(SutureError) as caught:
        export_onnx(graph, tmp_path / "m.onnx")
    assert caught.value.code == Code.ONNX_EXPORT
    assert "aten.erfinv.default" in str(caught.value)
    assert "head.warp" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_set_that_is_too_old_names_the_lowest_that_will_do(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(torch.int64, (BATCH,)))
    graph.set_outputs([graph.add("bitwise_and", [x], {"scalar": 3}, path="mask").output])
    with pytest.raises(SutureError) as caught:
        export_onnx(graph, tmp_path / "m.onnx", opset=17)
    assert caught.value.code == Code.ONNX_EXPORT
    assert "opset 17 has no BitwiseAnd; opset 18 is the lowest" in str(caught.value)
    export_onnx(graph, tmp_path / "m.onnx", opset=18)
    run(graph, tmp_path / "m.onnx", torch.tensor([5, 6, 7]))


@pytest.mark.parametrize("opset", [9, 16, 24])
def test_an_operator_set_out_of_range_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(SutureError, match="17 to 23"):
        export_onnx(perceptron(), tmp_path / "m.onnx", opset=opset)


def test_parameters_without_numbers_are_refused(tmp_path: Path) -> None:
    graph = perceptron()
    graph.parameters["first.weight"].assign(torch.empty(4, 8, device="meta"))
    with pytest.raises(SutureError, match="@first"):
        export_onnx(graph, tmp_path / "m.onnx")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(torch.complex64, (3,)))
    graph.set_outputs([graph.add("neg", [x]).output])
    with pytest.raises(SutureError, match="c64"):
        export_onnx(graph, tmp_path / "m.onnx")


# whole or not there


class FullDisk:
    """A file that takes some bytes and then has no room left."""

    def __init__(self, error: BaseException, room: int) -> None:
        self.error, self.room = error, room

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Path.open

        def opened(path: Path, *args: object, **kwargs: object) -> object:
            file = original(path, *args, **kwargs)  # type: ignore[arg-type, call-overload]
            if args and args[0] == "wb":
                return _Limited(file, self)
            return file

        monkeypatch.setattr(Path, "open", opened)


class _Limited:
    def __init__(self, file: object, disk: FullDisk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *details: object) -> None:
        self.file.close()  # type: ignore[attr-defined]

    def fileno(self) -> int:
        return self.file.fileno()  # type: ignore[attr-defined, no-any-return]

    def write(self, data: memoryview) -> int:
        if self.disk.room <= 0:
            raise self.disk.error
        part = data[: self.disk.room]
        self.disk.room -= len(part)
        return self.file.write(part)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"]
)
def test_an_export_that_is_cut_short_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, external: bool
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(perceptron(), path, external_data=external)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        FullDisk(error, room=2000).install(patch)
        with pytest.raises((SutureError, KeyboardInterrupt)) as caught:
            export_onnx(perceptron(rows=1000), path, external_data=external)
    if isinstance(error, OSError):
        assert isinstance(caught.value, SutureError)
        assert caught.value.code == Code.WRITE
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert isinstance(caught.value, KeyboardInterrupt)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.path.insert(0, sys.argv[2])
from test_onnx_file import export_onnx, perceptron
export_onnx(perceptron(rows=1000), sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX")
def test_a_real_limit_of_the_file_size_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(perceptron(), path)
    old = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "[S504]" in done.stderr.splitlines()[-1]
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_when_one_of_two_files_cannot_be_moved_both_old_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(perceptron(rows=500), path, external_data=True)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    original = Path.replace

    def fails(source: Path, place: Path) -> Path:
        if Path(place) == path and source.name == "m.onnx":
            raise error
        return original(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises((SutureError, KeyboardInterrupt)):
            export_onnx(perceptron(rows=1000), path, external_data=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        export_onnx(perceptron(), tmp_path / "nowhere" / "m.onnx")
    assert caught.value.code == Code.WRITE
    with pytest.raises(SutureError) as caught:
        export_onnx(perceptron(), tmp_path)
    assert caught.value.code == Code.WRITE


def test_a_file_that_the_checker_refuses_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(perceptron(), path)
    old = path.read_bytes()
    original = writing.write_pieces
    monkeypatch.setattr(
        "suture.backends.onnx.export.write_pieces", lambda place, pieces: original(place, iter([b"\x08\x0a"]))
    )
    with pytest.raises(SutureError) as caught:
        export_onnx(perceptron(rows=9), path)
    assert caught.value.code == Code.ONNX_EXPORT
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


# properties

SYMBOLS = {"batch": 2, "n": 5}
dims = st.sampled_from([1, 2, 3, BATCH, N, BATCH * 2, BATCH * N])


def exported(graph: Graph, folder: Path, sizes: dict[str, int]) -> None:
    export_onnx(graph, folder / "m.onnx")
    tensors = [torch.randn([evaluate_size(dim, sizes) for dim in value.shape]) for value in graph.inputs]
    run(graph, folder / "m.onnx", *tensors)


def begin(*shapes: tuple[Dim, ...]) -> Graph:
    graph = Graph()
    graph.add_input("sizes", TensorType(F32, (BATCH, N)))
    for k, shape in enumerate(shapes):
        graph.add_input(f"x{k}", TensorType(F32, shape))
    return graph


@settings(max_examples=60)
@given(st.lists(dims, min_size=1, max_size=4), st.data())
def test_any_regrouping(tmp_path_factory: pytest.TempPathFactory, shape: list[Dim], data: st.DataObject) -> None:
    """Dimensions are shuffled, joined with their neighbours, and ones put in between."""
    target: list[Dim] = []
    for dim in data.draw(st.permutations(shape)):
        if target and data.draw(st.booleans()):
            target[-1] = target[-1] * dim
        else:
            target.append(dim)
    graph = begin(tuple(shape))
    graph.set_outputs([graph.add("reshape", [graph.inputs[1]], shapes=[target]).output])
    exported(graph, tmp_path_factory.mktemp("reshape"), SYMBOLS)


@settings(max_examples=40)
@given(st.lists(dims, min_size=1, max_size=3), st.data())
def test_any_broadcast(tmp_path_factory: pytest.TempPathFactory, shape: list[Dim], data: st.DataObject) -> None:
    def part() -> tuple[Dim, ...]:
        kept = shape[data.draw(st.integers(0, len(shape))) :]
        return tuple(dim if data.draw(st.booleans()) else 1 for dim in kept)

    graph = begin(part(), part())
    total = graph.add("sub", graph.inputs[1:]).output
    graph.set_outputs([total, graph.add("expand", [total], shapes=[tuple(shape)]).output])
    exported(graph, tmp_path_factory.mktemp("broadcast"), SYMBOLS)


@settings(max_examples=40)
@given(st.sampled_from([7, N, N * 2]), st.integers(0, 2), st.integers(0, 2), st.integers(1, 3), st.booleans())
def test_any_range_of_a_dimension(
    tmp_path_factory: pytest.TempPathFactory, size: Dim, before: int, after: int, step: int, late: bool
) -> None:
    start: Dim = size - before - 3 if late and step == 1 else before
    length = size - start - after if step == 1 else (size - start + step - 1) // step
    if late and step == 1:
        length = 3
    graph = begin((BATCH, size))
    graph.set_outputs(
        [
            graph.add(
                "slice", [graph.inputs[1]], {"dim": 1, "start": start, "step": step}, shapes=[(BATCH, length)]
            ).output
        ]
    )
    exported(graph, tmp_path_factory.mktemp("slice"), SYMBOLS)


@settings(max_examples=40)
@given(
    st.lists(st.integers(-1, 3), min_size=6, max_size=6),
    st.sampled_from(["constant", "reflect", "replicate"]),
    st.floats(-2, 2, width=32),
)
def test_any_padding(tmp_path_factory: pytest.TempPathFactory, pads: list[int], mode: str, value: float) -> None:
    if mode != "constant":
        pads = [0, 0, max(pads[2], 0), 0, 0, max(pads[5], 0)]
    graph = begin((BATCH + 1, 3, N))
    attributes = {"pads": tuple(pads), "mode": mode, "value": value if mode == "constant" else None}
    graph.set_outputs([graph.add("pad", [graph.inputs[1]], attributes).output])
    exported(graph, tmp_path_factory.mktemp("pad"), SYMBOLS)


@settings(max_examples=30)
@given(st.lists(dims, min_size=1, max_size=4), st.integers(-2, 1))
def test_any_concatenation_splits_into_its_parts_again(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[Dim], dim: int
) -> None:
    shapes = [(3, size) if dim % 2 else (size, 3) for size in sizes]
    graph = begin(*shapes)
    whole = graph.add("concat", graph.inputs[1:], {"dim": dim}).output
    graph.set_outputs([whole, *graph.add("split", [whole], {"dim": dim % 2}, shapes=shapes).outputs])
    exported(graph, tmp_path_factory.mktemp("concat"), SYMBOLS)
