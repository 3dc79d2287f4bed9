"""Which rewrites pay on given edges: the cost model tries them, and what it decides is data that can be printed, kept and replayed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph
from suture.passes.relational.compaction import compact_values, lift_candidates, lift_values, pair_candidates
from suture.passes.relational.costs import CPU, Rates, estimate, known_sizes
from suture.passes.relational.parting import part_sum, parts_wanted
from suture.passes.relational.reordering import REORDERINGS, reorder_value, reorderings
from suture.passes.relational.repeats import merge_repeats
from suture.passes.relational.statistics import Statistics

_CHOSEN = tuple(kind for kind in REORDERINGS if kind != "split")
_WORTH = 0.99  # a rewrite is taken where it leaves at most so much of the cost


@dataclass(frozen=True)
class Step:
    """One rewrite: its kind, and the values that it is about, by name."""

    kind: str
    at: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' and '.join(self.at)}"


@dataclass(frozen=True)
class Decisions:
    """The rewrites of a graph, in order. Equal decisions make equal graphs of one graph, whatever they were predicted to save.

    :param before: the cost predicted without them, in microseconds
    :param after: the cost predicted after each
    """

    steps: tuple[Step, ...] = ()
    before: float = field(default=0.0, compare=False)
    after: tuple[float, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        if not self.steps:
            return f"as written: predicted {self.before:,.0f} us"
        lines = [f"as written: predicted {self.before:,.0f} us"]
        lines += [f"{step}: {cost:,.0f} us" for step, cost in zip(self.steps, self.after, strict=True)]
        return "\n".join(lines)


def decide(
    graph: Graph,
    statistics: Statistics,
    *,
    compact: bool = True,
    reorder: bool = True,
    train: bool = False,
    sparing: bool = False,
    rates: Rates = CPU,
) -> Decisions:
    """Choose the rewrites that make a graph cheapest on edges like these.

    Linear operators are put in order first, each order judged by what it costs with compaction; then values move to pairs and nodes where that pays.

    :param compact: whether values may be computed on unique pairs and on nodes instead of edges
    :param reorder: whether linear operators may change places
    :param train: whether the way back counts too
    :param sparing: whether, without a way back, rows for pairs of all relations are made for some relations at a time, where they are more than the
        result
    """
    search = _Search(statistics, rates, compact, train)
    start = _State(prepared(graph))
    state = search.reordered(start) if reorder else start
    state = search.compacted(state) if compact else state
    state = search.parted(state) if sparing and not train and rates == CPU else state
    return Decisions(state.steps, search.cost(start.graph), state.costs)


@dataclass(frozen=True, eq=False)
class _State:
    """A graph on the way, the rewrites that led there, and what the graph cost after each."""

    graph: Graph
    steps: tuple[Step, ...] = ()
    costs: tuple[float, ...] = ()

    def after(self, step: Step, cost: float | None = None) -> _State:
        graph = _perform(self.graph.copy(), step)
        return _State(graph, (*self.steps, step), self.costs if cost is None else (*self.costs, cost))


@dataclass(frozen=True)
class _Search:
    """A search for rewrites that pay, for one set of edges."""

    statistics: Statistics
    rates: Rates
    compact: bool
    train: bool

    def cost(self, graph: Graph) -> float:
        """What a graph costs as it stands."""
        if self.train:
            from suture.passes.gradient import gradient

            graph = gradient(graph, check=False)
        return estimate(graph, self.statistics, self.rates).total

    def reordered(self, state: _State) -> _State:
        """Every joined product split; then one rewrite after the other, the best first, or the best two where no single one pays."""
        while splits := _reorderings(state.graph, ("split",)):
            state = self._done(state, splits[0])
        cost = self._compacted_cost(state.graph)
        while True:
            singles = [state.after(step) for step in _reorderings(state.graph, _CHOSEN)]
            found = self._best(singles, cost) or self._best(_followed(singles), cost)
            if found is None:
                return state
            cost = found[0]
            for step in found[1].steps[len(state.steps) :]:
                state = self._done(state, step)

    def compacted(self, state: _State) -> _State:
        """One value after the other moved to nodes or pairs, as long as that pays."""
        cost = self.cost(state.graph)
        while True:
            priced = [
                (self.cost(each.graph), k, each) for k, each in enumerate(map(state.after, _compactions(state.graph)))
            ]
            if not priced or min(priced)[0] > cost * _WORTH:
                return state
            cost, _, best = min(priced)
            state = state.after(best.steps[-1], cost)

    def parted(self, state: _State) -> _State:
        """The last sum in parts, where rows for pairs would take more memory than the result."""
        graph = state.graph.copy()
        graph.hints.update(known_sizes(graph, self.statistics))
        parts = parts_wanted(graph)
        return state.after(Step("part", (str(parts),)), self.cost(state.graph)) if parts > 1 else state

    def _best(self, states: Iterable[_State], cost: float) -> tuple[float, _State] | None:
        """The cheapest of some states, if it is cheaper than a cost."""
        priced = [(self._compacted_cost(each.graph), k, each) for k, each in enumerate(states)]
        if not priced or min(priced)[0] > cost * _WORTH:
            return None
        found, _, best = min(priced)
        return found, best

    def _compacted_cost(self, graph: Graph) -> float:
        """What a graph costs when all that can be is on nodes and pairs."""
        if self.compact:
            graph = graph.copy()
            for step in _compactions(graph):
                _perform(graph, step)
        return self.cost(graph)

    def _done(self, state: _State, step: Step) -> _State:
        after = state.after(step)
        return _State(after.graph, after.steps, (*state.costs, self.cost(after.graph)))


def _followed(states: Iterable[_State]) -> Iterator[_State]:
    """Every state with one more reordering."""
    for state in states:
        yield from (state.after(step) for step in _reorderings(state.graph, _CHOSEN))


def apply(graph: Graph, decisions: Decisions) -> Graph:
    """The graph with decided rewrites.

    :raises SutureError: RELATION, if they were decided for another graph
    """
    result = prepared(graph)
    for step in decisions.steps:
        result = _perform(result, step)
    return result


def prepared(graph: Graph) -> Graph:
    """A copy in which every value has one place, as rewrites expect it."""
    result = graph.copy()
    merge_repeats(result)
    result.remove_dead()
    return result


def _reorderings(graph: Graph, kinds: tuple[str, ...]) -> list[Step]:
    return [Step(kind, (name,)) for kind, name in reorderings(graph, kinds)]


def _compactions(graph: Graph) -> list[Step]:
    lifts = [Step("lift", (index,)) for index in lift_candidates(graph)]
    return lifts + [Step("compact", pair) for pair in pair_candidates(graph)]


def _perform(graph: Graph, step: Step) -> Graph:
    """Do one rewrite in place.

    :raises SutureError: RELATION, if there is nothing to do there
    """
    match step:
        case Step("lift", (index,)):
            done = bool(lift_values(graph, index))
        case Step("compact", (major, minor)):
            done = bool(compact_values(graph, major, minor))
        case Step("part", (parts,)):
            done = part_sum(graph, int(parts))
        case Step(kind, (name,)) if kind in REORDERINGS:
            done = bool(reorder_value(graph, kind, name))
        case _:
            done = False
    if not done:
        raise SutureError(
            Code.RELATION, f"there is nothing to {step}", where=graph.name, remedy="decide for this graph"
        )
    return graph
