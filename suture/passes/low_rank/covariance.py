"""What layers read on calibration data: second moments of their inputs, and the metrics that whitened decompositions take from them.

Moments are gathered batch by batch, for as many layers at a time as fit a fixed memory; layers that read the same value share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.types import Attribute
from suture.passes.low_rank.layers import Layer
from suture.passes.stitch.calibration import batches, taps

By = Literal["svd", "asvd", "whitened", "corda"]
_MEMORY = 2**29
"""How many bytes of moments are held at a time."""
_DAMPING = 1e-9
"""What is added to a covariance, of its mean diagonal: directions that no input has are then decided by the weight alone."""

Key = tuple[object, ...]


def metrics(
    graph: Graph, layers: Sequence[Layer], data: Mapping[str, torch.Tensor], by: By, *, alpha: float = 0.5
) -> Iterator[tuple[Layer, torch.Tensor | None]]:
    """The metric of every layer's inputs, `[groups, n, n]` or as diagonals `[groups, n]`; None where all that it reads is zero.

    With x the inputs of one position, C = E[x x^T] and L L^T = C: `whitened` is L, so that |(W - W') x| is least in the mean over the data (SVD-LLM,
    arXiv 2403.07378); `corda` is C itself (CorDA, arXiv 2406.05223, section 3.1); `asvd` is the diagonal of E|x| to the power `alpha` (ASVD,
    arXiv 2312.05821, section 3.2).

    :raises SutureError: CALIBRATION or INPUT, if the data do not fit the graph
    """
    moment = _magnitudes if by == "asvd" else _products
    for group in _in_memory(layers, vectors=by == "asvd"):
        found = _gather(graph, group, data, moment)
        for layer in group:
            keys = dict.fromkeys(_key(layer, node) for node in layer.nodes)
            total = torch.stack([found[key][0] for key in keys]).sum(0) / sum(found[key][1] for key in keys)
            if not bool(total.isfinite().all()):
                raise SutureError(
                    Code.CALIBRATION, "what it reads on the calibration data is not finite", where=layer.name,
                    remedy="give inputs on which the graph computes numbers",
                )  # fmt: skip
            yield layer, _metric(total, by, alpha)


def _metric(moments: torch.Tensor, by: By, alpha: float) -> torch.Tensor | None:
    if not bool(moments.any()):
        return None
    if by == "asvd":
        floor = 1e-6 * float(moments.mean())
        return moments.clamp_min(floor).pow(alpha)
    damping = _DAMPING * moments.diagonal(dim1=1, dim2=2).mean()
    eye = torch.eye(moments.shape[1], dtype=moments.dtype)
    while by == "whitened":
        factor: torch.Tensor
        factor, failed = torch.linalg.cholesky_ex(moments + damping * eye)
        if not bool(failed.any()):
            return factor
        damping = damping * 10
    return moments + damping * eye


def _gather(
    graph: Graph,
    layers: Sequence[Layer],
    data: Mapping[str, torch.Tensor],
    moment: Callable[[torch.Tensor], torch.Tensor],
) -> dict[Key, tuple[torch.Tensor, int]]:
    """Sums of moments and the number of positions, by what is read and how."""
    wanted = {_key(layer, node): (layer, node) for layer in layers for node in layer.nodes}
    values: list[Value] = list(dict.fromkeys(layer.data(node) for layer, node in wanted.values()))
    found: dict[Key, tuple[torch.Tensor, int]] = {}
    for inputs in batches(graph, data):
        try:
            seen = taps(graph, as_declared(graph, inputs), values)
        except (IndexError, RuntimeError) as error:  # a token beyond the vocabulary, say
            what = f"the graph cannot run on the data: {str(error).splitlines()[0]}"
            raise SutureError(Code.CALIBRATION, what, where=graph.name, remedy="give inputs that it takes") from None
        for key, (layer, node) in wanted.items():
            columns = patches(seen[layer.data(node)], layer).to(torch.float64)
            total, count = found.get(key, (torch.zeros((), dtype=torch.float64), 0))
            found[key] = total + moment(columns), count + columns.shape[1]
    return found


def as_declared(graph: Graph, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Inputs of another floating-point type in the types that the graph declares."""
    return [
        tensor.to(value.dtype) if tensor.is_floating_point() else tensor
        for tensor, value in zip(inputs, graph.inputs, strict=True)
    ]


def _products(columns: torch.Tensor) -> torch.Tensor:
    return columns.transpose(1, 2) @ columns


def _magnitudes(columns: torch.Tensor) -> torch.Tensor:
    return columns.abs().sum(1)


def patches(x: torch.Tensor, layer: Layer) -> torch.Tensor:
    """What a layer multiplies its matrices by, position by position: `[groups, positions, n]`."""
    if not layer.spatial:
        return x.reshape(1, -1, x.shape[-1])
    grouped = x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:])
    if layer.operator == "conv_transpose":
        return grouped.movedim(2, -1).transpose(0, 1).flatten(1, -2)
    attributes, rank = layer.nodes[0].attributes, len(layer.window)
    stride, padding, dilation = (_each(attributes[name], rank) for name in ("stride", "padding", "dilation"))
    padded = F.pad(grouped, [size for before in reversed(padding) for size in (before, before)])
    windows = padded
    for k, size in enumerate(layer.window):
        reach = dilation[k] * (size - 1) + 1
        windows = windows.unfold(3 + k, reach, stride[k])[..., :: dilation[k]]
    # [n, g, i, *h', *r]: the positions first, then inputs and offsets
    order = [1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)]
    return windows.permute(*order).flatten(2 + rank).flatten(1, 1 + rank)


def _key(layer: Layer, node: Node) -> Key:
    """Layers with the same key see the same inputs."""
    if not layer.spatial:
        return layer.data(node), layer.operator in ("conv",)
    attributes = tuple(sorted((name, repr(value)) for name, value in node.attributes.items()))
    return layer.data(node), layer.operator, layer.window, attributes


def _in_memory(layers: Sequence[Layer], *, vectors: bool) -> Iterator[list[Layer]]:
    """The layers in groups whose moments fit the memory."""
    group: list[Layer] = []
    spent = 0
    for layer in layers:
        width = width_of(layer)
        needs = 8 * layer.groups * width * (1 if vectors else width)
        if group and spent + needs > _MEMORY:
            yield group
            group, spent = [], 0
        group.append(layer)
        spent += needs
    if group:
        yield group


def width_of(layer: Layer) -> int:
    """How many numbers a position of a layer reads, in each group."""
    shape = layer.weight.data.shape
    if layer.operator == "conv_transpose":
        return shape[0] // layer.groups
    if layer.operator in ("addmm", "matmul"):
        return shape[0]
    return int(shape[1:].numel())


def _each(values: Attribute, rank: int) -> list[int]:
    found = [int(value) for value in (values if isinstance(values, tuple) else (values,))]  # type: ignore[arg-type]
    return found * rank if len(found) == 1 else found
