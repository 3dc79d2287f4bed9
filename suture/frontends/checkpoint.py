"""Weights files: safetensors, sharded safetensors, and what `torch.save` writes, read without running code.

Shapes are read from headers alone, so that a plan costs nothing however large the weights are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from suture.frontends.pickles import REMEDY_CUT, load_pickle
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.files import inside, replacing
from suture.ir.types import TensorType

_INDEX_SUFFIX = ".json"
_SAFETENSORS_SUFFIX = ".safetensors"
_LONGEST_HEADER = 100_000_000  # bytes: what safetensors itself accepts
_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_METADATA = "__metadata__"


def load_weights(path: str | Path, *, trust: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a weights file, by name, on the CPU.

    :param path: a safetensors file, a `.safetensors.index.json`, or a file that `torch.save` wrote
    :param trust: unpickle a file even if that runs code in it
    :raises SutureError: FILE, CHECKPOINT, PICKLE or PATH
    """
    path = _existing(path)
    if path.suffix == _INDEX_SUFFIX:
        wanted = _read_index(path)
        tensors: dict[str, torch.Tensor] = {}
        for shard, names in wanted.items():
            found = load_weights(shard)
            tensors |= {name: found[name] for name in _present(names, found, shard)}
        return tensors
    if _is_safetensors(path):
        with _safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
    return load_pickle(path, trust=trust, device="cpu")


def read_shapes(path: str | Path, *, trust: bool = False) -> dict[str, TensorType]:
    """The types of all tensors of a weights file, without reading their data.

    :raises SutureError: as `load_weights`
    """
    path = _existing(path)
    if path.suffix == _INDEX_SUFFIX:
        types: dict[str, TensorType] = {}
        for shard, names in _read_index(path).items():
            found = read_shapes(shard)
            types |= {name: found[name] for name in _present(names, found, shard)}
        return types
    if _is_safetensors(path):
        return {name: _entry_type(path, name, entry) for name, entry in _read_header(path).items() if name != _METADATA}
    return {
        name: TensorType(tensor.dtype, tuple(tensor.shape))
        for name, tensor in load_pickle(path, trust=trust, device="meta").items()
    }


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in a safetensors file's header.

    :raises SutureError: FILE or CHECKPOINT
    """
    path = _existing(path)
    if not _is_safetensors(path):
        raise SutureError(Code.CHECKPOINT, "not a safetensors file", where=str(path), remedy=REMEDY_CUT)
    metadata = _read_header(path).get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise SutureError(Code.CHECKPOINT, "the header's metadata are no texts", where=str(path), remedy=REMEDY_CUT)
    return metadata


def save_weights(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file; the file appears whole or not at all.

    Tensors that share memory are each written in full, since the format has no aliases.

    :raises SutureError: WRITE, if it cannot be written
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_DTYPES.values():
            what = f"safetensors files cannot hold {name}, a tensor of {tensor.dtype}"
            raise SutureError(Code.WRITE, what, where=str(path), remedy="convert it first")
        data = tensor.detach().cpu().contiguous()
        storage = data.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != data.numel() * data.element_size()
        seen.add(storage.data_ptr())
        plain[name] = data.clone() if shared else data
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:
            raise SutureError(
                Code.WRITE, f"cannot write the weights: {error}", where=str(path), remedy="check space and permissions"
            ) from None


def fit_weights(
    expected: Mapping[str, TensorType], found: Mapping[str, TensorType], *, where: str, optional: frozenset[str]
) -> None:
    """Check that a file holds what a model needs, and nothing else.

    :param expected: what the model's state dict has
    :param found: what the file has
    :param optional: names that may be missing: tied to another, or not saved
    :raises SutureError: WEIGHTS, naming the first misfit
    """
    missing = [name for name in expected if name not in found and name not in optional]
    unexpected = [name for name in found if name not in expected]
    if missing:
        remedy = nearest(missing[0], unexpected, what="other tensor") if unexpected else "the file has no other tensor"
        prefix = _common_prefix(missing, unexpected)
        remedy = f"the file's names begin with {prefix!r}" if prefix else remedy
        raise SutureError(
            Code.WEIGHTS,
            f"{_count(missing, 'tensor')} missing in the file, first {missing[0]!r}",
            where=where,
            remedy=remedy,
        )
    if unexpected:
        raise SutureError(
            Code.WEIGHTS,
            f"the model has no place for {_count(unexpected, 'tensor')} of the file, first {unexpected[0]!r}",
            where=where,
            remedy=nearest(unexpected[0], expected, what="tensor"),
        )
    for name, wanted in expected.items():
        type_ = found.get(name, wanted)
        if type_.shape != wanted.shape:
            raise SutureError(
                Code.WEIGHTS, f"{name} is {type_} in the file", where=where, remedy=f"the model has {wanted}"
            )


# ------------------------------------------------------------------------------------------------ formats


def _existing(path: str | Path) -> Path:
    path = Path(path)
    try:
        if path.is_file():
            return path
        what = "this is a folder" if path.is_dir() else "there is no such file"
        names = [item.name for item in path.parent.iterdir() if item.is_file()] if path.parent.is_dir() else None
    except (OSError, ValueError) as error:
        raise SutureError(Code.FILE, f"cannot read: {error}", where=str(path)[:80], remedy="check the path") from None
    remedy = (
        f"the folder {path.parent} does not exist either" if names is None else nearest(path.name, names, what="file")
    )
    raise SutureError(Code.FILE, what, where=str(path), remedy=remedy)


def _is_safetensors(path: Path) -> bool:
    """By name, else by how the file begins: the header's length, then a brace."""
    if path.suffix == _SAFETENSORS_SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise SutureError(
            Code.FILE, f"cannot read: {error.strerror}", where=str(path), remedy="check its permissions"
        ) from None
    return len(start) == 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError) as error:
        raise SutureError(
            Code.CHECKPOINT, f"not a whole safetensors file: {error}", where=str(path), remedy=REMEDY_CUT
        ) from None


