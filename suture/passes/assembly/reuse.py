"""Feature inheritance across steps: what a region gave at one call stands in for it at the next ones.

Where a model is called again and again on inputs that change little (the steps of a diffusion sampler, the frames of a video), its deep regions
give nearly the same each time (Ma et al. 2024, "DeepCache", section 3). The state is explicit: an input says whether the region runs, further
inputs hold what it gave last, and outputs give it for the next call; so the model exports as it is. `suture.drivers.cached.CachedModule` counts the
calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from suture.ir.control import PREDICATE, choose
from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Value
from suture.ir.interface import add_interface_input, add_interface_output
from suture.ir.paths import common_path
from suture.ir.regions import Region, at_path, between
from suture.ir.splice import extract
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register

REFRESH = "refresh"
CACHE = "cache"
_NEXT = "_next"


@register(contract=Contract.STRUCTURAL)
def reuse(graph: Graph, notes: Notes, *, at: str) -> Graph:
    """Let a region run only where the input `refresh` is true; elsewhere what it gave before, the input `cache`, stands in for it.

    The output `cache_next` is what the next call takes as `cache`. Where `refresh` is true, all other outputs are what they were. A region of
    several results has a cache for each, `cache`, `cache_1` and so on; so have several regions, which share the one `refresh`.

    :param at: the region: a module path ("middle"), or the two values "%first .. %last" between which it lies
    """
    result = graph.copy()
    region = _region(result, at)
    outputs = region.outputs
    refresh = next((value for value in result.inputs if value.name == REFRESH), None)
    if refresh is None:
        refresh = add_interface_input(result, REFRESH, PREDICATE)
        notes.gains_input(REFRESH)
    elif refresh.type != PREDICATE:
        raise SutureError(
            Code.SEAM, f"the model has an input {REFRESH} of its own: {refresh.type}", where=result.name,
            remedy="rename it in the model",
        )  # fmt: skip
    held = [add_interface_input(result, _free_name(result), value.type) for value in outputs]
    fresh = _conditional(region, refresh, held)
    for cache, value in zip(held, fresh, strict=True):
        notes.gains_input(cache.name)
        add_interface_output(result, value, cache.name + _NEXT)
        notes.gains_output(cache.name + _NEXT)
        notes.note(f"{region.name}: {value}, {value.type}, is kept as {cache.name}")
    result.sort()
    return result


def caches(graph: Graph) -> dict[str, str]:
    """The inputs that hold what a region gave last, and the outputs that give it for the next call."""
    return {value.name: value.name + _NEXT for value in graph.inputs if value.name + _NEXT in graph.output_names}


def _region(graph: Graph, at: str) -> Region:
    first, dots, last = at.partition(" .. ")
    region = between(graph, first.strip(), last.strip()) if dots else at_path(graph, at)
    if not region.inputs:
        raise SutureError(
            Code.REGION, "the region depends on no input: it gives the same at every call", where=region.name,
            remedy="fold the model instead",
        )  # fmt: skip
    return region


def _conditional(region: Region, refresh: Value, held: Sequence[Value]) -> tuple[Value, ...]:
    """Put a branch in a region's place: the region where `refresh` holds, else the values held."""
    graph, outputs = region.graph, region.outputs
    operands = [*region.inputs, *held]
    then, otherwise = extract(region), Graph("inherit")
    for cache in held:
        then.add_input(then.fresh_name(cache.name), cache.type)
    inherited = [otherwise.add_input(f"v{k}", operand.type) for k, operand in enumerate(operands)]
    otherwise.set_outputs(inherited[len(region.inputs) :])
    path = common_path(node.path for node in region.nodes)
    fresh = choose(graph, refresh, then, otherwise, operands, path=path)
    names = [value.name for value in outputs]
    for old, new in zip(outputs, fresh, strict=True):
        graph.replace_uses(old, new, keep=region.nodes)
    for node in reversed(region.nodes):
        graph.remove(node)
    for value, name in zip(fresh, names, strict=True):
        graph.rename_result(value, name)
    graph.sort()
    return fresh


def _free_name(graph: Graph) -> str:
    names = (CACHE if not k else f"{CACHE}_{k}" for k in itertools.count())
    return next(name for name in names if graph.fresh_name(name) == name)
