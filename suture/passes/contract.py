"""Holding a pass to its contract: run both graphs on probes, measure the deviation, and name the first value that differs.

Values keep their meaning with their name: a pass that changes what a value holds gives it another name. So the values of the two graphs are
matched by name, and the first that differs, in the order of the original graph, is where the pass went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from suture.ir.errors import Code, ContractError
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.semantics import evaluate
from suture.passes.counter import counter_uniform
from suture.passes.probes import bind_probes, draw_probes


class Contract(StrEnum):
    """What a pass promises about the graph it returns."""

    EXACT = "exact"  # the same function, to the tolerance of the dtype
    APPROXIMATE = "approximate"  # another function; how far it is off is measured
    STRUCTURAL = "structural"  # the same types of inputs and outputs, nothing more


TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
"""The largest deviation that still counts as the same function, by the coarsest floating-point type in the graph."""

_WORST_CONDITION = 1000.0
"""How much an ill-conditioned network may stretch its tolerance, at most."""

_ROUNDINGS = 8.0
"""How many roundings of its parameters a network may be off."""


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs, by name, that a pass adds to a graph or takes from it."""

    gained_inputs: tuple[str, ...] = ()
    lost_inputs: tuple[str, ...] = ()
    gained_outputs: tuple[str, ...] = ()
    lost_outputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> bool:
        """Whether the graph is called otherwise than before."""
        return bool(self.gained_inputs or self.lost_inputs)


@dataclass(frozen=True)
class Fingerprint:
    """What must not change in the graph a pass was given: its parameters' tensors, their contents, and, if asked for, its text."""

    parameters: Mapping[str, tuple[int, int]]
    text: str | None

    @classmethod
    def of(cls, graph: Graph, *, text: bool) -> Fingerprint:
        """Take the fingerprint; the text costs time."""
        parameters = {
            name: (id(parameter.data), _version(parameter.data)) for name, parameter in graph.parameters.items()
        }
        return cls(parameters, str(graph) if text else None)

    def require_unchanged(self, graph: Graph, name: str) -> None:
        """:raises ContractError: if the pass changed the graph it was given, or wrote into its parameters"""
        now = Fingerprint.of(graph, text=self.text is not None)
        if now == self:
            return
        changed = [key for key, mark in self.parameters.items() if now.parameters.get(key) != mark]
        what = f"the parameter {changed[0]}" if changed else "the graph"
        raise ContractError(
            Code.CONTRACT, f"the pass {name} changed {what} that it was given", remedy="a pass works on a copy"
        )


def check_contract(
    before: Graph,
    after: Graph,
    contract: Contract,
    *,
    name: str,
    probes: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None = None,
    within: float | None = None,
    interface: Interface | None = None,
) -> float | None:
    """Hold `after` to the contract; the deviation measured, or None where only types are compared.

    :param interface: the inputs and outputs that the pass declared to come or go; where inputs do, only types are compared
    :param within: the largest deviation allowed; without it an exact pass has the tolerance of the dtype, an approximate one has none
    :raises ContractError: naming the first value that differs
    """
    changes = interface or Interface()
    _require_same_types(before, after, name, changes)
    if contract == "structural" or changes.inputs or _is_planned(before) or _is_planned(after):
        return None
    inputs = draw_probes(before) if probes is None else bind_probes(before, probes)
    complete = _run(before, inputs)
    expected = _without(before, complete, changes.lost_outputs)
    received = _without(after, _run(after, inputs), changes.gained_outputs)
    deviations = [deviation(a, b) for a, b in zip(expected, received, strict=True)]
    worst = max(deviations, default=0.0)
    if contract == "approximate":
        if within is not None and not worst <= within:
            output, _ = _returned(before, changes.lost_outputs)[deviations.index(worst)]
            raise ContractError(
                Code.CONTRACT,
                f"the pass {name} moved the output {output} by {worst:.2g}, more than {within:g}",
                remedy="ask for less, or allow more",
            )
        return worst
    tolerance = dtype_tolerance(before) if within is None else within
    if worst > tolerance and within is None:
        tolerance = max(tolerance, _conditioned_tolerance(before, inputs, complete, tolerance))
    if not worst <= tolerance:
        place, what = _first_difference(before, after, inputs, tolerance, changes)
        raise ContractError(
            Code.CONTRACT,
            f"the pass {name} promises the same function, but {what} differs, and in the end an output by {worst:.2g} (allowed {tolerance:.1g})",
            where=place,
            remedy="the graph is left as it was",
        )
    return worst


