"""Which nodes of a graph a symmetry is asked for, by module path."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter


def chosen(nodes: Iterable[Node], at: tuple[str, ...] | None, what: str) -> list[Node]:
    """The nodes at some module paths; all if no pattern is given.

    :raises SutureError: SITE, if a pattern matches none of them
    """
    sites = list(nodes)
    if at is None:
        return sites
    paths = {node.path for node in sites}
    for pattern in at:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no {what}", remedy=nearest(pattern, paths, what="module")
            )
    return [node for node in sites if any(fnmatch.fnmatchcase(node.path, pattern) for pattern in at)]


def read_parameters(graph: Graph) -> set[str]:
    """The names of the parameters that something reads."""
    return {name for name, parameter in graph.parameters.items() if _is_read(parameter)}


def drop_unread(graph: Graph, names: Iterable[str]) -> None:
    """Remove those of the parameters that nothing reads any more."""
    for name in sorted(names):
        if name in graph.parameters and not _is_read(graph.parameters[name]):
            graph.remove_parameter(graph.parameters[name])


def _is_read(parameter: Parameter) -> bool:
    return bool(parameter.uses) or parameter.is_graph_output()
