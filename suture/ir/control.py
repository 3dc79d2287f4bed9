"""Conditional execution: a region that runs only where a predicate holds, and a choice between two pieces.

The bodies of a branch have no parameters: what they read, weights included, are operands of the node, so that the weights stay the graph's own.
These functions edit the graph in place, and check the types at the seam before they touch anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from suture.ir.bodies import body_of_graph, body_of_nodes
from suture.ir.errors import Code, SutureError
from suture.ir.grafting import Rename, copy_parameter, graft, keep_name, require_output_types
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.paths import common_path
from suture.ir.regions.cuts import ancestors
from suture.ir.regions.region import Region
from suture.ir.types import TensorType

PREDICATE = TensorType(torch.bool, ())


def guard(region: Region, predicate: Value, *, instead: Value | None = None) -> Value:
    """Let a region run only where the predicate holds; elsewhere the stream passes by it.

    The region becomes one node, whose result has the name of the region's output. Its parameters stay the graph's own.

    :param predicate: bool[], made without the region
    :param instead: another value to give elsewhere, made without the region
    :returns: the result of the branch
    :raises SutureError: SEAM, if the region does not keep the type of its stream, or the predicate is none; REGION, if there is not one output or
        nothing flows in
    """
    entry, exit = instead or region.entry, region.output
    if entry.type != exit.type:
        raise SutureError(
            Code.SEAM, f"{region.name} takes {entry.type} and gives {exit.type}", where=region.graph.name,
            remedy="a region that keeps the type of its stream can be passed by",
        )  # fmt: skip
    _require_predicate(predicate)
    for value in (predicate, entry):
        if region.members & ancestors(value):
            raise SutureError(
                Code.SEAM, f"{value} is made by the region", where=region.name, remedy="take one from outside"
            )
    graph = region.graph
    operands = list(dict.fromkeys([*region.inputs, entry, *_parameters_read(region.nodes)]))
    then = body_of_nodes(region.name, region.nodes, operands, [exit])
    otherwise = body_of_nodes("skip", (), operands, [entry])
    path = common_path(node.path for node in region.nodes)
    branch = graph.add("branch", [predicate, *operands], {"then": then, "otherwise": otherwise}, path=path)
    graph.replace_uses(exit, branch.output)
    name = exit.name
    for node in reversed(region.nodes):
        graph.remove(node)
    graph.rename_result(branch.output, name)
    graph.sort()
    return branch.output


def choose(
    graph: Graph,
    predicate: Value,
    then: Graph,
    otherwise: Graph,
    operands: Sequence[Value],
    *,
    rename: Rename = keep_name,
    path: str = "",
    name: str | Sequence[str] | None = None,
    before: Node | None = None,
) -> tuple[Value, ...]:
    """Compute one of two pieces where the predicate says which.

    Both take the operands, in order, and return the same types. Their parameters become the graph's: one whose new name is taken by the same tensor
    becomes one with it, one whose name is taken by another tensor gets a number.

    :param predicate: bool[]; `then` runs where it holds
    :param before: the node to insert in front of; at the end if None
    :returns: the results of the branch
    :raises SutureError: SEAM, if the pieces do not take the operands or do not return the same types
    """
    _require_predicate(predicate)
    fitted_pieces = [_fitted(piece, operands) for piece in (then, otherwise)]
    require_output_types(otherwise, operands, fitted_pieces[0].outputs)
    held: dict[Parameter, None] = {}
    pieces: list[tuple[Graph, dict[Value, Value]]] = []
    for fitted in fitted_pieces:
        chosen: dict[Value, Value] = dict(zip(fitted.inputs, operands, strict=True))
        for parameter in fitted.parameters.values():
            chosen[parameter] = adopted = _adopt(graph, parameter, rename)
            if parameter.uses or parameter.is_graph_output():
                held[adopted] = None
        pieces.append((fitted, chosen))
    read: list[Value] = [*operands, *held]
    bodies = [body_of_graph(piece, read, chosen) for piece, chosen in pieces]
    node = graph.add(
        "branch", [predicate, *read], {"then": bodies[0], "otherwise": bodies[1]}, path=path, name=name, before=before
    )
    return node.outputs


def _require_predicate(predicate: Value) -> None:
    if predicate.type != PREDICATE:
        raise SutureError(
            Code.SEAM, f"the predicate {predicate} is {predicate.type}", where=predicate.graph.name,
            remedy="bool[] would be right",
        )  # fmt: skip


def _parameters_read(nodes: Iterable[Node]) -> list[Value]:
    return list(dict.fromkeys(v for node in nodes for v in node.inputs if isinstance(v, Parameter)))


def _fitted(piece: Graph, operands: Sequence[Value]) -> Graph:
    """The piece with its symbolic sizes as the operands have them."""
    fitted = Graph(piece.name)
    inputs = [fitted.add_input(value.name, value.type) for value in operands]
    fitted.set_outputs(graft(fitted, piece, inputs), piece.output_names)
    return fitted


def _adopt(graph: Graph, parameter: Parameter, rename: Rename) -> Parameter:
    held = graph.parameters.get(rename(parameter.name))
    if held is not None and held.data is parameter.data:
        return held
    return copy_parameter(graph, parameter, rename)
