"""Data sets for relational networks: read whole or refused with a reason, downloaded only with the right checksum, generated with the right sizes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from suture import Code, SutureError, relational
from suture.frontends.messages import dataset_files
from suture.frontends.messages.dataset_files import ORIGINS, Origin
from suture.frontends.messages.rdf import aifb_node, mutag_node, read_triples, read_typed_graph
from suture.frontends.messages.synthetic import SIZES, Sizes, synthetic

FOLDER = os.environ.get("SUTURE_RELATIONAL_DATA", "")
with_data = pytest.mark.skipif(not FOLDER, reason="SUTURE_RELATIONAL_DATA names no folder with the data sets")

PERSON = "http://www.aifb.uni-karlsruhe.de/Personen/viewPersonOWL/"
GROUP = "http://www.aifb.uni-karlsruhe.de/Forschungsgruppen/viewForschungsgruppeOWL/"
TERMS = "http://swrc.ontoware.org/ontology#"


def write_aifb(folder: Path) -> None:
    lines = [
        f"<{PERSON}id1instance> <{TERMS}worksWith> <{PERSON}id2instance> .",
        f"<{PERSON}id2instance> <{TERMS}worksWith> <{PERSON}id3instance> .",
        f"<{PERSON}id2instance> <{TERMS}worksWith> <{PERSON}id3instance> .",
        f'<{PERSON}id1instance> <{TERMS}name> "J\\u00FCrgen \\"J\\"."^^<http://www.w3.org/2001/XMLSchema#string> .',
        f"<{PERSON}id1instance> <{TERMS}affiliation> <{GROUP}id9instance> .",
        f"_:b1 <{TERMS}name> <{PERSON}id1instance> .",
    ]
    (folder / "aifb_stripped.nt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    head = "id\tperson\tlabel_affiliation\n"
    rows = [f"{place}\t{PERSON}id{place}instance\t{GROUP}id{place % 2}instance\n" for place in (1, 2, 3)]
    (folder / "completeDataset.tsv").write_text(head + "".join(rows))
    (folder / "trainingSet.tsv").write_text(head + "".join(rows[:2]))
    (folder / "testSet.tsv").write_text(head + rows[2])


def write_links(folder: Path) -> None:
    for file, rows in (("train", "2\n0 1 0\n1 2 1\n"), ("valid", "1\n2 0 0\n"), ("test", "1\n3 1 1\n")):
        (folder / f"{file}2id.txt").write_text(rows)


def refused(code: Code, *arguments: object) -> str:
    with pytest.raises(SutureError) as caught:
        relational.load(*arguments)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rdf_becomes_a_typed_graph_with_reverses_and_without_what_tells_the_label(tmp_path: Path) -> None:
    write_aifb(tmp_path)
    data = relational.load("aifb", tmp_path)
    assert data.node_types == ("Personen", "_Literal")
    assert data.num_nodes == 4
    assert data.edge_types[:2] == (
        ("Personen", "ontology#name", "_Literal"),
        ("Personen", "ontology#worksWith", "Personen"),
    )
    assert data.edge_types[2:] == (
        ("_Literal", "rev-ontology#name", "Personen"),
        ("Personen", "rev-ontology#worksWith", "Personen"),
    )
    forward, backward = data.edge_index.chunk(2, 1)
    assert torch.equal(forward, backward.flip(0))
    assert torch.bincount(data.type).tolist() == [1, 2, 1, 2]
    assert data.task is not None
    assert data.task.train_labels.tolist() == [1, 0]
    assert data.task.test_labels.tolist() == [1]
    assert len({*data.task.train_nodes.tolist(), *data.task.test_nodes.tolist()}) == 3


def test_literals_lose_quotes_and_data_type_and_keep_what_is_escaped() -> None:
    assert aifb_node('"a \\"b\\" \\u00FC"@en') == ("_Literal", 'a "b" ü')
    assert aifb_node("<http://www.w3.org/other>") is None
    assert mutag_node("<http://dl-learner.org/carcinogenesis#d12>") == ("d", "d12")
    assert mutag_node("<http://dl-learner.org/carcinogenesis#bond12>") == ("bond", "bond12")
    assert mutag_node("<http://dl-learner.org/carcinogenesis#Azide>") == (None, "Azide")


def test_a_line_that_is_no_triple_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.nt.gz"
    path.write_bytes(gzip.compress(b"<a> <b> <c> .\n<a> <b>\n"))
    with pytest.raises(SutureError, match=r"x\.nt\.gz:2"):
        list(read_triples(path))


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    write_aifb(tmp_path)
    path = tmp_path / "aifb_stripped.nt.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(Code.FILE, "aifb", tmp_path)


def test_a_node_of_the_split_that_the_graph_lacks_is_named(tmp_path: Path) -> None:
    write_aifb(tmp_path)
    (tmp_path / "testSet.tsv").write_text(f"id\tperson\tlabel_affiliation\n7\t{PERSON}id7instance\tx\n")
    assert "id7instance" in refused(Code.FILE, "aifb", tmp_path)


def test_numbered_triples_keep_their_split(tmp_path: Path) -> None:
    write_links(tmp_path)
    data = relational.load("fb15k237", tmp_path)
    assert data.edge_index.tolist() == [[0, 1, 2, 3], [1, 2, 0, 1]]
    assert data.split is not None
    assert data.split.tolist() == [0, 0, 1, 2]
    assert data.part("train").type.tolist() == [0, 1]
    assert data.with_reverses().type.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert (data.num_nodes, data.num_types) == (4, 2)


def test_named_triples_are_numbered_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "umls"
    folder.mkdir()
    for file, rows in (("train", "b\tr\ta\n"), ("valid", "a\tq\tc\n"), ("test", "c\tr\tb\n")):
        (folder / f"{file}.txt").write_text(rows)
    data = relational.load("umls", tmp_path)
    assert data.edge_index.tolist() == [[1, 0, 2], [0, 2, 1]]
    assert data.type.tolist() == [1, 0, 1]


@pytest.mark.parametrize("content", ["3\n0 1 0\n", "", "1\n0 1 x\n"])
def test_a_cut_list_is_refused(tmp_path: Path, content: str) -> None:
    write_links(tmp_path)
    (tmp_path / "valid2id.txt").write_text(content)
    refused(Code.FILE, "wn18", tmp_path)


def test_prepared_arrays_are_read_and_never_unpickled(tmp_path: Path) -> None:
    arrays = {name: np.array([0, 1]) for name in ("src", "dst", "rel", "split")}
    np.savez(tmp_path / "graph.npz", **arrays, ntype=np.zeros(3, dtype=np.int64))
    assert relational.load("wn18rr", tmp_path).num_nodes == 3
    np.savez(tmp_path / "graph.npz", **arrays, ntype=np.array([{}], dtype=object))
    refused(Code.PICKLE, "wn18rr", tmp_path)
    np.savez(tmp_path / "graph.npz", **arrays)
    assert "ntype" in refused(Code.FILE, "wn18rr", tmp_path)
    (tmp_path / "graph.npz").write_bytes(b"PK\x03\x04 cut short")
    refused(Code.FILE, "wn18rr", tmp_path)


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    arrays = {name: np.array([0, 5]) for name in ("src", "dst", "rel", "split")}
    np.savez(tmp_path / "graph.npz", **arrays, ntype=np.zeros(3, dtype=np.int64))
    assert "sources from 0 to 5" in refused(Code.FILE, "wn18", tmp_path)


def test_missing_files_and_unknown_names_say_what_is_wanted(tmp_path: Path) -> None:
    assert "train2id.txt" in refused(Code.FILE, "fb15k237", tmp_path)
    assert "'aifb'" in refused(Code.INPUT, "aifbs", tmp_path)


def test_a_data_set_without_a_split_says_so(tmp_path: Path) -> None:
    write_aifb(tmp_path)
    with pytest.raises(SutureError, match="no split of its edges"):
        relational.load("aifb", tmp_path).part("train")


def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, contents: dict[str, bytes]) -> list[str]:
    """The sites answer with these contents; what was asked for."""
    asked: list[str] = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        if address not in contents:
            raise urllib.error.URLError("no such host")
        return io.BytesIO(contents[address])

    monkeypatch.setattr(dataset_files.urllib.request, "urlopen", answer)
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path))
    return asked


def test_a_download_is_checked_kept_and_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_links(source)
    contents = {origin.address: (source / origin.file).read_bytes() for origin in ORIGINS["wn18"]}
    sums = [hashlib.sha256(each).hexdigest() for each in contents.values()]
    made = tuple(Origin(each.file, each.address, digest) for each, digest in zip(ORIGINS["wn18"], sums, strict=True))
    monkeypatch.setitem(ORIGINS, "wn18", made)
    asked = serve(monkeypatch, tmp_path, contents)
    assert relational.load("wn18").num_nodes == 4
    assert relational.load("wn18").num_nodes == 4
    assert len(asked) == 3
    assert {each.name for each in (tmp_path / "relational" / "wn18").iterdir()} == {each.file for each in made}


def test_other_bytes_than_published_are_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, tmp_path, {origin.address: b"1\n0 1 0\n" for origin in ORIGINS["wn18"]})
    assert "SHA-256" in refused(Code.FILE, "wn18")
    assert not list((tmp_path / "relational" / "wn18").iterdir())


def test_a_site_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, tmp_path, {})
    assert "no such host" in refused(Code.FILE, "kinships")


@pytest.mark.parametrize("name", SIZES)
def test_generated_graphs_have_the_published_sizes(name: str) -> None:
    sizes, scale = SIZES[name], 1.0 if SIZES[name].edges < 1e6 else 0.01
    data = synthetic(name, scale=scale)
    assert data.num_nodes == int(sum(sizes.nodes) * scale)
    assert abs(len(data.src) - sizes.edges * scale) <= 2
    assert (data.num_types, data.num_node_types) == (sizes.edge_types, sizes.node_types)
    for ends, place in ((data.src, 0), (data.dst, 2)):
        wanted = torch.tensor([data.node_types.index(kind[place]) for kind in data.edge_types])
        assert torch.equal(data.node_type[ends], wanted[data.type])
    assert int(torch.bincount(data.type, minlength=data.num_types).min()) > 0


def test_generated_graphs_repeat_and_are_skewed() -> None:
    sizes = Sizes((4000,), 4, 30_000, 20, True, 1.5, 0.7, "none")
    first, again, other = (synthetic(sizes, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.edge_index, again.edge_index)
    assert not torch.equal(first.edge_index, other.edge_index)
    relations, degrees = torch.bincount(first.type).double(), torch.bincount(first.dst).double()
    assert relations.max() > 4 * relations.median()
    assert degrees.max() > 20 * degrees.mean()


def test_a_scale_that_leaves_too_little_is_refused() -> None:
    for scale in (0.0, 1.5, 1e-6):
        with pytest.raises(SutureError) as caught:
            synthetic("aifb", scale=scale)
        assert caught.value.code is Code.INPUT


@with_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [("aifb", (7_262, 48_810, 104, 7)), ("mutag", (27_163, 148_100, 50, 5)), ("fb15k237", (14_541, 310_116, 237, 1)),
     ("wn18", (40_943, 151_442, 18, 1)), ("umls", (135, 6_529, 46, 1))],
)  # fmt: skip
def test_real_data_have_the_published_counts(name: str, counts: tuple[int, ...]) -> None:
    data = relational.load(name, FOLDER)
    assert (data.num_nodes, len(data.src), data.num_types, data.num_node_types) == counts
    if data.task is not None:
        assert (len(data.task.train_nodes), len(data.task.test_nodes)) == {"aifb": (140, 36), "mutag": (272, 68)}[name]


@with_data
@pytest.mark.parametrize("name", ["aifb", "mutag"])
def test_the_published_file_has_the_prepared_edges(name: str) -> None:
    found = read_typed_graph(Path(FOLDER) / name / ORIGINS[name][0].file, name)
    data = relational.load(name, FOLDER)
    counts = [np.sort(np.unique(each, return_counts=True)[1]) for each in (found.type, data.type.numpy())]
    assert np.array_equal(*counts)
    degrees = [np.sort(np.bincount(each)) for each in (found.dst, data.dst.numpy())]
    assert np.array_equal(*degrees)
    assert sorted(found.node_types) == sorted(data.node_types)
    for origin in ORIGINS[name]:
        content = (Path(FOLDER) / name / origin.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == origin.sha256
