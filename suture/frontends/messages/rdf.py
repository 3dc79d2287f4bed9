"""AIFB and MUTAG from their RDF files, as typed graphs.

The conventions are those of DGL's `dgl.data.rdf` data sets, so that figures compare: an edge type is (source type, predicate, destination type),
every edge has a reverse with its own type, the predicates that would tell the label are left out. AIFB keeps literals as nodes of type `_Literal`;
blank nodes are left out of both.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from suture.ir.errors import Code, SutureError

LITERAL, SCHEMA = "_Literal", "SCHEMA"
_TRIPLE = re.compile(r'^\s*(<[^>]*>|_:\S+)\s+<([^>]*)>\s+(<[^>]*>|_:\S+|"(?:[^"\\]|\\.)*"\S*)\s*\.\s*$')
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_AIFB = "http://www.aifb.uni-karlsruhe.de/"
_MUTAG = "http://dl-learner.org/carcinogenesis#"


class Node(NamedTuple):
    """An RDF term as a node: its type, or nothing while that is open, and its name within the type."""

    type: str | None
    name: str


class Triple(NamedTuple):
    """Subject, predicate and object as they stand in the file."""

    subject: str
    predicate: str
    object: str


@dataclass(frozen=True)
class TypedGraph:
    """A graph by names: nodes sorted by type, edges with their reverses."""

    node_types: list[str]
    edge_types: list[tuple[str, str, str]]
    nodes: list[tuple[str, str]]
    node_type: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    type: np.ndarray


def read_triples(path: Path) -> Iterator[Triple]:
    """Read a gzipped N-Triples file, each triple once.

    :raises SutureError: FILE: the file is cut short, no gzip file, or has a line that is no triple
    """
    seen: set[Triple] = set()
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                found = _TRIPLE.match(line)
                if found is None:
                    raise SutureError(Code.FILE, "a line that is no RDF triple", where=f"{path}:{number}")
                triple = Triple(*found.groups())
                if triple not in seen:
                    seen.add(triple)
                    yield triple
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SutureError(Code.FILE, f"not a readable gzip file: {error}", where=str(path)) from error


def read_typed_graph(path: Path, name: str) -> TypedGraph:
    """Read AIFB's or MUTAG's triples as a typed graph.

    :param name: aifb or mutag
    :raises SutureError: FILE: what `read_triples` raises
    """
    return _number(_CONVENTIONS[name](read_triples(path)))


def aifb_node(term: str) -> Node | None:
    """The node that an IRI or literal of AIFB is: its type is the concept in the address."""
    if term.startswith('"'):
        return Node(LITERAL, _literal(term))
    if not term.startswith(f"<{_AIFB}"):
        return None
    parts = term[1:-1].split("/")
    return Node(parts[3], parts[5]) if len(parts) > 5 else None


def mutag_node(term: str) -> Node | None:
    """The node that an IRI or literal of MUTAG is; the type of a concept follows from the predicate that names it."""
    if term.startswith('"'):
        return Node(LITERAL, _literal(term))
    if not term.startswith(f"<{_MUTAG}"):
        return None
    name = term[1:-1].removeprefix(_MUTAG)
    kind = "d" if re.match("d[0-9]", name) else "bond" if re.match("bond[0-9]", name) else None
    return Node(kind, name)


def _literal(term: str) -> str:
    """A literal's text: without quotes, language and data type, its escapes read."""
    return _ESCAPE.sub(_unescape, term[1 : term.rindex('"')])


def _unescape(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    return chr(int(code, 16)) if code else _LETTERS.get(found[3], found[3])


def _aifb_edges(triples: Iterable[Triple]) -> Iterator[tuple[Node, str, Node]]:
    for triple in triples:
        predicate = triple.predicate.removeprefix("http://swrc.ontoware.org/").rsplit("/", 1)[-1]
        if predicate in ("ontology#employs", "ontology#affiliation"):  # would tell the label
            continue
        subject, thing = aifb_node(triple.subject), aifb_node(triple.object)
        if subject is not None and thing is not None:
            yield subject, predicate, thing


def _mutag_edges(triples: Iterable[Triple]) -> Iterator[tuple[Node, str, Node]]:
    for triple in triples:
        subject, thing = mutag_node(triple.subject), mutag_node(triple.object)
        own = triple.predicate.startswith(_MUTAG)
        predicate = triple.predicate.removeprefix(_MUTAG) if own else triple.predicate.rsplit("/", 1)[-1]
        if subject is None or thing is None or predicate == "isMutagenic":
            continue
        if not own:  # the schema's own predicates: what they point to is schema
            thing = thing._replace(type=SCHEMA)
            subject = subject if subject.type else subject._replace(type=SCHEMA)
        yield subject._replace(type=subject.type or SCHEMA), predicate, thing._replace(type=thing.type or predicate)


_CONVENTIONS: dict[str, Callable[[Iterable[Triple]], Iterator[tuple[Node, str, Node]]]] = {
    "aifb": _aifb_edges,
    "mutag": _mutag_edges,
}


def _number(edges: Iterable[tuple[Node, str, Node]]) -> TypedGraph:
    """Give numbers: node types and edge types by name, nodes by type and then as they appear; add the reverses."""
    found = list(edges)
    seen = dict.fromkeys(node for subject, _, thing in found for node in (subject, thing))
    nodes = sorted(((node.type or "", node.name) for node in seen), key=lambda node: node[0])
    node_types = sorted({kind for kind, _ in nodes})
    number = {node: place for place, node in enumerate(nodes)}
    kinds = [(subject.type or "", predicate, thing.type or "") for subject, predicate, thing in found]
    forward = sorted(set(kinds))
    kind_number = {kind: place for place, kind in enumerate(forward)}
    src = np.array([number[subject.type or "", subject.name] for subject, _, _ in found], dtype=np.int64)
    dst = np.array([number[thing.type or "", thing.name] for _, _, thing in found], dtype=np.int64)
    kind = np.array([kind_number[each] for each in kinds], dtype=np.int64)
    backward = [(target, f"rev-{predicate}", source) for source, predicate, target in forward]
    return TypedGraph(
        node_types=node_types,
        edge_types=forward + backward,
        nodes=nodes,
        node_type=np.array([node_types.index(kind) for kind, _ in nodes], dtype=np.int64),
        src=np.concatenate([src, dst]),
        dst=np.concatenate([dst, src]),
        type=np.concatenate([kind, kind + len(forward)]),
    )
