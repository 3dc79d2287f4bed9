"""The data sets that relational networks are compared on, from a folder or from their own sites.

AIFB and MUTAG are typed graphs with a node classification task and its published split; FB15k-237, WN18, WN18RR, UMLS, Kinships and Nations
are knowledge graphs whose edges are split for link prediction. A prepared `graph_dgl.npz` or `graph.npz` in the folder is read as it is; otherwise
the published files are. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from suture.frontends.messages.dataset_files import ORIGINS, download, read_arrays
from suture.frontends.messages.rdf import aifb_node, mutag_node, read_typed_graph
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.files import cache_folder

if TYPE_CHECKING:
    from suture.frontends.messages.graph import MessageGraph

_PREPARED = "graph_dgl.npz", "graph.npz"
_CLASSIFIED = {"aifb": ("person", "label_affiliation", aifb_node), "mutag": ("bond", "label_mutagenic", mutag_node)}


@dataclass(frozen=True)
class Task:
    """Nodes with their classes, split as published."""

    classes: tuple[str, ...]
    train_nodes: Tensor
    train_labels: Tensor
    test_nodes: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class RelationalData:
    """A typed graph, as int64 arrays over edges and nodes.

    :param node_type: one number per node; all zero where nodes have no types
    :param node_types: the types' names, if they have any
    :param edge_types: (source type, name, destination type) of each relation, if they have names
    :param split: 0 training, 1 validation, 2 test, one per edge; for link prediction
    :param task: for node classification
    """

    name: str
    src: Tensor
    dst: Tensor
    type: Tensor
    num_nodes: int
    num_types: int
    node_type: Tensor
    num_node_types: int
    node_types: tuple[str, ...] = ()
    edge_types: tuple[tuple[str, str, str], ...] = ()
    split: Tensor | None = None
    task: Task | None = None

    def graph(self) -> MessageGraph:
        """The edges as a graph that relational programs run on."""
        from suture.frontends.messages.graph import MessageGraph

        return MessageGraph(
            self.src, self.dst, self.type, num_nodes=self.num_nodes, num_types=self.num_types,
            node_type=self.node_type, num_node_types=self.num_node_types,
        )  # fmt: skip

    def part(self, name: Literal["train", "valid", "test"]) -> RelationalData:
        """The edges of one part of a knowledge graph's split.

        :raises SutureError: INPUT: the data set has no split of its edges
        """
        if self.split is None:
            what = f"{self.name} has no split of its edges"
            raise SutureError(Code.INPUT, what, remedy="its task is node classification: see .task")
        kept = self.split == ("train", "valid", "test").index(name)
        return replace(self, src=self.src[kept], dst=self.dst[kept], type=self.type[kept], split=self.split[kept])

    def with_reverses(self) -> RelationalData:
        """Every edge in the other direction too, as a relation of its own: type t has the reverse t + number of types."""
        backward = tuple((target, f"rev-{name}", source) for source, name, target in self.edge_types)
        return replace(
            self,
            src=torch.cat([self.src, self.dst]),
            dst=torch.cat([self.dst, self.src]),
            type=torch.cat([self.type, self.type + self.num_types]),
            num_types=2 * self.num_types,
            edge_types=self.edge_types + backward,
            split=None if self.split is None else self.split.repeat(2),
        )

    @property
    def edge_index(self) -> Tensor:
        """Sources and destinations as PyTorch Geometric has them, [2, edges]."""
        return torch.stack([self.src, self.dst])

    def __str__(self) -> str:
        """One line: name and sizes."""
        nodes = f"{self.num_nodes:,} nodes of {self.num_node_types} types"
        return f"{self.name}: {nodes}, {len(self.src):,} edges of {self.num_types} types"


def load(name: str, folder: str | Path | None = None) -> RelationalData:
    """Load a data set: aifb, mutag, fb15k237, wn18, wn18rr, umls, kinships or nations.

    :param folder: holds the files, or a folder of the data set's name that does; without one, the data set is downloaded to the user's
        cache from where it is published, once, every file checked by its SHA-256
    :raises SutureError: INPUT: no data set of that name; FILE: files missing, cut short or not what they should be, or a site that does not answer;
        PICKLE: an array that would need pickle
    """
    if name not in ORIGINS:
        raise SutureError(Code.INPUT, f"no data set {name!r}", remedy=nearest(name, ORIGINS, what="data set"))
    if folder is None:
        place = cache_folder("relational") / name
        download(name, place)
    else:
        place = _find(name, Path(folder).expanduser())
    prepared = next((place / file for file in _PREPARED if (place / file).is_file()), None)
    if name in _CLASSIFIED:
        return _classified(name, place, prepared)
    return _checked(_knowledge(name, place) if prepared is None else _prepared_knowledge(name, prepared))


def _find(name: str, folder: Path) -> Path:
    """The folder that holds the files: the one given, or the one of the data set's name in it."""
    wanted = [origin.file for origin in ORIGINS[name]]
    for place in (folder / name, folder):
        tables = name not in _CLASSIFIED or all((place / file).is_file() for file in wanted[1:])
        if tables and any((place / file).is_file() for file in (*_PREPARED, wanted[0])):
            return place
    remedy = f"it needs {', '.join(wanted)} or {_PREPARED[name not in _CLASSIFIED]}; load({name!r}) downloads them"
    raise SutureError(Code.FILE, f"no files of {name} here", where=str(folder), remedy=remedy)