def _read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header, read without mapping the file: the data may be larger than the memory."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError("the header's length is absurd")
            header = json.loads(file.read(length))
            data = path.stat().st_size - 8 - length
        if not isinstance(header, dict):
            raise ValueError("the header is no mapping")
        end = max((int(entry["data_offsets"][1]) for name, entry in header.items() if name != _METADATA), default=0)
        if end != data:
            raise ValueError(f"the header promises {end} bytes of data, the file has {data}")
    except OSError as error:
        raise SutureError(
            Code.FILE, f"cannot read: {error.strerror}", where=str(path), remedy="check its permissions"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        detail = error if type(error) is ValueError else "the header does not parse"
        raise SutureError(
            Code.CHECKPOINT, f"not a whole safetensors file: {detail}", where=str(path), remedy=REMEDY_CUT
        ) from None
    return header


def _entry_type(path: Path, name: str, entry: Mapping[str, Any]) -> TensorType:
    dtype, shape = _SAFETENSORS_DTYPES.get(entry.get("dtype", "")), entry.get("shape")
    if dtype is None:
        known = ", ".join(sorted(_SAFETENSORS_DTYPES))
        raise SutureError(
            Code.CHECKPOINT, f"{name} has the type {entry.get('dtype')}", where=str(path), remedy=f"known are {known}"
        )
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise SutureError(Code.CHECKPOINT, f"{name} has the shape {shape}", where=str(path), remedy=REMEDY_CUT)
    return TensorType(dtype, tuple(shape))


def _read_index(path: Path) -> dict[Path, list[str]]:
    """Which names each shard holds; shards lie in the index's own folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = {name: str(file) for name, file in content["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SutureError(
            Code.CHECKPOINT, "not an index of shards", where=str(path), remedy='an index is JSON with a "weight_map"'
        ) from None
    wanted: dict[Path, list[str]] = {}
    for name, file in shards.items():
        shard = inside(path.parent, file, what="shard")
        if shard.suffix == _INDEX_SUFFIX:
            raise SutureError(
                Code.CHECKPOINT, f"the shard {file!r} is an index too", where=str(path), remedy="shards hold tensors"
            )
        wanted.setdefault(shard, []).append(name)
    return wanted


def _present(names: list[str], found: Mapping[str, object], shard: Path) -> list[str]:
    for name in names:
        if name not in found:
            raise SutureError(
                Code.CHECKPOINT,
                f"the index promises {name!r} here",
                where=str(shard),
                remedy=nearest(name, found, what="tensor"),
            )
    return names


def _common_prefix(missing: list[str], unexpected: list[str]) -> str:
    """The prefix that all unexpected names have before a missing one, such as `module.`."""
    for name in unexpected:
        if name.endswith(missing[0]) and len(name) > len(missing[0]):
            prefix = name[: -len(missing[0])]
            return prefix if prefix.endswith(".") and all(item.startswith(prefix) for item in unexpected) else ""
    return ""


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"
