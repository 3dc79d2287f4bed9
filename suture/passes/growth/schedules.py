"""When a model grows during its training, as data: surgeries at steps, and the published schedules made of them.

A schedule says nothing about a model's architecture but the paths that it is given. `suture.drivers.growing.train_growing` walks over one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from suture.ir.errors import Code, SutureError


@dataclass(frozen=True)
class Surgery:
    """One growth: a pass and its options, applied before a step.

    :param ramp: over how many steps the masks that the pass made open, from 0 to 1
    :param train: from here on only parameters with these names train, as patterns; all if empty
    """

    step: int
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ramp: int = 0
    train: tuple[str, ...] = ()

    def __str__(self) -> str:
        trained = f"training {', '.join(self.train)}" if self.train else ""
        if not self.name:
            return f"step {self.step}: {trained or 'everything trains'}"
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        ramp = f"masks open over {self.ramp} steps" if self.ramp else ""
        return ", ".join(filter(None, [f"step {self.step}: {self.name}({options})", ramp, trained]))


@dataclass(frozen=True)
class Schedule:
    """Surgeries in the order of their steps, within a training of `steps` steps. An entry without a pass changes only what trains."""

    steps: int
    surgeries: tuple[Surgery, ...] = ()
    name: str = "schedule"

    def __post_init__(self) -> None:
        """:raises SutureError: GROWTH, if the steps are not in order, or lie outside of the training"""
        for surgery in self.surgeries:
            if not 0 <= surgery.step < self.steps or surgery.ramp < 0:
                raise SutureError(
                    Code.GROWTH, f"{surgery.name} at step {surgery.step} is no part of {self.steps} steps", where=self.name,
                    remedy=f"a step from 0 to {self.steps - 1} would be right",
                )  # fmt: skip
        for one, other in pairwise(self.surgeries):
            if other.step < one.step:
                raise SutureError(
                    Code.GROWTH, f"step {other.step} follows step {one.step}", where=self.name, remedy="order them by their steps"
                )  # fmt: skip

    def to_json(self) -> str:
        """The schedule as JSON."""
        return json.dumps({"format": "suture-schedule 1", **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str, where: str = "schedule") -> Schedule:
        """Read what `to_json` wrote.

        :raises SutureError: GROWTH, if it is no schedule
        """
        try:
            data = json.loads(text)
            if data.pop("format") != "suture-schedule 1":
                raise ValueError
            rows = tuple(Surgery(**{**row, "train": tuple(row["train"])}) for row in data["surgeries"])
            return Schedule(data["steps"], rows, data["name"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SutureError(
                Code.GROWTH, "this is no schedule", where=where, remedy="a schedule is what Schedule.to_json writes"
            ) from None

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.steps} steps", *map(str, self.surgeries)])


def g_stack(steps: int, at_step: int, *, factor: int = 4, at: str | None = None) -> Schedule:
    """Train the small model, stack it once, train on (Du et al. 2024, section 4).

    :param at_step: the step that the growth timing of `suture.passes.growth.guidelines` gives, in tokens over tokens a step
    """
    return Schedule(steps, (Surgery(at_step, "stack", _at(at, times=factor)),), "G_stack")


def stacked_bert(steps: Sequence[int], *, at: str | None = None) -> Schedule:
    """Progressive stacking: the depth doubles after each stage but the last (StackedBERT, Gong et al. 2019, algorithm 1).

    :param steps: how many steps each stage takes
    """
    ends = _ends(steps)
    return Schedule(ends[-1], tuple(Surgery(end, "stack", _at(at, times=2)) for end in ends[:-1]), "StackedBERT")


def gradual_stacking(depths: Sequence[int], steps: Sequence[int], *, at: str | None = None) -> Schedule:
    """The depth grows by copies of the top blocks after each stage (Reddi et al. 2023, section 3).

    :param depths: the number of blocks of every stage, the first one's being what the model has
    :param steps: how many steps each stage takes
    """
    _require_pairs(depths, steps, "gradual stacking")
    ends = _ends(steps)
    surgeries = [
        Surgery(end, "stack", _at(at, to=depth, how="gradual"))
        for end, depth in zip(ends[:-1], depths[1:], strict=True)
    ]
    return Schedule(ends[-1], tuple(surgeries), "gradual stacking")


def multi_stage_layerwise(
    depths: Sequence[int], steps: Sequence[int], *, at: str, head: Sequence[str] = (), finish: int
) -> Schedule:
    """Multi-stage layerwise training: after each growth only the new top blocks and the head train, and everything at the end (Yang et al. 2020).

    :param depths: the number of blocks of every stage, the first one's being what the model has
    :param steps: how many steps each stage takes
    :param at: the stack's module path: its blocks are numbered below it
    :param head: names of what trains behind the blocks, as patterns
    :param finish: how many steps the whole model trains in the end
    """
    _require_pairs(depths, steps, "multi-stage layerwise training")
    ends = _ends(steps)
    surgeries = []
    for end, (small, large) in zip(ends[:-1], pairwise(depths), strict=True):
        new = tuple(f"{at}.{block}.*" for block in range(small, large))
        surgeries.append(Surgery(end, "stack", {"at": at, "to": large, "how": "gradual"}, train=(*new, *head)))
    surgeries.append(Surgery(ends[-1], ""))
    return Schedule(ends[-1] + finish, tuple(surgeries), "multi-stage layerwise training")


def masked_growth(steps: int, growths: Sequence[tuple[int, str, Mapping[str, Any]]], *, ramp: int) -> Schedule:
    """Masked structural growth: every new part comes in behind a mask that opens linearly (MSG, Yao et al. 2023, section 3).

    The paper's order is feed-forward width, residual width, heads, then depth.

    :param growths: step, pass (`widen` or `insert_masked`) and its options; `widen` is told to mask
    :param ramp: over how many steps each mask opens
    """
    surgeries = []
    for step, name, options in growths:
        masked = {"method": "random", "mask": True} if name == "widen" else {}
        surgeries.append(Surgery(step, name, {**options, **masked}, ramp=ramp))
    return Schedule(steps, tuple(surgeries), "masked structural growth")


def _at(at: str | None, **options: Any) -> dict[str, Any]:
    return options if at is None else {"at": at, **options}


def _ends(steps: Sequence[int]) -> list[int]:
    """At which step each stage ends.

    :raises SutureError: GROWTH, if there is no stage, or one without a step
    """
    if not steps or any(count < 1 for count in steps):
        raise SutureError(
            Code.GROWTH, f"stages of {list(steps)} steps", remedy="one number of steps, 1 or more, per stage would be right"
        )  # fmt: skip
    return [sum(steps[: k + 1]) for k in range(len(steps))]


def _require_pairs(depths: Sequence[int], steps: Sequence[int], where: str) -> None:
    if len(depths) != len(steps):
        raise SutureError(
            Code.GROWTH, f"{len(depths)} depths for {len(steps)} stages", where=where, remedy="one depth per stage would be right"
        )  # fmt: skip
    if any(second <= first for first, second in pairwise(depths)):
        raise SutureError(
            Code.GROWTH, f"depths {list(depths)} do not grow", where=where, remedy="each must be more than the one before"
        )  # fmt: skip
