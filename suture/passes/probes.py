"""Probe inputs: drawn from the types of a graph's inputs, plausible enough for the graph to run on them, and the same every time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import evaluate_size, symbols_of
from suture.passes.counter import counter_integers, counter_normal, counter_uniform

_DEFAULT_SIZE = 2  # of a symbol that was never seen with a number
_DEFAULT_BOUND = 2  # of integers that nothing looks anything up by: flags, token types
_MASK_SHARE = 0.85  # of ones in a mask


def draw_probes(graph: Graph, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> list[torch.Tensor]:
    """One tensor per graph input.

    Floats are normal; integers stay below the number of rows that they look up; booleans are mixed; what is called a mask is mostly ones.

    :param seed: other seeds, other probes; an element depends on seed, input name and index alone
    :param sizes: numbers for symbolic sizes; by default those seen when the model was traced
    """
    device = next((parameter.data.device for parameter in graph.parameters.values()), torch.device("cpu"))
    numbers = dict.fromkeys(graph.symbols(), _DEFAULT_SIZE) | graph.hints | dict(sizes or {})
    return [
        _draw(value, tuple(evaluate_size(dim, numbers) for dim in value.shape), seed).to(device)
        for value in graph.inputs
    ]


def bind_probes(graph: Graph, probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Given probes in the order of the graph's inputs.

    :raises SutureError: PROBE, if one is missing, of no input, or of the wrong type
    """
    names = [value.name for value in graph.inputs]
    if isinstance(probes, Mapping):
        for name in probes:
            if name not in names:
                raise SutureError(
                    Code.PROBE,
                    f"the graph has no input {name!r} for a probe",
                    remedy=nearest(name, names, what="input"),
                )
        missing = [name for name in names if name not in probes]
        if missing:
            raise SutureError(
                Code.PROBE, f"there is no probe for the input {missing[0]!r}", remedy="give one for every input"
            )
        tensors = [probes[name] for name in names]
    else:
        tensors = list(probes)
        if len(tensors) != len(names):
            raise SutureError(
                Code.PROBE, f"{len(tensors)} probes for {len(names)} inputs", remedy=f"give {', '.join(names)}"
            )
    for value, tensor in zip(graph.inputs, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != value.dtype or tensor.ndim != value.rank:
            shown = (
                f"{tensor.dtype} of shape {list(tensor.shape)}"
                if isinstance(tensor, torch.Tensor)
                else type(tensor).__name__
            )
            raise SutureError(
                Code.PROBE, f"the probe for {value.name} is {shown}", remedy=f"{value.type} would be right"
            )
    return tensors


def _draw(value: Value, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    count, name, dtype = math.prod(shape), value.name, value.dtype
    if dtype == torch.bool or _is_mask(value):
        share = _MASK_SHARE if "mask" in name.lower() else 0.5
        chosen = (counter_uniform(seed, name, count) < share).reshape(shape)
        if _is_mask(value) and chosen.ndim and chosen.numel():
            chosen[..., 0] = True  # a row that attends to nothing has no meaning
        return chosen.to(dtype)
    if dtype.is_complex:
        parts = (counter_normal(seed, f"{name}/{part}", count) for part in ("real", "imaginary"))
        return torch.complex(*parts).reshape(shape).to(dtype)
    if dtype.is_floating_point:
        return counter_normal(seed, name, count).reshape(shape).to(dtype)
    return counter_integers(seed, name, count, integer_bound(value)).reshape(shape).to(dtype)


def _is_mask(value: Value) -> bool:
    return "mask" in value.name.lower() and not value.dtype.is_complex


def integer_bound(value: Value) -> int:
    """One more than the largest integer that every lookup by this value can take, following what is computed from it."""
    bounds = [bound for bound in _lookup_bounds(value) if bound > 0]
    return min(bounds, default=_DEFAULT_BOUND)


def _lookup_bounds(value: Value) -> Iterator[int]:
    pending, seen = [(value, 0)], {id(value)}
    while pending:
        reached, offset = pending.pop()
        for node, index in reached.uses:
            rows = _rows_looked_up(node, index)
            if rows is not None:
                yield rows - offset
                continue
            for output in node.outputs:
                if not _is_integer(output.dtype) or id(output) in seen:
                    continue
                seen.add(id(output))
                pending.append((output, offset + _scalar_added(node)))


def _rows_looked_up(node: Node, index: int) -> int | None:
    """The number of rows that operand `index` chooses among, if that is what the operand does."""
    signature = node.operator.signature
    if index >= len(signature.operands):
        return None
    names = [operand.name for operand in signature.operands]
    for where, which in signature.lookups:
        table = node.inputs[names.index(where)] if which == names[index] else None
        if table is not None and table.rank and not symbols_of(table.shape[0]):
            return evaluate_size(table.shape[0], {})
    return None


def _scalar_added(node: Node) -> int:
    scalar = node.attributes.get("scalar")
    if node.operator.name not in {"add", "sub"} or not isinstance(scalar, int):
        return 0
    return scalar if node.operator.name == "add" else -scalar


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
