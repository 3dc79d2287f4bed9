"""The evaluator: it runs a graph node by node on torch tensors. It is the definition that every pass and backend is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, Size, evaluate_size, exact_quotient, substitute, symbols_of
from suture.ir.types import TensorType


def evaluate(
    graph: Graph,
    inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    *,
    training: bool = False,
    watch: Callable[[Value, torch.Tensor], None] | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Run a graph.

    :param inputs: one tensor per graph input, in order or by name
    :param training: whether dropout drops and batch norm takes the batch's statistics; running statistics are updated in
        the tensors that `parameters` gives, never in the graph's own
    :param watch: called with every node's results as they are computed
    :param parameters: tensors to use instead of the graph's own, by name
    :returns: one tensor per graph output
    :raises SutureError: INPUT, if the inputs do not fit
    """
    bound = arrange_inputs(graph, inputs)
    symbols = bind_symbols(graph, bound)
    replaced = parameters or {}
    environment: dict[Value, torch.Tensor] = dict(zip(graph.inputs, bound, strict=True))
    for parameter in graph.parameters.values():
        own = parameter.data.clone() if training and parameter.role == "buffer" else parameter.data
        environment[parameter] = replaced.get(parameter.name, own)
    # What the graph makes from nothing (`full`, `arange`) stands where its inputs do.
    with _on_device_of(environment.values()):
        return _run_nodes(graph, environment, symbols, training=training, watch=watch)


def run_body(
    body: Graph, operands: Sequence[torch.Tensor], symbols: Mapping[str, int], *, training: bool = False
) -> list[torch.Tensor]:
    """Run a body of a node on its operands. Symbols that the operands' shapes do not bind come from outside."""
    known = {**symbols} or bind_symbols(body, operands)
    return _run_nodes(body, dict(zip(body.inputs, operands, strict=True)), known, training=training)


def _run_nodes(
    graph: Graph,
    environment: dict[Value, torch.Tensor],
    symbols: Mapping[str, int],
    *,
    training: bool,
    watch: Callable[[Value, torch.Tensor], None] | None = None,
) -> list[torch.Tensor]:
    """Run the nodes in an environment of inputs and parameters; what nothing reads any more is let go."""
    keep = set(graph.outputs)
    symbols = dict(symbols)
    remaining = {value: len(value.uses) for value in graph.values()}
    for node in graph.nodes:
        results = run_node(
            node, [None if v is None else environment[v] for v in node.inputs], symbols, training=training
        )
        if node.operator.measures:
            bind_measured(node, results, symbols)
        for value, tensor in zip(node.outputs, results, strict=True):
            environment[value] = tensor
            if watch is not None:
                watch(value, tensor)
        for operand in node.inputs:
            if operand is None:
                continue
            remaining[operand] -= 1
            if not remaining[operand] and operand not in keep and operand.producer is not None:
                environment.pop(operand, None)
    return [environment[value] for value in graph.outputs]


