"""The reader of weights that a build contains, against the safetensors library: it accepts no file that the library refuses, and reads the same."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from suture.backends.standalone import template

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

MAIN = r"""
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "safetensors.h"
int main(int count, char **paths) {
  for (int k = 1; k < count; ++k) {
    st_file file;
    if (!st_open(&file, paths[k])) {
      printf("no\t%s\036", file.error);
      continue;
    }
    printf("yes");
    for (size_t t = 0; t < file.count; ++t) {
      const st_tensor *tensor = &file.tensors[t];
      const size_t bytes = (size_t)(tensor->end - tensor->begin);
      unsigned char *data = (unsigned char *)malloc(bytes + 1);
      unsigned sum = 0;
      if (!st_read(&file, tensor, data) || st_find(&file, tensor->name) != tensor) abort();
      for (size_t b = 0; b < bytes; ++b) sum = sum * 31 + data[b];
      printf("\t%s %s %d %u", tensor->name, tensor->dtype, tensor->rank, sum);
      for (int d = 0; d < tensor->rank; ++d) printf(" %lld", (long long)tensor->shape[d]);
      free(data);
    }
    if (st_find(&file, "no such name")) abort();
    printf("\036");
    st_close(&file);
  }
  return 0;
}
"""
NAMES = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16", torch.bool: "BOOL"}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """What the reader says of files; it runs under AddressSanitizer."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "safetensors.h").write_text(template("safetensors.h"))
    (folder / "main.c").write_text(MAIN)
    flags = [
        "-std=c99",
        "-g",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    subprocess.run(["gcc", *flags, "main.c", "-o", "main"], cwd=folder, check=True)

    def run(*paths: Path) -> list[str]:
        done = subprocess.run([folder / "main", *paths], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(errors="replace").split("\x1e")[:-1]

    return run


def expected(path: Path) -> str:
    """What it should say of a good file."""
    parts = ["yes"]
    for name, tensor in sorted(load_file(path).items(), key=lambda item: item[0].encode()):
        total = 0
        for byte in tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else ():
            total = (total * 31 + byte) % 2**32
        parts.append(" ".join([name, NAMES[tensor.dtype], str(tensor.ndim), str(total), *map(str, tensor.shape)]))
    return "\t".join(parts)


def written(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def one(**fields: object) -> str:
    """A header of one tensor of eight bytes, with some fields changed."""
    entry: dict[str, object] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields
    return json.dumps({"a": {key: value for key, value in entry.items() if value is not None}})


def test_it_reads_what_the_library_wrote(read: Callable[..., list[str]], tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 4),
        "ünïcode \U0001f600": torch.arange(5),
        "b": torch.tensor(2.0).bfloat16(),
        "empty": torch.zeros(0, 7),
        "flags": torch.tensor([True, False]),
        'quote"and\\slash': torch.randn(1),
    }
    save_file(tensors, tmp_path / "full", {"what": 'a "text"\n', "more": "{}"})
    save_file({}, tmp_path / "none")
    assert read(tmp_path / "full", tmp_path / "none") == [expected(tmp_path / "full"), "yes"]


def test_names_written_with_escapes_are_the_same_names(read: Callable[..., list[str]], tmp_path: Path) -> None:
    header = '{"\\u00e9\\ud83d\\ude00\\n\\/": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = written(tmp_path / "escaped", header, bytes(8))
    (name,) = load_file(path)
    assert name == "é\U0001f600\n/"
    assert read(path) == [expected(path)]


BAD = {
    "nothing": b"",
    "a length alone": bytes(7),
    "a header that is cut": struct.pack("<Q", 60) + one().encode(),
    "a header without an end": struct.pack("<Q", 2**63) + one().encode(),
    "a header beyond what is allowed": struct.pack("<Q", 100_000_001) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"abcd",
    "an empty header": struct.pack("<Q", 0),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_cut_are_refused(name: str, read: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(BAD[name])
    assert read(tmp_path / "bad")[0].startswith("no\t")


HEADERS = {
    "offsets beyond the file": (one(shape=[4], data_offsets=[0, 16]), "outside of the file"),
    "offsets that wrap": (one(data_offsets=[18446744073709551608, 0]), "too large"),
    "offsets the wrong way": (one(data_offsets=[8, 0]), "outside of the file"),
    "another size than the shape's": (one(shape=[1]), "another size"),
    "a shape that overflows": (one(shape=[2**32, 2**32]), "too large"),
    "a number beyond 64 bits": (one(shape=[2**64 + 2]), "too large"),
    "a negative number": (one(shape=[-2]), "no whole number"),
    "a fraction": (one(shape=[2.5]), "no ']'"),
    "too many dimensions": (one(shape=[1] * 16 + [2]), "too many dimensions"),
    "an unknown type": (one(dtype="F33"), "which is none"),
    "a missing field": (one(dtype=None), "without its type"),
    "an unknown field": (one(more=1), "unknown field"),
    "a field twice": (one()[:-2] + ', "dtype": "F32"}}', "given twice"),
    "a name twice": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "twice"),
    "overlapping tensors": ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "overlaps"),
    "a gap": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "gap"),
    "bytes behind the tensors": (one(shape=[1], data_offsets=[0, 4]), "longer than its tensors"),
    "something behind the header's end": (one() + "x", "behind the end"),
    "a comma too many": (one()[:-1] + ",}", "no '\"'"),
    "half a character": ('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "half a character"),
    "a zero in a name": ('{"\\u0000":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "a zero in a text"),
    "an unknown escape": ('{"\\x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "unknown escape"),
    "a text without an end": ('{"a', "without an end"),
    "metadata that are no texts": ('{"__metadata__":{"a":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "no '\"'"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "metadata given twice"),
    "a leading zero": (one().replace("[2]", "[02]"), "begins with a zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_make_no_sense_are_refused_and_say_why(
    name: str, read: Callable[..., list[str]], tmp_path: Path
) -> None:
    header, why = HEADERS[name]
    (line,) = read(written(tmp_path / "bad", header, bytes(8)))
    assert line.startswith("no\t") and why in line


def test_a_file_that_is_not_there_is_refused(read: Callable[..., list[str]], tmp_path: Path) -> None:
    missing, folder = read(tmp_path / "none", tmp_path)
    assert missing == "no\tthe file cannot be opened" and folder.startswith("no\t")


def test_mutated_files_never_break_it_and_none_passes_that_the_library_refuses(
    read: Callable[..., list[str]], tmp_path: Path
) -> None:
    drawn = random.Random(0)
    tensors = {"a": torch.randn(2, 3), "bc": torch.arange(3), "d.e": torch.zeros(0), "f": torch.tensor(True)}
    save_file(tensors, tmp_path / "good", {"k": "v"})
    good = (tmp_path / "good").read_bytes()
    marks = b'{}[]",:0129-\\u "FIB\x00\xff'
    paths = []
    for number in range(2000):
        text = bytearray(good)
        for _ in range(drawn.choice((1, 1, 1, 2, 4))):
            at = drawn.randrange(len(text))
            match drawn.randrange(5):
                case 0:
                    text[at] = drawn.choice(marks)
                case 1:
                    del text[at : at + drawn.randrange(1, 12)]
                case 2:
                    text[at:at] = bytes(drawn.choice(marks) for _ in range(drawn.randrange(1, 4)))
                case 3:
                    text[at] ^= 1 << drawn.randrange(8)
                case _:
                    text[drawn.randrange(8)] = drawn.randrange(256)
            if not text:
                break
        path = tmp_path / str(number)
        path.write_bytes(text)
        paths.append(path)
    passed = 0
    for path, line in zip(paths, read(*paths), strict=True):
        try:
            right = expected(path)
        except (safetensors.SafetensorError, KeyError):
            assert line.startswith("no\t"), path
            continue
        if line.startswith("yes"):
            passed += 1
            assert line == right
    assert passed > 20  # changed data or metadata are as good as what was written
