"""The numbers of a placement: quantisers of activations from calibration, of weights from the weights, and biases that fit 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Parameter, Value
from suture.passes.quantise.calibration import Feed, observe
from suture.passes.quantise.integer_operators import INTEGER, Result
from suture.passes.quantise.observers import Observer
from suture.passes.quantise.parameters import QuantiserParameters, parameters_of, weight_parameters
from suture.passes.quantise.placement import Placement, Site

_BIAS_LIMIT = 2.0**30


def activation_quantisers(
    graph: Graph, data: Sequence[Feed], placement: Placement, make: Callable[[], Observer]
) -> dict[Value, QuantiserParameters]:
    """A quantiser for each group of values, by its leader: unsigned with a zero point.

    :raises SutureError: CALIBRATION, if a value is not a number on the calibration data
    """
    shared = {
        output for node in placement.joined if INTEGER[node.operator.name].result is Result.SHARED for output in node.outputs
    }  # fmt: skip
    sources = [value for value in placement.quantised() if value not in shared]
    observers: dict[Value, Observer] = {}

    def of_group(value: Value) -> Observer:
        return observers.setdefault(placement.leader(value), make())

    observe(graph, data, sources, of_group)
    found = {}
    for leader, observer in observers.items():
        covered = observer.range()
        if not covered.is_finite():
            raise SutureError(
                Code.CALIBRATION,
                f"{leader} is not finite on the calibration data ({float(covered.low):g} to {float(covered.high):g})",
                where=leader.producer.where() if leader.producer else graph.name,
                remedy="mend the data, or exclude what reads it",
            )
        found[leader] = parameters_of(covered)
    return found


def weight_quantisers(
    placement: Placement,
    activations: Mapping[Value, QuantiserParameters],
    *,
    bits: int = 8,
    per_channel: bool = True,
    search: bool = False,
) -> dict[Site, QuantiserParameters]:
    """Signed symmetric quantisers of the sites' weights, so coarse at least that the biases fit 32 bits beside them.

    :raises SutureError: QUANTISER, if a weight is not finite
    """
    found: dict[tuple[Parameter, int | None], QuantiserParameters] = {}
    result = {}
    for site in placement.sites:
        if site.weight is None:
            continue
        weight = site.node.inputs[site.weight]
        assert isinstance(weight, Parameter)
        axis = site.axis if per_channel else None
        if (weight, axis) not in found:
            if not weight.data.is_meta and not bool(weight.data.isfinite().all()):
                raise SutureError(
                    Code.QUANTISER, f"{weight} holds numbers that are not finite", where=str(site), remedy="mend the weights, or exclude it"
                )  # fmt: skip
            made = weight_parameters(weight.data, axis, bits=bits, search=search and not weight.data.is_meta)
            readers = [
                other
                for other in placement.sites
                if other.weight is not None and other.node.inputs[other.weight] is weight
            ]
            for reader in readers:
                made = _with_room(made, weight.data, reader, placement, activations)
            found[weight, axis] = made
        result[site] = found[weight, axis]
    return result


def _with_room(
    chosen: QuantiserParameters,
    weight: torch.Tensor,
    site: Site,
    placement: Placement,
    activations: Mapping[Value, QuantiserParameters],
) -> QuantiserParameters:
    """Scales no smaller than what lets the bias fit; a channel of zeros takes the smallest that does, so that its bias stays exact."""
    bias = site.node.inputs[site.bias] if site.bias is not None else None
    if not isinstance(bias, Parameter) or weight.is_meta:
        return chosen
    value = site.node.inputs[site.activations[0]]
    assert value is not None
    step = activations[placement.leader(value)].scale.to(torch.float64)
    least = bias.data.detach().to(torch.float64).abs() / (step * _BIAS_LIMIT)
    if chosen.axis is None:
        least = least.max()
        empty = (weight == 0).all()
    else:
        empty = (weight.movedim(chosen.axis, 0).flatten(1) == 0).all(1)
    current = chosen.scale.to(torch.float64)
    current = torch.where(empty & (least > 0), torch.zeros_like(current), current)
    scale = torch.maximum(current, least).to(torch.float32)
    return QuantiserParameters(scale, chosen.zero, chosen.bits, chosen.signed, chosen.axis)


def planned_quantisers(placement: Placement) -> dict[Value, QuantiserParameters]:
    """Quantisers without numbers, for a graph that holds shapes only."""
    scale = torch.empty((), dtype=torch.float32, device="meta")
    zero = torch.empty((), dtype=torch.uint8, device="meta")
    return {placement.leader(value): QuantiserParameters(scale, zero) for value in placement.quantised()}


def plain_biases(placement: Placement) -> dict[Site, torch.Tensor | None]:
    """The biases as they are."""
    found: dict[Site, torch.Tensor | None] = {}
    for site in placement.sites:
        bias = site.node.inputs[site.bias] if site.bias is not None else None
        found[site] = bias.data.detach() if isinstance(bias, Parameter) else None
    return found


def corrected_biases(placement: Placement, errors: Mapping[Site, torch.Tensor]) -> dict[Site, torch.Tensor | None]:
    """The biases and what quantisation takes away on average."""
    found = plain_biases(placement)
    for site, error in errors.items():
        old = found[site]
        total = error if old is None else old.to(torch.float64) + error
        found[site] = total.to(torch.float32)
    return found
