"""What the edges of a graph are like, as far as it decides how to compute on them: sizes, rows for each type, unique pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Node, Value
from suture.ir.operators.sides import different_ends
from suture.ir.semantics import arrange_inputs, bind_symbols
from suture.ir.sizes import Dim, Size, evaluate_size, symbols_of
from suture.passes.relational.locality import is_index, row_keys, typing_keys
from suture.passes.relational.sides import parted_by

Names: TypeAlias = frozenset[str]

_TABLE = 1 << 27  # up to so many possible pairs are counted in a table; beyond, by sorting
_ASSUMED_SIZE = 1024
_ASSUMED_SHARE = 0.5  # of pairs among edges, where nothing was measured


@dataclass(frozen=True)
class Statistics:
    """Sizes and counts of one set of edges.

    :param sizes: the numbers of symbolic sizes
    :param distinct: how many different pairs two index inputs have, by their names
    :param rows: how many rows each value of an index input has that chooses among weights
    :param parted: for a type and two ends, when each type is taken at the end of which it has fewer: how many pairs there are, and how many rows
        meet in pairs and behind them
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    distinct: Mapping[Names, int] = field(default_factory=dict)
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parted: Mapping[tuple[str, str, str], tuple[int, int, int]] = field(default_factory=dict)

    def pairs(self, *names: str) -> int | None:
        """The number of unique pairs of two indices, if it was counted."""
        return self.distinct.get(frozenset(names))

    def measured(self, node: Node) -> int | None:
        """How many rows a node makes whose results' sizes only data decide, if that was counted."""
        parted = parted_by(node)
        if parted is None:
            return self.pairs(*(value.name for value in node.inputs if value is not None))
        type, a, b = (value.name for value in parted)
        counts = self.parted.get((type, a, b))
        if counts is None:
            return None
        pairs, into, behind = counts
        return pairs if node.operator.name == "unique_rows" else behind if node.attributes["together"] else into

    def __str__(self) -> str:
        lines = [", ".join(f"{name}={size:,}" for name, size in self.sizes.items())]
        lines += [f"unique pairs of {' and '.join(sorted(names))}: {count:,}" for names, count in self.distinct.items()]
        for name, counts in self.rows.items():
            used = sorted(count for count in counts if count)
            spread = f", {used[0]:,} to {used[-1]:,} rows, median {used[len(used) // 2]:,}" if used else ""
            lines.append(f"{name}: {len(used):,} of {len(counts):,} values occur{spread}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Questions:
    """What is asked of the edges of a graph, read off it once.

    :param indices: the index inputs, by name, with their shapes
    :param typing: those that choose among weights
    :param pairs: the pairs of indices of which it is asked how many different ones there are
    """

    indices: Mapping[str, tuple[Dim, ...]]
    typing: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def questions(graph: Graph) -> Questions:
    """What `measure` asks of the edges of a graph."""
    indices = {value.name: value.shape for value in graph.inputs if is_index(value)}
    keys = row_keys(graph)
    typing = [value.name for value in typing_keys(graph, keys) if value.name in indices]
    wanted = {frozenset({a, b}): (a, b) for a in typing for b in indices if a != b and indices[a] == indices[b]}
    for own in keys.values():
        names = tuple(value.name for value in graph.inputs if own is not None and value in own)
        if len(names) == 2 and set(names) <= indices.keys() and not set(typing).isdisjoint(names):
            wanted.setdefault(frozenset(names), names)
    return Questions(indices, tuple(typing), tuple(wanted.values()))


def measure(
    graph: Graph,
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    asked: Questions | None = None,
    count: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] = different_ends,
) -> Statistics:
    """Measure the edges that a graph is to run on.

    :param inputs: a tensor for every input, by name or in order; or by name those of the index inputs alone, where sizes are then theirs
    :param asked: its `questions`, where these are known
    :param count: what computes `different_ends`
    :raises SutureError: INPUT, if an input does not fit
    """
    given = _by_name(graph, inputs)
    asked = questions(graph) if asked is None else asked
    typing = [name for name in asked.typing if name in given]
    rows = {name: _rows(given[name]) for name in typing}
    different = {
        (type, end): count(given[type], given[end], len(rows[type]))
        for type in typing
        for end, shape in asked.indices.items()
        if end != type and end in given and shape == asked.indices[type]
    }
    distinct: dict[Names, int] = {}
    for a, b in asked.pairs:
        if a in given and b in given:
            counted = different.get((a, b))
            distinct[frozenset({a, b})] = count_pairs(given[a], given[b]) if counted is None else int(counted.sum())
    parted: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for type in typing:
        counts = torch.tensor(rows[type])
        ends = [end for kind, end in different if kind == type and end not in typing and rows[type]]
        for a, b in itertools.permutations(ends, 2):
            parted[type, a, b] = _part(counts, different[type, a], different[type, b])
    return Statistics(_sizes(graph, given), distinct, rows, parted)


