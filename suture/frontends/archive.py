"""Saved graphs: one safetensors file whose metadata holds the graph's text.

The tensors stand under their parameters' names, so any reader of safetensors can use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suture.frontends.checkpoint import load_weights, read_metadata, save_weights
from suture.ir.errors import Code, SutureError

if TYPE_CHECKING:
    from suture.ir.graph import Graph

SUFFIX = ".suture-graph"
_TEXT = "suture.graph"
_FORMAT = "suture.format"
_VERSION = "1"


def save_graph(graph: Graph, path: str | Path) -> None:
    """Write a graph and its tensors; the file appears whole or not at all.

    :raises SutureError: WRITE
    """
    tensors = {name: parameter.data for name, parameter in graph.parameters.items()}
    save_weights(path, tensors, {_FORMAT: _VERSION, _TEXT: str(graph)})


def load_graph(path: str | Path, *, weights: bool = True) -> Graph:
    """Read a saved graph.

    :param weights: read the tensors; without them, parameters lie on the meta device and only the header is read
    :raises SutureError: FILE, CHECKPOINT or TEXT
    """
    from suture.ir.text import parse_graph

    path = Path(path)
    metadata = read_metadata(path)
    if _TEXT not in metadata:
        raise SutureError(
            Code.CHECKPOINT, "the file holds no graph", where=str(path), remedy="give one that 'save' wrote"
        )
    if metadata.get(_FORMAT) != _VERSION:
        what = f"the file has format {metadata.get(_FORMAT)}"
        raise SutureError(Code.CHECKPOINT, what, where=str(path), remedy=f"this release reads format {_VERSION}")
    return parse_graph(metadata[_TEXT], load_weights(path) if weights else None, file=str(path))
