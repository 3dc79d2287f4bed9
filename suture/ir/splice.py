"""The vocabulary of depth surgery: take a region out, put one in, replace, remove, repeat and join regions.

`extract` and `join` give new graphs. The others edit the graph that a region belongs to, in place, and check the types at the seam before they touch
anything; a pass works on a copy. After an edit, regions must be found again.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.arranging import arrange, rearrange, repeat
from suture.ir.errors import Code, SutureError
from suture.ir.extracting import extract
from suture.ir.grafting import Readers, Rename, erase, graft, keep_name, places_of, put_in_place, require_output_types
from suture.ir.graph import Graph, Value
from suture.ir.joining import join
from suture.ir.regions import Region

__all__ = [
    "Rename", "arrange", "extract", "graft", "insert", "join", "keep_name", "rearrange", "remove", "repeat", "replace", "require_output_types",
]  # fmt: skip


def insert(
    at: Value, piece: Graph, ambient: Sequence[Value] = (), *, rename: Rename = keep_name, share: bool = True
) -> Value:
    """Put a piece behind a value: what read the value reads the piece's result, which must be of the same type.

    :param ambient: what the piece takes besides the value
    :raises SutureError: SEAM, if a type does not fit
    """
    require_output_types(piece, [at, *ambient], [at])
    readers = Readers(at)
    (result,) = graft(at.graph, piece, [at, *ambient], rename=rename, share=share)
    readers.read(result)
    at.graph.sort()
    return result


def replace(
    region: Region,
    piece: Graph,
    operands: Sequence[Value] | None = None,
    *,
    rename: Rename = keep_name,
    share: bool = True,
) -> tuple[Value, ...]:
    """Put a piece in a region's place; parameters that only the region read are gone.

    :param operands: what the piece reads; the region's stream and as many of its ambient values as it takes if absent
    :raises SutureError: SEAM, if the results are not of the types of the region's
    """
    graph = region.graph
    given = tuple(operands) if operands is not None else region.inputs[: len(piece.inputs)]
    require_output_types(piece, given, region.outputs)
    if any(operand.producer in region.members for operand in given):
        raise SutureError(
            Code.SEAM, "the piece would read what it replaces", where=region.name, remedy="give values from outside"
        )
    parameters = region.own_parameters()
    places = places_of(graph, parameters)
    readers = [Readers(value, region.members) for value in region.outputs]
    erase(graph, region.nodes, parameters)
    known = set(graph.parameters.values())
    new = graft(graph, piece, given, rename=rename, share=share)
    for reader, value in zip(readers, new, strict=True):
        reader.read(value)
    put_in_place(graph, known, places)
    graph.sort()
    return new


def remove(region: Region) -> None:
    """Let the stream pass by a region: what read its output reads what flowed in.

    :raises SutureError: SEAM, if these are of different types; REGION, if there is not one output or no stream
    """
    entry, exit = region.entry, region.output
    if entry.type != exit.type:
        raise SutureError(
            Code.SEAM, f"{region.name} takes {entry.type} and gives {exit.type}", where=region.name,
            remedy="a region that keeps the type of its stream can be removed",
        )  # fmt: skip
    parameters = region.own_parameters()
    region.graph.replace_uses(exit, entry)
    erase(region.graph, region.nodes, parameters)
