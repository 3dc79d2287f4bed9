"""Dropout in a compiled program: what is kept is drawn by torch before the kernels run, and enters them as an input.

So the draw is that of the program's own dropout, on its values' shapes in the edges' own order: with equal seeds, equal masks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.ir.operator import find
from suture.ir.sizes import evaluate_size
from suture.ir.types import TensorType


@dataclass(frozen=True)
class Mask:
    """A mask of a program.

    :param name: the input that takes it
    :param type: its type
    :param p: the share that is dropped
    :param whole: whether whole channels are
    """

    name: str
    type: TensorType
    p: float
    whole: bool

    def draw(self, symbols: Mapping[str, int], device: torch.device) -> torch.Tensor:
        """Zeros, and 1 / (1 - p) where values are kept."""
        shape = [evaluate_size(dim, symbols) for dim in self.type.shape]
        ones = torch.ones(shape, dtype=self.type.dtype, device=device)
        drawn: torch.Tensor = find("dropout").run(ones, p=self.p, whole=self.whole, training=True)
        return drawn


def draw_all(masks: Sequence[Mask], symbols: Mapping[str, int], device: torch.device) -> list[torch.Tensor]:
    """All masks of a call, in the order in which the program draws them."""
    return [mask.draw(symbols, device) for mask in masks]


def mask_dropout(graph: Graph, training: Collection[str]) -> tuple[Graph, tuple[Mask, ...]]:
    """A copy of a graph in which dropout is a product with a mask that comes from outside, or nothing.

    :param training: the values whose operators do what they do in training, by name
    :returns: the copy, and its masks, which are its last inputs
    :raises SutureError: TRAINING, for an operator that gathers statistics while it trains
    """
    result = graph.copy()
    masks: list[Mask] = []
    for node in result.nodes:
        if not node.operator.training:
            continue
        name = node.operator.name
        if name != "dropout":
            if (
                training
                and name in ("batch_norm", "instance_norm")
                and len(node.inputs) > 3
                and node.inputs[3] is not None
            ):
                raise SutureError(
                    Code.TRAINING, f"{name} in training updates its statistics", where=node.where(),
                    remedy="put it outside of what is compiled, or call eval() on it",
                )  # fmt: skip
            continue
        (x,) = node.inputs
        assert x is not None
        kept, p = x, node.attributes["p"]
        assert isinstance(p, int | float)
        if node.output.name in training and p:
            mask = result.add_input(result.fresh_name("kept"), x.type)
            masks.append(Mask(mask.name, x.type, float(p), bool(node.attributes["whole"])))
            kept = result.add("mul", [x, mask], path=node.path, name=f"{node.output.name}_kept", before=node).output
        result.replace_uses(node.output, kept)
        result.remove(node)
    return result, tuple(masks)
