"""Training with experts weights averaging: the step that moves experts towards one another, its schedule, and the whole way there and back.

After Huang et al., "Experts Weights Averaging: A New General Training Scheme for Vision Transformers" (arXiv 2308.06093): after every step of the
optimiser each expert takes a share of the mean of the others, W_i <- (1 - b) W_i + b mean of W_j over j != i; the share rate b grows linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

import suture.passes
from suture.backends.torch_module import to_torch
from suture.drivers.cycle import adopt
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.experts.weight_averaging import stacked_parameters

Schedule = Literal["linear", "constant"]


def share_rate(rate: float, step: int, steps: int, schedule: Schedule = "linear") -> float:
    """The share rate after so many steps: `rate * step / steps` until it is `rate`, or `rate` throughout.

    :param step: counted from 1
    """
    return rate if schedule == "constant" else rate * min(step, steps) / steps


class WeightsAveraging:
    """The averaging step of a module with experts, to be taken after each step of its optimiser.

    :param graph: the graph that `ewa` made
    :param module: the module that is trained, as `to_torch` made it of that graph
    :param rate: the share rate in the end, 0 to 1; at 1 - 1/n all n experts become their mean
    :param steps: after how many steps it is reached
    :param schedule: linear from 0, or constant
    :raises SutureError: TRAINING, if the graph has no experts, or the module is another's; OPTION, if rate or steps do not fit
    """

    def __init__(
        self, graph: Graph, module: nn.Module, *, rate: float, steps: int, schedule: Schedule = "linear"
    ) -> None:
        if not 0 <= rate <= 1 or steps < 1 or schedule not in ("linear", "constant"):
            raise SutureError(
                Code.OPTION, f"rate={rate:g} over {steps} steps, {schedule}",
                remedy="a rate of 0 to 1, 1 step or more, and 'linear' or 'constant' would be right",
            )  # fmt: skip
        names = stacked_parameters(graph)
        held = dict(module.named_parameters())
        missing = [name for name in names if name not in held]
        if not names or missing:
            what = f"the module has no parameter {missing[0]}" if missing else "the graph has no experts"
            raise SutureError(Code.TRAINING, what, where=graph.name, remedy="make both of the graph that `ewa` returns")
        self.rate, self.steps, self.schedule = rate, steps, schedule
        self.taken = 0
        self._tensors = [held[name] for name in names]

    @property
    def share(self) -> float:
        """The share rate of the last step taken; 0 before the first."""
        return share_rate(self.rate, self.taken, self.steps, self.schedule) if self.taken else 0.0

    def step(self) -> float:
        """Average once, in place; the share rate that was used."""
        self.taken += 1
        share = self.share
        with torch.no_grad():
            for tensor in self._tensors:
                wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                others = (wide.sum(0, keepdim=True) - wide) / (len(wide) - 1)
                tensor.copy_((1 - share) * wide + share * others)
        return share


Train: TypeAlias = Callable[[nn.Module, WeightsAveraging], "nn.Module | Mapping[str, torch.Tensor] | None"]


def train_with_ewa(
    graph: Graph,
    train: Train,
    *,
    steps: int,
    experts: int = 4,
    at: Sequence[str] | None = None,
    rate: float = 0.3,
    schedule: Schedule = "linear",
    noise: float = 0.0,
    seed: int = 0,
) -> Graph:
    """Train a model whose feed-forward layers have experts, and average these into the model that it was.

    :param train: called with the module and its averaging, whose `step()` it calls after each step of its optimiser; it trains the module in place,
        or returns the trained module or its state dict
    :param steps: how many steps the share rate takes to grow
    :param experts: as for the pass `ewa`, like `at`, `noise` and `seed`
    :param rate: the share rate in the end
    :param schedule: linear or constant
    :returns: a graph of the same structure, with trained weights; the one that is given stays as it is
    :raises SutureError: TRAINING, if no layer can have experts, or the function returns something else, or weights that do not fit or are not finite;
        GROWTH, SITE or OPTION, if the options do not fit
    """
    options = {} if at is None else {"at": tuple(at)}
    divided = suture.passes.ewa(graph, experts=experts, noise=noise, seed=seed, **options)
    if divided.history[-1].outcome == "not applicable":
        raise SutureError(
            Code.TRAINING, divided.history[-1].notes[-1], where=graph.name, remedy="a model with feed-forward layers would be right"
        )  # fmt: skip
    own = divided.copy()
    for parameter in own.parameters.values():
        data = parameter.data.detach().clone()
        parameter.assign(data.requires_grad_(parameter.data.requires_grad) if data.is_floating_point() else data)
    module = to_torch(own)
    returned = train(module, WeightsAveraging(own, module, rate=rate, steps=steps, schedule=schedule))
    result = module if returned is None else returned
    state = result.state_dict() if isinstance(result, nn.Module) else result
    if not isinstance(state, Mapping):
        raise SutureError(
            Code.TRAINING, f"the training function returned a {type(returned).__name__}", where=graph.name,
            remedy="nothing, a module or a state dict would be right",
        )  # fmt: skip
    return suture.passes.collapse_experts(adopt(own, state, where=graph.name))
