"""The joint loss of exits and gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.exits.sites import exit_name, exits_of, gate_name, result_of


@dataclass(frozen=True)
class ExitOutputs:
    """What a model with exits gives: logits [batch, classes] of every exit and of the model itself, last; a gate [batch] of every exit."""

    logits: tuple[torch.Tensor, ...]
    gates: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ExitLoss:
    """The joint loss and its parts, all means over the batch.

    :param cross_entropy: expected over where a sample leaves
    :param cost: expected likewise, as a share of the cost of going all the way
    :param probabilities: [batch, exits + 1], where a sample leaves
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    cost: torch.Tensor
    probabilities: torch.Tensor


def exit_outputs(graph: Graph, result: Any) -> ExitOutputs:
    """Sort out what the module of a graph with exits returned.

    :param result: what `suture.to_torch(graph)(...)` gave, or what `evaluate` did
    :raises SutureError: EXIT, if the graph has no exits, or the result is not of this graph
    """
    exits, last = exits_of(graph), result_of(graph)
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(graph.outputs):
        raise SutureError(
            Code.EXIT, f"the result holds {len(tensors)} tensors, the graph returns {len(graph.outputs)}",
            where=graph.name, remedy="give what the module of this graph returned",
        )  # fmt: skip
    named = dict(zip(graph.output_names, tensors, strict=True))
    final = tensors[next(k for k, value in enumerate(graph.outputs) if value is last)]
    return ExitOutputs(
        (*(named[exit_name(item.number)] for item in exits), final),
        tuple(named[gate_name(item.number)] for item in exits),
    )


def exit_probabilities(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where samples leave: at exit l with probability g_l prod_{k<l} (1 - g_k), and at the end with what is left.

    :param gates: one number in [0, 1] per sample and exit: tensors [batch]
    :returns: [batch, exits + 1]; every row sums to 1
    """
    stay = torch.ones_like(gates[0])
    columns: list[torch.Tensor] = []
    for gate in gates:
        columns.append(stay * gate)
        stay = stay * (1 - gate)
    return torch.stack([*columns, stay], dim=1)


def exit_loss(outputs: ExitOutputs, targets: torch.Tensor, costs: Sequence[int], *, tradeoff: float) -> ExitLoss:
    """The expected cross-entropy plus `tradeoff` times the expected cost, over where a sample leaves (JEI-DNN, ICLR 2024).

    Gates and inference modules train on it together: a gate learns where leaving is worth what it saves, and an inference module learns from the
    samples that will leave at it. The loop is the user's.

    :param targets: class numbers i64[batch]
    :param costs: MACs up to each exit and to the end, as `exit_costs` gives them
    :raises SutureError: EXIT, if there is not one cost per place to leave
    """
    if len(costs) != len(outputs.logits):
        raise SutureError(
            Code.EXIT, f"{len(costs)} costs for {len(outputs.logits)} places to leave", remedy="give exit_costs(graph)"
        )
    probabilities = exit_probabilities(outputs.gates)
    entropies = torch.stack([F.cross_entropy(logits, targets, reduction="none") for logits in outputs.logits], dim=1)
    shares = probabilities.new_tensor([cost / costs[-1] for cost in costs])
    cross_entropy = (probabilities * entropies).sum(dim=1).mean()
    cost = (probabilities @ shares).mean()
    return ExitLoss(cross_entropy + tradeoff * cost, cross_entropy, cost, probabilities)


def warm_up_loss(outputs: ExitOutputs, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of all exits and the end: what inference modules train on before gates mean anything."""
    return torch.stack([F.cross_entropy(logits, targets) for logits in outputs.logits]).mean()
