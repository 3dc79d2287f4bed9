"""attach_adapters: low-rank adapters beside the weights of layers, which change nothing until they are trained."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Parameter
from suture.passes.adapters.adapter import NOLA_A, A, Factor, adapter_name, add_adapter, find_adapters
from suture.passes.adapters.starting import Components, component_factors, empty_factors, mixed_factors, zero_factors
from suture.passes.contract import Contract
from suture.passes.low_rank.covariance import metrics
from suture.passes.low_rank.layers import Layer
from suture.passes.low_rank.weights import WEIGHT, as_matrix
from suture.passes.registry import Notes, register
from suture.passes.sites import require_count

Start = Literal["zero", "svd", "whitened", "corda"]


@register(contract=Contract.EXACT)
def attach_adapters(
    graph: Graph,
    notes: Notes,
    *,
    at: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
    expect: int | str | None = None,
    rank: int = 8,
    alpha: float | None = None,
    bases: int | None = None,
    start: Start = "zero",
    components: Components = "largest",
    data: Mapping[str, torch.Tensor] | None = None,
    freeze: bool = True,
    seed: int = 0,
) -> Graph:
    """Put a low-rank adapter beside the weights of layers: y = W x + (alpha / rank) B (A x). The function stays as it is.

    :param at: module paths of the layers, as patterns; all linear maps and convolutions if absent
    :param exclude: module paths of layers that get none, as patterns
    :param expect: how many adapters this should attach: a number, or a bound such as ">=3"
    :param rank: of every adapter; a layer whose full rank is lower gets none
    :param alpha: what the adapter counts for, over its rank; the rank itself if absent
    :param bases: of how many fixed random matrices A and B are mixtures, of which the coefficients are trained (NOLA); if absent, A and B are
    :param start: what adapters begin as: nothing (zero), or components of the weight, which then holds the rest: of the weight alone (svd), in the
        metric of its inputs (whitened), or by their covariance (corda)
    :param components: which components: the largest or the smallest
    :param data: calibration inputs by name, for whitened and corda (in a script: an .npz or .safetensors file that holds them)
    :param freeze: whether the adapters alone are trained
    :param seed: the key of all that is drawn
    """
    scale = _scale(rank, alpha, bases, start, data)
    result = graph.copy()
    places = list(_places(result, at, exclude, rank, start, notes))
    require_count(expect, len(places), at)
    before = result.stats().parameters
    held = {name: parameter.requires_grad for name, parameter in result.parameters.items()}
    _attach_all(result, places, rank, scale, bases, start, components, data, seed)
    if not places:
        notes.not_applicable(
            "no layer can have an adapter" if notes.texts else "the graph has no linear map or convolution"
        )
        return result
    if freeze:
        for name in held:
            result.parameters[name].requires_grad = False
    own = [p for name, p in result.parameters.items() if name not in held and p.role == "parameter"]
    notes.note(
        f"{len(places)} adapters of rank {rank}, {sum(p.data.numel() for p in own):,} parameters beside {before:,}"
        + (", which alone are trained" if freeze else "")
    )
    return result


@dataclass(frozen=True, eq=False)
class _Place:
    """A layer that gets an adapter: its sides are the outputs of a group and the inputs of one."""

    layer: Layer
    sides: tuple[int, int]

    @property
    def node(self) -> Node:
        return self.layer.nodes[0]


def _scale(rank: int, alpha: float | None, bases: int | None, start: Start, data: object) -> float:
    """What an adapter's result is multiplied by.

    :raises SutureError: RANK or ADAPTER, if the options do not fit one another; CALIBRATION, if data are missing
    """
    if rank < 1:
        raise SutureError(Code.RANK, f"adapters of rank {rank}", remedy="1 or more would be right")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise SutureError(Code.ADAPTER, f"alpha={alpha:g}", remedy="a number above 0 would be right")
    if bases is not None and (bases < 1 or start != "zero"):
        what = f"mixtures of {bases} matrices" if bases < 1 else f"mixtures that start as {start}"
        raise SutureError(Code.ADAPTER, what, remedy="1 or more, and start='zero', would be right")
    measured = start in ("whitened", "corda")
    if measured and data is None:
        raise SutureError(Code.CALIBRATION, f"{start} has no calibration inputs", remedy="give data")
    if data is not None and not measured:
        raise SutureError(
            Code.OPTION, f"calibration data, which start={start!r} does not read", remedy="leave them out"
        )
    return 1.0 if alpha is None else alpha / rank


def _places(
    graph: Graph, at: Sequence[str] | None, exclude: Sequence[str], rank: int, start: Start, notes: Notes
) -> Iterator[_Place]:
    """The layers that get an adapter; the notes say why others do not.

    :raises SutureError: SITE, if a pattern matches no layer
    """
    taken = {adapter.node for adapter in find_adapters(graph)}
    parts = {node for adapter in find_adapters(graph) for node in (adapter.down, adapter.up)}
    nodes = [node for node in graph.nodes if node not in parts and isinstance(_weight(node), Parameter)]
    for pattern in (*(at or ()), *exclude):
        if not any(fnmatch.fnmatchcase(node.path, pattern) for node in nodes):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no linear map or convolution",
                remedy=nearest(pattern, [node.path for node in nodes], what="layer"),
            )  # fmt: skip
    for node in nodes:
        if at is not None and not any(fnmatch.fnmatchcase(node.path, pattern) for pattern in at):
            continue
        weight = _weight(node)
        assert isinstance(weight, Parameter)
        layer = Layer(weight, (node,), graph.hints)
        reason = _why_not(layer, rank, start)
        if node in taken:
            reason = "it has an adapter already"
        elif any(fnmatch.fnmatchcase(node.path, pattern) for pattern in exclude):
            reason = "excluded"
        elif reason is None and {adapter_name(weight.name, leaf) for leaf in (A, NOLA_A)} & set(graph.parameters):
            reason = "the names of its adapter are taken"
        if reason is None:
            yield _Place(layer, _sides(layer))
        else:
            notes.note(f"{weight.name} gets no adapter: {reason}")


def _weight(node: Node) -> object:
    index = WEIGHT.get(node.operator.name)
    return None if index is None else node.inputs[index]


def _sides(layer: Layer) -> tuple[int, int]:
    outputs, inputs = as_matrix(layer.weight.data, layer.nodes[0]).shape
    return outputs // layer.groups, inputs


def _why_not(layer: Layer, rank: int, start: Start) -> str | None:
    weight = layer.weight
    if len(weight.uses) != 1 or weight.is_graph_output():
        return f"{len(weight.uses)} nodes read it" if len(weight.uses) != 1 else "it is an output of the graph"
    if weight.role != "parameter" or not weight.dtype.is_floating_point:
        return f"it is a {weight.role} of {weight.type}"
    if not layer.spatial and weight.rank != 2:
        return f"it has {weight.rank} dimensions"
    if start != "zero":
        if layer.groups != 1:
            return f"its convolution has {layer.groups} groups, and only one matrix is taken apart"
        if not weight.data.is_meta and not bool(weight.data.detach().isfinite().all()):
            return "it has values that are not finite"
    most = min(_sides(layer))
    return f"its full rank is {most}" if rank > most else None


def _attach_all(
    graph: Graph,
    places: Sequence[_Place],
    rank: int,
    scale: float,
    bases: int | None,
    start: Start,
    components: Components,
    data: Mapping[str, torch.Tensor] | None,
    seed: int,
) -> None:
    """Make all adapters, from what layers read before anything changes, then put them in."""
    made: list[tuple[_Place, Factor, Factor]] = []
    rests: list[tuple[Parameter, torch.Tensor]] = []
    for place, metric in _with_metrics(graph, places, start, data):
        weight, groups = place.layer.weight, place.layer.groups
        if weight.data.is_meta:
            made.append((place, *empty_factors(rank, place.sides, groups, bases)))
        elif bases is not None:
            made.append((place, *mixed_factors(weight.name, rank, place.sides, groups, seed, bases)))
        elif start == "zero":
            made.append((place, *zero_factors(weight.name, rank, place.sides, groups, seed)))
        else:
            found = None if metric is None else metric[0]
            first, second, rest = component_factors(weight, place.node, rank, scale, found, components)
            made.append((place, first, second))
            rests.append((weight, rest))
    for weight, rest in rests:
        weight.assign(rest.requires_grad_(weight.data.requires_grad))
    for place, first, second in made:
        add_adapter(graph, place.node, place.layer.weight.name, first, second, scale=scale)
    graph.sort()


def _with_metrics(
    graph: Graph, places: Sequence[_Place], start: Start, data: Mapping[str, torch.Tensor] | None
) -> Iterator[tuple[_Place, torch.Tensor | None]]:
    """The places with the metrics of their inputs."""
    if data is None or any(parameter.data.is_meta for parameter in graph.parameters.values()):
        yield from ((place, None) for place in places)
        return
    by: Literal["whitened", "corda"] = "whitened" if start == "whitened" else "corda"
    by_layer = {place.layer: place for place in places}
    for layer, metric in metrics(graph, [place.layer for place in places], data, by):
        yield by_layer[layer], metric
