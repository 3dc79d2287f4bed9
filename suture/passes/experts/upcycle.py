"""Sparse upcycling: feed-forward layers become mixtures of experts that all begin as the dense layer.

After Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints" (arXiv 2212.05055).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Parameter, Value
from suture.ir.interface import add_interface_output
from suture.ir.paths import is_below
from suture.ir.regions import Region, at_path, module_tree
from suture.ir.splice import extract, replace
from suture.passes.contract import Contract
from suture.passes.counter import counter_normal
from suture.passes.experts.feed_forward import feed_forwards, inside, one_per_module
from suture.passes.experts.mixture import (
    EXPERTS,
    ROUTER,
    Gating,
    add_gates,
    add_mixture,
    below,
    expert_names,
    twin_inputs,
)
from suture.passes.registry import Notes, register


@register(contract=Contract.APPROXIMATE)
def upcycle(
    graph: Graph,
    notes: Notes,
    *,
    experts: int,
    top: int = 2,
    at: tuple[str, ...] | None = None,
    renormalise: bool = True,
    noise: float = 0.0,
    spread: float = 0.02,
    expose: bool = False,
    seed: int = 0,
) -> Graph:
    """Turn feed-forward layers into mixtures of copies of themselves, each position routed to some.

    The function is kept for any router while the copies are equal and the gates of a position sum to 1. All experts are computed for every position.

    :param experts: how many copies there are
    :param top: how many of them each position has
    :param at: module paths of the layers, as patterns; all feed-forward layers of the graph if absent
    :param renormalise: whether the gates of the chosen experts are made to sum to 1; if not, they scale the result
    :param noise: how much normal noise each copy's weights get, in units of their own deviation
    :param spread: the deviation of the router's normal weights
    :param expose: whether the graph also returns each router's logits, for a loss that balances the experts
    :param seed: the key of all that is drawn
    """
    gating = Gating(experts, top, "renormalise" if renormalise else "probability")
    gating.require()
    result = graph.copy()
    sites = _sites(result, at, notes)
    if not sites:
        notes.not_applicable("no feed-forward layer is added to another value")
        return result
    before = result.stats()
    for region, path in sites:
        _upcycle(result, region, path, gating, notes, noise=noise, spread=spread, expose=expose, seed=seed)
    after = result.stats()
    notes.note(
        f"{len(sites)} layers have {experts} experts, {top} for each position: {before.parameters:,} parameters, now {after.parameters:,}; "
        f"all experts are computed, {before.macs:,} MACs, now {after.macs:,}"
    )
    if not renormalise and top < experts:
        notes.note(f"not exact: the gates of {top} experts sum to less than 1 and scale what the layers add")
    elif noise:
        notes.note("not exact: the experts differ by noise")
    else:
        notes.claim(Contract.EXACT)
    return result


def _sites(graph: Graph, at: Sequence[str] | None, notes: Notes) -> list[tuple[Region, str]]:
    """The regions to upcycle, with the paths below which the experts are named.

    :raises SutureError: SITE, if a pattern matches no module
    """
    if at is None:
        return [(feed.region, feed.path) for feed in one_per_module(feed_forwards(graph), notes)]
    paths = [tree.path for tree in module_tree(graph).walk() if tree.path]
    for pattern in at:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise SutureError(
                Code.SITE, f"the pattern {pattern!r} matches no module", remedy=nearest(pattern, paths, what="module")
            )
    found: list[str] = []
    for path in paths:  # a module comes before those below it
        matches = any(fnmatch.fnmatchcase(path, pattern) for pattern in at)
        if matches and not any(is_below(path, outer) for outer in found):
            found.append(path)
    return [(at_path(graph, path), path) for path in found]


def _upcycle(
    graph: Graph,
    region: Region,
    path: str,
    gating: Gating,
    notes: Notes,
    *,
    noise: float,
    spread: float,
    expose: bool,
    seed: int,
) -> None:
    x, y = region.entry, region.output
    if x.rank < 2 or x.shape[:-1] != y.shape[:-1] or not isinstance(x.shape[-1], int):
        raise SutureError(
            Code.REGION, f"it takes {x.type} and gives {y.type}", where=path,
            remedy="a layer that maps the last dimension of every position would be right",
        )  # fmt: skip
    weight = _router(graph, below(path, f"{ROUTER}.weight"), gating.experts, x, spread, seed)
    gates, logits = add_gates(graph, x, weight, None, gating, path=below(path, ROUTER))
    piece = inside(extract(region), path)
    mixture = Graph(region.name)
    operands = [*region.inputs, gates]
    *inputs, gate = twin_inputs(mixture, operands)
    names = expert_names(path, gating.experts)
    copies = [_copy(piece, [rename(p.name) for p in piece.parameters.values()], noise, seed) for rename in names]
    total = add_mixture(mixture, copies, inputs, gate, names, path=below(path, EXPERTS))
    mixture.rename_result(total, y.name)
    mixture.set_outputs([total])
    replace(region, mixture, operands)
    if expose:
        name = below(path, f"{ROUTER}.logits")
        add_interface_output(graph, logits, name)
        notes.gains_output(name)


def _router(graph: Graph, name: str, experts: int, x: Value, spread: float, seed: int) -> Parameter:
    width = x.shape[-1]
    assert isinstance(width, int)
    data = (counter_normal(seed, name, experts * width) * spread).reshape(experts, width).to(x.dtype)
    return graph.add_parameter(name, data.requires_grad_())


def _copy(piece: Graph, names: Sequence[str], noise: float, seed: int) -> Graph:
    """The layer with tensors of its own, and noise on those that are trained."""
    twin = piece.copy()
    for parameter, name in zip(twin.parameters.values(), names, strict=True):
        data = parameter.data.detach().clone()
        if noise and parameter.role == "parameter" and data.is_floating_point() and not data.is_meta:
            scale = float(data.to(torch.float64).std(correction=0)) * noise
            data += (counter_normal(seed, name, data.numel()) * scale).reshape(data.shape).to(data.dtype)
        parameter.assign(data.requires_grad_(parameter.data.requires_grad))
        parameter.aliases = ()
    return twin
