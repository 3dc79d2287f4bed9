"""A relational graph as a function: what is decided, inspected and compiled at the first call with given edges, later calls only look up."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Hashable, Sequence

import torch

from suture.backends.compiled_inputs import check_tensor
from suture.backends.counting import count_ends
from suture.drivers.relational.calling import Prepared, prepare
from suture.drivers.relational.checking import Bounds, check_indices
from suture.drivers.relational.hubs import piece_length
from suture.drivers.relational.incidence import Incidence
from suture.drivers.relational.inspecting import inspect_edges
from suture.drivers.relational.masks import mask_dropout
from suture.drivers.relational.variants import Target, Variant, find_variant
from suture.ir.graph import Graph
from suture.ir.semantics import bind_symbols, check_input
from suture.passes.relational.choosing import Decisions, decide
from suture.passes.relational.costs import RATES
from suture.passes.relational.locality import is_index
from suture.passes.relational.statistics import Statistics, measure, questions

_NUMBERS = itertools.count()
_PREPARED = 64  # for how many sizes of the other inputs one set of edges is kept prepared


class RelationalProgram:
    """A graph of message passing, compiled as its edges ask for.

    :param graph: inputs and parameters -> outputs, in relational operators
    :param training: the values whose operators do what they do in training (dropout drops), by name
    :param parameters: the names of the parameters that each call brings; the others are constants
    """

    def __init__(
        self,
        graph: Graph,
        *,
        compact: bool = True,
        reorder: bool = True,
        target: Target = "cpp",
        training: Sequence[str] = (),
        parameters: Sequence[str] | None = None,
    ) -> None:
        self.graph, self.compact, self.reorder, self.target = graph, compact, reorder, target
        self.drawn, self.masks = mask_dropout(graph, training)
        names = list(graph.parameters) if parameters is None else parameters
        self.parameters = tuple(name for name in names if name in graph.parameters)
        self.names = (*(value.name for value in graph.inputs), *self.parameters)
        self.indices = tuple(k for k, value in enumerate(graph.inputs) if is_index(value))
        self._questions, self._bounds = questions(graph), Bounds(graph)
        self._number = next(_NUMBERS)
        self._lock = threading.RLock()
        self._decisions: dict[Hashable, Decisions] = {}
        self._variants: dict[Hashable, Variant] = {}

    def run(self, incidence: Incidence, given: Sequence[torch.Tensor], *, gradients: bool) -> list[torch.Tensor]:
        """The graph's outputs.

        :param incidence: what is known of the edges
        :param given: the inputs in order, then the parameters of each call
        :param gradients: whether gradients are recorded, for what requires them
        :raises SutureError: INPUT, if something does not fit; GRADIENT, COMPILER, DEVICE or WRITE, if it cannot be compiled
        """
        wanted = tuple([k for k, each in enumerate(given) if each.requires_grad]) if gradients else ()
        signature = tuple([(each.shape, each.dtype, each.device) for each in given])
        key = (self._number, wanted, signature)
        prepared: Prepared | None = incidence.prepared.get(key)
        if prepared is None:
            prepared = self._prepare(incidence, given, wanted, key)
        return prepared.call(given)

    def _prepare(
        self, incidence: Incidence, given: Sequence[torch.Tensor], wanted: Sequence[int], key: Hashable
    ) -> Prepared:
        with self._lock, incidence.lock, torch.no_grad():
            known: Prepared | None = incidence.prepared.get(key)
            if known is not None:
                return known
            made = self._settled(incidence, given, [self.names[k] for k in wanted])
            while len(incidence.prepared) >= _PREPARED:
                del incidence.prepared[next(iter(incidence.prepared))]
            incidence.prepared[key] = made
            return made

    def _settled(self, incidence: Incidence, given: Sequence[torch.Tensor], wanted: Sequence[str]) -> Prepared:
        graph, count = self.graph, len(self.graph.inputs)
        values = (*graph.inputs, *(graph.parameters[name] for name in self.parameters))
        for value, tensor in zip(values, given, strict=True):
            check_input(value.name, value.type, tensor)
        symbols = bind_symbols(graph, given[:count])
        indices = {graph.inputs[k].name: given[k] for k in self.indices}
        check_indices(graph, indices, symbols, self._bounds)
        named = dict(zip(self.names, given[:count], strict=False))
        statistics = rounded(measure(graph, named, self._questions, count_ends))
        decisions = self._decide(statistics, bool(wanted))
        split = piece_length(indices, self._questions.typing, self.target)
        variant = self._variants.get((decisions, split, *wanted))
        if variant is None:
            variant = self._variants[decisions, split, *wanted] = find_variant(
                self.drawn, self.masks, decisions, wanted, target=self.target, statistics=statistics, split=split
            )
        for value, tensor in zip(values, given, strict=True):
            check_tensor(value, tensor, variant.place, graph.name)
        sizes = dict(symbols)
        found = inspect_edges(variant.inspector, incidence, indices, sizes)
        inspected = dict(zip(variant.inspector.output_names, found, strict=True))
        return prepare(variant, symbols, inspected, self.names[:count], self.parameters)

    def _decide(self, statistics: Statistics, train: bool) -> Decisions:
        key = (*[tuple(each.items()) for each in (statistics.sizes, statistics.distinct, statistics.parted)], train)
        if key not in self._decisions:
            self._decisions[key] = decide(
                self.drawn,
                statistics,
                compact=self.compact,
                reorder=self.reorder,
                train=train,
                sparing=True,
                rates=RATES[self.target],
            )
        return self._decisions[key]


def rounded(statistics: Statistics) -> Statistics:
    """Statistics as far as they decide: graphs that are much alike are computed alike, and few kinds of them are decided for.

    The most rows are rounded to a power of two. Of these, other sizes are shares to within a tenth, and counts are eighths.
    """
    most = max(statistics.sizes.values(), default=0)
    if not most:
        return statistics
    scale = 1 << round(math.log2(most))

    def eighths(count: int) -> int:
        return max(1, round(8 * count / most) * scale // 8) if count else 0

    sizes = {name: _nearly(size / most, scale) for name, size in statistics.sizes.items()}
    distinct = {pair: eighths(count) for pair, count in statistics.distinct.items()}
    parted: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for (type, a, b), counts in statistics.parted.items():
        turned = parted.get((type, b, a))  # the same, but for types of as many ends on either side
        pairs, into, behind = counts if turned is None else (turned[0], turned[2], turned[1])
        if turned is None:  # of what meets on both sides, each edge is on one, and each pair on the other
            total = eighths(into + behind - pairs) + eighths(pairs)
            pairs, into = eighths(pairs), eighths(into)
            behind = total - into
        parted[type, a, b] = pairs, into, behind
    return Statistics(sizes, distinct, statistics.rows, parted)


def _nearly(share: float, scale: int) -> int:
    return round(scale * 2 ** (round(4 * math.log2(share)) / 4)) if share else 0
