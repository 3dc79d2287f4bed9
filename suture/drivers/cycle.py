"""The V-cycle of multi-level training: train, coalesce, train the coarse model, come back, train on (Zou et al. 2024, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

import suture.passes
from suture.backends.torch_module import to_torch
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph

Train: TypeAlias = Callable[[nn.Module, int, int], "nn.Module | Mapping[str, torch.Tensor] | None"]


@dataclass(frozen=True)
class Leg:
    """One stretch of training: at which level (0 is the fine model), how many steps, and how large the model was."""

    level: int
    steps: int
    parameters: int
    macs: int

    def __str__(self) -> str:
        return (
            f"level {self.level}: {self.steps} steps at {self.parameters:,} parameters, {self.macs:,} MACs per sample"
        )


@dataclass(frozen=True)
class Cycle:
    """The trained model, and the way it went."""

    graph: Graph
    legs: tuple[Leg, ...]

    @property
    def cost(self) -> int:
        """Steps times MACs, over all legs: what to compare with training the fine model alone."""
        return sum(leg.steps * leg.macs for leg in self.legs)

    def __str__(self) -> str:
        return "\n".join(map(str, self.legs))


def v_cycle(
    graph: Graph,
    train: Train,
    steps: Sequence[int],
    *,
    width: int = 2,
    depth: int = 2,
    at: Sequence[str] | None = None,
    kind: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    alpha: float = 0.25,
) -> Cycle:
    """Train a model at several levels: down to the coarsest, and up again.

    :param train: called as `train(module, level, steps)`; returns the module, its state dict, or nothing if it trained the module it was given
    :param steps: how many steps each leg takes: `(100, 1000, 3000)` is a cycle of two levels, fine, coarse, fine; five numbers are three levels
    :param width: how many indices of an axis become one at every level
    :param depth: how many blocks of a stack become one at every level
    :param at: as for `coalesce`
    :param kind: as for `coalesce`
    :param exclude: as for `coalesce`
    :param alpha: how far a finer model moves towards what comes up
    :raises SutureError: GROWTH, if the steps are of no cycle, or nothing is left to coalesce; TRAINING, if the training function returns
        something else, or what it returns does not fit the model or is not finite
    """
    if len(steps) % 2 == 0 or any(count < 0 for count in steps):
        raise SutureError(
            Code.GROWTH,
            f"steps={tuple(steps)} is no cycle",
            remedy="an odd number of counts would be right: fine, coarse, fine",
        )
    options: dict[str, Any] = {"width": width, "depth": depth, "at": at, "kind": kind, "exclude": tuple(exclude)}
    options = {name: value for name, value in options.items() if value is not None}
    levels = len(steps) // 2
    legs: list[Leg] = []
    fine: list[Graph] = []
    current = graph
    for level, count in enumerate(steps):
        depth_of = level if level <= levels else 2 * levels - level
        current = _trained(current, train, depth_of, count, legs)
        if level < levels:
            fine.append(current)
            current = suture.passes.coalesce(current, **options)
            if current.history[-1].outcome == "not applicable":
                raise SutureError(
                    Code.GROWTH,
                    f"nothing is left to coalesce at level {level}",
                    remedy=f"{2 * level + 1} counts of steps would be right",
                )
        elif level < 2 * levels:
            finer = fine.pop()
            refined = suture.passes.decoalesce(current, like=finer, **options)
            current = suture.passes.interpolate(finer, other=refined, alpha=alpha)
    return Cycle(current, tuple(legs))


def _trained(graph: Graph, train: Train, level: int, steps: int, legs: list[Leg]) -> Graph:
    stats = graph.stats()
    legs.append(Leg(level, steps, stats.parameters, stats.macs))
    if not steps:
        return graph
    module = to_torch(_with_own_tensors(graph)).train()
    result = train(module, level, steps)
    if result is None:
        result = module
    state = result.state_dict() if isinstance(result, nn.Module) else result
    if not isinstance(state, Mapping):
        raise SutureError(
            Code.TRAINING, f"the training function returned a {type(result).__name__}", where=f"level {level}",
            remedy="a module, a state dict, or nothing would be right",
        )  # fmt: skip
    return adopt(graph, state, where=f"level {level}")


def _with_own_tensors(graph: Graph) -> Graph:
    """A copy that may be trained: a module shares its graph's tensors, and the graph is the caller's."""
    result = graph.copy()
    for parameter in result.parameters.values():
        data = parameter.data.detach().clone()
        parameter.assign(data.requires_grad_(parameter.data.requires_grad) if data.dtype.is_floating_point else data)
    return result


def adopt(graph: Graph, state: Mapping[str, Any], *, where: str = "") -> Graph:
    """A copy of the graph with the tensors of a trained module's state dict.

    :raises SutureError: TRAINING, if a tensor is missing, of another shape, or not finite
    """
    result = graph.copy()
    for name, parameter in result.parameters.items():
        if not parameter.persistent:
            continue
        tensor = state.get(name)
        if not isinstance(tensor, torch.Tensor) or tensor.shape != parameter.data.shape:
            what = f"has shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "is missing"
            raise SutureError(
                Code.TRAINING, f"{name} of the trained model {what}", where=where,
                remedy=f"shape {list(parameter.data.shape)} would be right: train the module that is given",
            )  # fmt: skip
        if tensor.dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise SutureError(
                Code.TRAINING,
                f"{name} of the trained model is not finite",
                where=where,
                remedy="a smaller step may help",
            )
        data = tensor.detach().to(parameter.dtype).clone()
        parameter.assign(data.requires_grad_(parameter.data.requires_grad) if data.dtype.is_floating_point else data)
    return result
