"""Copying a piece into a graph: its inputs bound to operands, its sizes to theirs, its parameters given names.

The primitives under `suture.ir.splice`. What is copied keeps order, attributes and names as far as they are free.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import Dim, Size, substitute, symbol, symbols_of
from suture.ir.types import Attribute, TensorType

Rename = Callable[[str], str]


def keep_name(name: str) -> str:
    """Every name stays as it is."""
    return name


def graft(
    target: Graph,
    piece: Graph,
    operands: Sequence[Value],
    *,
    before: Node | None = None,
    rename: Rename = keep_name,
    share: bool = True,
) -> tuple[Value, ...]:
    """Copy the nodes of a graph into another, its inputs bound to operands; returns what stands for its outputs.

    Symbolic sizes of the piece are bound to the sizes of the operands. A parameter whose new name is taken in the target by the same tensor becomes
    one with it; a name that is taken by another tensor gets a number.

    :param before: the node to insert in front of; at the end if None (`target.sort()` brings what reads the results behind them)
    :param rename: gives parameters, their aliases and module paths their names in the target
    :param share: whether tensors are shared with the piece, or copied
    :raises SutureError: SEAM, if an operand is not of the type that the piece takes
    """
    bind_types(piece, operands)
    parameters: dict[Value, Value] = {}
    for parameter in piece.parameters.values():
        held = target.parameters.get(rename(parameter.name))
        if share and held is not None and held.data is parameter.data:
            parameters[parameter] = held
        else:
            parameters[parameter] = copy_parameter(target, parameter, rename, clone=not share)
    return copy_nodes(target, piece, operands, parameters, rename, before)


def bind_types(piece: Graph, operands: Sequence[Value]) -> dict[str, Dim]:
    """What the piece's symbolic sizes are when it reads these operands.

    :raises SutureError: SEAM, if the types do not fit
    """
    if len(operands) != len(piece.inputs):
        raise SutureError(
            Code.SEAM, f"{piece.name} takes {len(piece.inputs)} values and is given {len(operands)}",
            remedy=f"it takes {', '.join(f'{value}: {value.type}' for value in piece.inputs)}",
        )  # fmt: skip
    sizes: dict[str, Dim] = {}
    for expected, given in zip(piece.inputs, operands, strict=True):
        if expected.dtype != given.dtype or expected.rank != given.rank:
            raise misfit(piece, expected, given)
        for wanted, size in zip(expected.shape, given.shape, strict=True):
            if isinstance(wanted, Size) and symbols_of(wanted) == (str(wanted),):
                sizes.setdefault(str(wanted), size)
    for expected, given in zip(piece.inputs, operands, strict=True):
        if tuple(bind_size(dim, sizes) for dim in expected.shape) != given.shape:
            raise misfit(piece, expected, given)
    return sizes


def require_output_types(piece: Graph, operands: Sequence[Value], expected: Sequence[Value]) -> None:
    """:raises SutureError: SEAM, if the piece, reading these operands, does not give values of the types of others"""
    sizes = bind_types(piece, operands)
    if len(piece.outputs) != len(expected):
        raise SutureError(
            Code.SEAM, f"{piece.name} gives {len(piece.outputs)} values where {len(expected)} are read",
            remedy="a piece with as many results would be right",
        )  # fmt: skip
    for given, wanted in zip(piece.outputs, expected, strict=True):
        type_ = _sized_type(given.type, sizes)
        if type_ != wanted.type:
            raise SutureError(
                Code.SEAM, f"{piece.name} gives {type_} where {wanted} is {wanted.type}",
                where=wanted.graph.name, remedy="join them through an adapter",
            )  # fmt: skip


class Readers:
    """What reads a value, nodes of the region itself aside: taken off, and put onto another value later."""

    def __init__(self, value: Value, inside: Container[Node] = ()) -> None:
        self.graph = value.graph
        self.uses = [use for use in value.uses if use.node not in inside]
        self.positions = [k for k, output in enumerate(self.graph.outputs) if output is value]
        for node, index in self.uses:
            node.replace_input(index, None)
        self.graph.outputs = [output for output in self.graph.outputs if output is not value]

    def read(self, value: Value) -> None:
        """Let them read another value."""
        for node, index in self.uses:
            node.replace_input(index, value)
        for position in self.positions:
            self.graph.outputs.insert(position, value)


def erase(graph: Graph, nodes: Sequence[Node], parameters: Iterable[Parameter]) -> None:
    """Remove nodes that only each other read, given in order, and those of the parameters that nothing reads then."""
    for node in reversed(nodes):
        graph.remove(node)
    for parameter in parameters:
        if not parameter.uses and not parameter.is_graph_output():
            graph.remove_parameter(parameter)


def places_of(graph: Graph, parameters: Sequence[Parameter]) -> dict[str, int]:
    """For each role, before how many of the other parameters the first of some stands."""
    leaving = set(parameters)
    places: dict[str, int] = {}
    others = 0
    for parameter in graph.parameters.values():
        if parameter in leaving:
            places.setdefault(parameter.role, others)
        else:
            others += 1
    return places


def put_in_place(graph: Graph, known: set[Parameter], places: Mapping[str, int]) -> None:
    """Let the parameters that are not known stand where others of their role stood, so that a state dict keeps the order of its modules."""
    order = [p for p in graph.parameters.values() if p in known]
    new = [p for p in graph.parameters.values() if p not in known]
    for role in sorted({p.role for p in new}, key=lambda role: -places.get(role, len(order))):
        place = places.get(role, len(order))
        order[place:place] = [p for p in new if p.role == role]
    graph.parameters = {p.name: p for p in order}


def copy_parameter(
    target: Graph,
    parameter: Parameter,
    rename: Rename = keep_name,
    *,
    names: Sequence[str] | None = None,
    clone: bool = False,
) -> Parameter:
    """Add a parameter like one of another graph, with the same tensor or a copy of it; a name that is taken gets a number.

    :param names: its name and its aliases in the target; those that it has, renamed, if absent
    """
    name, *aliases = names or map(rename, (parameter.name, *parameter.aliases))
    data = parameter.data
    if clone:
        data = data.detach().clone().requires_grad_(data.requires_grad)
    return target.add_parameter(
        free_parameter_name(target, name),
        data,
        parameter.role,
        aliases=tuple(aliases),
        requires_grad=parameter.requires_grad,
        persistent=parameter.persistent,
    )


def free_parameter_name(graph: Graph, name: str) -> str:
    """A parameter name that is not taken: a number at the end of the module's name, or of the tensor's if it has no module."""
    if name not in graph.parameters:
        return name
    module, _, leaf = name.rpartition(".")
    numbered = (f"{module}_{k}.{leaf}" if module else f"{leaf}_{k}" for k in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in graph.parameters)


def copy_nodes(
    target: Graph,
    piece: Graph,
    operands: Sequence[Value],
    parameters: Mapping[Value, Value],
    rename: Rename,
    before: Node | None = None,
    sizes: Mapping[str, Dim] | None = None,
) -> tuple[Value, ...]:
    """Copy a piece's nodes, its inputs bound to operands and its parameters to values; returns what stands for its outputs.

    :param sizes: what its symbolic sizes are; read off the operands if absent
    """
    sizes = bind_types(piece, operands) if sizes is None else sizes
    values: dict[Value, Value] = {**parameters, **dict(zip(piece.inputs, operands, strict=True))}
    for node in piece.nodes:
        path = rename(node.path)
        clone = target.add(
            node.operator,
            [None if value is None else values[value] for value in node.inputs],
            {name: _carried(value, sizes, rename) for name, value in node.attributes.items()},
            shapes=[_sized_type(value.type, sizes).shape for value in node.outputs] if node.operator.declared else None,
            path=path,
            name=[_value_name(value.name, node.path, path) for value in node.outputs],
            before=before,
        )
        values.update(zip(node.outputs, clone.outputs, strict=True))
    return tuple(values[value] for value in piece.outputs)


def _value_name(name: str, old: str, new: str) -> str:
    """A value's name after its module has moved: the names of values begin with their module's path."""
    start = old.replace(".", "_")
    return new.replace(".", "_") + name[len(start) :] if old != new and start and name.startswith(start) else name


def bind_size(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    """A size in which some symbols have become sizes; others stay."""
    return (
        substitute(dim, {s: sizes.get(s, symbol(s)) for s in symbols_of(dim)})
        if isinstance(dim, Size) and sizes
        else dim
    )


def _sized_type(type_: TensorType, sizes: Mapping[str, Dim]) -> TensorType:
    return TensorType(type_.dtype, tuple(bind_size(dim, sizes) for dim in type_.shape))


def _carried(value: Attribute, sizes: Mapping[str, Dim], rename: Rename) -> Attribute:
    """An attribute in another graph: sizes bound, the bodies of a branch written anew with bound sizes and renamed paths."""
    match value:
        case tuple():
            return tuple(_carried(item, sizes, rename) for item in value)
        case Size():
            return bind_size(value, sizes)
        case Graph():
            body = Graph(value.name)
            inputs = [body.add_input(item.name, _sized_type(item.type, sizes)) for item in value.inputs]
            body.set_outputs(copy_nodes(body, value, inputs, {}, rename, sizes=sizes), value.output_names)
            return body
    return value


def misfit(piece: Graph, expected: Value, given: Value) -> SutureError:
    """The error for a value that is not of the type a piece takes."""
    return SutureError(
        Code.SEAM, f"{piece.name} takes {expected}: {expected.type} and is given {given}: {given.type}",
        where=given.graph.name, remedy="join them through an adapter, or trace both with the same sizes",
    )  # fmt: skip
