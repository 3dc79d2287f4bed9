"""Weights files: what is read and written, and the one line that a bad file gets."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from suture.frontends import checkpoint
from suture.ir import files as paths
from suture.ir.errors import Code, SutureError
from suture.ir.types import DTYPES, TensorType


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(4, 3, generator=generator),
        "a.bias": torch.randn(4, generator=generator).half(),
        "steps": torch.tensor(7),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def refused(code: Code, call, *words: str) -> SutureError:
    with pytest.raises(SutureError) as caught:
        call()
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    return caught.value


@pytest.fixture(params=["safetensors", "zip", "legacy", "nested"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind = request.param
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(tensors(), path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": tensors()}, path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=kind == "zip")
    return path


def test_every_format_loads_the_same_tensors(weights_file: Path) -> None:
    assert_same(checkpoint.load_weights(weights_file), tensors())


def test_shapes_are_those_of_the_tensors(weights_file: Path) -> None:
    expected = {name: TensorType(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors().items()}
    assert checkpoint.read_shapes(weights_file) == expected


def test_shapes_need_only_the_header(tmp_path: Path) -> None:
    """A sparse file of 64 GiB: reading its data would not end."""
    size = 1 << 36
    header = json.dumps({"huge": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert checkpoint.read_shapes(path) == {"huge": TensorType(torch.float32, (size // 4,))}


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    everything = tensors()
    save_file({"a.weight": everything["a.weight"]}, tmp_path / "one.safetensors")
    save_file({name: everything[name] for name in ("a.bias", "steps")}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"weight_map": {"a.weight": "one.safetensors", "a.bias": "two.safetensors", "steps": "two.safetensors"}}
        )
    )
    assert_same(checkpoint.load_weights(index), everything)
    assert checkpoint.read_shapes(index)["a.weight"].shape == (4, 3)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    save_file(tensors(), tmp_path / "out.safetensors")
    index = folder / "i.json"
    index.write_text(json.dumps({"weight_map": {"steps": "../out.safetensors"}}))
    refused(Code.PATH, lambda: checkpoint.load_weights(index), "leaves the folder")


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "one.safetensors")
    index = tmp_path / "i.json"
    index.write_text(json.dumps({"weight_map": {"a.weights": "one.safetensors"}}))
    refused(Code.CHECKPOINT, lambda: checkpoint.read_shapes(index), "promises 'a.weights'", "the nearest is 'a.weight'")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    index = tmp_path / "i.json"
    index.write_text(content)
    refused(Code.CHECKPOINT, lambda: checkpoint.load_weights(index), "weight_map")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused_in_one_line(weights_file: Path, share: float) -> None:
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: int(len(data) * share)])
    for call in (checkpoint.load_weights, checkpoint.read_shapes):
        refused(Code.CHECKPOINT, lambda call=call: call(weights_file), str(weights_file))


def test_a_damaged_file_loads_or_is_refused_in_one_line(weights_file: Path) -> None:
    data, chance = weights_file.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        weights_file.write_bytes(damaged)
        try:
            checkpoint.load_weights(weights_file)
        except SutureError as error:
            refusals += 1
            if "\n" in str(error):
                raise
    assert refusals > 0


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_text("hello, these are no weights at all\n")
    refused(Code.CHECKPOINT, lambda: checkpoint.load_weights(path))


class Payload:
    """Pickles into a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "new"])