def _on_device_of(tensors: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    return nullcontext() if device.type == "cpu" else device


def run_node(
    node: Node, operands: Sequence[torch.Tensor | None], symbols: Mapping[str, int], *, training: bool = False
) -> tuple[torch.Tensor, ...]:
    """Compute one node's results."""
    operator = node.operator
    keywords: dict[str, Any] = {name: _resolve(value, symbols) for name, value in node.attributes.items()}
    if operator.declared and not operator.measures:
        shapes = [tuple(evaluate_size(dim, symbols) for dim in value.shape) for value in node.outputs]
        if takes_all_shapes(operator.name):
            keywords["shapes"] = shapes
        else:
            keywords["shape"] = shapes[0]
    if operator.training:
        keywords["training"] = training
    if node.bodies:
        keywords["symbols"] = symbols
    result = operator.run(*operands, **keywords)
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def takes_all_shapes(name: str) -> bool:
    """Whether an operator with declared results may have several, and so takes `shapes` instead of `shape`."""
    return name in ("split", "opaque")


def arrange_inputs(graph: Graph, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Bring inputs into the graph's order and check their element types and shapes.

    :raises SutureError: INPUT, naming the input and what it should be
    """
    names = [value.name for value in graph.inputs]
    if isinstance(inputs, Mapping):
        missing, extra = [name for name in names if name not in inputs], [name for name in inputs if name not in names]
        if missing or extra:
            wrong = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(extra)}"
            raise SutureError(
                Code.INPUT,
                f"inputs do not fit the graph: {wrong}",
                where=graph.name,
                remedy=f"it takes {', '.join(names)}",
            )
        ordered = [inputs[name] for name in names]
    else:
        ordered = list(inputs)
    if len(ordered) != len(names):
        raise SutureError(
            Code.INPUT,
            f"{len(ordered)} inputs for a graph of {len(names)}",
            where=graph.name,
            remedy=f"it takes {', '.join(names)}",
        )
    for value, tensor in zip(graph.inputs, ordered, strict=True):
        check_input(value.name, value.type, tensor)
    return ordered


def check_input(name: str, type_: TensorType, tensor: torch.Tensor) -> None:
    """Check one input's element type and fixed sizes.

    :raises SutureError: INPUT, if it does not fit
    """
    if not isinstance(tensor, torch.Tensor):
        raise SutureError(
            Code.INPUT, f"input {name} is a {type(tensor).__name__}", remedy=f"a tensor {type_} would be right"
        )
    fits = tensor.ndim == type_.rank and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(type_.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise SutureError(Code.INPUT, f"input {name} has shape {list(tensor.shape)}", remedy=f"{type_} would be right")
    floats = tensor.dtype.is_floating_point and type_.dtype.is_floating_point
    if tensor.dtype != type_.dtype and not floats:
        raise SutureError(Code.INPUT, f"input {name} is {tensor.dtype}", remedy=f"{type_} would be right")


def bind_symbols(graph: Graph, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """The numbers that the inputs' shapes give to symbolic sizes.

    :raises SutureError: INPUT, if two inputs disagree or a size cannot be what it should
    """
    symbols: dict[str, int] = {}
    bind_shapes(graph.inputs, [each.shape for each in inputs], symbols)
    return symbols


def bind_measured(node: Node, results: Sequence[torch.Tensor], symbols: dict[str, int]) -> None:
    """Learn the numbers of the sizes that a node measures.

    :raises SutureError: INPUT, if its results disagree with what is known
    """
    bind_shapes(node.outputs, [each.shape for each in results], symbols)


def bind_shapes(values: Sequence[Value], shapes: Sequence[Sequence[int]], symbols: dict[str, int]) -> None:
    """Learn the numbers that shapes give to the sizes of values.

    :raises SutureError: INPUT, if two disagree or a size cannot be what it should
    """
    waiting = [
        (value.name, dim, int(size))
        for value, shape in zip(values, shapes, strict=True)
        for dim, size in zip(value.shape, shape, strict=True)
        if isinstance(dim, Size)
    ]
    while waiting:
        # A size of several symbols waits for the others: `n*m` binds m once n is known.
        later = [item for item in waiting if not _bind(*item, symbols)]
        if len(later) == len(waiting):
            name, dim, size = later[0]
            raise _misfit(name, dim, size, symbols)
        waiting = later


def _bind(name: str, dim: Size, size: int, symbols: dict[str, int]) -> bool:
    """Check a size whose symbols are known, or learn one symbol from it; False if that cannot be done yet."""
    ((factors, scale), *more) = dim.terms
    if not more and scale == 1 and len(factors) == 1 and factors[0].isidentifier() and factors[0] not in symbols:
        symbols[factors[0]] = size
        return True
    known = all(each in symbols for each in symbols_of(dim))
    reduced: Dim = evaluate_size(dim, symbols) if known else substitute(dim, dict(symbols))
    if isinstance(reduced, int):
        if reduced != size:
            raise _misfit(name, dim, size, symbols)
        return True
    coefficients = dict(reduced.terms)
    offset = coefficients.pop((), 0)
    if len(coefficients) != 1:
        return False
    ((factors, scale),) = coefficients.items()
    if len(factors) != 1 or not factors[0].isidentifier():
        return False
    found = exact_quotient(size - offset, scale)
    if not isinstance(found, int) or found < 0:
        raise _misfit(name, dim, size, symbols)
    symbols[factors[0]] = found
    return True


def _misfit(name: str, dim: Size, size: int, symbols: Mapping[str, int]) -> SutureError:
    known = ", ".join(f"{key}={number}" for key, number in symbols.items())
    remedy = f"with {known} it does not fit" if known else "it does not fit"
    return SutureError(Code.INPUT, f"input {name} has {size} where its size is {dim}", remedy=remedy)


def _resolve(value: Any, symbols: Mapping[str, int]) -> Any:
    if isinstance(value, Size):
        return evaluate_size(value, symbols)
    if isinstance(value, tuple):
        return tuple(_resolve(item, symbols) for item in value)
    return value
