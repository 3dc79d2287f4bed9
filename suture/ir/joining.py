"""Joining two graphs: the front of one, an adapter, the back of the other."""

from __future__ import annotations

import dataclasses

from suture.ir.grafting import Rename, bind_size, graft, keep_name, misfit
from suture.ir.graph import Graph, Value
from suture.ir.regions.cuts import value_of
from suture.ir.sizes import Dim
from suture.ir.types import TensorType


def join(
    front: Graph,
    exit: Value | str,
    back: Graph,
    entry: Value | str,
    adapter: Graph | None = None,
    *,
    prefixes: tuple[str, str] = ("", ""),
    name: str = "",
) -> Graph:
    """A graph that computes one graph up to a value, adapts that value, and goes on in another graph from a value of its own.

    What the back reads besides (masks, positions, its other inputs) is computed as in the back; its inputs are those of the front that have the same
    name and type, else they become further inputs.

    :param adapter: takes the front's value and gives one of the type that the back's has; they must be of one type if absent
    :param prefixes: put before the parameter names and module paths of the front and the back, as `front.`
    :raises SutureError: SEAM, if the types do not fit; SITE, if a value does not exist
    """
    left, right = value_of(front, exit), value_of(back, entry)
    head, tail = _front_piece(front, left), _back_piece(back, right)
    result = Graph(name or f"{front.name}_{back.name}")
    result.hints = {**tail.hints, **head.hints}
    inputs = [result.add_input(value.name, value.type) for value in front.inputs]
    (value,) = graft(result, head, inputs, rename=_prefixing(prefixes[0]))
    if adapter is not None:
        (value,) = graft(result, adapter, [value])
    operands = [value]
    sizes: dict[str, Dim] = dict(zip(map(str, right.shape), value.shape, strict=False))
    for needed in tail.inputs[1:]:
        twin = next(
            (v for v in inputs if v.name == needed.name and v.dtype == needed.dtype and v.rank == needed.rank), None
        )
        if twin is None:
            shape = tuple(bind_size(dim, sizes) for dim in needed.shape)
            twin = result.add_input(needed.name, TensorType(needed.dtype, shape))
        operands.append(twin)
    if value.rank != right.rank or value.dtype != right.dtype:
        raise misfit(tail, right, value)
    outputs = graft(result, tail, operands, rename=_prefixing(prefixes[1]))
    result.set_outputs(outputs, back.output_names)
    if len(result.inputs) == len(front.inputs) and front.structure is not None and back.structure is not None:
        result.structure = dataclasses.replace(
            front.structure, outputs=back.structure.outputs, fixed_outputs=back.structure.fixed_outputs
        )
    return result


def _front_piece(graph: Graph, exit: Value) -> Graph:
    """A graph's nodes up to a value, with all of its inputs."""
    copy = graph.copy()
    twin = dict(zip(graph.values(), copy.values(), strict=True))[exit]
    copy.set_outputs([twin], [exit.name])
    return _trimmed(copy)


def _back_piece(graph: Graph, entry: Value) -> Graph:
    """A graph's nodes from a value on; the value is the first input, and what else they need follows."""
    copy = graph.copy()
    twin = dict(zip(graph.values(), copy.values(), strict=True))[entry]
    if twin.producer is not None:
        start = copy.add_input(f"{entry.name}_entry", entry.type)
        copy.replace_uses(twin, start)
        copy.inputs.insert(0, copy.inputs.pop())
        twin = start
    _trimmed(copy)
    copy.inputs = [twin, *(v for v in copy.inputs if v is not twin and v.uses)]
    return copy


def _trimmed(graph: Graph) -> Graph:
    """Without the nodes that reach no output, and the parameters that then nothing reads, but for counters of modules that stay."""
    graph.remove_dead()
    modules = {p.name.rpartition(".")[0] for p in graph.parameters.values() if p.uses and "." in p.name}
    for parameter in list(graph.parameters.values()):
        unread = not parameter.uses and not parameter.is_graph_output()
        if unread and parameter.name.rpartition(".")[0] not in modules:
            graph.remove_parameter(parameter)
    return graph


def _prefixing(prefix: str) -> Rename:
    return keep_name if not prefix else lambda name: prefix + name if name else prefix.rstrip(".")
