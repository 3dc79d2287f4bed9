"""Undoing weight sharing: every place that reads a shared tensor under a name of its own gets one of its own, with its adapter merged in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from suture.ir.graph import Graph, Parameter, Use
from suture.passes.adapters.adapter import Adapter, find_adapters
from suture.passes.adapters.merging import merge_adapter
from suture.passes.contract import Contract
from suture.passes.registry import Notes, register


@register(contract=Contract.EXACT)
def untie(graph: Graph, notes: Notes, *, at: tuple[str, ...] | None = None) -> Graph:
    """Give every block that shares weights its own, with the low-rank adapters merged in.

    Tensors are untied that have names which differ in numbers only (`layers.0.up.weight`, `layers.3.up.weight`): others, such as an embedding that
    is the head as well, are meant to stay one.

    :param at: names of tensors to untie, as patterns, whatever their names differ in; adapters beside these only are merged
    """
    result = graph.copy()
    chosen = [p for p in result.parameters.values() if at is None or _matches(_names(p), at)]
    merged, untied = separate(result, chosen, numbered=at is None)
    if not merged and not untied:
        notes.not_applicable("no tensor has several numbered names, and none has an adapter")
        return result
    notes.note(f"{untied} tensors have become each place's own, {merged} adapters are part of their weights")
    return result


def separate(graph: Graph, parameters: Iterable[Parameter], *, numbered: bool = True) -> tuple[int, int]:
    """Untie parameters in place and merge the adapters beside them; how many adapters were merged, and how many tensors are new."""
    position = {node: k for k, node in enumerate(graph.nodes)}
    adapters: dict[Parameter, list[Adapter]] = {}
    for adapter in find_adapters(graph):
        adapters.setdefault(adapter.weight, []).append(adapter)
    merged = new = 0
    for parameter in list(parameters):
        beside = adapters.get(parameter, [])
        names = [name for name in _names(parameter) if not numbered or _alike(name, parameter.name)]
        if len(names) < 2 and not beside:
            continue
        uses = sorted(parameter.uses, key=lambda use: (position[use.node], use.index))
        places = _places(uses, names, {adapter.node: adapter.name for adapter in beside})
        new += _divide(graph, parameter, places)
        for adapter in beside:
            merge_adapter(graph, adapter)
            merged += 1
    graph.sort()
    return merged, new


def _names(parameter: Parameter) -> tuple[str, ...]:
    return parameter.name, *parameter.aliases


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _alike(name: str, other: str) -> bool:
    """Whether two names differ in numbers only."""
    return re.sub(r"\d+", "#", name) == re.sub(r"\d+", "#", other)


def _places(uses: Sequence[Use], names: Sequence[str], known: Mapping[object, str]) -> dict[str, list[Use]]:
    """Which name the tensor has at each use: that of the adapter there, else the one nearest to the module path."""
    found: dict[str, list[Use]] = {name: [] for name in names}
    scores = [[_shared_parts(name, use.node.path) for name in names] for use in uses]
    told = [known.get(use.node) or _nearest(row, names) for use, row in zip(uses, scores, strict=True)]
    in_order = len(uses) == len(names) and not any(told)
    for use, name, next_name in zip(uses, told, names if in_order else [names[0]] * len(uses), strict=True):
        found.setdefault(name or next_name, []).append(use)
    return found


def _nearest(scores: Sequence[int], names: Sequence[str]) -> str | None:
    """The name of the highest score, if it is the only one."""
    best = max(scores)
    return names[scores.index(best)] if scores.count(best) == 1 else None


def _shared_parts(name: str, path: str) -> int:
    """How many parts two dotted names have in common from the front."""
    count = 0
    for one, other in zip(name.split("."), path.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def _divide(graph: Graph, parameter: Parameter, places: Mapping[str, Sequence[Use]]) -> int:
    """Give the uses under every further name a copy of the tensor; how many copies were made."""
    # what nothing reads (a counter) is each place's own as well
    groups = {name: uses for name, uses in places.items() if uses or not parameter.uses}
    keeper = parameter.name if parameter.name in groups else next(iter(groups), parameter.name)
    made = 0
    for name, uses in groups.items():
        if name == keeper or name in graph.parameters:
            continue
        data = parameter.data.detach().clone().requires_grad_(parameter.data.requires_grad)
        copy = graph.add_parameter(
            name, data, parameter.role, requires_grad=parameter.requires_grad, persistent=parameter.persistent
        )
        for node, index in uses:
            node.replace_input(index, copy)
        made += 1
    parameter.aliases = tuple(alias for alias in parameter.aliases if alias not in groups or alias == keeper)
    return made
