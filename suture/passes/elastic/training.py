"""Training elastic networks: sums of losses over sub-networks, and self-distillation among them.

Passes do not train; these are the losses and the bookkeeping that a user's loop calls.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from suture.ir.errors import Code, SutureError
from suture.passes.elastic.dimensions import Choice

Loss = Callable[["Switchable"], torch.Tensor]
Run = Callable[["Switchable", torch.Tensor], torch.Tensor]


class Switchable(Protocol):
    """A module that may be set to a sub-network, as `suture.drivers.elastic.Elastic.module` gives it."""

    choice: Choice

    def set(self, choice: Choice) -> Any:
        """Be a sub-network from now on."""
        ...

    def at(self, choice: Choice) -> AbstractContextManager[Any]:
        """Be a sub-network for a while."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained tensors of the whole network."""
        ...

    def buffers(self) -> Iterator[torch.Tensor]:
        """The other tensors of the whole network."""
        ...

    def __call__(self, *args: Any) -> Any:
        """Run the sub-network that is set."""
        ...


def accumulate(module: Switchable, choices: Iterable[Choice], loss: Loss) -> list[float]:
    """Add up the gradients of a loss at several sub-networks, each weighted alike: SortedNet's accumulation, before one step of the optimiser.

    Valipour et al., "SortedNet" (arXiv 2309.00255): sub-networks are drawn at random, and the weights move once for several of them.

    :param loss: from the module, set to a sub-network, to a scalar
    :returns: the losses
    :raises SutureError: TRAINING, if the loss is no scalar; ELASTIC, if there is no choice
    """
    chosen = list(choices)
    if not chosen:
        raise SutureError(Code.ELASTIC, "there is no sub-network to train", remedy="give at least one choice")
    values = []
    for choice in chosen:
        with module.at(choice):
            value = _scalar(loss(module))
        _backward(value / len(chosen))
        values.append(float(value.detach()))
    return values


def sandwich(
    module: Switchable,
    choices: Iterable[Choice],
    loss: Loss,
    outputs: Callable[[Switchable], torch.Tensor],
    *,
    temperature: float = 1.0,
) -> list[float]:
    """Accumulate gradients by the sandwich rule with inplace distillation: the first choice learns the task, all others what the first one says.

    Yu and Huang (arXiv 1903.05134).

    :param choices: the whole network first, as `Elastic.sandwich` gives them
    :param loss: of the task, for the first
    :param outputs: the logits that are distilled
    """
    first, *others = choices
    with module.at(first):
        value = _scalar(loss(module))
        _backward(value)
        with torch.no_grad():
            target = outputs(module)
    values = [float(value.detach())]
    for choice in others:
        with module.at(choice):
            value = distillation(outputs(module), target, temperature)
        _backward(value)
        values.append(float(value.detach()))
    return values


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy between softened distributions over the last dimension, times the temperature squared (Hinton et al., arXiv 1503.02531)."""
    target = F.softmax(teacher.detach() / temperature, -1)
    return -(target * F.log_softmax(student / temperature, -1)).sum(-1).mean() * temperature**2


@dataclass
class Branches:
    """The three branches of POA: a teacher that follows by moving average, the intact student, and the student at a sampled size.

    Zhang et al., "POA: Pre-training Once for Models of All Sizes" (arXiv 2408.01031).

    :param share: the weight of the intact student's loss against the elastic one's
    """

    student: Switchable
    teacher: Switchable
    full: Choice
    temperature: float = 1.0
    share: float = 0.5

    @classmethod
    def of(cls, student: Switchable, full: Choice, *, temperature: float = 1.0, share: float = 0.5) -> Branches:
        """Branches whose teacher begins as the student does; `full` is the whole network."""
        teacher = copy.deepcopy(student)
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        return cls(student, teacher, full, temperature, share)

    def losses(
        self,
        choice: Choice,
        views: tuple[torch.Tensor, torch.Tensor],
        run: Run | None = None,
    ) -> Mapping[str, torch.Tensor]:
        """The loss of one step, and its terms.

        Both students learn what the teacher says of the other view, the elastic one also what the intact one says of its own.

        :param views: two augmentations of a batch
        :param run: from a module and a view to the logits compared; the module's result if absent
        """
        call: Run = run or (lambda module, view: module(view))
        with torch.no_grad(), self.teacher.at(self.full):
            taught = [call(self.teacher, view) for view in views]
        with self.student.at(self.full):
            intact = [call(self.student, view) for view in views]
        with self.student.at(choice):
            elastic = [call(self.student, view) for view in views]

        def pairs(students: list[torch.Tensor], teachers: list[torch.Tensor]) -> torch.Tensor:
            losses = [distillation(s, t, self.temperature) for s, t in zip(students, teachers, strict=True)]
            return torch.stack(losses).mean()

        terms = {
            "intact": pairs(intact, taught[::-1]),
            "elastic_cross_view": pairs(elastic, taught[::-1]),
            "elastic_same_view": pairs(elastic, intact),
        }
        both = (terms["elastic_cross_view"] + terms["elastic_same_view"]) / 2
        return {"loss": self.share * terms["intact"] + (1 - self.share) * both, **terms}

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) * student; buffers are copied."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - momentum)
        for held, now in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            held.copy_(now)


def _scalar(value: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        given = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise SutureError(Code.TRAINING, f"the loss gave {given}", remedy="a scalar with a gradient would be right")
    return value


def _backward(value: torch.Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]
