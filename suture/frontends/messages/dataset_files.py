"""Where the files of the relational data sets come from, and how they get to a folder: each at a fixed commit, each checked by its SHA-256."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture.ir.errors import Code, SutureError
from suture.ir.files import replacing

_RAW = "https://raw.githubusercontent.com"
_SPLITS = f"{_RAW}/tkipf/relational-gcn/4bec1341dd46b72bf482f7ed26c2dca4533577f6/rgcn/data"
_OPENKE = f"{_RAW}/thunlp/OpenKE/64c4ec8157abfc39112772e9825a349091da45f1/benchmarks"
_PYKEEN = f"{_RAW}/pykeen/pykeen/05c7bbb20c952f3e5e958e694344ace4005b1bbb/src/pykeen/datasets"
_SECONDS = 60.0


@dataclass(frozen=True)
class Origin:
    """A file of a data set: its name in the folder, where it is published, and its SHA-256."""

    file: str
    address: str
    sha256: str


def _numbered(folder: str, train: str, valid: str, test: str) -> tuple[Origin, ...]:
    sums = {"train": train, "valid": valid, "test": test}
    return tuple(Origin(f"{part}2id.txt", f"{_OPENKE}/{folder}/{part}2id.txt", each) for part, each in sums.items())


def _named(folder: str, train: str, valid: str, test: str) -> tuple[Origin, ...]:
    sums = {"train": train, "valid": valid, "test": test}
    return tuple(Origin(f"{part}.txt", f"{_PYKEEN}/{folder}/{part}.txt", each) for part, each in sums.items())


def _rdf(name: str, graph: str, complete: str, train: str, test: str, triples: str) -> tuple[Origin, ...]:
    sums = {"completeDataset.tsv": complete, "trainingSet.tsv": train, "testSet.tsv": test}
    splits = tuple(Origin(file, f"{_SPLITS}/{name}/{file}", each) for file, each in sums.items())
    return (Origin(f"{name}_stripped.nt.gz", f"{_RAW}/{graph}/data/{name}/{name}_stripped.nt.gz", triples), *splits)


ORIGINS: dict[str, tuple[Origin, ...]] = {
    "aifb": _rdf(
        "aifb", "pbloem/gated-rgcn/44d9324f9a6821fb12dcea98f669ed0aa6ab401b",
        complete="8c758d2dda7e720e2a75c4fd3cc876ddd9bb16226b979aae630737260ff5a8a7",
        train="4960629668c6548215871321e4b6daaee24191f38f41ccfbc4de62016d18c5a7",
        test="abe4a9e7c393164996d1fe7250d72ec1f1a7b350583f2dff5d880f60ec04b3b6",
        triples="ba4191235456e09d8f12a2415f24273b8d7641ffee6001ca9340f02c04d77fea",
    ),
    "mutag": _rdf(
        "mutag", "alexanderdesouza/latent-GCN/9a3b70966ae041f41105315ca4fc55e13af89681",
        complete="d81b169a2f3d88b750dd5717062b58f2088fedda1b806e8d5f74373407933e71",
        train="d2fe71b68bb25735465128b4aed50d9b165fa5ab92aa2e221fad3d1cd87b7297",
        test="20e69309a037cbf0fb2b52be3eaa6c43888215cbc0b96e8f8bd9e2af55652a3f",
        triples="871f24a766fd377f0adf995f50aea70fd03e4997c6051b3abff3384c08e56ac7",
    ),
    "fb15k237": _numbered(
        "FB15K237",
        "5f44223a02b39b8e398e77a787feb4f06e9ffccf1ae87047bbf38fcc8cc08bd2",
        "7d21e778de4369d5348f5cff23a08dc847ab5fce4b5f07c80113297d2dc60a86",
        "6027e649c1716ac9c1ef2f24672a416aa277aff3e14850ef915ac5a21df70417",
    ),
    "wn18": _numbered(
        "WN18",
        "1bcaff005ba0a5cdd9f9f9982812ac9a0750a84989b4335a50e4c93e13d158c0",
        "86cf1437161c5982b9a9ef26d5f8400161a700aa4b3350a6c347d508369a9cc6",
        "ab06e417090ba904b98796d72fa72c3a5d00241639a849859b2b458074e16ba6",
    ),
    "wn18rr": _numbered(
        "WN18RR",
        "5bc06b8ff99cc6792a4fb455371de3b2ea7d5564d4da8e8ea34cdc81d70fd013",
        "5cf2dc67befb085ff06677440845bac6f12b20238d2bd49eb5b158c30d718725",
        "3a0017f54a2c375922e44433e4ffe65a88b633efaf7aa6cf570c02648c60c38d",
    ),
    "umls": _named(
        "umls",
        "873ef4925516b83e7f6f8cc02b4be51d848828710a7f65a956f0ac4a9e452f35",
        "025c98f8a4891e2a6582ec5b40ee0d904031edad9c52554522f4b7904820c98e",
        "a7eb529a3d2810fcc96341ccc97c625a5e202f8389673aa6bd317eeebbb79014",
    ),
    "kinships": _named(
        "kinships",
        "738612111a6acf0e39662bde24c7e72a4d1edf20931beea077da367dda689731",
        "c56f8630a583178b1e569f11a64aa535ae1ce0b0912d8b1e24716be2b37f04da",
        "05e5733265761d55be9c05bfaff5a8d0808df46f9c1e9d66cc3f2fe114e43d88",
    ),
    "nations": _named(
        "nations",
        "0830fa9da8e5bba2ccdaa45b7bdc9130451ba66b09ff2708f35fccaf82473e57",
        "2b337a62e51a2f45c283eac98a70d21b7e0e102136be1539b2a52c652a7b0530",
        "3971085165b47b6aeaec68058c6d8d98b3005e929db81268410b95ae4db770ab",
    ),
}  # fmt: skip


def download(name: str, folder: Path) -> None:
    """Bring a data set's files into a folder; those that are there already stay.

    A file appears under its name only once it is whole and its checksum is right.

    :raises SutureError: FILE: a site cannot be reached, or sends other bytes than were published; WRITE: the folder cannot be written
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SutureError(Code.WRITE, f"cannot make the folder: {error}", where=str(folder)) from error
    for origin in ORIGINS[name]:
        target = folder / origin.file
        if not target.exists():
            _download(origin, target)