def _knowledge(name: str, folder: Path) -> RelationalData:
    """A knowledge graph from one file per part of the split: three numbers, or three names, a line."""
    numbered = ORIGINS[name][0].file.endswith("2id.txt")
    files = [folder / origin.file for origin in ORIGINS[name]]
    parts = [_numbers(file) if numbered else _names(file) for file in files]
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate(parts)
    if numbered:
        src, dst, kind = rows.T
    else:
        src, kind, dst = rows.T
        both = np.unique(np.concatenate([src, dst]), return_inverse=True)[1]
        src, dst, kind = both[: len(src)], both[len(src) :], np.unique(kind, return_inverse=True)[1]
    arrays = {"src": src, "dst": dst, "rel": kind, "split": split}
    return _knowledge_data(name, arrays, int(max(src.max(), dst.max())) + 1)


def _numbers(path: Path) -> np.ndarray:
    """Source, destination and relation of every line after the first, which says how many there are."""
    try:
        content = np.array(path.read_text(encoding="utf-8").split(), dtype=np.int64)
    except (OSError, ValueError) as error:
        raise SutureError(Code.FILE, f"not a readable list of triples: {error}", where=str(path)) from error
    if not content.size or content.size != 1 + 3 * content[0]:
        what = f"{content.size} numbers, where the first should say how many triples follow"
        raise SutureError(Code.FILE, what, where=str(path), remedy="the file was cut short")
    return content[1:].reshape(-1, 3)


