"""Compiled graphs that train: the way forward and the way back as two compiled graphs, joined by torch's autograd.

`passes.gradient` writes both ways as one graph. It is cut into what the outputs need, and the rest; what crosses the cut is kept in between. Trained
parameters are inputs of both, so that an optimiser's step is seen by the next call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from suture.backends.compiled import compile_graph
from suture.backends.compiled_cuda import compile_graph_for_cuda
from suture.backends.compiled_function import CompiledFunction
from suture.backends.compiled_inputs import check_call, in_order
from suture.backends.compiled_operator import Operator, is_traced, register
from suture.backends.storage_orders import storage_orders
from suture.ir.grafting import copy_parameter
from suture.ir.graph import Graph, Node, Parameter, Value
from suture.ir.sizes import symbols_of
from suture.ir.types import TensorType
from suture.passes.gradient import GRADIENT, gradient

Order = tuple[int, ...]
Target = Literal["cpp", "cuda"]


@dataclass(frozen=True)
class Ways:
    """A graph and its derivative, cut in two.

    :param forward: inputs and trained parameters -> outputs, and behind them what is kept
    :param backward: what `reads` says -> a gradient for each of `moves`
    :param trained: the names of the parameters that are inputs of `forward`, behind the graph's own
    :param reads: for each input of `backward`: `("output", k)` or `("input", k)` of `forward`, or `("cotangent", k)` of its outputs
    :param moves: the inputs of `forward` that have gradients, in order
    """

    forward: Graph
    backward: Graph
    trained: tuple[str, ...]
    reads: tuple[tuple[str, int], ...]
    moves: tuple[int, ...]


@dataclass(frozen=True)
class _Derivative:
    """The way back as torch's autograd calls it.

    :param back: the operator of the way back
    """

    reads: tuple[tuple[str, int], ...]
    moves: tuple[int, ...]
    back: Operator

    def keep(self, ctx: Any, inputs: tuple[list[torch.Tensor]], output: list[torch.Tensor]) -> None:
        """Keep what the way back reads. What is kept has no gradient of its own: none is made up for it."""
        ctx.set_materialize_grads(False)
        sources = {"input": inputs[0], "output": output}
        ctx.save_for_backward(*(sources[kind][k] for kind, k in self.reads if kind != "cotangent"))
        ctx.shapes = [(each.shape, each.dtype, each.device) for each in output]
        ctx.count = len(inputs[0])

    def derive(self, ctx: Any, cotangents: Sequence[torch.Tensor | None]) -> tuple[list[torch.Tensor | None]]:
        """The gradients of the operator's inputs; an output that nothing used has none, which is zero."""
        kept = iter(ctx.saved_tensors)
        operands = []
        for kind, k in self.reads:
            if kind != "cotangent":
                operands.append(next(kept))
                continue
            shape, dtype, device = ctx.shapes[k]
            found = cotangents[k]
            operands.append(torch.zeros(shape, dtype=dtype, device=device) if found is None else found.contiguous())
        moved: list[torch.Tensor | None] = [None] * ctx.count
        for k, each in zip(self.moves, self.back(operands), strict=True):
            moved[k] = each
        return (moved,)