def _download(origin: Origin, target: Path) -> None:
    try:
        with urllib.request.urlopen(origin.address, timeout=_SECONDS) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        remedy = f"put the file at {target} by hand"
        raise SutureError(Code.FILE, f"no answer: {error}", where=origin.address, remedy=remedy) from error
    found = hashlib.sha256(content).hexdigest()
    if found != origin.sha256:
        what = f"the SHA-256 is {found}, published was {origin.sha256}"
        raise SutureError(
            Code.FILE, what, where=origin.address, remedy="the file has changed or was cut short; nothing was kept"
        )
    with replacing(target) as part:
        part.write_bytes(content)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read arrays of numbers or text from an .npz file; nothing that is pickled is ever loaded.

    :param names: the arrays that must be there
    :raises SutureError: FILE: the file is not readable, cut short, or lacks an array; PICKLE: an array would need pickle
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays.files]
            if missing:
                raise SutureError(
                    Code.FILE,
                    f"there is no array {missing[0]!r}",
                    where=str(path),
                    remedy=f"it has {sorted(arrays.files)}",
                )
            return {name: arrays[name] for name in names}
    except ValueError as error:
        if "pickle" in str(error):
            what = "an array of Python objects, which would run code when loaded"
            raise SutureError(
                Code.PICKLE, what, where=str(path), remedy="store arrays of numbers or of fixed-length text"
            ) from error
        raise SutureError(Code.FILE, f"not a readable .npz file: {error}", where=str(path)) from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise SutureError(Code.FILE, f"not a readable .npz file: {error}", where=str(path)) from error
