"""Parameters that a pass left unread."""

from __future__ import annotations

from collections.abc import Collection

from suture.ir.graph import Graph, Parameter


def read_names(graph: Graph) -> set[str]:
    """The names of the parameters that something reads, or that the graph returns."""
    return {name for name, parameter in graph.parameters.items() if _is_read(parameter)}


def drop_unread(graph: Graph, read_before: Collection[str]) -> None:
    """Remove the parameters that were read and no longer are, and the counters of modules of which nothing is read any more."""
    live = {_module(parameter.name) for parameter in graph.parameters.values() if _is_read(parameter)}
    abandoned = {_module(name) for name in read_before} - live
    for parameter in list(graph.parameters.values()):
        if not _is_read(parameter) and (parameter.name in read_before or _module(parameter.name) in abandoned):
            graph.remove_parameter(parameter)


def _is_read(parameter: Parameter) -> bool:
    return bool(parameter.uses) or parameter.is_graph_output()


def _module(name: str) -> str:
    return name.rpartition(".")[0]
