"""Training a model that grows on the way: a schedule walked over with the user's own training function.

The weights, the optimiser's state and the masks of new parts are carried across every growth.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from suture.backends.torch_module import to_torch
from suture.drivers.cycle import adopt
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes import registry
from suture.passes.growth.depth.stacking import growth_sources
from suture.passes.growth.masking import is_mask
from suture.passes.growth.optimizer_state import ParameterSource, map_optimizer_state
from suture.passes.growth.schedules import Schedule, Surgery
from suture.passes.growth.width.widen import plan_widen

Train: TypeAlias = Callable[[nn.Module, torch.optim.Optimizer, int, int], object]
MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_RAMP_LEVELS = 64  # a mask opens in about as many steps: each is one call of the training function


@dataclass(frozen=True)
class Stage:
    """A stretch of training between two growths: its steps, the growth before it, and what that growth noted."""

    start: int
    stop: int
    growth: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"steps {self.start} to {self.stop}, after {self.growth}", *self.notes])


@dataclass(frozen=True)
class Trained:
    """What came of it: the grown graph with its trained weights, the module and the optimiser to go on with, the stages."""

    graph: Graph
    module: nn.Module
    optimizer: torch.optim.Optimizer
    stages: tuple[Stage, ...]


def train_growing(
    graph: Graph, schedule: Schedule, train: Train, optimizer: MakeOptimizer, *, check: bool = True
) -> Trained:
    """Train a model that grows as a schedule says. The graph that is given, and its weights, stay as they are.

    :param train: called as `train(module, optimizer, start, stop)`: trains the module in place from step `start` up to `stop`
    :param optimizer: makes the optimiser of a list of parameters; after each growth it is asked again, and the state is carried over
    :param check: whether each growth is held to its contract on probes
    :raises SutureError: GROWTH, if a surgery of the schedule does nothing, or makes masks that would never open; TRAINING, if the training
        function leaves numbers that are not finite, or another module than it was given
    """
    return _Run(graph, train, optimizer, check).walk(schedule)


class _Run:
    """One walk over a schedule: the graph as it is now, and the module and the optimiser on its tensors."""

    def __init__(self, graph: Graph, train: Train, make_optimizer: MakeOptimizer, check: bool) -> None:
        own = {name: parameter.data for name, parameter in graph.parameters.items()}
        self.graph = adopt(graph, own)
        self.train, self.make_optimizer, self.check = train, make_optimizer, check
        self.ramps: dict[str, tuple[int, int]] = {}  # mask -> the step at which it begins to open, and for how many
        self.patterns: tuple[str, ...] = ()
        self.step = 0
        self.module: nn.Module = to_torch(self.graph)
        self.optimizer = make_optimizer(list(self.module.parameters()))

    def walk(self, schedule: Schedule) -> Trained:
        stages: list[Stage] = []
        growth: str = "the start"
        notes: tuple[str, ...] = ()
        for surgery in (*schedule.surgeries, None):
            start, stop = self.step, schedule.steps if surgery is None else surgery.step
            if stop > start:
                self._train_to(stop)
                stages.append(Stage(start, stop, growth, notes))
            if surgery is not None:
                growth, notes = str(surgery), self._operate(surgery)
        self.module.requires_grad_(True)
        self.graph = self._adopted()
        return Trained(self.graph, self.module.eval(), self.optimizer, tuple(stages))

    def _train_to(self, stop: int) -> None:
        """Train up to a step; while masks open, in short stretches."""
        while self.step < stop:
            until = stop
            for start, length in self.ramps.values():
                until = min(until, start + length, self.step + max(1, length // _RAMP_LEVELS))
            for name, (start, length) in self.ramps.items():
                self.module.get_buffer(name).fill_((until - start) / length)
            self._freeze()
            self.train(self.module.train(), self.optimizer, self.step, until)
            self.step = until
            opened = [name for name, (start, length) in self.ramps.items() if start + length <= until]
            for name in opened:
                del self.ramps[name]
            if opened:
                self._apply("unmask", {})

    def _freeze(self) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(
                not self.patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
            )

    def _operate(self, surgery: Surgery) -> tuple[str, ...]:
        """Grow as an entry of the schedule says; what the pass noted."""
        self.patterns = surgery.train
        if not surgery.name:
            return ()
        before = {parameter.name for parameter in self.graph.parameters.values() if is_mask(parameter)}
        notes = self._apply(surgery.name, surgery.options)
        masks = [p.name for p in self.graph.parameters.values() if is_mask(p) and p.name not in before]
        if masks and not surgery.ramp:
            raise SutureError(
                Code.GROWTH, f"{surgery.name} makes masks that would never open", where=f"step {self.step}", remedy="give the surgery a ramp"
            )  # fmt: skip
        self.ramps.update(dict.fromkeys(masks, (self.step, surgery.ramp)))
        return notes

    def _apply(self, name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Apply a pass to the trained weights; the optimiser's state follows."""
        before = self._adopted()
        entry = registry.registered(name) or registry.find(name)
        after = entry.call(before, check=self.check, **options)
        record = after.history[-1]
        if record.outcome == "not applicable":
            raise SutureError(
                Code.GROWTH, f"{name} does nothing: {record.notes[-1]}", where=f"step {self.step}",
                remedy="leave it out of the schedule, or choose another place",
            )  # fmt: skip
        if name == "widen":
            sources = plan_widen(before, **options).sources()
        else:
            sources = {
                new: ParameterSource(old)
                for new, old in growth_sources(before, after).items()
                if after.parameters[new].shape
                == before.parameters[old].shape  # what was made larger by other means starts anew
            }
        module = to_torch(after)
        optimizer = self.make_optimizer(list(module.parameters()))
        _carry_over(self.optimizer, _names(self.graph, self.module), optimizer, _names(after, module), sources)
        self.graph, self.module, self.optimizer = after, module, optimizer
        return record.notes

    def _adopted(self) -> Graph:
        return adopt(self.graph, self.module.state_dict(), where=f"step {self.step}")


def _names(graph: Graph, module: nn.Module) -> dict[int, str]:
    """The graph's name of each of the module's parameters, by identity: a tied one has several in the module."""
    held = dict(module.named_parameters(remove_duplicate=False))
    return {id(held[p.name]): p.name for p in graph.parameters.values() if p.name in held}


def _carry_over(
    old: torch.optim.Optimizer,
    old_names: Mapping[int, str],
    new: torch.optim.Optimizer,
    new_names: Mapping[int, str],
    sources: Mapping[str, ParameterSource],
) -> None:
    """Load the old optimiser's state, grown, into the new one, which keeps its own groups and takes over their learning rates."""
    before = [old_names[id(p)] for group in old.param_groups for p in group["params"]]
    after = [new_names[id(p)] for group in new.param_groups for p in group["params"]]
    state, fresh = old.state_dict(), new.state_dict()
    everything = [{"params": [number for group in state["param_groups"] for number in group["params"]]}]
    known = {name: source for name, source in sources.items() if source.name in set(before)}
    grown = map_optimizer_state({"state": state["state"], "param_groups": everything}, before, after, known)
    groups = fresh["param_groups"]
    if len(groups) == len(old.param_groups):
        kept = [{key: value for key, value in group.items() if key != "params"} for group in old.param_groups]
        groups = [{**group, **values} for group, values in zip(groups, kept, strict=True)]
    new.load_state_dict({"state": grown["state"], "param_groups": groups})
