"""How much each block of a stack does: what layer skipping goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.regions import Stack, stack_at
from suture.ir.semantics import evaluate
from suture.ir.splice import remove
from suture.passes.contract import deviation
from suture.passes.exits.features import feature_dim
from suture.passes.stitch.calibration import batches

Measure = Literal["cosine", "residual", "loss"]


@dataclass(frozen=True)
class Influence:
    """What one block does to the stream, or to the result.

    :param identical: whether it changed nothing at all on the data
    """

    block: str
    value: float
    identical: bool = False

    def __str__(self) -> str:
        return f"{self.block}: influence {self.value:.4g}"


def influences(
    graph: Graph, data: Mapping[str, torch.Tensor], *, at: str | None = None, by: Measure = "cosine"
) -> tuple[Influence, ...]:
    """The influence of every block of a stack on calibration data.

    `cosine` is 1 - the mean cosine of a position's features before and after the block, the block influence of ShortGPT (Men et al. 2024, equation
    1); `residual` is the norm of what the block adds to the stream over that of the stream; `loss` is how far the outputs move when the block alone
    is taken out: the largest difference over the largest magnitude.

    :param data: inputs by name
    :param at: the stack; the one of most parameters if absent
    :raises SutureError: CALIBRATION, if the data do not fit; SITE or REGION, if there is no such stack; SEAM, if blocks change the stream's type
    """
    stack = stack_at(graph, at)
    if stack.entry.type != stack.exit.type:
        raise SutureError(
            Code.SEAM, f"{stack.name} takes {stack.entry.type} and gives {stack.exit.type}", where=graph.name,
            remedy="blocks that keep the type of their stream can be left out",
        )  # fmt: skip
    if by == "loss":
        return _by_loss(graph, stack, data, at)
    return _by_stream(graph, stack, data, by)


def _by_stream(graph: Graph, stack: Stack, data: Mapping[str, torch.Tensor], by: Measure) -> tuple[Influence, ...]:
    streams = [block.entry for block in stack.blocks], [block.output for block in stack.blocks]
    table = graph.axes()
    dims = [feature_dim(table, value) for value in streams[1]]
    tapped = {*streams[0], *streams[1]}
    sums = torch.zeros(len(stack), 2, dtype=torch.float64)
    identical = [True] * len(stack)
    for batch in batches(graph, data):
        seen: dict[Value, torch.Tensor] = {v: t for v, t in zip(graph.inputs, batch, strict=True) if v in tapped}

        def keep(value: Value, tensor: torch.Tensor, seen: dict[Value, torch.Tensor] = seen) -> None:
            if value in tapped:
                seen[value] = tensor

        with torch.no_grad():
            evaluate(graph, batch, watch=keep)
        for k, (entry, exit) in enumerate(zip(*streams, strict=True)):
            before, after = seen[entry].double(), seen[exit].double()
            identical[k] &= torch.equal(before, after)
            if by == "cosine":
                cosines = F.cosine_similarity(before, after, dim=dims[k])
                sums[k] += torch.stack([(1 - cosines).sum(), torch.tensor(cosines.numel(), dtype=torch.float64)])
            else:
                sums[k] += torch.stack([(after - before).square().sum(), before.square().sum()])
    ratios = sums[:, 0] / sums[:, 1].clamp(min=torch.finfo(torch.float64).tiny)
    values = ratios if by == "cosine" else ratios.sqrt()
    return tuple(
        Influence(block.name, value, same)
        for block, value, same in zip(stack.blocks, values.tolist(), identical, strict=True)
    )


def _by_loss(graph: Graph, stack: Stack, data: Mapping[str, torch.Tensor], at: str | None) -> tuple[Influence, ...]:
    found: list[Influence] = []
    with torch.no_grad():
        given = list(batches(graph, data))
        whole = [evaluate(graph, batch) for batch in given]
        for k, block in enumerate(stack.blocks):
            shorter = graph.copy()
            remove(stack_at(shorter, at).blocks[k])
            moved = max(
                deviation(a, b)
                for batch, expected in zip(given, whole, strict=True)
                for a, b in zip(expected, evaluate(shorter, batch), strict=True)
            )
            found.append(Influence(block.name, moved, moved == 0))
    return tuple(found)