def assume(graph: Graph) -> Statistics:
    """Statistics for a graph whose edges are not known: sizes as they were seen when it was traced, half as many pairs as edges."""
    sizes = {name: graph.hints.get(name, _ASSUMED_SIZE) for name in graph.symbols()}
    indices = [value for value in graph.inputs if is_index(value)]
    distinct = {
        frozenset({a.name, b.name}): round(evaluate_size(a.shape[0], sizes) * _ASSUMED_SHARE)
        for a in indices
        for b in indices
        if a is not b and a.shape == b.shape
    }
    return Statistics(sizes, distinct)


def count_pairs(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many different pairs two lists of integers of one length form."""
    if not len(a):
        return 0
    low, other = a.to(torch.int64), b.to(torch.int64)
    span = int(low.max()) + 1
    keys, possible = other * span + low, span * (int(other.max()) + 1)
    if possible > _TABLE:
        return len(torch.unique(keys))
    seen = torch.zeros(possible, dtype=torch.bool, device=keys.device).index_fill_(0, keys, value=True)
    return int(torch.count_nonzero(seen))


def _part(rows: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[int, int, int]:
    """The pairs of each type and the end of which it has fewer, and the rows that meet in those of the first end and of the second."""
    turned = (b < a).to(rows.device)
    pairs = torch.minimum(a, b).to(rows.device)
    met = [torch.where(turned == side, pairs, rows) for side in (False, True)]
    return int(pairs.sum()), int(met[0].sum()), int(met[1].sum())


def _rows(index: torch.Tensor) -> tuple[int, ...]:
    return tuple(torch.bincount(index.to(torch.int64)).tolist()) if len(index) else ()


def _by_name(graph: Graph, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [value.name for value in graph.inputs]
    if not isinstance(inputs, Mapping):
        return dict(zip(names, arrange_inputs(graph, inputs), strict=True))
    for name in inputs:
        if name not in names:
            raise SutureError(
                Code.INPUT, f"{graph.name} has no input {name!r}", remedy=nearest(name, names, what="input")
            )
    return dict(inputs)


def _sizes(graph: Graph, given: Mapping[str, torch.Tensor]) -> dict[str, int]:
    if len(given) == len(graph.inputs):
        return bind_symbols(graph, [given[value.name] for value in graph.inputs])
    sizes = dict(graph.hints)
    for value in graph.inputs:
        if value.name in given:
            sizes.update(_plain_sizes(value, given[value.name]))
    return {name: sizes.get(name, _ASSUMED_SIZE) for name in graph.symbols()}


def _plain_sizes(value: Value, tensor: torch.Tensor) -> dict[str, int]:
    """The symbols that dimensions consist of alone."""
    pairs = zip(value.shape, tensor.shape, strict=True)
    return {symbols_of(dim)[0]: size for dim, size in pairs if isinstance(dim, Size) and symbols_of(dim) == (str(dim),)}
