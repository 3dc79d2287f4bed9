"""A region with the tensors of another that is like it: between two models of one architecture, or within one model."""

from __future__ import annotations

from suture.ir.errors import Code, SutureError
from suture.ir.extracting import extract
from suture.ir.grafting import free_parameter_name
from suture.ir.graph import Graph, Parameter
from suture.ir.regions import Region, correspondence, difference


def require_alike(own: Region, other: Region, *, other_name: str = "") -> None:
    """:raises SutureError: REGION, naming the first difference, if two regions are not isomorphic"""
    found = difference(own, other)
    if found is not None:
        called = f"{other.name} of {other_name}" if other_name else other.name
        raise SutureError(
            Code.REGION, f"{called} is not like {own.name}: {found}", where=own.graph.name,
            remedy="regions of the same structure and sizes would be right",
        )  # fmt: skip


def piece_with(own: Region, other: Region) -> Graph:
    """A region as a graph of its own, with its own names, but the tensors of another region that is like it.

    :raises SutureError: REGION, naming the first difference, if they are not isomorphic
    """
    pairs = correspondence(own, other).parameters
    piece = extract(own)
    for mine, theirs in pairs.items():
        assert isinstance(mine, Parameter)
        piece.parameters[mine.name].assign(theirs.data)
        piece.parameters[mine.name].requires_grad = theirs.requires_grad
    return piece


def transplant(own: Region, other: Region) -> None:
    """Give a region, in place, the tensors of a region of another graph that is like it. The tensors are shared, not copied.

    A tensor that something outside of the region reads too stays there as it is; the region gets one of its own, under the further name that the
    tied tensor had inside of it if it had one.

    :raises SutureError: REGION, naming the first difference, if they are not isomorphic
    """
    for mine, theirs in correspondence(own, other).parameters.items():
        if all(use.node in own.members for use in mine.uses):
            mine.assign(theirs.data)
            mine.requires_grad = theirs.requires_grad
        else:
            _separate(own, mine, theirs)


def _separate(own: Region, mine: Parameter, theirs: Parameter) -> None:
    inner = [name for name in mine.aliases if name.startswith(own.name + ".")]
    mine.aliases = tuple(name for name in mine.aliases if name not in inner[:1])
    fresh = own.graph.add_parameter(
        inner[0] if inner else free_parameter_name(own.graph, mine.name), theirs.data, mine.role,
        requires_grad=theirs.requires_grad, persistent=mine.persistent,
    )  # fmt: skip
    for node, index in mine.uses:
        if node in own.members:
            node.replace_input(index, fresh)


def tie(own: Region, other: Region) -> int:
    """Let a region, in place, train the tensors of a region of the same graph that is like it; returns how many elements are saved.

    Parameters become one, under both names. Buffers (running statistics) and constants stay each region's own: they describe what a region sees.

    :raises SutureError: REGION, naming the first difference, if they are not isomorphic
    """
    graph, saved = own.graph, 0
    for mine, kept in correspondence(own, other).parameters.items():
        if mine is kept or mine.role != "parameter":
            continue
        for node, index in mine.uses:
            if node in own.members:
                node.replace_input(index, kept)
        if not mine.uses and not mine.is_graph_output():
            kept.aliases = (*kept.aliases, mine.name, *mine.aliases)
            saved += mine.data.numel()
            graph.remove_parameter(mine)
    return saved
