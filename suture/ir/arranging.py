"""Rearranging a stack: its blocks in another order, more of them or fewer, or others in their places."""

from __future__ import annotations

from collections.abc import Sequence

from suture.ir.errors import Code, SutureError
from suture.ir.extracting import extract
from suture.ir.grafting import (
    Readers,
    Rename,
    copy_nodes,
    copy_parameter,
    erase,
    keep_name,
    places_of,
    put_in_place,
    require_output_types,
)
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.regions import Numbering, Stack


def arrange(stack: Stack, order: Sequence[int], *, tie: bool = False) -> None:
    """Let the stack consist of its blocks in this order: `(0, 1, 2, 0, 1, 2)` stacks, `(0, 0, 1, 1)` interpolates, `(0, 2)` drops.

    Names are numbered on in the model's own scheme, and what is numbered behind the stack moves. The first copy of a block keeps its tensors; further
    ones are copies, or the same tensors under further names (`tie`).

    :raises SutureError: GROWTH, if the order names a block that does not exist; SEAM, if a block does not keep the type of its stream
    """
    for index in order:
        if not 0 <= index < len(stack):
            raise SutureError(
                Code.GROWTH,
                f"the order names block {index} of {len(stack)}",
                where=stack.name,
                remedy=f"0 to {len(stack) - 1} would be right",
            )
    if stack.entry.type != stack.exit.type:
        raise SutureError(
            Code.SEAM, f"{stack.name} takes {stack.entry.type} and gives {stack.exit.type}", where=stack.name,
            remedy="blocks that keep the type of their stream can be arranged",
        )  # fmt: skip
    rearrange(stack, [(extract(stack.blocks[index]), index) for index in order], tie=tie)


def rearrange(stack: Stack, pieces: Sequence[tuple[Graph, int]], *, tie: bool = False) -> None:
    """Let the stack consist of these pieces, each made from, and bound like, the block whose index stands beside it.

    A piece is a block of this stack as `extract` gives it, or one like it with other tensors (another model's block, a grown one) whose parameters
    have the names of the block it is made from. Naming and sharing are as in `arrange`.

    :raises SutureError: SEAM, if the types do not fit
    """
    graph, entry = stack.graph, stack.entry
    ambient = [stack.blocks[source].ambient for _, source in pieces]
    for (piece, _), values in zip(pieces, ambient, strict=True):
        require_output_types(piece, [entry, *values], [entry])
    own = _own_parameters(stack)
    places = places_of(graph, own)
    # before anything goes: afterwards no tensor has readers that would tell whose it was
    single = {parameter.name for block in stack.blocks for parameter in block.own_parameters()}
    staying = dict.fromkeys(p for block in stack.blocks for p in block.parameters if p not in own)
    readers = Readers(stack.exit, set(stack.nodes()))
    erase(graph, stack.nodes(), own)
    for parameter in staying:
        parameter.aliases = tuple(name for name in parameter.aliases if _block_of(stack.numbering, name) is None)
    if stack.numbering is not None:
        _make_room(graph, stack.numbering, len(pieces))
    known = set(graph.parameters.values())
    placed: dict[int, Parameter] = {
        id(parameter.data): parameter for parameter in staying
    }  # by the identity of the tensor
    value = entry
    for target, ((piece, source), values) in enumerate(zip(pieces, ambient, strict=True)):
        rename = _renaming(stack.numbering, source, target)
        parameters: dict[Value, Value] = {}
        for parameter in piece.parameters.values():
            first = placed.get(id(parameter.data))
            names = _names(parameter, stack.numbering, source, target, shared=parameter.name not in single)
            if first is None:
                first = placed[id(parameter.data)] = copy_parameter(graph, parameter, names=names)
                parameters[parameter] = first
            elif tie or parameter.name not in single:
                first.aliases += tuple(n for n in names if n != first.name and n not in first.aliases)
                parameters[parameter] = first
            else:
                parameters[parameter] = copy_parameter(graph, parameter, names=names, clone=True)
        (value,) = copy_nodes(graph, piece, [value, *values], parameters, rename)
    readers.read(value)
    put_in_place(graph, known, places)
    graph.sort()


def repeat(stack: Stack, times: int, *, tie: bool = False) -> None:
    """Stack the whole stack on itself.

    :raises SutureError: GROWTH, if `times` is below 1
    """
    if times < 1:
        raise SutureError(Code.GROWTH, f"a stack cannot stand {times} times", remedy="1 or more would be right")
    arrange(stack, [*range(len(stack))] * times, tie=tie)


def _own_parameters(stack: Stack) -> tuple[Parameter, ...]:
    """The tensors that nothing but the stack reads, in the graph's order."""
    nodes = set(stack.nodes())
    held = {parameter for block in stack.blocks for parameter in block.parameters}
    return tuple(p for p in stack.graph.parameters.values() if p in held and all(use.node in nodes for use in p.uses))


def _names(
    parameter: Parameter, numbering: Numbering | None, source: int, target: int, *, shared: bool
) -> tuple[str, ...]:
    """What a tensor of block `source` is called in block `target`. One that blocks share has a name in each: only its name in this block moves."""
    names = (parameter.name, *parameter.aliases)
    rename = _renaming(numbering, source, target)
    if shared and numbering is not None:
        names = tuple(name for name in names if numbering.block_of(name) in (None, source)) or (parameter.name,)
    return tuple(dict.fromkeys(map(rename, names)))


def _block_of(numbering: Numbering | None, name: str) -> int | None:
    return None if numbering is None else numbering.block_of(name)


def _renaming(numbering: Numbering | None, source: int, target: int) -> Rename:
    return keep_name if numbering is None else lambda name: numbering.move(name, source, target)


def _make_room(graph: Graph, numbering: Numbering, count: int) -> None:
    """Number what stands behind a stack anew, for a stack of another length."""
    parameters: dict[str, Parameter] = {}
    for parameter in graph.parameters.values():
        parameter.name = numbering.make_room(parameter.name, count)
        parameter.aliases = tuple(numbering.make_room(alias, count) for alias in parameter.aliases)
        parameters[parameter.name] = parameter
    graph.parameters = parameters
    for node in graph.nodes:
        node.path = numbering.make_room(node.path, count)
