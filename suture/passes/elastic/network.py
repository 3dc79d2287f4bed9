"""An elastic network: one set of weights that holds a family of nested sub-networks.

After Valipour et al., "SortedNet" (arXiv 2309.00255), and Yu et al., "Slimmable Neural Networks" (ICLR 2019): a sub-network is a prefix of every
dimension that varies, so that each is nested in every larger one and none has to be searched for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from suture.ir.algebra import Atom
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.passes.axis_walk import uses_of
from suture.passes.counter import counter_integers
from suture.passes.elastic.dimensions import (
    Amount,
    Choice,
    Depth,
    ElasticDepth,
    ElasticWidth,
    Width,
    complete,
    resolve_depth,
    resolve_width,
)
from suture.passes.elastic.extraction import StackPlaces, keep_outputs, kept_sizes, reduce_graph, slices
from suture.passes.exactness import constant_values, judge


@dataclass(frozen=True)
class Cost:
    """What a sub-network costs: multiply-accumulates per sample, as `Graph.stats` counts them, and trained elements."""

    macs: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.macs:,} MACs, {self.parameters:,} parameters"


class Family:
    """A graph, and the dimensions along which sub-networks of it may be smaller.

    :param dimensions: widths and depths
    :param rescale: whether weights that sum over a narrowed axis are multiplied by its width over what is left of it, so that their results stay
        of about the same size, as POA (arXiv 2408.01031) does with its projections
    :raises SutureError: ELASTIC, if a dimension does not fit the graph, or two share an axis or a name; SITE, if nothing is found where one is to be
    """

    def __init__(self, graph: Graph, dimensions: Iterable[Width | Depth], *, rescale: bool = False) -> None:
        self.graph = graph
        self.rescale = rescale
        self.table = graph.axes()
        given = list(dimensions)
        self.widths = [w for d in given if isinstance(d, Width) for w in resolve_width(self.table, d)]
        self.depths = [resolve_depth(graph, d) for d in given if isinstance(d, Depth)]
        self.places = [StackPlaces(depth.stack) for depth in self.depths]
        self._require_apart()

    @property
    def dimensions(self) -> tuple[ElasticWidth | ElasticDepth, ...]:
        """All dimensions: the widths, then the depths."""
        return *self.widths, *self.depths

    @property
    def full(self) -> Choice:
        """The whole network."""
        return complete(self.dimensions, {})

    @property
    def smallest(self) -> Choice:
        """The sub-network that is nested in all others."""
        return complete(self.dimensions, {d.name: d.amounts[0] for d in self.dimensions})

    def choice(self, amounts: Choice | Mapping[str, Amount]) -> Choice:
        """The sub-network that keeps these amounts, and all of the dimensions that are not named.

        :raises SutureError: ELASTIC, if a dimension or an amount does not exist
        """
        return complete(self.dimensions, dict(amounts.amounts) if isinstance(amounts, Choice) else amounts)

    def choices(self) -> Iterator[Choice]:
        """All sub-networks, from the smallest to the whole; there are `len(self)`."""
        names = [d.name for d in self.dimensions]
        for amounts in itertools.product(*(d.amounts for d in self.dimensions)):
            yield Choice(tuple(zip(names, amounts, strict=True)))

    def __len__(self) -> int:
        count = 1
        for dimension in self.dimensions:
            count *= len(dimension.amounts)
        return count

    def extract(self, choice: Choice, outputs: Sequence[str] = ()) -> Graph:
        """A sub-network as an ordinary graph, of the tensors that it needs; the whole network has the graph's own tensors.

        :param outputs: the outputs that it returns, by name; all if none is given
        :raises SutureError: ELASTIC, if the choice or an output does not exist
        """
        self.require_outputs(outputs)
        result = self._reduced(choice, empty=False)
        if outputs:
            keep_outputs(result, outputs)
        return result

    def shapes(self, choice: Choice) -> Graph:
        """A sub-network without weights, its tensors named as in the whole network."""
        return self._reduced(choice, empty=True)

    def slices(self, choice: Choice) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """By name, how the tensors that a sub-network has smaller are made of the whole network's: views, wherever a prefix is one."""
        known = self.choice(choice)
        return slices(self.table, kept_sizes(self.widths, known), self._factors(known))

    def cost(self, choice: Choice) -> Cost:
        """What a sub-network costs; nothing is run, and no weight is read."""
        if choice not in self._costs:
            stats = self.shapes(choice).stats()
            self._costs[choice] = Cost(stats.macs, stats.parameters)
        return self._costs[choice]

    def best(
        self,
        budget: int,
        score: Callable[[Choice], float] | None = None,
        *,
        count: str = "macs",
        among: Iterable[Choice] | None = None,
    ) -> Choice:
        """The sub-network of the highest score that costs no more than a budget.

        :param score: how good a sub-network is; that of the highest cost wins if absent
        :param count: what the budget counts: macs, or parameters
        :param among: the candidates; all if absent
        :raises SutureError: ELASTIC, if none is small enough; OPTION, if costs are not counted so
        """
        if count not in ("macs", "parameters"):
            raise SutureError(Code.OPTION, f"a budget of {count}", remedy="macs or parameters would be right")
        candidates = list(self.choices() if among is None else among)
        costs = {choice: getattr(self.cost(choice), count) for choice in candidates}
        fitting = [choice for choice in candidates if costs[choice] <= budget]
        if not fitting:
            least = min(costs.values(), default=0)
            raise SutureError(
                Code.ELASTIC, f"no sub-network costs {budget:,} {count} or less", remedy=f"the smallest takes {least:,}"
            )
        return max(fitting, key=lambda choice: (score(choice) if score else 0.0, costs[choice]))

    def sampler(self, seed: int = 0) -> Iterator[Choice]:
        """Sub-networks without end, each dimension uniform over its amounts. The n-th is a function of the seed, n and the dimensions' names."""
        for step in itertools.count():
            amounts = {
                d.name: d.amounts[int(counter_integers(seed, d.name, 1, len(d.amounts), start=step))]
                for d in self.dimensions
            }
            yield complete(self.dimensions, amounts)

    def sandwich(self, seed: int = 0, between: int = 2) -> Iterator[list[Choice]]:
        """What to train in each step by the sandwich rule: the whole network, the smallest, and some between.

        Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques" (arXiv 1903.05134).
        """
        drawn = self.sampler(seed)
        while True:
            yield [self.full, self.smallest, *itertools.islice(drawn, between)]

    def verdicts(self) -> dict[str, str]:
        """For every axis, what a cut does to the function if the weights that write what goes are zero, and the operator to blame if it is not kept.

        An elastic network is trained as it is cut, without corrections: where a norm or a mean sees the width, it sees what is left.
        """
        weights = constant_values(self.table)
        infos = [self.table.infos[atom] for width in self.widths for atom in width.atoms]
        return {info.name: str(judge(self.table, info, weights)) for info in infos}

    def __str__(self) -> str:
        rows = [f"{d.name}: {', '.join(f'{a:g}' for a in d.amounts)}" for d in self.dimensions]
        return "\n".join([*rows, f"{len(self):,} sub-networks, {self.cost(self.smallest)} to {self.cost(self.full)}"])

    @cached_property
    def _costs(self) -> dict[Choice, Cost]:
        return {}

    def _reduced(self, choice: Choice, *, empty: bool) -> Graph:
        known = self.choice(choice)
        depths = list(zip(self.depths, self.places, strict=True))
        factors = {} if empty else self._factors(known)
        return reduce_graph(self.graph, self.table, kept_sizes(self.widths, known), factors, depths, known, empty=empty)

    def _factors(self, choice: Choice) -> dict[str, float]:
        """By name, what weights are multiplied by."""
        factors: dict[str, float] = {}
        for atom, size in kept_sizes(self.widths, choice).items() if self.rescale else ():
            assert isinstance(atom.size, int)
            for name in self._readers[atom]:
                factors[name] = factors.get(name, 1.0) * atom.size / size
        return factors

    @cached_property
    def _readers(self) -> dict[Atom, list[str]]:
        """The weights that sum over an axis; not those that write it too."""
        constant = constant_values(self.table)
        found = {}
        for width in self.widths:
            for atom in width.atoms:
                uses = uses_of(self.table, self.table.infos[atom], constant)
                written = {place.value for place in uses.writes}
                found[atom] = sorted({p.value.name for p in uses.reads if p.value not in written})
        return found

    def require_outputs(self, names: Sequence[str]) -> None:
        """:raises SutureError: ELASTIC, if an output does not exist"""
        for name in names:
            if name not in self.graph.output_names:
                remedy = nearest(name, self.graph.output_names, what="output")
                raise SutureError(Code.ELASTIC, f"there is no output {name!r}", where=self.graph.name, remedy=remedy)

    def _require_apart(self) -> None:
        """Dimensions have names of their own, and no axis is in two of them."""
        names = [d.name for d in self.dimensions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SutureError(Code.ELASTIC, f"two dimensions are called {twice!r}", remedy="name them apart")
        owners: dict[Atom, str] = {}
        for width in self.widths:
            for atom in width.atoms:
                if atom in owners:
                    what = f"{self.table.infos[atom].name} varies with {owners[atom]} and with {width.name}"
                    raise SutureError(Code.ELASTIC, what, remedy="let each axis be in one dimension")
                owners[atom] = width.name
