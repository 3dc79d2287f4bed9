"""Binding symbolic sizes: a graph for any batch becomes the graph for one."""

from __future__ import annotations

from collections.abc import Mapping

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Value
from suture.ir.sizes import Dim, Size, substitute
from suture.ir.types import Attribute, TensorType


def bind_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """A copy of a graph in which symbolic sizes are the given numbers, in types and attributes alike.

    :raises SutureError: INPUT, for a symbol that the graph does not have or a number that is no size; SHAPE, if the graph does not hold for it
    """
    known = graph.symbols()
    for name, number in sizes.items():
        if name not in known:
            remedy = nearest(name, known, what="size") if known else "all its sizes are numbers"
            raise SutureError(Code.INPUT, f"no size is called {name!r}", where=graph.name, remedy=remedy)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SutureError(Code.INPUT, f"the size {name} cannot be {number!r}", where=graph.name, remedy="1 or more")
    return _bound(graph, sizes)


def _bound(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    twin = Graph(graph.name)
    twin.hints = {name: number for name, number in graph.hints.items() if name not in sizes}
    twin.structure, twin.source, twin.history = graph.structure, graph.source, graph.history
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        mapping[value] = twin.add_input(value.name, TensorType(value.dtype, _shape(value.shape, sizes)))
    for parameter in graph.parameters.values():
        mapping[parameter] = twin.add_parameter(
            parameter.name, parameter.data, parameter.role,
            aliases=parameter.aliases, requires_grad=parameter.requires_grad, persistent=parameter.persistent,
        )  # fmt: skip
    for node in graph.nodes:
        clone = twin.add(
            node.operator,
            [None if value is None else mapping[value] for value in node.inputs],
            {name: _attribute(value, sizes) for name, value in node.attributes.items()},
            shapes=[_shape(value.shape, sizes) for value in node.outputs] if node.operator.declared else None,
            path=node.path,
            name=[value.name for value in node.outputs],
        )
        mapping.update(zip(node.outputs, clone.outputs, strict=True))
    twin.set_outputs([mapping[value] for value in graph.outputs], graph.output_names)
    return twin


def _shape(shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[Dim, ...]:
    return tuple(substitute(dim, sizes) for dim in shape)


def _attribute(value: Attribute, sizes: Mapping[str, int]) -> Attribute:
    if isinstance(value, Size):
        return substitute(value, sizes)
    if isinstance(value, Graph):
        return _bound(value, sizes)
    return tuple(_attribute(item, sizes) for item in value) if isinstance(value, tuple) else value
