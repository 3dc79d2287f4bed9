"""Edits of a block's parameters that make it the identity, and why there may be none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from suture.ir.graph import Graph, Node, Parameter

Kind = Literal["zero", "unit", "deviation", "mean"]
T = TypeVar("T")


@dataclass(frozen=True)
class Edit:
    """A parameter, and what it becomes: zero, the unit matrix or impulse, a batch norm's own deviation or mean; `node` is what reads it."""

    parameter: Parameter
    kind: Kind
    node: Node

    def value(self) -> torch.Tensor:
        """The parameter's new tensor."""
        held = self.parameter.data
        return _VALUES[self.kind](self).to(held.dtype).requires_grad_(held.requires_grad)


class Blocked(Exception):
    """What prevents a block from being the identity: an operator with the reason.

    `depth` says how far the walk got where it had a choice, `beside_a_sum` whether it came to an addition.
    """

    def __init__(self, node: Node | None, reason: str) -> None:
        super().__init__(f"{called(node)}: {reason}" if node is not None else reason)
        self.depth = 0
        self.beside_a_sum = False


def called(node: Node) -> str:
    """A node in a verdict: its operator and its place."""
    return f"{node.operator.name} {node.path or node.outputs[0].name}"


def outcome(ask: Callable[[], T]) -> T | Blocked:
    """What a question gives, or why it cannot: so that answers of both kinds can be kept."""
    try:
        return ask()
    except Blocked as blocked:
        return blocked


def unwrap(kept: T | Blocked) -> T:
    """A kept answer; raises what was raised then."""
    if isinstance(kept, Blocked):
        raise kept
    return kept


def apply_edits(edits: tuple[Edit, ...], piece: Graph) -> None:
    """Give the parameters of a copy of the block, which have the names of the block's own, their new tensors."""
    for edit in edits:
        piece.parameters[edit.parameter.name].assign(edit.value())


def _unit(edit: Edit) -> torch.Tensor:
    """The unit matrix; of a convolution, one impulse in the middle for each output channel."""
    held = edit.parameter.data
    data = torch.zeros_like(held, requires_grad=False)
    if not held.is_meta:
        rows = torch.arange(held.shape[0], device=held.device)
        index: tuple[torch.Tensor | int, ...] = (rows, rows % held.shape[1], *(size // 2 for size in held.shape[2:]))
        data[index] = 1
    return data


def _statistic(edit: Edit, operand: int) -> torch.Tensor:
    value = edit.node.inputs[operand]
    assert isinstance(value, Parameter)
    return value.data.detach()


def _deviation(edit: Edit) -> torch.Tensor:
    eps = edit.node.attributes["eps"]
    assert isinstance(eps, float)
    return torch.sqrt(_statistic(edit, 4).to(torch.float64) + eps)


_VALUES: dict[Kind, Callable[[Edit], torch.Tensor]] = {
    "zero": lambda edit: torch.zeros_like(edit.parameter.data, requires_grad=False),
    "unit": _unit,
    "deviation": _deviation,
    "mean": lambda edit: _statistic(edit, 3).clone(),
}
