"""The weights of the products: rounded as they are, or in turn so that each makes up for what was rounded before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import SutureError
from suture.ir.graph import Graph, Parameter, Use
from suture.passes.quantise_weights.gptq import Rounding, round_to_nearest
from suture.passes.quantise_weights.grid import Scheme
from suture.passes.quantise_weights.inputs import met_by
from suture.passes.quantise_weights.sites import WeightSite, channel_axis
from suture.passes.quantise_weights.storing import planned, store, stored
from suture.passes.quantise_weights.sweep import Sweep
from suture.passes.registry import Notes
from suture.passes.repq.products import Product
from suture.passes.repq.rebuilding import moments_of, rebuild, rebuilt_bias

_WHOLE = 8  # bits from which a zero point is not worth its cost


@dataclass(frozen=True)
class Weights:
    """How weights are rounded."""

    bits: int
    edge_bits: int
    damping: float
    rebuild: bool


@dataclass(frozen=True)
class _Work:
    """A weight to round: in the graph of integers, and the operand of the real graph that it stands for."""

    site: WeightSite
    scheme: Scheme
    real: Use
    use: Use


def store_weights(
    real: Graph,
    graph: Graph,
    pairs: Sequence[tuple[Product, Product]],
    data: Mapping[str, torch.Tensor] | None,
    weights: Weights,
    notes: Notes,
) -> None:
    """Round the weights of products and store them as integers.

    :param real: the graph before activations were rounded
    :param graph: the graph after, which is changed
    :param pairs: each product in both
    """
    works = _works(pairs, weights, notes)
    if data is None:
        for work in works:
            store(graph, work.site, planned(work.site, work.scheme))
        return
    before, after = Sweep(real, data), Sweep(graph, data)
    finished: list[tuple[WeightSite, Rounding]] = []
    for work in works:
        if weights.rebuild and met_by(work.use) is not None and len(work.site.parameter.uses) == 1:
            before.run_to(work.real.node)
            after.run_to(work.use.node)
            rounding = _rebuilt(work, before, after, weights.damping)
        else:
            rounding = _nearest(work)
        finished.append((work.site, rounding))
        work.site.parameter.assign(work.site.unfolded(rounding.numbers()).to(work.site.parameter.data))
    for site, rounding in finished:
        store(graph, site, stored(site, rounding))
    notes.note(f"{len(finished)} weights are integers{', rebuilt on the data' if weights.rebuild else ''}")


def _works(pairs: Sequence[tuple[Product, Product]], weights: Weights, notes: Notes) -> list[_Work]:
    """The weights, each once, in the order in which data meet them; a tied one with the bits of an edge if it is one."""
    found: dict[Parameter, _Work] = {}
    read = {use for _, product in pairs for use in product.weights}
    for original, product in pairs:
        for real, use in zip(original.weights, product.weights, strict=True):
            parameter, axis = use.node.inputs[use.index], channel_axis(use)
            assert isinstance(parameter, Parameter) and axis is not None
            others = [other for other in parameter.uses if other not in read]
            if others or parameter.is_graph_output():
                by = others[0].node.where() if others else "the graph's output"
                notes.note(f"{parameter.name} stays real: {by} reads it too")
                continue
            bits = weights.edge_bits if product.edge else weights.bits
            if parameter in found:
                bits = max(bits, found[parameter].scheme.bits)
            held = torch.float32 if parameter.dtype == torch.float64 else parameter.dtype
            scheme = Scheme(bits, None, bits >= _WHOLE, held)
            site = WeightSite(parameter, parameter.uses, axis)
            found[parameter] = (
                _Work(site, scheme, real, use)
                if parameter not in found
                else _Work(found[parameter].site, scheme, found[parameter].real, found[parameter].use)
            )
    return list(found.values())


def _nearest(work: _Work) -> Rounding:
    matrix = work.site.matrix(work.site.parameter.data.detach().double().cpu())
    try:
        return round_to_nearest(matrix, work.scheme, search=True)
    except SutureError as error:
        raise SutureError(error.code, error.what, where=work.site.name, remedy=error.remedy) from None


def _rebuilt(work: _Work, before: Sweep, after: Sweep, damping: float) -> Rounding:
    """Round one weight so that the layer writes what it did; its bias takes up the means, if it is the layer's own."""
    bias = _own_bias(work.use)
    operands = met_by(work.real), met_by(work.use)
    assert operands[0] is not None and operands[1] is not None
    found = moments_of(
        work.real, before.tensors(operands[0]), work.use, after.tensors(operands[1]), centred=bias is not None
    )
    matrix = work.site.matrix(work.site.parameter.data.detach().double().cpu())
    try:
        rounding = rebuild(matrix, found, work.scheme, damping)
    except SutureError as error:
        raise SutureError(error.code, error.what, where=work.site.name, remedy=error.remedy) from None
    if bias is not None:
        numbers = rebuilt_bias(matrix, rounding.numbers(), bias.data.detach().double(), found)
        bias.assign(numbers.to(bias.data).requires_grad_(bias.data.requires_grad))
    return rounding


def _own_bias(use: Use) -> Parameter | None:
    """The bias of a layer [rows], if nothing else reads it."""
    place = {"linear": 2, "conv": 2, "addmm": 0}.get(use.node.operator.name)
    bias = use.node.inputs[place] if place is not None and place < len(use.node.inputs) else None
    own = isinstance(bias, Parameter) and bias.rank == 1 and len(bias.uses) == 1 and not bias.is_graph_output()
    return bias if own and isinstance(bias, Parameter) else None
