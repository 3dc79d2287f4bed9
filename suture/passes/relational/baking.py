"""Fixed edges: a graph of message passing as an ordinary graph, with what its edges decide as constants."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from suture.ir.bind_sizes import bind_sizes
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.ir.interface import bind_interface_input
from suture.ir.sizes import Size
from suture.passes.relational.inspection import CARRIER, inspect, split_inspector
from suture.passes.relational.layout import lay_out
from suture.passes.relational.structure import INDICES


def bake_edges(graph: Graph, indices: Mapping[str, torch.Tensor], sizes: Mapping[str, int] | None = None) -> Graph:
    """Lay a graph out for these edges and run its inspector: the result takes the other inputs, and its sizes are numbers.

    :param indices: every integer input, by name
    :param sizes: numbers for symbolic sizes that no index shows: of `nodes`, say
    :raises SutureError: INPUT, for an index that there is no input for, that is missing or does not fit; a size that nothing shows
    """
    numbers = {**check_indices(graph, indices), **(sizes or {})}
    inspector, executor = split_inspector(lay_out(graph, check=False))
    needed = [value.name.removeprefix(CARRIER) for value in inspector.inputs if value.name.startswith(CARRIER)]
    for name in needed:
        if name not in numbers:
            raise SutureError(Code.INPUT, f"the size {name} is not known", where=graph.name, remedy="give its number")
    known = {**indices, **inspect(inspector, indices, numbers)}
    for value in executor.inputs:
        if value.name in known:
            _learn(graph.name, value.name, value.shape, known[value.name], numbers)
    symbols = executor.symbols()
    baked = bind_sizes(executor, {name: number for name, number in numbers.items() if name in symbols})
    for value in list(baked.inputs):
        if value.name in known:
            bind_interface_input(baked, value.name, known[value.name])
    return baked


def check_indices(graph: Graph, indices: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The numbers of the sizes that a graph's index inputs show.

    :raises SutureError: INPUT, for an index that there is no input for, or that is missing or does not fit
    """
    inputs = {value.name: value for value in graph.inputs if value.dtype in INDICES}
    for name in indices:
        if name not in inputs:
            raise SutureError(
                Code.INPUT, f"no index is called {name!r}", where=graph.name, remedy=nearest(name, inputs, what="index")
            )
    missing = [name for name in inputs if name not in indices]
    if missing:
        raise SutureError(
            Code.INPUT, f"the edges lack {', '.join(missing)}", where=graph.name, remedy=f"give {', '.join(inputs)}"
        )
    numbers: dict[str, int] = {}
    for name, tensor in indices.items():
        _learn(graph.name, name, inputs[name].shape, tensor, numbers)
    return numbers


def _learn(where: str, name: str, shape: tuple[int | Size, ...], tensor: torch.Tensor, numbers: dict[str, int]) -> None:
    """Take from a tensor the numbers of the sizes that it shows."""
    if tensor.ndim != len(shape):
        raise SutureError(
            Code.INPUT, f"{name} has {tensor.ndim} dimensions", where=where, remedy=f"{len(shape)} would be right"
        )
    for size, number in zip(shape, tensor.shape, strict=True):
        if isinstance(size, Size) and str(size).isidentifier() and numbers.setdefault(str(size), number) != number:
            raise SutureError(
                Code.INPUT,
                f"{name} has {number} {size} where there are {numbers[str(size)]}",
                where=where,
                remedy="sizes must agree",
            )