def _without(graph: Graph, results: list[torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    """The results of the outputs that both graphs have."""
    return [tensor for name, tensor in zip(graph.output_names, results, strict=True) if name not in names]


def deviation(expected: torch.Tensor, received: torch.Tensor) -> float:
    """How far a tensor is from another: the largest difference over the largest magnitude, or the share of integers that differ."""
    if expected.shape != received.shape or expected.dtype != received.dtype:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != received).double().mean())
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.detach().to(wide), received.detach().to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    difference = torch.where(same, torch.zeros_like(a), a - b).abs().max()
    if not bool(difference.isfinite()):
        return float("inf")
    # what masks with the most negative number leaves behind is no measure of the rest
    ordinary = a.abs()[a.isfinite() & (a.abs() < torch.finfo(expected.dtype).max / 2)]
    scale = float(ordinary.max()) if ordinary.numel() else 0.0
    return float(difference) / (scale or 1.0)


def dtype_tolerance(graph: Graph) -> float:
    """The tolerance of the coarsest floating-point type among the graph's parameters and outputs."""
    dtypes = {parameter.data.dtype for parameter in graph.parameters.values()} | {
        output.dtype for output in graph.outputs
    }
    return max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=TOLERANCE[torch.float32])


def _conditioned_tolerance(
    graph: Graph, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float
) -> float:
    """What rounding does to this network: its deviation when every parameter moves by half a unit in the last place or so."""
    nudged = {
        name: _nudge(parameter) for name, parameter in graph.parameters.items() if parameter.data.is_floating_point()
    }
    moved = _run(graph, inputs, nudged)
    noise = max((deviation(a, b) for a, b in zip(expected, moved, strict=True) if a.is_floating_point()), default=0.0)
    return min(noise * _ROUNDINGS, tolerance * _WORST_CONDITION)


def _nudge(parameter: Parameter) -> torch.Tensor:
    data = parameter.data.detach()
    noise = counter_uniform(0, parameter.name, data.numel()).reshape(data.shape).to(data.device, data.dtype) * 2 - 1
    return data * (1 + noise * torch.finfo(data.dtype).eps)


def _first_difference(
    before: Graph, after: Graph, inputs: Sequence[torch.Tensor], tolerance: float, changes: Interface
) -> tuple[str, str]:
    """The place and the name of the first value that differs, in the order of the original graph."""
    shared = {value.name for node in before.nodes for value in node.outputs} & {
        value.name for node in after.nodes for value in node.outputs
    }
    changed: dict[str, torch.Tensor] = {}

    def keep(value: Value, tensor: torch.Tensor) -> None:
        if value.name in shared:
            changed[value.name] = tensor

    _run(after, inputs, watch=keep)
    differing: list[Value] = []

    def compare(value: Value, tensor: torch.Tensor) -> None:
        if value.name in changed and not differing and not deviation(tensor, changed.pop(value.name)) <= tolerance:
            differing.append(value)

    expected = _without(before, _run(before, inputs, watch=compare), changes.lost_outputs)
    for value in differing:
        return value.producer.path if value.producer else "", f"the value {value.name} is the first that"
    received = _without(after, _run(after, inputs), changes.gained_outputs)
    for (output, _), a, b in zip(_returned(before, changes.lost_outputs), expected, received, strict=True):
        if not deviation(a, b) <= tolerance:
            return "", f"the output {output} is the first that"
    return "", "an output"


def _run(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
    watch: object = None,
) -> list[torch.Tensor]:
    # the same random numbers for both graphs, should an operator draw some
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return evaluate(graph, inputs, watch=watch, parameters=parameters)  # type: ignore[arg-type]


def _require_same_types(before: Graph, after: Graph, name: str, changes: Interface) -> None:
    sides = (
        ("input", _named(before.inputs, changes.lost_inputs), _named(after.inputs, changes.gained_inputs)),
        ("output", _returned(before, changes.lost_outputs), _returned(after, changes.gained_outputs)),
    )
    for kind, old, new in sides:
        if len(old) != len(new):
            raise ContractError(
                Code.CONTRACT,
                f"the pass {name} made {len(new)} {kind}s of {len(old)}",
                remedy="a pass keeps what goes in and out",
            )
        for (title, a), (_, b) in zip(old, new, strict=True):
            if a.type != b.type:
                raise ContractError(Code.CONTRACT, f"the pass {name} made the {kind} {title} {b.type}; it was {a.type}")


def _named(values: Sequence[Value], without: Sequence[str]) -> list[tuple[str, Value]]:
    return [(value.name, value) for value in values if value.name not in without]


def _returned(graph: Graph, without: Sequence[str]) -> list[tuple[str, Value]]:
    pairs = zip(graph.output_names, graph.outputs, strict=True)
    return [(name, value) for name, value in pairs if name not in without]


def _is_planned(graph: Graph) -> bool:
    """Whether the graph holds shapes only."""
    return any(parameter.data.device.type == "meta" for parameter in graph.parameters.values())


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


__all__ = ["TOLERANCE", "Fingerprint", "Interface", "check_contract", "deviation", "dtype_tolerance"]
