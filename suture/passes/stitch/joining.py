"""Joining two models that were trained apart: the front of one, a stitching layer, the back of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.joining import join as splice
from suture.ir.regions.cuts import crossing, value_of
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register
from suture.passes.stitch.adapters import Adapter, random_solution
from suture.passes.stitch.calibration import batches, device_of, for_other, taps
from suture.passes.stitch.interface import interface_of
from suture.passes.stitch.least_squares import Gram, Moments, Solution, solve, with_ones
from suture.passes.stitch.surgery import Initialise

PREFIXES = ("front.", "back.")
_LAYER = "stitch"


@dataclass(frozen=True)
class Joint:
    """Two models joined: the graph, and how well the stitching layer fits."""

    graph: Graph
    solution: Solution


def join_models(
    front: Graph,
    exit: str,
    back: Graph,
    entry: str,
    data: Mapping[str, torch.Tensor] | None = None,
    *,
    rank: int | None = None,
    seed: int = 0,
) -> Joint:
    """The front up to a cut value, a stitching layer, the back from a cut value on.

    The tensors are shared, under `front.` and `back.`; the layer's stand under `stitch.`. Positions are resampled where the two differ in them.

    :param exit: the name of a value of the front
    :param entry: the name of a value of the back
    :param data: inputs of both by name, to fit the layer by least squares; at random if absent
    :param rank: the largest rank of the layer; full if absent
    :param seed: the key of random weights
    :raises SutureError: SITE, if a value does not exist; CUT, if paths pass it by; STITCH, if the two cannot be brought in line;
        CALIBRATION or INPUT, if the data do not fit; RANK, if the rank is beyond the layer
    """
    left, right = _cut(front, exit), _cut(back, entry)
    adapter = Adapter(interface_of(front.axes(), left), interface_of(back.axes(), right))
    if data is None:
        solution = random_solution(adapter, seed, _LAYER, rank=rank)
    else:
        solution = solve(_moments(front, left, back, right, adapter, data), rank=rank)
    layer = adapter.layer(solution, name=_LAYER, prefix=f"{_LAYER}.", device=device_of(front))
    for node in layer.nodes:
        node.path = _LAYER
    return Joint(splice(front, left, back, right, layer, prefixes=PREFIXES), solution)


def _cut(graph: Graph, name: str) -> Value:
    """A value that every path crosses.

    :raises SutureError: SITE, if there is none of that name; CUT, naming what crosses besides
    """
    value = value_of(graph, name)
    others = crossing(graph, value)
    if others:
        shown = ", ".join(str(item) for item in others[:4]) + (", ..." if len(others) > 4 else "")
        raise SutureError(
            Code.CUT, f"{value} is no cut: {shown} cross{'es' if len(others) == 1 else ''} as well", where=graph.name,
            remedy="take a value that every path crosses",
        )  # fmt: skip
    return value


def _moments(
    front: Graph, left: Value, back: Graph, right: Value, adapter: Adapter, data: Mapping[str, torch.Tensor]
) -> Moments:
    source, target = Gram(adapter.source.channels), Gram(adapter.target.channels)
    cross = torch.zeros(source.width + 1, target.width, dtype=torch.float64)
    for inputs, others in zip(batches(front, data), batches(back, for_other(front, back, data)), strict=True):
        rows = adapter.rows(taps(front, inputs, [left])[left])
        wanted = adapter.target.rows(taps(back, others, [right])[right])
        source.add(rows)
        target.add(wanted)
        cross += (with_ones(rows).T @ with_ones(wanted)[:, :-1]).cpu()
    return Moments(source.matrix, cross, target.energy)


@register(contract=Contract.STRUCTURAL)
def join(
    graph: Graph,
    notes: Notes,
    *,
    to: Graph,
    exit: str,
    entry: str,
    data: Mapping[str, torch.Tensor] | None = None,
    initialise: Initialise = "least_squares",
    rank: int | None = None,
    seed: int = 0,
) -> Graph:
    """Go on in another model behind a value: a stitching layer leads from one to the other.

    :param to: the model that goes on
    :param exit: the value behind which this model is left
    :param entry: the value at which the other one is entered
    :param data: inputs of both by name, for the least squares (in a script: an .npz or .safetensors file that holds them)
    :param initialise: the stitching layer by least squares on the data, or at random
    :param rank: the largest rank of the stitching layer; full if absent
    :param seed: the key of random numbers
    """
    planned = any(parameter.data.is_meta for parameter in graph.parameters.values())
    if planned:
        notes.note("estimated: the weights decide the stitching layer")
    elif initialise == "least_squares" and data is None:
        raise SutureError(
            Code.CALIBRATION, "least squares has no calibration data", where=graph.name,
            remedy="give data, or initialise=random",
        )  # fmt: skip
    if [value.type for value in graph.outputs] != [value.type for value in to.outputs]:
        raise SutureError(
            Code.STITCH,
            f"{graph.name} returns {_types(graph)}, {to.name} returns {_types(to)}",
            remedy="the function join_models joins them; the pass keeps what its graph returns",
        )
    joint = join_models(
        graph, exit, to, entry, None if planned or initialise == "random" else data, rank=rank, seed=seed
    )
    result = joint.graph
    result.source, result.history = graph.source, graph.history
    known = {value.name for value in graph.inputs}
    for value in result.inputs:
        if value.name not in known:
            notes.gains_input(value.name)
    if joint.solution.residual == joint.solution.residual:
        notes.note(f"{exit} to {entry}: relative residual {joint.solution.residual:.3f}")
    if joint.solution.reason:
        notes.note(f"regularised by {joint.solution.ridge:g} of the mean square, {joint.solution.reason}")
    return result


def _types(graph: Graph) -> str:
    return ", ".join(str(value.type) for value in graph.outputs)


__all__ = ["Joint", "join", "join_models"]
