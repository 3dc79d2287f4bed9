"""equalise: cross-layer equalisation of weight ranges.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from suture.ir.algebra import atoms_of
from suture.ir.axes import AxisTable, analyse
from suture.ir.graph import Graph, Node, Parameter
from suture.passes.contract import Contract
from suture.passes.linear_maps import diagonal
from suture.passes.registry import Notes, register
from suture.passes.symmetry.pairs import Pair, Refused, find_pairs
from suture.passes.symmetry.parameters import apply_map, free_name
from suture.passes.symmetry.ranges import Ranges
from suture.passes.symmetry.reach import name_of
from suture.passes.symmetry.ties import Ties


@register(contract=Contract.EXACT)
def equalise(
    graph: Graph,
    notes: Notes,
    *,
    clip: Literal["keep", "channels"] = "keep",
    sweeps: int = 100,
    tolerance: float = 1e-3,
) -> Graph:
    """Scale channels between layers so that the weights that write a channel and those that read it have the same range.

    With the ranges r1 of the rows that write a channel and r2 of the columns that read it, the channel is divided by sqrt(r1 / r2): both ranges
    become sqrt(r1 r2). That is exact through what is positively homogeneous: ReLU and its leaky kinds, pools, depthwise convolutions, residual sums.
    Channels that nothing writes or reads stay as they are.

    :param clip: whether an activation that clips (ReLU6) keeps its clip, and so the scale of its channels, or clips each channel where its scale asks
    :param sweeps: the most sweeps over all pairs
    :param tolerance: pairs are equal when no scale is further from 1 than that
    """
    found = _prepare(graph, clip)
    result, pairs = found.graph, found.pairs
    for each in found.refused:
        notes.note(f"the input of {each.reader.where()} keeps its scale: {each.blame}")
    if not pairs:
        notes.not_applicable("no two layers share the scale of a channel")
        return graph
    if any(parameter.data.is_meta for parameter in result.parameters.values()):
        notes.note(f"estimated: {len(pairs)} pairs of layers, whose weights decide on the scales")
    else:
        done = _equalise(result, found.table, pairs, sweeps, tolerance)
        if not done:
            notes.not_applicable("the ranges of all layers are equal already")
            return graph
        for text in done:
            notes.note(text)
    for text in found.ties.join():
        notes.note(text)
    return result


@dataclass(frozen=True)
class _Prepared:
    """A copy of a graph with its tensors taken apart, and its pairs."""

    graph: Graph
    ties: Ties
    table: AxisTable
    pairs: list[Pair]
    refused: list[Refused]


def _prepare(graph: Graph, clip: str) -> _Prepared:
    """Find the pairs; where asked for, with a clip for each channel in place of every clip that stands between two layers."""
    clips: dict[str, int] = {}
    while True:
        found = _with_clips(graph, clips)
        asked = (
            dict(_clip_between(each, found.table) for each in found.refused if _clips(each.blame.node))
            if clip == "channels"
            else {}
        )
        if not asked.keys() - clips.keys():
            used = {node.outputs[0].name for pair in found.pairs for node in pair.found.nodes}
            return found if clips.keys() <= used else _with_clips(graph, {k: v for k, v in clips.items() if k in used})
        clips |= asked


def _with_clips(graph: Graph, clips: Mapping[str, int]) -> _Prepared:
    result = graph.copy()
    for node in result.nodes:
        if node.outputs[0].name in clips:
            _clip_each_channel(result, node, clips[node.outputs[0].name])
    ties, table = Ties(result), analyse(result)
    return _Prepared(result, ties, table, *find_pairs(table))


def _clip_between(refused: Refused, table: AxisTable) -> tuple[str, int]:
    """The result of a clip, and its dimension that a pair would scale."""
    assert refused.blame.node is not None
    value = refused.blame.node.output
    dims = [dim for dim in range(value.rank) if refused.atom in set(atoms_of(table.axis(value, dim)))]
    return value.name, dims[0]


def _equalise(graph: Graph, table: AxisTable, pairs: list[Pair], sweeps: int, tolerance: float) -> list[str]:
    ranges = Ranges(table, pairs)
    before = [_spread(ranges.written(pair)) for pair in pairs]
    total = [torch.ones_like(ranges.written(pair)) for pair in pairs]
    for _ in range(sweeps):
        furthest = 0.0
        for number, pair in enumerate(pairs):
            scale = ranges.scale(pair)
            ranges.divide(pair, scale)
            total[number] = total[number] * scale
            furthest = max(furthest, float((scale.log().abs()).max()))
        if furthest <= tolerance:
            break
    done = []
    for pair, scale, spread in zip(pairs, total, before, strict=True):
        if float(scale.log().abs().max()) <= tolerance:
            continue
        after = _spread(ranges.written(pair))
        tensors = f"{_names(pair.tensors_written())} and {_names(parameter for parameter, _ in pair.readers)}"
        apply_map(graph, table, pair.found, diagonal(1 / scale), diagonal(scale), "equalised")
        done.append(
            f"{tensors}: the channels' ranges, the largest over the smallest, {spread:.3g} before, {after:.3g} after"
        )
    return done


def _names(parameters: Iterable[Parameter]) -> str:
    return ", ".join(name_of(parameter) for parameter in parameters)


def _spread(written: torch.Tensor) -> float:
    alive = written[written > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0


def _clips(node: Node | None) -> bool:
    if node is None:
        return False
    least, most = node.attributes.get("min"), node.attributes.get("max")
    return node.operator.name == "relu6" or (
        node.operator.name == "clamp" and least == 0 and isinstance(most, int | float) and most > 0
    )


def _clip_each_channel(graph: Graph, node: Node, dim: int) -> None:
    """`min(relu(x), c)` with a number c for each channel, of which all are the old one yet."""
    value, data = node.output, node.inputs[0]
    assert data is not None
    most = 6.0 if node.operator.name == "relu6" else node.attributes["max"]
    assert isinstance(most, int | float)
    shape = [data.shape[dim] if k == dim else 1 for k in range(data.rank)]
    name = f"{node.path}.clip" if node.path else f"{value.name}_clip"
    numbers = torch.full([size for size in shape if isinstance(size, int)], most, dtype=value.dtype)
    clip = graph.add_parameter(free_name(graph, name), numbers, "buffer")
    title = value.name
    graph.rename_result(value, f"{title}_old")
    positive = graph.add("relu", [data], path=node.path, name=f"{title}_positive", before=node)
    clipped = graph.add("minimum", [positive.output, clip], path=node.path, name=title, before=node)
    graph.replace_uses(value, clipped.output)
    graph.remove(node)