def _names(path: Path) -> np.ndarray:
    """Subject, relation and object of every line."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise SutureError(Code.FILE, f"not a readable list of triples: {error}", where=str(path)) from error
    wrong = next((place for place, row in enumerate(rows, 1) if len(row) != 3), None)
    if wrong or not rows:
        raise SutureError(
            Code.FILE, "a line that is no triple" if wrong else "no triples", where=f"{path}:{wrong or 1}"
        )
    return np.array(rows)


def _prepared_knowledge(name: str, path: Path) -> RelationalData:
    arrays = read_arrays(path, ("src", "dst", "rel", "split", "ntype"))
    return _knowledge_data(name, arrays, len(arrays["ntype"]))


def _knowledge_data(name: str, arrays: dict[str, np.ndarray], nodes: int) -> RelationalData:
    kind = arrays["rel"]
    return RelationalData(
        name, _tensor(arrays["src"]), _tensor(arrays["dst"]), _tensor(kind), nodes, int(kind.max(initial=-1)) + 1,
        torch.zeros(nodes, dtype=torch.int64), 1, split=_tensor(arrays["split"]),
    )  # fmt: skip


def _classified(name: str, folder: Path, prepared: Path | None) -> RelationalData:
    """A typed graph and the classes of some of its nodes."""
    if prepared is None:
        graph = read_typed_graph(folder / ORIGINS[name][0].file, name)
        node_types, edge_types = tuple(graph.node_types), tuple(graph.edge_types)
        nodes = [f"{kind}/{term}" for kind, term in graph.nodes]
        arrays = {"src": graph.src, "dst": graph.dst, "rel": graph.type, "ntype": graph.node_type}
    else:
        arrays = read_arrays(prepared, ("src", "dst", "rel", "ntype", "ntypes", "etypes", "ents"))
        node_types = tuple(map(str, arrays["ntypes"]))
        edge_types = tuple(_edge_type(str(each), prepared) for each in arrays["etypes"])
        nodes = list(map(str, arrays["ents"]))
    number = {node: place for place, node in enumerate(nodes)}
    data = RelationalData(
        name, _tensor(arrays["src"]), _tensor(arrays["dst"]), _tensor(arrays["rel"]), len(nodes), len(edge_types),
        _tensor(arrays["ntype"]), len(node_types), node_types, edge_types,
    )  # fmt: skip
    return _checked(replace(data, task=_task(name, folder, number)))


def _edge_type(text: str, path: Path) -> tuple[str, str, str]:
    parts = text.split("|")
    if len(parts) != 3:
        raise SutureError(
            Code.FILE, f"{text!r} is no edge type", where=str(path), remedy="write source|name|destination"
        )
    return parts[0], parts[1], parts[2]


def _task(name: str, folder: Path, number: dict[str, int]) -> Task:
    """The classes, numbered by name, of the nodes in the tables of the split."""
    rows = {file: _table(name, folder / file) for file in ("trainingSet.tsv", "testSet.tsv")}
    classes = sorted({label for table in rows.values() for _, label in table})
    found: list[Tensor] = []
    for file, table in rows.items():
        absent = next((node for node, _ in table if node not in number), None)
        if absent is not None:
            raise SutureError(Code.FILE, f"the graph has no node {absent!r}", where=str(folder / file))
        found.append(torch.tensor([number[node] for node, _ in table], dtype=torch.int64))
        found.append(torch.tensor([classes.index(label) for _, label in table], dtype=torch.int64))
    return Task(tuple(classes), *found)


def _table(name: str, path: Path) -> list[tuple[str, str]]:
    """Node and class of each line of a table of the split."""
    node_column, label_column, parse = _CLASSIFIED[name]
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for place, row in enumerate(csv.DictReader(file, delimiter="\t"), 2):
                node, label = parse(f"<{row.get(node_column)}>"), row.get(label_column)
                if node is None or not label:
                    what = f"no {node_column} or no {label_column} that could be read"
                    raise SutureError(Code.FILE, what, where=f"{path}:{place}")
                rows.append((f"{node.type}/{node.name}", label))
    except (OSError, UnicodeDecodeError) as error:
        raise SutureError(Code.FILE, f"not a readable table: {error}", where=str(path)) from error
    if not rows:
        raise SutureError(Code.FILE, "an empty table", where=str(path))
    return rows


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _checked(data: RelationalData) -> RelationalData:
    """The data, once edges, types and nodes fit each other.

    :raises SutureError: FILE: arrays of different lengths, or numbers out of range
    """
    edges = {len(each) for each in (data.src, data.dst, data.type, data.split) if each is not None}
    if len(edges) != 1:
        raise SutureError(Code.FILE, f"arrays over edges have the lengths {sorted(edges)}", where=data.name)
    bounds = (
        (data.src, data.num_nodes, "sources"), (data.dst, data.num_nodes, "destinations"),
        (data.type, data.num_types, "edge types"), (data.node_type, data.num_node_types, "node types"),
    )  # fmt: skip
    for each, limit, what in bounds:
        if len(each) and (int(each.min()) < 0 or int(each.max()) >= limit):
            found = f"{what} from {int(each.min())} to {int(each.max())}"
            raise SutureError(Code.FILE, f"{found}, where they should be below {limit}", where=data.name)
    return data
