"""The verifier: small named checks that a graph is well formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter, Use, Value
from suture.ir.sizes import Dim, Size, symbols_of
from suture.ir.types import Attribute, TensorType

ROLES = ("parameter", "buffer", "constant")


def verify(graph: Graph) -> None:
    """Run every check.

    :raises SutureError: naming the first node or value that is wrong
    """
    for check in CHECKS:
        check(graph)


def check_names(graph: Graph) -> None:
    """Every input and every result has a name of its own."""
    seen: dict[str, Value] = {}
    for value in _variables(graph):
        if not value.name or seen.setdefault(value.name, value) is not value:
            what = f"two values are called %{value.name}" if value.name else "a value without a name"
            raise _wrong(what, _where(value), "names are unique")


def check_owner(graph: Graph) -> None:
    """Inputs, parameters, nodes and results belong to this graph, and results know their node."""
    for value in graph.values():
        if value.graph is not graph:
            raise _wrong(f"{value} belongs to another graph", _where(value), "copy it into this one")
    for value in (*graph.inputs, *graph.parameters.values()):
        if value.producer is not None:
            raise _wrong(
                f"{value} is an input or a parameter, and the result of a node", _where(value), "one of the two"
            )
    for node in graph.nodes:
        if node.graph is not graph:
            raise _wrong("a node of another graph", node.where(), "copy it into this one")
        for index, value in enumerate(node.outputs):
            if value.producer is not node or value.index != index:
                raise _wrong(
                    f"{value} does not know that it is result {index}",
                    node.where(),
                    "do not share results between nodes",
                )


def check_operands(graph: Graph) -> None:
    """Nodes read inputs, parameters and results of this graph only."""
    known = set(graph.values())
    for node in graph.nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in known:
                raise _wrong(
                    f"operand {index}, {value}, is no value of this graph", node.where(), "read a value of the graph"
                )


def check_uses(graph: Graph) -> None:
    """The uses of every value are exactly the operands that read it."""
    read: dict[Value, set[Use]] = {}
    for node in graph.nodes:
        for index, value in enumerate(node.inputs):
            if value is not None:
                read.setdefault(value, set()).add(Use(node, index))
    for value in graph.values():
        stated, actual = set(value.uses), read.get(value, set())
        for node, index in (*(stated - actual), *(actual - stated)):
            fault = "stated and not there" if (node, index) in stated else "there and not stated"
            raise _wrong(
                f"a use of {value} as operand {index} is {fault}", node.where(), "edit operands by replace_input"
            )


def check_order(graph: Graph) -> None:
    """Every node stands after the nodes whose results it reads."""
    done: set[Node] = set()
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None and value.producer is not None and value.producer not in done:
                raise _wrong(f"{value} is read before it is computed", node.where(), "sort() the graph")
        done.add(node)


def check_attributes(graph: Graph) -> None:
    """Every node has exactly the attributes of its operator, of the kinds that attributes can be."""
    for node in graph.nodes:
        for name in node.operator.attributes:
            if name not in node.attributes:
                raise SutureError(
                    Code.OPERATOR, f"the attribute {name} is missing", where=node.where(), remedy="give it"
                )
        for name, value in node.attributes.items():
            if name not in node.operator.attributes:
                remedy = nearest(name, node.operator.attributes, what="attribute")
                raise SutureError(Code.OPERATOR, f"no attribute is called {name}", where=node.where(), remedy=remedy)
            if not _is_attribute(value):
                what = f"{name} is a {type(value).__name__}"
                raise SutureError(
                    Code.OPERATOR, what, where=node.where(), remedy="numbers, strings, sizes, dtypes, graphs, tuples"
                )


def check_bodies(graph: Graph) -> None:
    """The bodies of a node have no parameters and are well formed themselves; their symbols are those of the outermost graph."""
    for node in graph.nodes:
        for name, body in node.bodies.items():
            for parameter in body.parameters.values():
                what = f"the body {name} has a parameter of its own, {parameter}"
                raise _wrong(what, node.where(), "make it an operand of the node")
            for check in CHECKS:
                if check is check_symbols:
                    continue
                try:
                    check(body)
                except SutureError as error:
                    place = f"{node.where()}, body {name}{': ' + error.where if error.where else ''}"
                    raise SutureError(error.code, error.what, where=place, remedy=error.remedy) from None


def check_sizes(graph: Graph) -> None:
    """Sizes are whole numbers that are not negative, or symbolic."""
    for value in graph.values():
        for dim in value.shape:
            if not isinstance(dim, Size) and (type(dim) is not int or dim < 0):
                raise SutureError(
                    Code.SHAPE, f"{value} has a size of {dim!r}", where=_where(value), remedy="0 or more would be right"
                )


def check_types(graph: Graph) -> None:
    """Results have the types that the operator infers; declared shapes fit the operands."""
    for node in graph.nodes:
        declared = tuple(value.shape for value in node.outputs) if node.operator.declared else None
        types = [None if value is None else value.type for value in node.inputs]
        expected = node.operator.infer(types, node.attributes, declared, node.where())
        if len(expected) != len(node.outputs):
            raise _wrong(f"{len(node.outputs)} results", node.where(), f"{len(expected)} would be right")
        for value, type_ in zip(node.outputs, expected, strict=True):
            if value.type != type_:
                code = Code.SHAPE if value.shape != type_.shape else Code.DTYPE
                raise SutureError(
                    code, f"{value} has type {value.type}", where=node.where(), remedy=f"{type_} would be right"
                )


def check_outputs(graph: Graph) -> None:
    """Outputs are values of the graph, each with a name of its own."""
    known = set(graph.values())
    for value in graph.outputs:
        if value not in known:
            raise _wrong(f"the output {value} is no value of this graph", graph.name, "return values of the graph")
    if len(graph.output_names) != len(graph.outputs):
        what = f"{len(graph.output_names)} names for {len(graph.outputs)} outputs"
        raise _wrong(what, graph.name, "one name each")
    for name in graph.output_names:
        if not name or graph.output_names.count(name) > 1:
            raise _wrong(
                f"two outputs are called {name!r}" if name else "an output without a name",
                graph.name,
                "names are unique",
            )


def check_parameters(graph: Graph) -> None:
    """Parameters have the type of their tensor, a known role, and names and aliases that no other has."""
    owners: dict[str, Parameter] = {}
    for name, parameter in graph.parameters.items():
        if parameter.name != name:
            raise _wrong(f"{parameter} is kept as {name!r}", graph.name, "the name it has would be right")
        if parameter.role not in ROLES:
            raise _wrong(f"{parameter} is a {parameter.role!r}", graph.name, f"{', '.join(ROLES)} would be right")
        actual = TensorType(parameter.data.dtype, tuple(parameter.data.shape))
        if parameter.type != actual:
            raise _wrong(
                f"{parameter} has type {parameter.type}, its tensor {actual}", graph.name, "assign() the tensor"
            )
        if parameter.requires_grad and not (actual.dtype.is_floating_point or actual.dtype.is_complex):
            raise SutureError(
                Code.DTYPE, f"{parameter} is {actual} and is to be trained", where=graph.name, remedy="floats train"
            )
        for own in (name, *parameter.aliases):
            if own in owners:
                raise _wrong(
                    f"{parameter} and {owners[own]} both go by {own!r}", graph.name, "names and aliases are unique"
                )
            owners[own] = parameter


def check_symbols(graph: Graph) -> None:
    """Every symbolic size, in types and in attributes, is one that the inputs' shapes bind, or a node that measures; in bodies too."""
    _check_symbols(graph, {*graph.symbols(), *graph.measured()})


