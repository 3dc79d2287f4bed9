"""The pass `quantise_weights`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Use
from suture.passes.contract import Contract
from suture.passes.quantise_weights.gptq import Rounding, reconstruct, round_to_nearest
from suture.passes.quantise_weights.grid import Scheme
from suture.passes.quantise_weights.inputs import met_by, moments
from suture.passes.quantise_weights.sites import WeightSite, chosen, is_contraction, weight_sites
from suture.passes.quantise_weights.storing import planned, store, stored
from suture.passes.quantise_weights.sweep import Sweep
from suture.passes.registry import Notes, register

Method = Literal["nearest", "search", "gptq"]

_SMALLEST_BLOCK = 16


@register(contract=Contract.APPROXIMATE)
def quantise_weights(
    graph: Graph,
    notes: Notes,
    *,
    bits: int = 4,
    block: int | None = None,
    symmetric: bool = True,
    method: Method | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
    damping: float = 0.01,
    by_importance: bool = False,
    at: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    embeddings: bool = False,
) -> Graph:
    """Store the weights of linear layers and convolutions as integers of a few bits; activations stay real numbers.

    A weight that several layers read stays one. The notes say what each weight became, and how far its products with the data move.

    :param bits: width of an integer, 2 to 8; ONNX files pack 4
    :param block: inputs that share a scale, a power of two from 16 to 256; halved where it does not divide them; all inputs of an output if absent
    :param symmetric: signed integers without zero points, else unsigned ones with
    :param method: `nearest` rounds; `search` narrows ranges by the squared error, then rounds; `gptq` rounds column by column and lets what is left
        make up for the error (Frantar et al. 2022). By default `gptq` with data, `search` without
    :param data: calibration inputs by name, for `gptq`
    :param damping: share of the mean of the data's second moments that is added to each (GPTQ's lambda)
    :param by_importance: whether `gptq` takes columns by falling second moment instead of in order
    :param at: patterns of module paths or parameter names
    :param exclude: patterns of what stays real (a head, say)
    :param embeddings: whether tables that are looked up become integers too, those tied with a head among them
    :raises SutureError: QUANTISER, for bits or a block that cannot be, or a weight that is not finite; CALIBRATION, for `gptq` without data;
        SITE, for a pattern that matches nothing; OPTION, for a damping that is not positive
    """
    scheme, way = Scheme(bits, block, symmetric), _method(graph, method, data, damping)
    result = graph.copy()
    sites = chosen(weight_sites(result, embeddings=embeddings, note=notes.note), at, exclude, notes.note)
    planner = _Planner(scheme, way, damping, by_importance, notes)
    todo = {site.name: (site, own) for site in sites if (own := planner.scheme_of(site)) is not None}
    if not todo:
        notes.not_applicable("no weight can become integers" + (f" ({len(sites)} stay)" if sites else ""))
        return result
    if way == "gptq" and not any(site.parameter.data.is_meta for site, _ in todo.values()):
        assert data is not None
        _in_turn(result, list(todo.values()), data, planner)
    else:
        for site, own in todo.values():
            _store_alone(result, site, own, planner)
    return result


class _Planner:
    """The options of one run, and the notes it makes."""

    def __init__(self, scheme: Scheme, method: Method, damping: float, by_importance: bool, notes: Notes) -> None:
        self.scheme = scheme
        self.method = method
        self.damping = damping
        self.by_importance = by_importance
        self.notes = notes

    def scheme_of(self, site: WeightSite) -> Scheme | None:
        """The scheme for one weight: with a block that divides its columns, if any does; None where integers would save nothing."""
        dtype = site.parameter.dtype
        own = replace(self.scheme, held=torch.float32 if dtype == torch.float64 else dtype)
        if own.block is not None and site.parameter.rank != 2:
            self.notes.note(f"{site.name} has a scale an output: blocks are for matrices")
            own = replace(own, block=None)
        if own.block is not None and site.columns % own.block:
            size = own.block
            while size >= _SMALLEST_BLOCK and site.columns % size:
                size //= 2
            own = replace(own, block=size if size >= _SMALLEST_BLOCK else None)
            now = f"blocks of {own.block}" if own.block else "a scale an output"
            self.notes.note(f"{site.name} has {now}: {self.scheme.block} does not divide {site.columns} inputs")
        numbers = site.parameter.data.numel()
        scales = numbers // own.block_of(site.columns)
        after = numbers * own.bits / 8 + scales * (dtype.itemsize + (0 if own.symmetric else own.bits / 8))
        if after >= numbers * dtype.itemsize:
            self.notes.note(f"{site.name} stays: with its scales it would not be smaller")
            return None
        return own

    def round(self, site: WeightSite, scheme: Scheme, hessian: torch.Tensor | None) -> Rounding:
        """Round one weight."""
        matrix = site.matrix(site.parameter.data.detach().double().cpu())
        try:
            if hessian is None:
                return round_to_nearest(matrix, scheme, search=self.method != "nearest")
            return reconstruct(
                matrix, hessian, scheme, damping=self.damping, by_importance=self.by_importance, search=True
            )
        except SutureError as error:
            raise SutureError(error.code, error.what, where=site.name, remedy=error.remedy) from None

    def say(self, site: WeightSite, rounding: Rounding, hessian: torch.Tensor | None) -> None:
        """Note what a weight became."""
        scheme, matrix = rounding.grid.scheme, site.matrix(site.parameter.data.detach().double().cpu())
        change = rounding.numbers() - matrix
        if hessian is None:
            moved, size, what = change.square().sum(), matrix.square().sum(), "the weight"
        else:
            moved, size = ((change @ hessian) * change).sum(), ((matrix @ hessian) * matrix).sum()
            what = "its products with the data"
        share = float((moved / size.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0).sqrt())
        each = f"a block of {scheme.block}" if scheme.block else "an output"
        self.notes.note(
            f"{site.name} has {scheme.bits} bits, a scale {each}: {what} move{'' if hessian is not None else 's'} by {share:.2%}"
        )


def _method(graph: Graph, method: Method | None, data: Mapping[str, torch.Tensor] | None, damping: float) -> Method:
    if damping <= 0:
        raise SutureError(Code.OPTION, f"a damping of {damping:g}", remedy="a small share such as 0.01 would be right")
    if method == "gptq" and not data:
        raise SutureError(
            Code.CALIBRATION, "reconstruction is made on data, and there are none", where=graph.name,
            remedy="give data, or take the method search",
        )  # fmt: skip
    return method or ("gptq" if data else "search")


def _store_alone(graph: Graph, site: WeightSite, scheme: Scheme, planner: _Planner) -> None:
    if site.parameter.data.is_meta:
        store(graph, site, planned(site, scheme))
        return
    rounding = planner.round(site, scheme, None)
    planner.say(site, rounding, None)
    store(graph, site, stored(site, rounding))


def _in_turn(
    graph: Graph, todo: list[tuple[WeightSite, Scheme]], data: Mapping[str, torch.Tensor], planner: _Planner
) -> None:
    """Round weights in the order in which data meet them, each on what the integers before it make of the data."""
    shared = _moments_of_shared(graph, [site for site, _ in todo], data)
    sweep = Sweep(graph, data)
    finished: list[tuple[WeightSite, Rounding]] = []
    left = {site.parameter: (site, scheme) for site, scheme in todo}
    for node in graph.nodes:
        for index, value in enumerate(node.inputs):
            if value not in left:
                continue
            site, scheme = left.pop(value)
            sweep.run_to(node)
            hessian = shared.get(site.name)
            operand = met_by(Use(node, index)) if hessian is None and Use(node, index) in site.readers else None
            if operand is not None:
                hessian = moments(Use(node, index), sweep.tensors(operand))
            elif hessian is None:
                planner.notes.note(f"{site.name} is rounded to nearest: data do not meet its columns one by one")
            rounding = planner.round(site, scheme, hessian)
            planner.say(site, rounding, hessian)
            finished.append((site, rounding))
            site.parameter.assign(site.unfolded(rounding.numbers()).to(site.parameter.data))
    for site, rounding in finished:
        store(graph, site, stored(site, rounding))


def _moments_of_shared(
    graph: Graph, sites: list[WeightSite], data: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The second moments of weights with several readers, summed over these, on the model as it was."""
    wanted: dict[Use, str] = {}
    for site in sites:
        uses = [use for use in site.readers if is_contraction(use.node)]
        if len(site.parameter.uses) > 1:
            wanted |= {use: site.name for use in uses if met_by(use) is not None}
    found: dict[str, torch.Tensor] = {}
    if not wanted:
        return found
    sweep = Sweep(graph, data)
    for node in graph.nodes:
        for index in range(len(node.inputs)):
            use = Use(node, index)
            operand = met_by(use) if use in wanted else None
            if operand is None:
                continue
            sweep.run_to(node)
            added = moments(use, sweep.tensors(operand))
            name = wanted[use]
            found[name] = found[name] + added if name in found else added
    return found