def test_a_pickle_that_runs_code_is_refused_without_trust(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    if kind in ("plain", "new"):
        path.write_bytes(pickle.dumps({"x": Payload(mark)}, protocol=2 if kind == "plain" else 4))
    else:
        torch.save({"w": torch.ones(2), "x": Payload(mark)}, path, _use_new_zipfile_serialization=kind == "zip")
    refused(Code.PICKLE, lambda: checkpoint.load_weights(path), "trust=True", *(["mkdir"] if kind != "new" else []))
    refused(Code.PICKLE, lambda: checkpoint.read_shapes(path), "trust=True")
    assert not mark.exists()


def test_trust_unpickles_a_whole_module(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    module = torch.nn.Linear(3, 2)
    torch.save(module, path)
    refused(Code.PICKLE, lambda: checkpoint.load_weights(path), "torch.nn.modules.linear.Linear")
    assert_same(checkpoint.load_weights(path, trust=True), dict(module.state_dict()))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3}, path)
    refused(Code.CHECKPOINT, lambda: checkpoint.load_weights(path), "no state dict")
    torch.save([1, 2], path)
    refused(Code.CHECKPOINT, lambda: checkpoint.load_weights(path), "holds a list")
    torch.save({"generator": tensors(), "critic": tensors()}, path)
    refused(Code.CHECKPOINT, lambda: checkpoint.load_weights(path), "several state dicts: generator, critic")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "resnet50.safetensors")
    refused(Code.FILE, lambda: checkpoint.load_weights(tmp_path / "resnet5.safetensors"), "resnet50.safetensors")
    refused(Code.FILE, lambda: checkpoint.load_weights(tmp_path), "folder")
    refused(Code.FILE, lambda: checkpoint.load_weights(tmp_path / "no" / "w.pt"), "does not exist")


@pytest.mark.parametrize("name", ["x" * 300, "l" * 5000])
def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    refused(Code.FILE, lambda: checkpoint.load_weights(tmp_path / name), "cannot read")
    refused(Code.PATH, lambda: paths.inside(tmp_path, name), "is no path")


def test_saving_reads_back_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    saved = {"whole": base, "again": base, "row": base[1], "turned": base.T}
    checkpoint.save_weights(tmp_path / "w.safetensors", saved, {"note": "yes"})
    assert_same(checkpoint.load_weights(tmp_path / "w.safetensors"), saved)
    assert checkpoint.read_metadata(tmp_path / "w.safetensors") == {"note": "yes"}
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))


def test_every_type_that_the_format_has_is_saved_and_typed(tmp_path: Path) -> None:
    for dtype in DTYPES.values():
        path = tmp_path / "w.safetensors"
        tensor = torch.zeros(2, dtype=dtype)
        if dtype == torch.complex128:
            refused(
                Code.WRITE, lambda path=path, tensor=tensor: checkpoint.save_weights(path, {"x": tensor}), "complex128"
            )
            continue
        checkpoint.save_weights(path, {"x": tensor})
        assert checkpoint.read_shapes(path) == {"x": TensorType(dtype, (2,))}
        assert checkpoint.load_weights(path)["x"].dtype == dtype


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_text("old")

    def fail() -> None:
        with paths.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    refused(Code.WRITE, fail, "No space left on device", str(path))

    def interrupt() -> None:
        with paths.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["w.bin"]


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    checkpoint.save_weights(tmp_path / "w.safetensors", tensors())
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_into_no_folder_is_refused(tmp_path: Path) -> None:
    refused(
        Code.WRITE, lambda: checkpoint.save_weights(tmp_path / "no" / "w.safetensors", tensors()), "folder that exists"
    )


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "link/x"])
def test_a_path_may_not_leave_its_folder(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    refused(Code.PATH, lambda: paths.inside(folder, path, what="weights"), "weights", "leaves the folder")


def test_a_path_within_its_folder_is_resolved(tmp_path: Path) -> None:
    assert paths.inside(tmp_path, "a/../b.pt") == tmp_path.resolve() / "b.pt"
    assert paths.inside(tmp_path, tmp_path / "c.pt") == tmp_path.resolve() / "c.pt"


def types(**shapes: tuple[int, ...]) -> dict[str, TensorType]:
    return {name: TensorType(torch.float32, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        (types(weight=(2,)), types(), ["1 tensor missing", "'weight'"]),
        (types(weight=(2,)), {"module.weight": TensorType(torch.float32, (2,))}, ["begin with 'module.'"]),
        (types(weight=(2,)), types(weight=(2,), extra=(1,)), ["no place for 1 tensor", "'extra'"]),
        (types(weight=(2,)), types(weight=(3,)), ["weight is f32[3] in the file", "the model has f32[2]"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(expected, found, words) -> None:
    refused(Code.WEIGHTS, lambda: checkpoint.fit_weights(expected, found, where="w", optional=frozenset()), *words)


def test_a_tied_tensor_may_be_missing() -> None:
    checkpoint.fit_weights(types(weight=(2,), head=(2,)), types(weight=(2,)), where="w", optional=frozenset({"head"}))