def _check_symbols(graph: Graph, bound: set[str]) -> None:
    for node in graph.nodes:
        for body in node.bodies.values():
            _check_symbols(body, bound)
        for dim in (
            *(dim for value in node.outputs for dim in value.shape),
            *_sizes_in(tuple(node.attributes.values())),
        ):
            for name in symbols_of(dim):
                if name not in bound:
                    raise SutureError(
                        Code.SIZE,
                        f"no input binds the size {name}",
                        where=node.where(),
                        remedy=nearest(name, bound, what="size"),
                    )


CHECKS: tuple[Callable[[Graph], None], ...] = (
    check_names, check_owner, check_operands, check_uses, check_order, check_attributes, check_bodies, check_sizes, check_types,
    check_outputs, check_parameters, check_symbols,
)  # fmt: skip


def _variables(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _is_attribute(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_attribute, value))
    return value is None or isinstance(value, bool | int | float | complex | str | Size | torch.dtype | Graph)


def _sizes_in(value: Attribute) -> Iterator[Dim]:
    if isinstance(value, Size):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _sizes_in(item)


def _where(value: Value) -> str:
    return value.producer.where() if value.producer is not None else value.graph.name


def _wrong(what: str, where: str, remedy: str) -> SutureError:
    return SutureError(Code.GRAPH, what, where=where, remedy=remedy)