class DifferentiableGraph:
    """A compiled function of tensors through which gradients flow, to its inputs and its parameters.

    It computes what the graph does in evaluation: dropout drops nothing, batch norm uses its running statistics.

    :param where: distinguishes the operators of one graph that are compiled for several targets and devices
    """

    def __init__(
        self, graph: Graph, ways: Ways, forward: CompiledFunction, backward: CompiledFunction, where: str = ""
    ) -> None:
        self.graph, self.ways, self.forward, self.backward = graph, ways, forward, backward
        self._names = tuple(value.name for value in graph.inputs)
        self._parameters = {name: _leaf(graph.parameters[name], forward.place) for name in ways.trained}
        self._count = len(graph.outputs)
        types = [[value.type for value in values] for values in (ways.backward.inputs, ways.backward.outputs)]
        back = register(backward, ways.backward, inputs=types[0], outputs=types[1], what=f"backward{where}")
        derivative = _Derivative(ways.reads, ways.moves, back)
        types = [[value.type for value in values] for values in (ways.forward.inputs, ways.forward.outputs)]
        self.operator: Operator = register(
            forward, ways.forward, inputs=types[0], outputs=types[1], what=f"forward{where}", backward=(derivative.derive, derivative.keep),
        )  # fmt: skip

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it, recording what a backward pass needs where gradients are being recorded.

        :returns: the graph's output, or a tuple of them
        :raises SutureError: INPUT, if the inputs do not fit; DEVICE, if they are elsewhere than it runs
        """
        if is_traced((*inputs, *named.values())):
            given = in_order(self._names, inputs, named)
        else:
            given = check_call(self.graph, inputs, named, self.forward.place, differentiable=True)
        results = self.operator([*given, *self._parameters.values()])[: self._count]
        return results[0] if len(results) == 1 else tuple(results)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The trained parameters, for an optimiser. They share memory with the graph's, where those are on the device that it runs on."""
        return iter(self._parameters.values())

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The trained parameters with their names."""
        return iter(self._parameters.items())


def compile_with_gradient(graph: Graph, target: Target = "cpp") -> DifferentiableGraph:
    """Compile a graph and its derivative with respect to all floating-point inputs and trained parameters.

    :param target: `cpp`: C++ for this machine's processor; `cuda`: CUDA C++ for torch's current GPU, to which the parameters are moved
    :raises SutureError: GRADIENT, if an operator has no derivative or nothing can move; COMPILER, DEVICE or WRITE, as `compile_graph`
    """
    both = gradient(graph, check=False)
    ways = cut(graph, both, storage_orders(both) if target == "cpp" else {})
    if target == "cpp":
        return DifferentiableGraph(graph, ways, compile_graph(ways.forward), compile_graph(ways.backward))
    forward, backward = compile_graph_for_cuda(ways.forward), compile_graph_for_cuda(ways.backward)
    return DifferentiableGraph(graph, ways, forward, backward, f" {target} {forward.place}")


def cut(graph: Graph, both: Graph, orders: Mapping[Value, Order] | None = None) -> Ways:
    """Cut what `gradient` made of a graph into the way forward and the way back.

    :param orders: how the dimensions of values lie in memory, outermost first, where not in their order; what is kept is handed on so
    """
    count = len(graph.outputs)
    names = [_of(name, both) for name in both.output_names[count:]]
    trained = [
        p for p in both.parameters.values() if p.name in names or (p.requires_grad and p.dtype.is_floating_point)
    ]
    cotangents = {value: _output_of(value, graph) for value in both.inputs[len(graph.inputs) :]}
    return divide(both, count, names, cotangents, trained, graph.name, orders or {})


def divide(
    both: Graph,
    count: int,
    moved: Sequence[str],
    cotangents: Mapping[Value, int],
    trained: Sequence[Parameter],
    name: str,
    orders: Mapping[Value, Order] | None = None,
) -> Ways:
    """Cut a graph that returns gradients into the way forward and the way back.

    :param count: how many of its outputs are the function's own; the others are gradients
    :param moved: what each gradient is of: an input or one of the trained parameters, by name
    :param cotangents: the inputs that only the way back has, and the output that each belongs to
    :param trained: the parameters that become inputs of both ways
    :param name: what the two are called after
    :param orders: how the dimensions of values lie in memory, outermost first, where not in their order; what is kept is handed on so
    """
    own, gradients = both.outputs[:count], both.outputs[count:]
    forward = needed(own)
    backward = needed(gradients, forward)
    inputs = [value for value in both.inputs if value not in cotangents]
    ends: list[Value] = [*inputs, *trained]
    position = {value: k for k, value in enumerate(ends)}
    read = {value for node in both.nodes if node in backward for value in node.inputs if value is not None}
    read |= set(gradients)
    kept = [value for node in both.nodes if node in forward for value in node.outputs if value in read]
    outputs = [*own, *(value for value in kept if value not in own)]
    lying = {value: orders[value] for value in outputs[count:] if orders and value in orders and value not in gradients}
    sources: list[tuple[Value, tuple[str, int]]] = [(value, ("output", outputs.index(value))) for value in kept]
    sources += [(value, ("input", k)) for value, k in position.items() if value in read]
    sources += [(value, ("cotangent", k)) for value, k in cotangents.items()]
    bound = {name for value, _ in sources for dim in value.shape for name in symbols_of(dim)}
    for value in inputs:  # sizes that nothing else says
        lacking = {name for dim in value.shape for name in symbols_of(dim)} - bound
        if lacking and value not in read:
            bound |= lacking
            sources.append((value, ("input", position[value])))
    known = {value.name: k for value, k in position.items()}
    return Ways(
        piece(f"{name}_forward", both, forward, ends, outputs, lying),
        piece(f"{name}_backward", both, backward, [value for value, _ in sources], gradients, lying),
        tuple(value.name for value in trained), tuple(place for _, place in sources), tuple(known[name] for name in moved),
    )  # fmt: skip


def needed(values: Sequence[Value], stop: Collection[Node] = ()) -> set[Node]:
    """The nodes that values are computed by, down to those of `stop`."""
    found: set[Node] = set()
    waiting = [value.producer for value in values if value.producer is not None]
    while waiting:
        node = waiting.pop()
        if node in found or node in stop:
            continue
        found.add(node)
        waiting += [value.producer for value in node.inputs if value is not None and value.producer is not None]
    return found


def piece(
    name: str, source: Graph, nodes: Collection[Node], inputs: Sequence[Value], outputs: Sequence[Value], lying: Mapping[Value, Order]
) -> Graph:  # fmt: skip
    """Some nodes as a graph of their own; what is no input and comes from no node is a parameter.

    :param lying: values that come and go as their permutations, so that they need not be moved
    """
    result = Graph(name)
    result.hints = dict(source.hints)
    values: dict[Value, Value] = {
        value: _input(result, result.fresh_name(value.name.replace(".", "_")), value, lying.get(value))
        for value in inputs
    }
    values.update(
        (value, _permuted(result, values[value], _inverse(lying[value]))) for value in inputs if value in lying
    )
    for node in source.nodes:
        if node not in nodes:
            continue
        for value in node.inputs:
            _enter(result, values, value)
        operands = [None if value is None else values[value] for value in node.inputs]
        shapes = [value.shape for value in node.outputs] if node.operator.declared else None
        names = [value.name for value in node.outputs]
        twin = result.add(node.operator, operands, node.attributes, shapes=shapes, path=node.path, name=names)
        values.update(zip(node.outputs, twin.outputs, strict=True))
    for value in outputs:
        _enter(result, values, value)
    returned = [
        _permuted(result, values[value], lying[value]) if value in lying else values[value] for value in outputs
    ]
    result.set_outputs(returned, [f"result_{k}" for k in range(len(outputs))])
    return result


def _input(graph: Graph, name: str, value: Value, order: Order | None) -> Value:
    shape = value.shape if order is None else tuple(value.shape[dim] for dim in order)
    return graph.add_input(name, TensorType(value.dtype, shape))


def _permuted(graph: Graph, value: Value, dims: Order) -> Value:
    return graph.add("permute", (value,), {"dims": dims}).output


def _inverse(order: Order) -> Order:
    return tuple(order.index(dim) for dim in range(len(order)))


def _enter(graph: Graph, values: dict[Value, Value], value: Value | None) -> None:
    if isinstance(value, Parameter) and value not in values:
        values[value] = copy_parameter(graph, value)


def _of(name: str, graph: Graph) -> str:
    """What a gradient is of, by the output's name."""
    known = {value.name for value in graph.inputs} | set(graph.parameters)
    found = name.removeprefix(GRADIENT)
    while found not in known and found.endswith("_"):
        found = found[:-1]
    return found


def _output_of(cotangent: Value, graph: Graph) -> int:
    """Which output a cotangent belongs to, by its name."""
    name = cotangent.name.removeprefix(GRADIENT)
    names: Mapping[str, int] = {output: k for k, output in reversed(list(enumerate(graph.output_names)))}
    return names[name] if name in names else names[name.rpartition("_")[0]]


def _leaf(parameter: Parameter, place: torch.device) -> torch.nn.Parameter:
    """The tensor that an optimiser moves, where the kernels run."""
    data = parameter.data
    if isinstance(data, torch.nn.Parameter) and data.requires_grad and data.device == place:
        return data
    return torch.nn.Parameter(data.detach().to(place))
